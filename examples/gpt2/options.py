"""The flags of `train.py`, checked, and which of them fix the losses."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from model import SIZES, Size

PARALLEL = ("single", "ddp", "scheduled")
PRECISIONS = ("fp32", "bf16")
MAX_TIMEOUT_S = 86_400.0
RESUME = ("auto", "always", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One training run; see `flags` for the meaning of each."""

    data: Path
    out: Path
    resume: str
    size: str
    context: int
    parallel: str
    precision: str
    deferred: str | None
    documents: bool
    balanced: bool
    batch_size: int
    micro_batch: int
    steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    clip: float
    seed: int
    validate_every: int
    checkpoint_every: int
    log_every: int
    device: str
    peak_tflops: float | None
    timeout_s: float

    @property
    def shape(self) -> Size:
        """The model's shape."""
        return SIZES[self.size]

    def num_microbatches(self, num_ranks: int) -> int:
        """Return the micro-batches of each rank and step.

        Raises:
            ValueError: If the global batch cannot be divided so.
        """
        at_once = self.micro_batch * num_ranks
        if self.batch_size % at_once:
            below = self.batch_size - self.batch_size % at_once
            fitting = [str(size) for size in (below, below + at_once) if size]
            raise ValueError(
                f"--batch-size ({self.batch_size}) must be a multiple of --micro-batch times the "
                f"ranks ({self.micro_batch} x {num_ranks} = {at_once}); use {' or '.join(fitting)}"
            )
        return self.batch_size // at_once

    def fixed(self, data_digest: str) -> dict[str, Any]:
        """Return what must not change when a run is resumed: what the losses depend on."""
        names = (
            "size context precision documents balanced batch_size steps warmup_steps "
            "learning_rate weight_decay clip seed"
        )
        return {name: getattr(self, name) for name in names.split()} | {"data": data_digest}


def read_options(argv: Sequence[str] | None) -> Options:
    """Parse and check the command line; what depends on the size is filled in.

    Raises:
        ValueError: If a value is out of range or two contradict each other.
    """
    given = vars(_flags().parse_args(argv))
    size = given["size"]
    if size not in SIZES:
        raise ValueError(f"unknown --size {size!r}; use one of {', '.join(SIZES)}")
    for name, value in (
        ("context", SIZES[size].context),
        ("learning_rate", SIZES[size].learning_rate),
        ("warmup_steps", given["steps"] // 10),
        ("device", "cuda" if torch.cuda.is_available() else "cpu"),
    ):
        given[name] = value if given[name] is None else given[name]
    given["documents"] = given["documents"] or given["balanced"]
    options = Options(**given)
    _check(options)
    return options


def _check(options: Options) -> None:
    for name in ("context", "batch_size", "micro_batch", "steps", "log_every"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, got {getattr(options, name)}")
    for name in ("warmup_steps", "weight_decay", "clip", "seed", "validate_every"):
        if getattr(options, name) < 0:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must not be negative, got {getattr(options, name)}")
    if not options.learning_rate > 0:
        raise ValueError(f"--learning-rate must be positive, got {options.learning_rate}")
    if options.peak_tflops is not None and not options.peak_tflops > 0:
        raise ValueError(f"--peak-tflops must be positive, got {options.peak_tflops}")
    if not 0 < options.timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(
            f"--timeout-s must lie between 0 and {MAX_TIMEOUT_S:g}, got {options.timeout_s:g}"
        )
    if options.deferred and options.parallel == "ddp":
        raise ValueError(
            "--deferred-weight-gradients does not go with --parallel ddp, which must see "
            "autograd's own accumulation; use --parallel scheduled"
        )


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train GPT-2 on what prepare.py has made.")
    add = parser.add_argument
    add("--data", type=Path, default=Path("gpt2-data"), help="folder of shards (%(default)s)")
    add("--out", type=Path, default=Path("gpt2-run"), help="folder to write to (%(default)s)")
    add(
        "--resume",
        nargs="?",
        const="always",
        choices=RESUME,
        default="auto",
        help="auto: go on from the newest whole checkpoint in --out, if there is one (default); "
        "always: there must be one (also without a word); never: there must be none",
    )
    add("--size", default="1m", help=f"{', '.join(SIZES)} (%(default)s)")
    add("--context", type=int, help="tokens of a sequence at most; unset: that of the size")
    add("--parallel", choices=PARALLEL, default="single", help="(%(default)s)")
    add("--precision", choices=PRECISIONS, default="fp32", help="(%(default)s)")
    add(
        "--deferred-weight-gradients",
        dest="deferred",
        nargs="?",
        const="measured",
        choices=("measured", "all"),
        help="compute them on a lane of their own: where it is measured to pay, or all",
    )
    add("--documents", action="store_true", help="ragged documents, not packed sequences")
    add("--balanced", action="store_true", help="documents, shared out by what they cost")
    add("--batch-size", type=int, default=16, help="examples per step, all ranks (%(default)s)")
    add("--micro-batch", type=int, default=4, help="examples per rank at once (%(default)s)")
    add("--steps", type=int, default=200, help="of the whole run (%(default)s)")
    add("--warmup-steps", type=int, help="unset: a tenth of the steps")
    add("--learning-rate", type=float, help="peak; unset: that of the size")
    add("--weight-decay", type=float, default=0.1, help="(%(default)s)")
    add("--clip", type=float, default=1.0, help="largest gradient norm; 0: any (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--validate-every", type=int, default=100, help="steps; 0: at the end (%(default)s)")
    add("--checkpoint-every", type=int, default=100, help="steps; 0: at the end (%(default)s)")
    add("--log-every", type=int, default=10, help="steps (%(default)s)")
    add("--device", choices=("cpu", "cuda"), help="unset: cuda if there is one")
    add("--peak-tflops", type=float, help="of one device; unset: by its name, where known")
    add(
        "--timeout-s",
        type=float,
        default=300.0,
        help="how long ranks wait for one that does not answer, then all start again (%(default)s)",
    )
    return parser
