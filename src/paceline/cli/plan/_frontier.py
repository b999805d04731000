"""`paceline plan --frontier`: what mixing costs, window by window."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.balance import MixingStop

HEADER = "window    mixing  imbalance  padding  reunion"
MEANING = (
    "imbalance: makespan over (total / workers), 1 is perfect. padding: share of the cost.\n"
    "reunion: times likelier than by chance that a pair meets again, 1 is a plain shuffle.\n"
    "All simulated from the costs. * is the knee. Choose with\n"
    "BalanceConfig(mixing=...) for any size of dataset, or window=... for this many steps."
)


def frontier_text(stops: "tuple[MixingStop, ...]", *, is_json: bool) -> str:
    """Return one row for each stop, or one JSON object."""
    from paceline.balance import WHOLE_EPOCH, knee_of

    knee = knee_of(stops)

    names = ["epoch" if stop.window == WHOLE_EPOCH else str(stop.window) for stop in stops]
    if is_json:
        rows = [asdict(stop) | {"window": name} for name, stop in zip(names, stops, strict=True)]
        knee_name = names[stops.index(knee)]
        return json.dumps({"frontier": rows, "knee": knee_name, "source": "simulated"})
    lines = [
        f"{name:<10}{stop.mixing:<8.2f}{stop.imbalance:<11.3f}{stop.padding:<9.1%}{stop.reunion:.2f}"
        + " *" * (stop is knee)
        for name, stop in zip(names, stops, strict=True)
    ]
    return "\n".join([HEADER, *lines, "", MEANING])
