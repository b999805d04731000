"""Curves that a validation metric may follow, and how likely each is after the epochs seen."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POWERS = np.geomspace(0.2, 3.0, 24)
DECAYS_PER_RUN = np.geomspace(0.03, 3.0, 32)
LEVEL_SPREAD = 3.0  # prior deviations, in units of the range of the values seen
RISE_SPREAD = 0.2  # of the rise over as many epochs as were seen
RISE_CHANCE = 0.2  # prior chance that the metric will rise again at all
NOISE_ROWS = 2.0  # the prior on the noise counts as that many epochs,
NOISE_SHARE = 0.02  # with this share of the range as deviation


def draw_paths(
    values: NDArray[np.float64], num_epochs: int, num_paths: int, seed: int
) -> NDArray[np.float64]:
    """Draw continuations of a falling metric from an ensemble of curves.

    Every curve is `level + fall * shape(t) + rise * t` with independent noise: the shapes
    are powers `t**-b` and exponentials `exp(-t / tau)` over a grid [1], `fall` and `rise` are
    not negative, and the rise, which may be missing, stands for overfitting. For each
    shape the coefficients have the normal-inverse-gamma posterior of a weighted linear
    regression [2] (early epochs count less), and its evidence is the weight of the shape.

    Args:
        values: Metric after each epoch so far, at least 3, lower is better.
        num_epochs: How far to go on.
        num_paths: How many continuations.
        seed: Of the draws; the same seed gives the same paths.

    Returns:
        Metric of the epochs to come, with noise, on equally likely paths. Shape
        `(num_paths, num_epochs)`.

    References:
        [1] T. Domhan, J. Springenberg, F. Hutter, "Speeding up automatic hyperparameter
        optimization of deep neural networks by extrapolation of learning curves", IJCAI
        2015: parametric families, sampled there by MCMC; here a grid and closed forms.
        [2] C. Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3.
    """
    seen = values.size
    scale = float(np.ptp(values)) or max(abs(float(values[-1])), 1.0) * 1e-3
    target = (values - values[-1]) / scale
    shapes = _shapes(seen, seen + num_epochs)
    fits = [_posterior(shape[:seen], target) for shape in shapes]
    prior = [RISE_CHANCE if shape.shape[1] == 3 else 1 - RISE_CHANCE for shape in shapes]
    evidence = np.array([fit.evidence for fit in fits]) + np.log(prior)
    chance = np.exp(evidence - evidence.max())
    random = np.random.default_rng([seed, seen])
    counts = random.multinomial(num_paths, chance / chance.sum())
    drawn = [
        _continue(shape[seen:], fit, int(count), random)
        for shape, fit, count in zip(shapes, fits, counts, strict=True)
        if count
    ]
    return np.asarray(np.concatenate(drawn) * scale + values[-1])


@dataclass(frozen=True, slots=True, eq=False)
class _Posterior:
    mean: NDArray[np.float64]
    root: NDArray[np.float64]  # of the covariance per unit of noise variance
    degrees: float
    squares: float
    evidence: float


def _shapes(seen: int, total: int) -> list[NDArray[np.float64]]:
    epoch = np.arange(1, total + 1, dtype=np.float64)
    falls = [epoch**-power for power in POWERS]
    falls += [np.exp(-(epoch - 1) / (share * seen)) for share in DECAYS_PER_RUN]
    rising = [np.stack([np.ones(total), fall, epoch / seen], axis=1) for fall in falls]
    return [columns[:, :2] for columns in rising] + rising


def _posterior(design: NDArray[np.float64], target: NDArray[np.float64]) -> _Posterior:
    """Closed form under a normal-inverse-gamma prior, with weights `t / (t + 2)`."""
    epoch = np.arange(1, target.size + 1)
    root_weight = np.sqrt(epoch / (epoch + 2.0))
    rows, goal = design * root_weight[:, None], target * root_weight
    spread = np.array([LEVEL_SPREAD, LEVEL_SPREAD, RISE_SPREAD])[: design.shape[1]] / NOISE_SHARE
    precision = np.diag(spread**-2.0)
    total = precision + rows.T @ rows
    covariance = np.linalg.inv(total)
    mean = covariance @ (rows.T @ goal)
    degrees = NOISE_ROWS + target.size
    squares = NOISE_ROWS * NOISE_SHARE**2 + float(goal @ goal - mean @ total @ mean)
    squares = max(squares, NOISE_ROWS * NOISE_SHARE**2 * 1e-3)
    occam = float(np.linalg.slogdet(precision)[1] - np.linalg.slogdet(total)[1]) / 2
    evidence = occam - 0.5 * degrees * float(np.log(squares))
    # Only coefficients of the right sign: a negative rise would make a wrong shape fit.
    deviation = np.sqrt(squares / degrees * np.diag(covariance))
    evidence += sum(_log_chance(m / d) for m, d in zip(mean[1:], deviation[1:], strict=True))
    return _Posterior(mean, np.linalg.cholesky(covariance), degrees, squares, evidence)


def _log_chance(deviations: float) -> float:
    """Log of twice the chance that a normal value, that many deviations above 0, is positive."""
    return math.log(max(math.erfc(-deviations / math.sqrt(2)), 1e-300))


def _continue(
    design: NDArray[np.float64], fit: _Posterior, count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    noise = np.sqrt(fit.squares / random.chisquare(fit.degrees, (count, 1)))
    coefficients = fit.mean + noise * (random.standard_normal((count, fit.mean.size)) @ fit.root.T)
    coefficients[:, 1:] = np.maximum(coefficients[:, 1:], 0.0)
    smooth = coefficients @ design.T
    return np.asarray(smooth + noise * random.standard_normal(smooth.shape))
