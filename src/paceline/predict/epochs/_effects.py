"""Effects of model, dataset and optimizer on the epochs, each shrunk by a fitted variance."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from paceline.predict.epochs._rows import Runs

TERMS: tuple[tuple[str, str], ...] = (
    ("kind", "one"),
    ("kind", "linear"),
    ("kind", "square"),
    ("optimizer", "one"),
    ("family", "one"),
    ("family kind", "one"),
    ("family kind", "linear"),
    ("model", "one"),
    ("model kind", "one"),
    ("model optimizer", "one"),
    ("model kind", "linear"),
    ("dataset", "one"),
    ("dataset kind", "one"),
    ("family dataset", "one"),
    ("model dataset", "one"),
    ("model dataset kind", "one"),
    ("model dataset kind", "linear"),
)
LEVEL_VARIANCE = 25.0  # of the overall level: wide enough to leave it to the data
TAIL_FREEDOM = 4.0  # of the Student t that makes diverged runs count less
GROUP_ROWS = 5.0  # a group of that many rows has half a noise variance of its own
NUM_QUANTILES = 21
RESIDUAL_NAMES = ("model kind", "family kind", "family")  # the first that was seen counts


class Variances(NamedTuple):
    """How far the effects of each term spread, and the rows around them."""

    terms: NDArray[np.float64]
    noise: float


@dataclass(frozen=True, slots=True)
class Effects:
    """A sum of effects on log epochs, for names that were seen; a new name has effect 0.

    The terms of `TERMS` cross names (kind is SGD or adaptive) with a constant, with
    log2 of learning rate and batch size, or with their squares and product. Each term's
    effects are drawn around zero with a variance of their own, found by
    restricted likelihood [1]; rows have Student errors, by reweighting [2], with a
    noise of their own per model and kind, so that neither a run that never
    learned nor an erratic model distorts the rest.

    Attributes:
        level: Overall mean of the log epochs.
        effects: Per term, by name: one number per input.
        residuals: Quantiles of the leave-one-out residuals, by the names of `RESIDUAL_NAMES`.
        variances: What the effects were shrunk by.

    References:
        [1] D. Harville, "Maximum likelihood approaches to variance component
        estimation", JASA 72, 1977.
        [2] K. Lange, R. Little, J. Taylor, "Robust statistical modeling using the t
        distribution", JASA 84, 1989.
    """

    level: float
    effects: tuple[dict[str, list[float]], ...]
    residuals: dict[str, list[float]]
    variances: Variances

    @classmethod
    def fit(cls, runs: Runs, *, start: Variances | None = None, rounds: int = 5) -> Self:
        """Fit to runs that have ended.

        Args:
            runs: With `T_conv`.
            start: Variances of a fit to nearly the same runs, to begin from.
            rounds: Updates of the variances per reweighting.
        """
        log_epochs = np.log(runs.T_conv)
        level = float(log_epochs.mean())
        target = log_epochs - level
        variances = start or Variances(np.full(len(TERMS), 0.1), 0.1)
        kernels = np.stack([_kernel(_keys(runs, n), _inputs(runs, i)) for n, i in TERMS])
        weight = np.ones(len(runs))
        groups = np.unique(_keys(runs, RESIDUAL_NAMES[0]), return_inverse=True)[1]
        for _ in range(3):
            variances = _update(kernels, target, weight, variances, rounds)
            inverse = np.linalg.inv(_covariance(kernels, weight, variances))
            dual = inverse @ target
            error = variances.noise / weight * dual
            weight = _trust(groups, error**2 / variances.noise)
        effects = tuple(
            _effects(_keys(runs, names), _inputs(runs, inputs), variance * dual)
            for (names, inputs), variance in zip(TERMS, variances.terms, strict=True)
        )
        error = dual / np.diag(inverse)
        left_out = {
            key: picks
            for names in RESIDUAL_NAMES
            for key, picks in _quantiles(_keys(runs, names), error).items()
        }
        level += LEVEL_VARIANCE * float(dual.sum())
        return cls(level, effects, left_out, variances)

    def log_epochs(self, runs: Runs) -> NDArray[np.float64]:
        """The centre of the prediction, shape `(num_runs,)`."""
        total = np.full(len(runs), self.level)
        for (names, inputs), effects in zip(TERMS, self.effects, strict=True):
            columns = _inputs(runs, inputs)
            nothing = [0.0] * columns.shape[1]
            found = np.array([effects.get(key, nothing) for key in _keys(runs, names)])
            total += (found.reshape(columns.shape) * columns).sum(axis=1)
        return total

    def spread(self, runs: Runs) -> NDArray[np.float64]:
        """Equally likely epochs, shape `(num_runs, NUM_QUANTILES)`."""
        keys = zip(*(_keys(runs, names).tolist() for names in RESIDUAL_NAMES), strict=True)
        around = [next(filter(None, map(self.residuals.get, names))) for names in keys]
        offsets = np.array(around).reshape(len(runs), NUM_QUANTILES)
        return np.asarray(np.exp(self.log_epochs(runs)[:, None] + offsets))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "level": self.level,
            "effects": [
                {"names": names, "inputs": inputs, "values": values}
                for (names, inputs), values in zip(TERMS, self.effects, strict=True)
            ],
            "residuals": self.residuals,
            "variances": [*self.variances.terms.tolist(), self.variances.noise],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The effects that `to_dict` wrote.

        Raises:
            ValueError: If they were written for other terms.
        """
        terms = tuple((term["names"], term["inputs"]) for term in state["effects"])
        if terms != TERMS:
            raise ValueError(f"the effects have terms {terms}, this version has {TERMS}; fit again")
        variances = np.asarray(state["variances"], dtype=np.float64)
        values = tuple(dict(term["values"]) for term in state["effects"])
        spread = Variances(variances[:-1], float(variances[-1]))
        return cls(float(state["level"]), values, dict(state["residuals"]), spread)


def _keys(runs: Runs, names: str) -> NDArray[np.str_]:
    column = {
        "kind": np.where(runs.is_sgd, "sgd", "adaptive"),
        "family": runs.family,
        "model": runs.model,
        "dataset": runs.dataset,
        "optimizer": runs.optimizer,
    }
    first, *rest = names.split()
    key = column[first]
    for name in rest:
        key = np.char.add(np.char.add(key, " "), column[name])
    return key


def _inputs(runs: Runs, inputs: str) -> NDArray[np.float64]:
    rate = np.log2(runs.learning_rate / 1e-3)
    batch = np.log2(runs.batch_size / 64)
    if inputs == "linear":
        return np.stack([rate, batch], axis=1)
    if inputs == "square":
        return np.stack([rate**2 - 1, batch**2 - 1, rate * batch], axis=1)
    return np.ones((len(runs), 1))


def _kernel(keys: NDArray[np.str_], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    code = np.unique(keys, return_inverse=True)[1]
    return np.asarray((code[:, None] == code) * (columns @ columns.T))


def _covariance(
    kernels: NDArray[np.float64], weight: NDArray[np.float64], variances: Variances
) -> NDArray[np.float64]:
    total = np.tensordot(variances.terms, kernels, 1) + LEVEL_VARIANCE
    return np.asarray(total + np.diag(variances.noise / weight))


def _update(
    kernels: NDArray[np.float64],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    variances: Variances,
    rounds: int,
) -> Variances:
    """Fixed-point steps on the likelihood: each variance times sqrt(seen / expected)."""
    flat = kernels.reshape(len(kernels), -1)
    terms, noise = variances
    for _ in range(rounds):
        inverse = np.linalg.inv(_covariance(kernels, weight, Variances(terms, noise)))
        dual = inverse @ target
        sums = flat @ np.stack([np.outer(dual, dual).ravel(), inverse.ravel()], axis=1)
        terms = np.maximum(terms * np.sqrt((sums[:, 0] + 1e-9) / (sums[:, 1] + 1e-9)), 1e-8)
        ratio = (dual @ (dual / weight)) / (np.diag(inverse) / weight).sum()
        noise = max(noise * float(np.sqrt(ratio)), 1e-4)
    return Variances(terms, noise)


def _trust(groups: NDArray[np.intp], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of rows, from squared errors in units of the noise: group variance and tail."""
    counts = np.bincount(groups)
    variance = ((np.bincount(groups, squares) + GROUP_ROWS) / (counts + GROUP_ROWS))[groups]
    return np.asarray((TAIL_FREEDOM + 1) / (TAIL_FREEDOM * variance + squares))


def _effects(
    keys: NDArray[np.str_], columns: NDArray[np.float64], dual: NDArray[np.float64]
) -> dict[str, list[float]]:
    names, code = np.unique(keys, return_inverse=True)
    sums = np.zeros((names.size, columns.shape[1]))
    np.add.at(sums, code, columns * dual[:, None])
    return dict(zip(names.tolist(), sums.tolist(), strict=True))


def _quantiles(keys: NDArray[np.str_], values: NDArray[np.float64]) -> dict[str, list[float]]:
    order = np.lexsort((values, keys))
    names, first = np.unique(keys[order], return_index=True)
    edges = [*first.tolist(), keys.size]
    return {
        name: values[order][low:high][_picks(high - low)].tolist()
        for name, (low, high) in zip(names.tolist(), pairwise(edges), strict=True)
    }


def _picks(count: int) -> NDArray[np.intp]:
    middle = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    return np.asarray((middle * count).astype(np.intp))
