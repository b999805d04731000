"""Accelerators by their data sheets, one row each in `devices.csv`."""

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

VENDOR_WORDS = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct", "gpu", "quadro", "ada"})
NUM_NEAREST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator as its data sheet describes it; peaks are dense, without sparsity.

    `Device.named("H100")` finds a row of the table, `Device.all()` lists it; `Devices` are the
    ten of CHRONOS by its names.

    Attributes:
        name: Model, form and memory where a model comes in several.
        fp32_flops: Per second, ordinary cores.
        fp16_flops: Per second, ordinary cores as public tables list them, which count the
            16-bit rate of matrix units on some (T4, A100, H100).
        tensor_flops: Per second, matrix units at 16 bits with sums in 32; equal to
            `fp16_flops` where there are none.
        memory_bytes_per_s: Peak bandwidth.
        memory_bytes: What it holds.
        num_cores: FP32 lanes.
        num_sms: Streaming multiprocessors or compute units.
        num_tensor_cores: Matrix units; 0 if it has none.
        boost_clock_hz: Highest clock.
        price_per_hour: Dollars, a list price taken as an assumption; override it.
        board_w: Power that the board may draw; 0 if not known.
        source: The data sheet.
        fp8_flops: Per second, matrix units at 8 bits; 0 without them.
    """

    name: str
    fp32_flops: float
    fp16_flops: float
    tensor_flops: float
    memory_bytes_per_s: float
    memory_bytes: int
    num_cores: int
    num_sms: int
    num_tensor_cores: int
    boost_clock_hz: float
    price_per_hour: float
    source: str
    fp8_flops: float = 0.0
    board_w: float = 0.0

    def peak_flops(self, precision_bits: int) -> float:
        """Return the highest rate for matrix products at 16 or 32 bits."""
        if precision_bits == 32:
            return self.fp32_flops
        return max(self.fp32_flops, self.fp16_flops, self.tensor_flops)

    @staticmethod
    @cache
    def all() -> "tuple[Device, ...]":
        """Return every row of `devices.csv`, in its order."""
        text = files("paceline.predict.work").joinpath("devices.csv").read_text(encoding="utf-8")
        return tuple(_read(row) for row in csv.DictReader(text.splitlines()))

    @staticmethod
    def named(name: str) -> "Device":
        """Find a row of `devices.csv` by a forgiving name.

        Case, vendor words, blanks and dashes do not matter, and parts may be left out. Where
        several rows fit, the first of the table is taken, so look at the `name` of what comes back.

        Args:
            name: Such as "H100", "NVIDIA A100 80GB PCIe", "rtx3090" or "Tesla V100-SXM2-16GB".

        Raises:
            ValueError: If no row fits; the message names the nearest ones.

        Examples:
            >>> Device.named("nvidia h100 sxm").name
            'H100 SXM5 80GB'
            >>> Device.named("H10")  # doctest: +ELLIPSIS
            Traceback (most recent call last):
                ...
            ValueError: unknown device 'H10'; did you mean H100 PCIe 80GB, A10, H100 NVL 94GB, ...
        """
        wanted = _tokens(name)
        if any(character.isdigit() for character in "".join(wanted)):
            for fits in (_is_same, _is_part, _is_prefix):
                for row in Device.all():
                    if fits(wanted, _tokens(row.name)):
                        return row
        raise ValueError(
            f"unknown device {name!r}; did you mean {', '.join(nearest_devices(name))}? "
            "'cpu' measures this machine; another device is one row of devices.csv or a Device"
        )


def nearest_devices(name: str) -> list[str]:
    """Return the names most like `name`, nearest first."""
    wanted = "".join(_tokens(name))
    keys: dict[str, str] = {}
    for row in Device.all():
        tokens = _tokens(row.name)
        for stop in range(1, len(tokens) + 1):
            keys.setdefault("".join(tokens[:stop]), row.name)
    found = get_close_matches(wanted, keys, n=3 * NUM_NEAREST, cutoff=0.0)
    return list(dict.fromkeys(keys[key] for key in found))[:NUM_NEAREST]


def _tokens(name: str) -> tuple[str, ...]:
    words = re.findall(r"[a-z0-9]+", name.lower())
    return tuple(word for word in words if word not in VENDOR_WORDS)


def _is_same(wanted: tuple[str, ...], have: tuple[str, ...]) -> bool:
    return set(wanted) == set(have) or "".join(wanted) == "".join(have)


def _is_part(wanted: tuple[str, ...], have: tuple[str, ...]) -> bool:
    return set(wanted) <= set(have)


def _is_prefix(wanted: tuple[str, ...], have: tuple[str, ...]) -> bool:
    """Return whether `have` goes on where `wanted` ends, but not in the middle of a number."""
    short, long = "".join(wanted), "".join(have)
    if not long.startswith(short) or len(long) == len(short):
        return False
    return not (short[-1].isdigit() and long[len(short)].isdigit())


def _read(row: dict[str, str]) -> Device:
    return Device(
        name=row["name"],
        fp32_flops=float(row["fp32_tflops"]) * 1e12,
        fp16_flops=float(row["fp16_tflops"]) * 1e12,
        tensor_flops=float(row["tensor_tflops"]) * 1e12,
        memory_bytes_per_s=float(row["memory_gb_per_s"]) * 1e9,
        memory_bytes=int(float(row["memory_gib"]) * 2**30),
        num_cores=int(row["num_cores"]),
        num_sms=int(row["num_sms"]),
        num_tensor_cores=int(row["num_tensor_cores"]),
        boost_clock_hz=float(row["boost_mhz"]) * 1e6,
        price_per_hour=float(row["price_per_hour"]),
        source=row["source"],
        board_w=float(row["board_w"]),
        fp8_flops=float(row["fp8_tflops"]) * 1e12,
    )
