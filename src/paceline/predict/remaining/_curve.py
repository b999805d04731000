"""How many more epochs a running job will take until its validation metric stops improving."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline._files import shown
from paceline.errors import StateMismatchError
from paceline.predict._conformal import Estimate
from paceline.predict.remaining._fit import draw_paths

NUM_PATHS = 600
FEWEST_EPOCHS = 3
FARTHEST = 20  # unless limited, a run is followed for this many times the epochs seen,
FARTHEST_LEAST = 200  # or this many epochs
LOW, HIGH = 0.02, 0.98  # wider than nine in ten: real curves leave the ensemble


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """When training stops: the metric has not improved for `patience` epochs.

    Attributes:
        patience: Epochs without improvement after which the run stops.
        min_delta: Smallest improvement over the best value that counts.
        max_epochs: Where the run stops in any case; unset for no limit.
        lower_is_better: True for a loss, false for an accuracy.
    """

    patience: int
    min_delta: float = 0.0
    max_epochs: int | None = None
    lower_is_better: bool = True

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, got {self.patience}")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"min_delta must be finite and not negative, got {self.min_delta}")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(
                f"max_epochs must be at least 1, got {self.max_epochs}; leave it unset for no limit"
            )


class RemainingEpochs:
    """Predicts the epochs that are left, ever more closely as epochs end.

    Curves are fitted to the metric, continued many times with noise, and each continuation is
    stopped by the rule itself; the estimate is the middle and the range of where they stop. Until
    three epochs have ended the estimate made before the run is used alone; afterwards it is a prior
    on where they stop. About 10 ms per estimate.

    Args:
        rule: When training stops.
        prior: Total epochs as predicted before the run, if they were.
        seed: Of the continuations.

    Examples:
        >>> left = RemainingEpochs(StopRule(patience=3))
        >>> for epoch in range(1, 9):
        ...     left.update(1 + 2.0**-epoch)
        >>> left.remaining().median > 3
        True
        >>> for _ in range(3):
        ...     left.update(1.2)
        >>> left.stopped, left.remaining().high
        (True, 0.0)
    """

    def __init__(self, rule: StopRule, *, prior: Estimate | None = None, seed: int = 0) -> None:
        self._rule = rule
        self._prior = prior
        self._seed = seed
        self._values: list[float] = []
        self._best = math.inf
        self._waited = 0

    @property
    def num_epochs(self) -> int:
        """Epochs that have ended."""
        return len(self._values)

    @property
    def stopped(self) -> bool:
        """Whether the rule has ended the run."""
        limit = self._rule.max_epochs
        return self._waited >= self._rule.patience or self.num_epochs == limit

    def update(self, value: float) -> None:
        """Tell the validation metric after one more epoch.

        Raises:
            ValueError: If it is not finite, or the run has stopped.
        """
        if not math.isfinite(value):
            raise ValueError(f"the metric of epoch {self.num_epochs + 1} is {value}, not finite")
        if self.stopped:
            raise ValueError(f"the run stopped after epoch {self.num_epochs}; make a new tracker")
        signed = float(value) if self._rule.lower_is_better else -float(value)
        self._values.append(signed)
        if signed < self._best - self._rule.min_delta:
            self._best, self._waited = signed, 0
        else:
            self._waited += 1

    def remaining(self) -> Estimate:
        """Epochs still to come: the median and the range that holds nine of ten.

        Raises:
            ValueError: If fewer than three epochs have ended and there is no prior.
        """
        if self.stopped:
            return Estimate(0.0, 0.0, 0.0)
        if self.num_epochs < FEWEST_EPOCHS:
            return self._before_curves()
        left = self._stops(self._horizon())
        weight = self._prior_weights(left)
        order = np.argsort(left, kind="stable")
        mass = np.cumsum(weight[order]) / weight.sum()
        low, median, high = (
            float(left[order][min(int(np.searchsorted(mass, q)), left.size - 1)])
            for q in (LOW, 0.5, HIGH)
        )
        return Estimate(median, low, high)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, safe to save as JSON."""
        return {"version": 1, "config": self._config(), "values": list(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, which is left unchanged.

        Raises:
            StateMismatchError: If it was saved under another rule, prior or seed, or is damaged.
        """
        if not isinstance(state, Mapping):
            raise StateMismatchError(f"this is no state: {shown(state)}")
        if state.get("version") != 1 or state.get("config") != self._config():
            raise StateMismatchError(
                f"the state is for {shown(state.get('config'))}, this tracker has "
                f"{self._config()}; make it with the same rule, prior and seed"
            )
        fresh = RemainingEpochs(self._rule)
        sign = 1.0 if self._rule.lower_is_better else -1.0
        try:
            for value in state["values"]:
                fresh.update(sign * value)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateMismatchError(f"the state is damaged: {shown(error)}") from None
        self._values, self._best, self._waited = fresh._values, fresh._best, fresh._waited

    def _config(self) -> dict[str, Any]:
        prior = None if self._prior is None else asdict(self._prior)
        return {"rule": asdict(self._rule), "prior": prior, "seed": self._seed}

    def _least_left(self) -> int:
        """The run cannot stop before the patience that is left is used up."""
        left = self._rule.patience - self._waited + (self.num_epochs == 0)
        limit = self._rule.max_epochs
        return left if limit is None else min(left, limit - self.num_epochs)

    def _horizon(self) -> int:
        if self._rule.max_epochs is not None:
            return self._rule.max_epochs - self.num_epochs
        return max(FARTHEST * self.num_epochs, FARTHEST_LEAST)

    def _before_curves(self) -> Estimate:
        if self._prior is None:
            raise ValueError(
                f"{self.num_epochs} epochs have ended, at least {FEWEST_EPOCHS} are needed; "
                "pass prior= to have an estimate before that"
            )
        bounds = (self._prior.median, self._prior.low, self._prior.high)
        least, most = float(self._least_left()), self._rule.max_epochs or math.inf
        return Estimate(
            *(min(max(b - self.num_epochs, least), most - self.num_epochs) for b in bounds)
        )

    def _stops(self, horizon: int) -> NDArray[np.float64]:
        paths = draw_paths(np.array(self._values), horizon, NUM_PATHS, self._seed)
        best = np.full(NUM_PATHS, self._best)
        waited = np.full(NUM_PATHS, self._waited)
        left = np.full(NUM_PATHS, float(horizon))
        running = np.ones(NUM_PATHS, dtype=np.bool_)
        for epoch in range(horizon):
            better = paths[:, epoch] < best - self._rule.min_delta
            best = np.where(better, paths[:, epoch], best)
            waited = np.where(better, 0, waited + 1)
            ended = running & (waited >= self._rule.patience)
            left[ended] = epoch + 1
            running &= ~ended
            if not running.any():
                break
        return left

    def _prior_weights(self, left: NDArray[np.float64]) -> NDArray[np.float64]:
        """How likely each total was before the run: log-normal, with a floor so that data win."""
        if self._prior is None:
            return np.ones(left.size)
        spread = math.log(max(self._prior.high, 1e-9) / max(self._prior.low, 1e-9)) / 3.29
        error = np.log((left + self.num_epochs) / max(self._prior.median, 1e-9))
        return np.asarray(np.exp(-0.5 * (error / max(spread, 0.05)) ** 2) + 0.05)
