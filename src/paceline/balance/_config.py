"""What fixes a plan, equal on every rank."""

from dataclasses import dataclass, field, replace
from math import inf
from numbers import Integral
from typing import Any, Literal

from paceline.balance.split import Counts, check_worker_counts

Tail = Literal["drop", "pad", "wrap", "zero-weight"]
Microbatches = int | Literal["auto"]
TAILS: tuple[Tail, ...] = ("drop", "pad", "wrap", "zero-weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one micro-batch may hold at most; unset is no limit.

    Attributes:
        max_cost: Summed cost; for padded models count times the most expensive.
        max_tokens: Summed size; for padded models count times the longest.
        max_bytes: Like `max_tokens`, in the bytes that `example_bytes` gives.
        max_examples: Number of examples.
    """

    max_cost: float = inf
    max_tokens: float = inf
    max_bytes: float = inf
    max_examples: float = inf

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_tokens", "max_bytes", "max_examples"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is limited."""
        return min(self.max_cost, self.max_tokens, self.max_bytes, self.max_examples) == inf


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceConfig:
    """What fixes which worker gets which example.

    Attributes:
        batch_size: Examples per step over all workers: the global batch.
        num_workers: Data-parallel ranks; samplers fill in how many there are.
        counts: `"equal"`: every worker gets `batch_size / num_workers` examples of each
            step; `"free"`: any number, at least one. Free counts need exact loss weights.
        padded: Whether a micro-batch is padded to its longest example, so that it costs
            its number of examples times the cost of the most expensive.
        window: Steps over which examples may move. 1 keeps each global batch of the
            plain shuffle, and so its gradient; more than an epoch has means all.
        mixing: The same as one dial, whatever the size of the dataset: from 1, as random as
            possible, which is a window of 1, to 0, as even as possible, a window of the epoch;
            between, a window of `num_steps ** (1 - mixing)`. Unset, `window` holds.
        num_microbatches: Micro-batches per worker and step, for gradient accumulation
            or pipelines; more where `limits` demand it, equally many for all workers
            of a step, ordered light to heavy. `"auto"`: for padded models, each step is cut
            into the micro-batches that end first, and workers may have different numbers of
            them; otherwise as few as the limits allow. Unset, 1; but `"auto"` for a padded model
            with a `microbatch_cost` whose loader puts the end of each step into the batch.
        microbatch_cost: What a micro-batch costs besides its examples, in the unit of the costs;
            measured by `paceline.torch.measure_cost`. With `"auto"`, unset for the mean cost of an
            example.
        limits: What one micro-batch may hold.
        tail: What happens to a last global batch that is not full. `"drop"` leaves it
            out; `"pad"` fills it by repeating its own examples, `"wrap"` by repeating
            the first of the epoch, which then count twice in the loss; `"zero-weight"`
            pads, and repeats count nothing.
        longest_first: Whether the most expensive step is the first, so that a job that runs out
            of memory does so at once.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the shuffle.

    Raises:
        ValueError: If a number is out of range or they do not fit together.
    """

    batch_size: int
    num_workers: int = 1
    counts: Counts = "equal"
    padded: bool = False
    window: int = 1
    mixing: float | None = None
    num_microbatches: Microbatches | None = None
    microbatch_cost: float | None = None
    limits: Limits = field(default_factory=Limits)
    tail: Tail = "zero-weight"
    longest_first: bool = False
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_whole_numbers()
        check_worker_counts(self.batch_size, self.num_workers, self.counts, None)
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        self._check_mixing()
        self._check_microbatches()
        if self.tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {self.tail!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    @property
    def microbatches(self) -> Microbatches:
        """What `num_microbatches` says, or 1 if it is unset."""
        return 1 if self.num_microbatches is None else self.num_microbatches

    @property
    def least_microbatches(self) -> int:
        """Micro-batches that each worker has in every step at least."""
        return 1 if isinstance(self.microbatches, str) else self.microbatches

    @property
    def cuts_to_cost(self) -> bool:
        """Whether padded steps are cut into the micro-batches that end first."""
        return self.padded and self.num_microbatches == "auto"

    def with_window(self, num_examples: int) -> "BalanceConfig":
        """Return the same with the window that `mixing` means for a dataset of this size."""
        if self.mixing is None:
            return self
        num_steps = max(num_examples // self.batch_size, 1)
        return replace(self, mixing=None, window=max(round(num_steps ** (1 - self.mixing)), 1))

    def _check_mixing(self) -> None:
        if self.mixing is None:
            return
        if not 0 <= self.mixing <= 1:
            raise ValueError(
                f"mixing must lie between 0 (even) and 1 (plain shuffle), got {self.mixing}"
            )
        if self.window != 1:
            raise ValueError(
                f"mixing={self.mixing} and window={self.window} are two words for one; pass one"
            )

    def _check_whole_numbers(self) -> None:
        ways_out = {"window": "; for the whole epoch pass more steps than it has, such as 10**9"}
        for name in ("batch_size", "num_workers", "window", "seed"):
            check_whole(name, getattr(self, name), ways_out.get(name, ""))
        if not isinstance(self.num_microbatches, str | None):
            check_whole("num_microbatches", self.num_microbatches)

    def _check_microbatches(self) -> None:
        if isinstance(self.num_microbatches, str) and self.num_microbatches != "auto":
            raise ValueError(
                f"num_microbatches must be a number or 'auto', got {self.num_microbatches!r}"
            )
        if self.least_microbatches < 1:
            raise ValueError(f"num_microbatches must be at least 1, got {self.num_microbatches}")
        if self.microbatch_cost is not None and not 0 <= self.microbatch_cost < inf:
            raise ValueError(
                f"microbatch_cost must be finite and not negative, got {self.microbatch_cost}"
            )
        least = self.num_workers * self.least_microbatches
        if self.batch_size < least:
            raise ValueError(
                f"batch_size must be at least num_workers x num_microbatches = {least}, got "
                f"{self.batch_size}; a worker without examples would have nothing to send"
            )


def check_whole(name: str, value: Any, way_out: str = "") -> None:
    """Raise a `ValueError` if `value` is no whole number; equal floats would be other seeds."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return
    is_whole = isinstance(value, float) and value.is_integer()
    pass_this = f"; pass {int(value)}" if is_whole else way_out
    raise ValueError(f"{name} must be a whole number, got {value!r}{pass_this}")
