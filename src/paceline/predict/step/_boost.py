"""Gradient-boosted trees on log residuals: LightGBM, small, deterministic, one thread."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import MissingExtraError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostConfig:
    """Size of one ensemble of trees."""

    num_trees: int = 400  # rounds of boosting
    num_leaves: int = 31  # per tree
    min_rows: int = 10  # in a leaf
    learning_rate: float = 0.05  # of each round
    seed: int = 0  # of the rows and columns that each tree sees


@dataclass(frozen=True, slots=True, eq=False)
class Boosted:
    """A fitted ensemble; `text` is LightGBM's own model format and holds no training row."""

    booster: Any

    @property
    def text(self) -> str:
        return str(self.booster.model_to_string())

    @classmethod
    def from_text(cls, text: str) -> "Boosted":
        return cls(_lightgbm().Booster(model_str=text))

    def predict(self, features: FloatArray) -> FloatArray:
        """Log residual of each row, shape `(num_rows,)`."""
        return np.asarray(self.booster.predict(features, num_threads=1), dtype=np.float64)


def fit_boosted(features: FloatArray, target: FloatArray, config: BoostConfig) -> Boosted:
    """Fit the median of `target`: absolute errors, so that outliers weigh little."""
    lightgbm = _lightgbm()
    settings = {
        "objective": "l1",
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_rows,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": config.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }
    data = lightgbm.Dataset(features, target)
    return Boosted(lightgbm.train(settings, data, config.num_trees))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError(
            "predicting step times needs LightGBM; install it with pip install 'paceline[predict]'"
        ) from None
    return lightgbm
