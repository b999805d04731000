"""What the demo found, as plain numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from paceline._files import read_json, shown
from paceline.demo._config import EXAMPLES_PER_RANK, DemoConfig
from paceline.timeline import Timeline

WINDOW = 8
# What a key of the result stands for.
LABELS = {
    "plain": "default PyTorch",
    "tuned": "tuned PyTorch",
    "paced": "Paceline stable",
    "window": f"Paceline window {WINDOW}",
}
# Losses of plain and paced may differ by the order of 32-bit sums, amplified by training.
LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Turn:
    """A few steps of one way, over all ranks."""

    timeline: Timeline
    losses: tuple[float, ...]
    num_tokens: int
    num_padded: int

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.timeline.makespan_s


@dataclass(frozen=True, slots=True, kw_only=True)
class WayResult:
    """One way, over the rounds that count. All measured but `predicted_step_s`.

    Attributes:
        tokens_per_s: Real bytes of text only, over all rounds that count.
        tokens_per_s_range: Least and largest round.
        p50_s: Median step time.
        p90_s: 90th percentile of step times.
        idle: Share of the time in which each rank computes nothing.
        padding: Share of positions that hold no text.
        measured_step_s: Mean step time.
        predicted_step_s: Simulated mean of the same steps, from the job measured before.
        final_loss: Mean loss of the last global batch.
        over_plain: Tokens per second over those of the plain way.
        over_tuned: Tokens per second over those of the tuned way.
    """

    tokens_per_s: float
    tokens_per_s_range: tuple[float, float]
    p50_s: float
    p90_s: float
    idle: tuple[float, ...]
    padding: float
    measured_step_s: float
    predicted_step_s: float
    final_loss: float
    over_plain: float
    over_tuned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """All ways, and what sets them apart.

    Attributes:
        plain: DistributedSampler, DDP, padding to the longest of the rank's batch.
        tuned: Length-grouped batches, sorted inside mega-batches of 50, and the best bucket size.
        paced: The global batches of the plain way in planned micro-batches with free counts.
        window: The same, with examples moved within `WINDOW` steps.
        fastest: Key of the way with most tokens per second.
        speedup: Paced over plain tokens per second, all rounds.
        speedup_range: Least and largest round.
        max_loss_difference: Largest difference of the losses of plain and paced in any step.
        predicted_step_s: Simulated mean step time of the paced way.
        measured_step_s: Measured mean step time of the paced way.
        tuned_bucket_mb: DDP's bucket size that was fastest in a trial.
        num_ranks: Gloo processes.
        num_rounds: Rounds that count; one more came before, to warm up.
        num_examples: Examples that each way trained on, warm-up included.
        trace: Chrome trace of the whole run.
        summary: File that holds this result.
        recorded: Folder of the default way as a run, beside those of the other ways.
    """

    plain: WayResult
    tuned: WayResult
    paced: WayResult
    window: WayResult
    fastest: str
    speedup: float
    speedup_range: tuple[float, float]
    max_loss_difference: float
    predicted_step_s: float
    measured_step_s: float
    tuned_bucket_mb: float
    num_ranks: int
    num_rounds: int
    num_examples: int
    trace: str
    summary: str
    recorded: str

    @property
    def losses_agree(self) -> bool:
        """Whether plain and paced trained the same model, up to the order of sums."""
        return self.max_loss_difference <= LOSS_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "DemoResult":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file holds anything else.
        """
        values = read_json(path)
        try:
            ways: dict[str, Any] = {name: WayResult(**values.pop(name)) for name in LABELS}
            return cls(**ways, **values)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no result of a demo ({shown(error)})") from error


def result_of(
    turns: Mapping[str, Sequence[Turn]],
    predicted_s: Mapping[str, float],
    config: DemoConfig,
    *,
    tuned_bucket_mb: float,
) -> DemoResult:
    """Sum all ways up; the first turn of each only warms up, but its losses count."""
    counted = {name: list(of_way)[1:] for name, of_way in turns.items()}
    rates = {name: _tokens_per_s(of_way) for name, of_way in counted.items()}
    ways = {name: _way_result(counted[name], predicted_s[name], name, rates) for name in LABELS}
    rounds = zip(counted["plain"], counted["paced"], strict=True)
    ratios = [paced.tokens_per_s / plain.tokens_per_s for plain, paced in rounds]
    losses = [np.concatenate([turn.losses for turn in turns[name]]) for name in ("plain", "paced")]
    difference = np.abs(losses[0] - losses[1])
    return DemoResult(
        plain=ways["plain"],
        tuned=ways["tuned"],
        paced=ways["paced"],
        window=ways["window"],
        fastest=max(rates, key=rates.__getitem__),
        speedup=ways["paced"].over_plain,
        speedup_range=(min(ratios), max(ratios)),
        max_loss_difference=float(difference.max()) if np.isfinite(difference).all() else inf,
        predicted_step_s=ways["paced"].predicted_step_s,
        measured_step_s=ways["paced"].measured_step_s,
        tuned_bucket_mb=tuned_bucket_mb,
        num_ranks=config.num_ranks,
        num_rounds=len(ratios),
        num_examples=len(difference) * config.num_ranks * EXAMPLES_PER_RANK,
        trace=str(config.output / "trace.json"),
        summary=str(config.output / "summary.json"),
        recorded=str(config.output / "plain"),
    )


def _tokens_per_s(turns: Sequence[Turn]) -> float:
    """Sum over turns: the median of a few turns would depend on which lengths they happened on."""
    return sum(turn.num_tokens for turn in turns) / sum(turn.timeline.makespan_s for turn in turns)


def _way_result(
    turns: Sequence[Turn], predicted_s: float, name: str, rates: Mapping[str, float]
) -> WayResult:
    summaries = [turn.timeline.summary() for turn in turns]
    steps_s = np.concatenate([summary.step_times_s for summary in summaries])
    speeds = [turn.tokens_per_s for turn in turns]
    idle = sum(summary.idle_s for summary in summaries) / steps_s.sum()
    num_padded = sum(turn.num_padded for turn in turns)
    num_tokens = sum(turn.num_tokens for turn in turns)
    return WayResult(
        tokens_per_s=rates[name],
        tokens_per_s_range=(min(speeds), max(speeds)),
        p50_s=float(np.median(steps_s)),
        p90_s=float(np.quantile(steps_s, 0.9)),
        idle=tuple(idle.tolist()),
        padding=num_padded / (num_padded + num_tokens),
        measured_step_s=float(steps_s.mean()),
        predicted_step_s=predicted_s,
        final_loss=turns[-1].losses[-1],
        over_plain=rates[name] / rates["plain"],
        over_tuned=rates[name] / rates["tuned"],
    )
