"""Whether a way that took turns with the plain one was faster, by more than chance."""

from collections.abc import Sequence

import numpy as np

MIN_GAIN = 0.02


def compared(ours_s: Sequence[float], plain_s: Sequence[float], per: str) -> tuple[bool, str]:
    """Tell whether ours is at least 2 % faster in the median, and in most rounds; and say so.

    Args:
        ours_s: Seconds, one for each round.
        plain_s: Those of the plain way in the same rounds.
        per: What takes these seconds, in words.

    Examples:
        >>> compared([0.9, 0.9, 1.1], [1.0, 1.0, 1.0], "step")
        (True, 'measured 900 ms against 1000 ms plain per step, faster in 2 of 3 rounds')
    """
    ours, plain = float(np.median(ours_s)), float(np.median(plain_s))
    num_won = int(np.less(ours_s, plain_s).sum())
    said = (
        f"measured {ours * 1e3:.4g} ms against {plain * 1e3:.4g} ms plain per {per}, "
        f"faster in {num_won} of {len(ours_s)} rounds"
    )
    return ours <= plain * (1 - MIN_GAIN) and 2 * num_won > len(ours_s), said
