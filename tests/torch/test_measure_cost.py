"""What examples and micro-batches cost: fitted on a clock that a test moves, kept, agreed on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence

from paceline.testing import run_ranks
from paceline.torch import measure_cost
from paceline.torch.measure import _cost

SIZES = np.random.default_rng(0).integers(4, 200, 60)
DATASET = [torch.ones(int(size), 1) for size in SIZES]


def pad(examples: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(examples, batch_first=True)


@pytest.fixture
def spending(clock: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loss of micro-batches that take 0.5 s, 2 ms per position, and 1e-5 s per its square."""
    monkeypatch.setattr(_cost, "clock_of", lambda _: clock)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        count, longest, _ = batch.shape
        spent_s = 0.5 + count * (2e-3 * longest + 1e-5 * longest**2)
        result: torch.Tensor = clock.spend(model(batch), spent_s / 4, 3 * spent_s / 4).sum()
        return result

    return loss


def test_the_parts_of_what_was_spent_are_found(spending: Any) -> None:
    example, microbatch = measure_cost(nn.Linear(1, 1), spending, DATASET, SIZES, collate_fn=pad)
    assert microbatch == pytest.approx(0.5, rel=1e-6)
    assert example.linear == pytest.approx(2e-3, rel=1e-6)
    assert example.quadratic == pytest.approx(1e-5, rel=1e-6)
    assert example.fixed == 0.0


def test_examples_that_take_no_time_cost_next_to_nothing(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cost, "clock_of", lambda _: clock)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = clock.spend(model(batch), 0.5, 0.5).sum()
        return result

    example, microbatch = measure_cost(nn.Linear(1, 1), loss, DATASET, SIZES, collate_fn=pad)
    assert microbatch == pytest.approx(1.0, rel=1e-3)
    costs_s = example(SIZES.astype(np.float64))
    assert (costs_s > 0).all()
    assert costs_s.max() < 1e-5


def test_the_model_is_left_as_it_was(spending: Any) -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Dropout(), nn.Linear(2, 1))
    model(torch.ones(1, 1)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    state = torch.get_rng_state()
    measure_cost(model, spending, DATASET, SIZES, collate_fn=pad)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_run_reads_what_the_first_one_kept(spending: Any, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    options: Any = {"collate_fn": pad, "cache": path}
    first = measure_cost(nn.Linear(1, 1), spending, DATASET, SIZES, **options)
    assert [one.name for one in tmp_path.iterdir()] == ["cost.json"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"microbatch_s": 7.0}))
    second = measure_cost(nn.Linear(1, 1), spending, DATASET, SIZES, **options)
    assert (second.example, second.microbatch) == (first.example, 7.0)


@pytest.mark.parametrize("text", ["{}", "[1]", '{"linear_s": 1}', "nothing"])
def test_a_cache_of_something_else_is_refused(spending: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cost\.json"):
        measure_cost(nn.Linear(1, 1), spending, DATASET, SIZES, collate_fn=pad, cache=path)


def test_sizes_of_another_dataset_are_refused(spending: Any) -> None:
    with pytest.raises(ValueError, match=r"as long as the dataset \(60 examples\), got 59"):
        measure_cost(nn.Linear(1, 1), spending, DATASET, SIZES[:59], collate_fn=pad)


def measured(rank: int, folder: str) -> None:
    """Measure on this rank, beside an all-reduce of DDP, then from rank 0's file alone."""
    model = DistributedDataParallel(nn.Linear(1, 1))

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(batch).square().mean()
        return result

    path = Path(folder) / f"cost-{rank}.json"
    found = [
        measure_cost(model, loss, DATASET, SIZES, collate_fn=pad, cache=path) for _ in range(2)
    ]
    model(torch.ones(1, 1)).sum().backward()  # DDP works as before.
    if rank == 0:
        path.with_name("damaged.json").write_text("{}")
    message = "delete it" if rank == 0 else "rank 0 cannot use the cache"
    with pytest.raises(ValueError, match=message):
        measure_cost(model, loss, DATASET, SIZES, cache=path.with_name("damaged.json"))
    numbers = [(one.example.linear, one.example.quadratic, one.microbatch) for one in found]
    (Path(folder) / f"found-{rank}.json").write_text(json.dumps(numbers))


def test_two_ranks_agree_on_what_they_measured_and_rank_0_keeps_it(tmp_path: Path) -> None:
    run_ranks(measured, 2, str(tmp_path))
    ranks = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0][0] == ranks[0][1]
    assert sorted(path.name for path in tmp_path.glob("cost-*")) == ["cost-0.json"]
