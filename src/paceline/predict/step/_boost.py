"""Gradient-boosted trees on log residuals: LightGBM, small, deterministic, one thread."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import MissingExtraError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostConfig:
    """Size of one ensemble of trees.

    Attributes:
        num_trees: Rounds of boosting.
        num_leaves: Per tree.
        min_rows: In a leaf.
        learning_rate: Of each round.
        seed: Of the rows and columns that each tree sees.
    """

    num_trees: int = 400
    num_leaves: int = 31
    min_rows: int = 10
    learning_rate: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Boosted:
    """A fitted ensemble; `text` is LightGBM's own model format and holds no training row."""

    booster: Any

    @property
    def text(self) -> str:
        """The model as text."""
        return str(self.booster.model_to_string())

    @classmethod
    def from_text(cls, text: str) -> "Boosted":
        """The model that `text` describes."""
        return cls(_lightgbm().Booster(model_str=text))

    def predict(self, features: FloatArray) -> FloatArray:
        """Log residual of each row, shape `(num_rows,)`."""
        return np.asarray(self.booster.predict(features, num_threads=1), dtype=np.float64)


def fit_boosted(features: FloatArray, target: FloatArray, config: BoostConfig) -> Boosted:
    """Fit the median of `target`: absolute errors, so that outliers weigh little.

    Raises:
        MissingExtraError: If LightGBM is not installed.
    """
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


def _lightgbm() -> ModuleType:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError(
            "predicting step times needs LightGBM; install it with pip install 'paceline[predict]'"
        ) from None
    module: ModuleType = lightgbm
    return module
