"""GPT-2 small with rows first, on the tokens of real text; the times are *simulated*."""

import sysconfig
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from _comm_grid import (
    BACKWARD_S,
    FORWARD_S,
    NUM_IN_FLIGHT,
    best_times,
    link_of,
)
from _comm_models import problem_of
from numpy.typing import NDArray

from paceline.comm import (
    Head,
    RowUse,
    WireProblem,
    fluid_bound_s,
    plan_blocks,
    rows_first,
    step_time_s,
)

MODEL, NUM_ROWS, BATCH_SIZE, NUM_TOKENS = "GPT-2 small", 50257, 8, 1024
RATIOS = (0.5, 0.8, 1.0, 1.4, 2.0)
LATENCIES_S = (1e-4, 1e-3)
RANKS = (2, 8, 64)
NUM_HEADS = 16
NUM_STEPS = 5
Row = dict[str, Any]


def rows_grid(ranks: list[int] | None) -> Row:
    """Return a row per case; of the steps that are looked at, the one that sends most."""
    counts = ranks or list(RANKS)
    sequences = _sequences(max(counts) * BATCH_SIZE * (NUM_STEPS + 1))
    uses = {number: _busiest(sequences, number) for number in counts}
    rows = [
        _row(ratio, latency_s, number, uses[number])
        for ratio, latency_s, number in product(RATIOS, LATENCIES_S, counts)
    ]
    of_two = [row for row in rows if row["ranks"] == 2]
    return {
        "text": "Python standard library, byte-level BPE trained on it",
        "vocabulary": NUM_ROWS,
        "batch_per_rank": f"{BATCH_SIZE} x {NUM_TOKENS} tokens",
        "worst_over_bound": _worst(rows),
        "worst_over_bound_of_two_ranks": _worst(of_two),
        "rows": rows,
    }


def _worst(rows: list[Row]) -> dict[str, float]:
    keys = ("paceline_s", "paceline_rows_first_s", "paceline_rows_first_split_head_s")
    return {
        key: round(max((row[key] / row["bound_s"] for row in rows), default=float("nan")), 4)
        for key in keys
    }


def _sequences(num_sequences: int) -> NDArray[np.int64]:
    """Train a tokenizer on the standard library's source; return its tokens, shuffled."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_ROWS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    generator = np.random.default_rng(0)
    ids: list[int] = []
    for index in generator.permutation(len(texts)):
        if len(ids) >= num_sequences * NUM_TOKENS:
            break
        ids += tokenizer.encode(texts[index]).ids
    count = min(num_sequences, len(ids) // NUM_TOKENS)
    whole = np.array(ids[: count * NUM_TOKENS], dtype=np.int64).reshape(count, NUM_TOKENS)
    return generator.permutation(whole)


def _busiest(sequences: NDArray[np.int64], num_ranks: int) -> RowUse:
    size = num_ranks * BATCH_SIZE
    batches = [sequences[start : start + size] for start in range(0, (NUM_STEPS + 1) * size, size)]
    uses = [
        RowUse.from_ids(now, following, num_rows=NUM_ROWS) for now, following in pairwise(batches)
    ]
    return max(uses, key=lambda use: int(use.touched.sum() + use.needed.sum()))


def _row(ratio: float, latency_s: float, num_ranks: int, use: RowUse) -> Row:
    whole, split = (_problem(ratio, latency_s, num_ranks, count) for count in (1, NUM_HEADS))
    plain_s = step_time_s(whole, plan_blocks(whole))
    first, first_fluid_s = _rows_first(whole, 1, use)
    parted, parted_fluid_s = _rows_first(split, NUM_HEADS, use)
    return {
        "source": "simulated",
        "model": MODEL,
        "wire_over_compute": ratio,
        "latency_s": latency_s,
        "ranks": num_ranks,
        "touched_rows": int(use.touched.sum()),
        "needed_rows": int(use.needed.sum()),
        "bound_s": whole.bound_s,
        "fluid_bound_s": fluid_bound_s(whole),
        **best_times(whole),
        "paceline_s": plain_s,
        "paceline_rows_first_s": min(plain_s, first),
        "rows_first_fluid_bound_s": first_fluid_s,
        "paceline_rows_first_split_head_s": min(plain_s, parted),
        "rows_first_split_head_fluid_bound_s": parted_fluid_s,
    }


def _problem(ratio: float, latency_s: float, num_ranks: int, num_heads: int) -> WireProblem:
    return problem_of(
        MODEL,
        forward_s=FORWARD_S,
        backward_s=BACKWARD_S,
        link=link_of(MODEL, ratio, latency_s, num_ranks),
        num_in_flight=NUM_IN_FLIGHT,
        num_heads=num_heads,
    )


def _rows_first(problem: WireProblem, num_heads: int, use: RowUse) -> tuple[float, float]:
    """Send the head's part by itself, or summed with the lookup's: return the better, and bound."""
    embedding = int(np.argmax(problem.num_bytes))
    num_layers = len(problem.forward_s)
    forward_s, backward_s = float(problem.forward_s.sum()), problem.backward_s
    head_s = problem.forward_s[-num_heads:] * backward_s / forward_s
    apart = np.cumsum(head_s[::-1])[::-1]
    found = []
    for ready_s in (apart, np.full(num_heads, problem.ready_s[embedding])):
        heads = [
            Head(num_layers - num_heads + index, float(ready))
            for index, ready in enumerate(ready_s)
        ]
        case = rows_first(problem, embedding, use, heads=heads)
        found.append((step_time_s(case, plan_blocks(case)), fluid_bound_s(case)))
    return min(price_s for price_s, _ in found), min(bound_s for _, bound_s in found)
