"""Claim: planned micro-batches train faster than length-grouped batches, on plain global batches.

Ragged examples on gloo ranks with one thread each; the ways take turns, each with its own replica
from the same start. Peers are described in `_ragged_peers.py`. Ours:

- `stable`: the plain shuffle's global batches, cut into planned micro-batches.
- `window`: the same with examples moved within 16 steps.
- `packed`, `packed_window`: the same global batches as one micro-batch per rank without padding.
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _ragged_data import DATA, ragged_corpus
from _ragged_peers import PER_RANK
from _ragged_ways import MODEL, WAYS, Way, measured_costs, reunion_of, steps_of, tokens_of
from _record import finish, parser, spread

from paceline.demo import Corpus, TextDataset
from paceline.testing import run_ranks

NUM_EXAMPLES, NUM_STEPS = 960, 16
GROUPED = ("group_by_length", "group_by_length_distributed")


def train(rank: int, num_ranks: int, num_rounds: int, corpus: Path, output: Path) -> None:
    """Run all ways in turn; rank 0 writes what they did."""
    dataset, costs = TextDataset(Corpus.load(corpus)), measured_costs(num_ranks)
    feeds = {
        name: [steps_of(name, dataset.sizes, costs, one, num_ranks) for one in range(num_ranks)]
        for name in WAYS
    }
    ways = {name: Way(name, feeds[name][rank]) for name in WAYS}
    rounds = []
    for epoch in range(num_rounds + 1):  # The first warms up.
        order = random.Random(epoch).sample(list(ways), len(ways))
        found = {name: run(ways[name], dataset, epoch) for name in order}
        rounds.append({name: found[name] for name in ways})
    if rank == 0:
        reunion = {name: reunion_of(feed, len(dataset)) for name, feed in feeds.items()}
        result = {"rounds": rounds[1:], "reunion": reunion, "microbatch_s": costs.microbatch_s}
        output.write_text(json.dumps(result), encoding="utf-8")


def run(way: Way, dataset: TextDataset, epoch: int) -> dict[str, float]:
    """Train the first steps of `epoch`; batches are made before the clock starts."""
    steps = way.batches(dataset, way.steps(epoch)[:NUM_STEPS])
    tokens, padded = tokens_of(steps)
    return {"tokens_per_s": tokens / way.train(steps), "padding": padded / (tokens + padded)}


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """Return medians and quartiles, and ratios round by round."""
    rounds = found["rounds"]
    rates = {way: np.array([one[way]["tokens_per_s"] for one in rounds]) for way in rounds[0]}
    grouped = max(GROUPED, key=lambda way: float(np.median(rates[way])))
    ways = {
        way: {
            "tokens_per_s": spread(rate),
            "over_default": spread(rate / rates["default"]),
            "over_length_grouped": spread(rate / rates[grouped]),
            "padding": float(np.median([one[way]["padding"] for one in rounds])),
            "reunion": found["reunion"][way],
        }
        for way, rate in rates.items()
    }
    return {"length_grouped": grouped, "microbatch_s": found["microbatch_s"], "ways": ways}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    flags.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    flags.add_argument("--rounds", type=int, default=7)
    options = flags.parse_args()
    result: dict[str, Any] = {"times": "measured", "examples_per_rank": PER_RANK, "model": MODEL}
    for data in options.data:
        with tempfile.TemporaryDirectory() as folder:
            corpus, output = Path(folder) / "corpus.npz", Path(folder) / "rounds.json"
            ragged_corpus(data, NUM_EXAMPLES).save(corpus)
            runs: dict[str, Any] = {"data": DATA[data]}
            for ranks in options.ranks:
                run_ranks(train, ranks, ranks, options.rounds, corpus, output, timeout_s=1800.0)
                found = json.loads(output.read_text(encoding="utf-8"))
                runs[f"{ranks}_ranks"] = compared(found)
        result[data] = runs
    name = "ragged_training" if "text" in options.data else "ragged_" + "_".join(options.data)
    finish(name, options, result, "torch", "transformers", "lhotse")


if __name__ == "__main__":
    main()
