"""The data sheet of the device at hand, or what a short measurement says about this CPU."""

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from paceline.predict.work import Device
from paceline.torch.predict._calibrate_cpu import this_machine

CLOCK_HZ = 2e9


def device_at(name: str) -> Device:
    """Return the row of a GPU, or what a short measurement says about this CPU.

    Raises:
        ValueError: If PyTorch has no such device, or its GPU is no row of `devices.csv`.
    """
    kind = name.partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        return Device.named(torch.cuda.get_device_name(name))
    if kind != "cpu":
        raise ValueError(f"device must be cpu, or cuda where PyTorch sees a GPU, got {name!r}")
    return _measured_cpu()


def _measured_cpu(side: int = 512, num_values: int = 1 << 23) -> Device:
    square, values = torch.randn(side, side), torch.randn(num_values)
    flops = 2 * side**3 / _best_s(lambda: square @ square)
    cores = os.cpu_count() or 1
    return Device(
        name=f"cpu {this_machine(torch.get_num_threads())['processor']}",
        fp32_flops=flops,
        fp16_flops=flops,
        tensor_flops=flops,
        memory_bytes_per_s=8 * num_values / _best_s(lambda: values + 1.0),
        memory_bytes=_memory_bytes(),
        num_cores=cores,
        num_sms=cores,
        num_tensor_cores=0,
        boost_clock_hz=CLOCK_HZ,
        price_per_hour=0.0,
        source="measured",
    )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _best_s(call: Callable[[], Any], num_calls: int = 5) -> float:
    seconds = []
    for _ in range(num_calls):
        begin = perf_counter()
        call()
        seconds.append(perf_counter() - begin)
    return min(seconds)
