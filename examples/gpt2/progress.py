"""Say how a run goes: one line for people, one file for programs."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from data import Step
from options import Options
from parallel import World


class Progress:
    """Collects the losses of all ranks and shows them every few steps.

    Every line of `metrics.jsonl` is one step, or one validation. Losses stay on the device and
    are added up over the ranks when they are shown, so that no step waits for it.

    Args:
        options: Of the run.
        world: All ranks must show at the same steps.
        first_step: Where this part of the run begins; what the file says of later steps is cut.
        peak_flops: Of one device; None if unknown.
    """

    def __init__(
        self, options: Options, world: World, first_step: int, peak_flops: float | None
    ) -> None:
        self._options, self._world, self._peak_flops = options, world, peak_flops
        self._path = options.out / "metrics.jsonl"
        self._left = _remaining_time(options.steps - first_step)
        self._rows: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._flops, self._spent_s = 0.0, 0.0
        self._last_s = time.perf_counter()
        if world.rank == 0:
            _cut(self._path, first_step)

    def note(self, number: int, step: Step, loss: torch.Tensor, rate: float, flops: float) -> None:
        """Take in a step: its number from 1, and this rank's part of its summed loss."""
        now_s = time.perf_counter()
        step_s, self._last_s = now_s - self._last_s, now_s
        self._spent_s += step_s
        self._flops += flops
        self._losses.append(loss)
        self._rows.append({"step": number, "learning_rate": rate, "num_tokens": step.num_tokens})
        if self._left is not None:
            self._left.update(step_s)
        if number % self._options.log_every == 0 or number == self._options.steps:
            self.show()

    def show(self) -> None:
        """Add the losses up over the ranks; print a line and write what is new."""
        if not self._rows:
            return
        sums = self._world.sum(torch.stack(self._losses)).tolist()
        for row, total in zip(self._rows, sums, strict=True):
            row["loss"] = total / row["num_tokens"]
        if self._world.rank == 0:
            print(self._line(), flush=True)
            self._write(self._rows)
        self._rows, self._losses, self._flops, self._spent_s = [], [], 0.0, 0.0

    def note_validation(self, number: int, loss: float) -> None:
        """Take in the validation loss after step `number`."""
        if self._world.rank == 0:
            print(f"step {number}: validation loss {loss:.4f}", flush=True)
            self._write([{"step": number, "validation_loss": loss}])

    def say(self, text: str) -> None:
        """Print on the first rank."""
        if self._world.rank == 0:
            print(text, flush=True)

    def pause(self) -> None:
        """Leave out the time since the last step."""
        self._last_s = time.perf_counter()

    def _line(self) -> str:
        row = self._rows[-1]
        rate = sum(row["num_tokens"] for row in self._rows) / self._spent_s
        return (
            f"step {row['step']}/{self._options.steps}  loss {row['loss']:.4f}  "
            f"lr {row['learning_rate']:.2e}  {rate:,.0f} tokens/s  {self._utilisation()}  "
            f"{self._eta()}"
        )

    def _utilisation(self) -> str:
        if self._peak_flops is None:
            return "MFU unknown"
        share = self._flops / self._spent_s / (self._peak_flops * self._world.num_ranks)
        return f"MFU {share:.1%}"

    def _eta(self) -> str:
        if self._left is None:
            return "ETA unknown"
        left = self._left.remaining()
        return f"{_shown(left.low)} to {_shown(left.high)} left"

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _shown(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _cut(path: Path, first_step: int) -> None:
    """Drop the lines that this part of the run will write again.

    A run that was killed may leave half a line, which is written again, too.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        step = _step_of(line)
        if step is None and number < len(lines):
            raise ValueError(
                f"line {number} of {path} is no step of a run; remove the line, or move the file"
            )
        if step is not None and step <= first_step:
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int | float) else None


def _remaining_time(num_steps: int) -> Any:
    """Return what estimates the time that is left; None where this paceline has no such thing."""
    try:
        from paceline.predict import RemainingTime
    except ImportError:
        return None
    return RemainingTime(max(1, num_steps))


def peak_flops(options: Options, device: torch.device) -> float | None:
    """Return the peak of a device: as told, or by its name, or None where that is unknown."""
    if options.peak_tflops is not None:
        return options.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    try:
        from paceline.predict import Device

        found = Device.named(torch.cuda.get_device_name(device))
    except (ImportError, ValueError):
        return None
    peak: float = found.peak_flops(16 if options.precision == "bf16" else 32)
    return peak
