"""Which rows are held out together, by kind of shift."""

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._rows import StepRows
from paceline.predict.step._time import check_shift

CONFIGURATION = ("variant", "dataset", "batch_size", "precision_bits", "device")
NUM_FOLDS = 10


def units(rows: StepRows, shift: str) -> NDArray[np.str_]:
    """Name of the unit that each row belongs to: what is new as a whole under the shift.

    Under "known" every row is its own unit. A configuration is everything but
    the learning rate and the optimizer, as in the tables' own grouped split.
    """
    check_shift(shift)
    if shift == "known":
        return np.arange(len(rows)).astype(np.str_)
    return rows.keys(*(CONFIGURATION if shift == "configuration" else (shift,)))


def folds(
    rows: StepRows, shift: str, *, seed: int = 0, num_folds: int | None = None
) -> NDArray[np.intp]:
    """Number of the fold that holds each row out; rows of one unit share a fold.

    Args:
        rows: Rows of all families.
        shift: Kind of unit.
        seed: Of the random assignment of units to folds.
        num_folds: At most that many, units assigned at random, equally many to
            each. By default every dataset, model or device is a fold of
            its own, and rows or configurations go to 10.

    Returns:
        Shape `(num_rows,)`, values from 0; no fold is empty.
    """
    names, unit = np.unique(units(rows, shift), return_inverse=True)
    wanted = num_folds or (NUM_FOLDS if shift in ("known", "configuration") else len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[unit] % min(wanted, len(names)), dtype=np.intp)
