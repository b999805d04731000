"""What a run that changed itself gained, in words."""

from collections.abc import Mapping
from typing import Any

from paceline._files import shown


def applied_line(applied: object) -> str:
    """Return what `run.json` says of `--apply` as one sentence; empty if it says nothing.

    Examples:
        >>> applied_line({"outcome": "refused", "why_not": "one rank alone"})
        'nothing: one rank alone'
        >>> told = {"changed": "batches divided", "outcome": "kept", "predicted": 1.5}
        >>> applied_line({**told, "gain": 1.45, "num_applied": 80, "num_plain": 21})
        'batches divided; measured gain 1.45 x over 80 steps against 21 plain, predicted 1.50 x'
    """
    if applied is None:
        return ""
    if not isinstance(applied, Mapping):
        raise ValueError(f"run.json: applied must be an object, got {shown(applied)}")
    lines = [text for text in (_batches(applied), _buckets(applied)) if text]
    return "; ".join(lines)


def _batches(applied: Mapping[str, Any]) -> str:
    if applied.get("why_not"):
        return f"nothing: {applied['why_not']}"
    try:
        gain, predicted = float(applied["gain"]), float(applied["predicted"])
        counts = f"{int(applied['num_applied'])} steps against {int(applied['num_plain'])} plain"
    except (KeyError, TypeError, ValueError):
        return f"{applied.get('changed', 'nothing')}; too few steps to measure a gain"
    told = f"measured gain {gain:.2f} x over {counts}, predicted {predicted:.2f} x"
    if applied.get("outcome") == "returned":
        return f"nothing in the end: {told}, so the plain way returned"
    return f"{applied.get('changed')}; {told}"


def _buckets(applied: Mapping[str, Any]) -> str:
    cap_mb = applied.get("bucket_cap_mb")
    return f"DistributedDataParallel got bucket_cap_mb={cap_mb:g}" if cap_mb else ""
