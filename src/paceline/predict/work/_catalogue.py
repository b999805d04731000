"""The models, datasets, optimizers and GPUs of CHRONOS, by their names, as workloads.

`catalogue.csv` holds facts of architectures, one row per model and dataset: no measured
time. FLOPs and parameters of the convolutional models and of the mixers follow from their
papers and were checked against the public tables; the encoder-decoder Transformer has six
and six layers of width 512 and an assumed vocabulary of 30,000 tokens.
"""

import csv
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Any, cast

from paceline.predict.work._devices import Device
from paceline.predict.work._workload import Family, Workload


class Models(Enum):
    """Eleven models; the value is the name in the tables."""

    ResNet50 = "resnet50"
    VGG16 = "vgg16"
    MobileNetV2 = "mobilenetv2"
    DenseNet121 = "densenet121"
    Mixer = "mixer"
    Resmlp = "resmlp"
    Asmlp = "asmlp"
    ViT = "ViT"
    DeiTTiny = "DeiT-Tiny"
    DistilBERT = "DistilBERT"
    Transformer = "Transformer"


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Size of a dataset's training part, and its classes; 0 where it has none."""

    name: str
    num_examples: int
    num_classes: int


class Datasets(Enum):
    """Eight datasets, by the names in the tables."""

    Cifar10 = DatasetFacts("CIFAR10", 50_000, 10)
    Cifar100 = DatasetFacts("CIFAR100", 50_000, 100)
    TinyImageNet = DatasetFacts("TinyImageNet", 100_000, 200)
    STL10 = DatasetFacts("STL10", 5_000, 10)
    SST2 = DatasetFacts("SST2", 67_349, 2)
    IMDB = DatasetFacts("IMDB", 25_000, 2)
    CNNDM_SUM = DatasetFacts("CNNDM_SUM", 287_113, 0)
    WMT14_EN_DE = DatasetFacts("WMT14_EN_DE", 4_508_785, 0)


class Optimizers(Enum):
    """Five optimizers, by their class names in PyTorch."""

    SGD = "SGD"
    Adam = "Adam"
    AdamW = "AdamW"
    RMSProp = "RMSprop"
    Adafactor = "Adafactor"


class Devices(Enum):
    """Ten GPUs by the names of CHRONOS; the value is a name for `Device.named`."""

    H100 = "H100 PCIe 80GB"
    A100 = "A100 PCIe 80GB"
    L40S = "L40S"
    RTX5090 = "RTX 5090"
    A40 = "A40"
    L4 = "L4"
    V100 = "V100 SXM2 16GB"
    T4 = "T4"
    P100 = "P100 PCIe 16GB"
    P4 = "P4"

    @property
    def row(self) -> Device:
        """The row of `devices.csv`."""
        return Device.named(self.value)


def catalogue_workload(
    model: Models,
    dataset: Datasets,
    *,
    batch_size: int,
    precision: int = 32,
    optimizer: Optimizers | str = "SGD",
    dataset_size: int | None = None,
) -> Workload:
    """Return one training step of a model of the catalogue on one of its datasets.

    Raises:
        ValueError: If the model does not go with the dataset; the message names those that do.

    Examples:
        >>> work = catalogue_workload(Models.VGG16, Datasets.Cifar100, batch_size=32)
        >>> work.num_params, work.forward_flops_per_example, work.steps_per_epoch
        (134678692, 866287616.0, 1563)
    """
    facts = dataset.value
    row = _rows().get((model.value, facts.name))
    if row is None:
        fitting = ", ".join(name for kind, name in _rows() if kind == model.value)
        raise ValueError(f"{model.name} goes with {fitting}, not with {facts.name}")
    return Workload(
        name=model.value,
        dataset=facts.name,
        batch_size=batch_size,
        precision_bits=precision,
        optimizer=optimizer.value if isinstance(optimizer, Optimizers) else optimizer,
        dataset_size=facts.num_examples if dataset_size is None else dataset_size,
        num_classes=facts.num_classes,
        **_described(row, precision),
    )


def _described(row: dict[str, str], precision: int) -> dict[str, Any]:
    whole = (
        "depth", "num_params", "num_norm_layers", "num_activation_layers", "sum_conv_outputs",
        "max_conv_outputs", "width", "num_tokens", "num_heads", "num_kernels",
    )  # fmt: skip
    shares = ("conv_1x1_fraction", "conv_3x3_fraction", "depthwise_fraction")
    return {
        "family": cast(Family, row["family"]),
        "forward_flops_per_example": float(row["forward_flops"]),
        "activation_bytes_per_example": float(row["activation_values"]) * precision / 8,
        "grouped_fraction": float(row["depthwise_fraction"]),
        "example_bytes": float(row["example_bytes"]),
        **{name: int(row[name]) for name in whole},
        **{name: float(row[name]) for name in shares},
    }


@cache
def _rows() -> dict[tuple[str, str], dict[str, str]]:
    text = files("paceline.predict.work").joinpath("catalogue.csv").read_text(encoding="utf-8")
    return {(row["model"], row["dataset"]): row for row in csv.DictReader(text.splitlines())}
