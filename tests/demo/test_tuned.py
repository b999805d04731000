"""What the demo calls tuned PyTorch: held against the rule of transformers, written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from paceline.demo import _tuned
from paceline.demo._config import EXAMPLES_PER_RANK
from paceline.demo._model import ByteTransformer
from paceline.demo._progress import Notes
from paceline.demo._tuned import BUCKETS_MB, best_bucket_mb, length_grouped_batches


def grouped_by_the_rule(sizes: list[int], seed: int, megabatch: int) -> list[int]:
    """The order of `get_length_grouped_indices` in transformers, as its docstring has it."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(sizes), generator=generator).tolist()
    parts = [order[i : i + megabatch] for i in range(0, len(order), megabatch)]
    parts = [sorted(part, key=lambda i: sizes[i], reverse=True) for part in parts]
    longest = max(range(len(parts)), key=lambda k: sizes[parts[k][0]])
    parts[0][0], parts[longest][0] = parts[longest][0], parts[0][0]
    return [i for part in parts for i in part]


@pytest.mark.parametrize(
    ("num_examples", "megabatch"),
    [(131, 2 * EXAMPLES_PER_RANK), (4000, 50 * EXAMPLES_PER_RANK), (70, EXAMPLES_PER_RANK)],
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_batches_are_those_of_the_length_grouped_sampler(
    num_examples: int, megabatch: int, num_ranks: int
) -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, num_examples)
    order = grouped_by_the_rule(sizes.tolist(), 3, megabatch)
    step_size = num_ranks * EXAMPLES_PER_RANK
    expected = []
    for begin in range(0, num_examples - num_examples % step_size, step_size):
        step = order[begin : begin + step_size]
        expected.append([step[rank::num_ranks] for rank in range(num_ranks)])
    batches = length_grouped_batches(sizes, num_ranks=num_ranks, seed=3)
    assert sorted(batches.tolist()) == sorted(expected)
    assert num_examples < 4000 or batches.tolist() != expected  # A few steps stand for all.


def test_the_bucket_size_with_the_shortest_steps_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def trained(model: torch.nn.parallel.DistributedDataParallel, *_: object) -> None:
        cap_mb = model.bucket_bytes_cap / 2**20
        now[0] += abs(cap_mb - BUCKETS_MB[1])

    monkeypatch.setattr(_tuned, "train_step", trained)
    monkeypatch.setattr(_tuned.time, "perf_counter", lambda: now[0])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert best_bucket_mb(ByteTransformer(dim=8, num_layers=1, num_heads=1)) == BUCKETS_MB[1]
    finally:
        dist.destroy_process_group()


def test_notes_are_read_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    writer, reader = Notes(path), Notes(path)
    assert reader.unread() == []
    writer.add("one")
    with path.open("a") as file:
        file.write("tw")
    assert reader.unread() == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert reader.unread() == ["two"]
    assert reader.unread() == []
