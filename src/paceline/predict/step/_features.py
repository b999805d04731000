"""Features of a step: what the work is, what the device is, how the two compare.

All of them follow from a traced model and a row of the device table. None
follows from a measured time, and none from a name.
"""

import numpy as np

from paceline.predict.step._rates import conv_rate_32, rate_16
from paceline.predict.step._rows import FloatArray, StepRows


def feature_matrix(rows: StepRows) -> tuple[FloatArray, FloatArray]:
    """Features of the work and its fit to the device, and of the device alone, one row per step.

    They come apart because a handful of devices cannot identify all columns of the second, see
    `DeviceModel`.
    """
    rows = rows.without_times()
    device = [
        np.log(rows["memory_bytes_per_s"]),
        np.log(np.maximum(rows["fp16_flops"], rows["fp32_flops"])), np.log(rows["fp32_flops"]),
        np.log(rate_16(rows)),
        np.log(np.maximum(rows["num_cores"], 1.0)),
        rows["num_sms"], rows["boost_clock_hz"], rows["num_tensor_cores"],
    ]  # fmt: skip
    return np.column_stack(_work(rows)), np.column_stack(device)


def _work(rows: StepRows) -> list[FloatArray]:
    batch, flops = rows["batch_size"], rows["train_flops_per_example"]
    active = np.maximum(rows["activation_bytes_per_example"], 1.0)
    params = np.maximum(rows["num_params"], 1.0)
    half = rows["precision_bits"] == 16
    rate = np.where(half, rate_16(rows), conv_rate_32(rows))
    bandwidth = rows["memory_bytes_per_s"]
    return [
        np.log(flops), np.log(params), np.log(active),
        rows["depth"], np.log(rows["num_kernels"]),
        rows["num_norm_layers"], rows["num_activation_layers"],
        np.log(batch), np.log(flops * batch), np.log(active * batch), np.log(flops / active),
        half.astype(np.float64),
        (rows["optimizer"] != "SGD").astype(np.float64),
        (rows["optimizer"] == "Adafactor").astype(np.float64),
        rows["conv_fraction"], rows["depthwise_fraction"],
        rows["conv_3x3_fraction"], rows["conv_1x1_fraction"],
        np.log(flops * batch / rate), np.log(active * batch / bandwidth),
        np.log(params / bandwidth),
    ]  # fmt: skip
