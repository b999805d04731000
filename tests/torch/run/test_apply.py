"""`--apply` in one process: what it says where nothing can be changed, and no trace of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from paceline.run import RunFolder
from paceline.torch.run._recorder import Recorder
from paceline.torch.run.apply import Applier
from paceline.torch.run.apply._loss_form import Unfit, read_loss
from paceline.torch.run.apply._price import FirstSteps, fit_price
from paceline.torch.run.apply._sizes import measured_share, size_of
from paceline.torch.run.apply._trial import Trial

ROWS = torch.ones(60, 4)


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(ROWS)


class Own(BatchSampler):
    """A batch sampler of the script's own."""


class Counting(DataLoader[torch.Tensor]):
    def __iter__(self) -> Any:
        return super().__iter__()


def classes() -> list[object]:
    return [
        DataLoader.__dict__["_index_sampler"],
        _BaseDataLoaderIter.__next__,
        torch.autograd.backward,
        DistributedDataParallel.__init__,
    ]


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        (DataLoader(Stream(), batch_size=2), "a stream cannot be planned"),
        (
            DataLoader(ROWS, batch_sampler=Own(SequentialSampler(ROWS), 2, False)),  # type: ignore[arg-type]
            "its batch sampler is its own (Own)",
        ),
        (DataLoader(ROWS, batch_size=None), "made before (batch_size=None)"),  # type: ignore[arg-type]
        (Counting(ROWS, batch_size=2), "Counting has an __iter__ of its own"),  # type: ignore[arg-type]
        (DataLoader(ROWS, batch_size=2), "one rank alone has nothing to share"),  # type: ignore[arg-type]
        (DataLoader(ROWS, batch_size=6), "fewer than 16 steps were taken"),  # type: ignore[arg-type]
        (None, "fewer than 16 steps were taken"),
    ],
)
def test_one_line_says_why_nothing_is_changed(tmp_path: Path, loader: Any, why: str) -> None:
    lines: list[str] = []
    before, recorder = classes(), Recorder(RunFolder(tmp_path / "run"), 0)
    recorder.install()
    applier = Applier(recorder, lines.append, bucket_cap_mb=1.0)
    applier.install()
    seen = train(loader)
    told = applier.finish()
    recorder.finish()
    assert (told["outcome"], len(lines)) == ("refused", loader is not None)
    assert why in told["why_not"]
    assert all(why in line for line in lines)
    assert classes() == before
    assert seen == train(loader)


def train(loader: Any) -> list[float]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for batch in [] if loader is None else loader:
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


LOGITS, LABELS = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, -100, 1, 0])


@pytest.mark.parametrize(
    ("loss", "num_terms"),
    [
        (lambda out: cross_entropy(out, LABELS), 5),
        (lambda out: cross_entropy(out, LABELS, torch.tensor([2.0, 1.0, 1.0])) * 3, 7),
        (lambda out: mse_loss(out, torch.zeros(6, 3)) / 2, 18),
        (lambda out: (out - 1).abs().mean(), 18),
        (lambda out: cross_entropy(out, LABELS, reduction="none").mean(), 6),
        (lambda out: cross_entropy(out, LABELS, reduction="sum"), None),
        (lambda out: cross_entropy(out, LABELS, label_smoothing=0.1), None),
        (lambda out: (out - out.mean(0)).square().mean(), None),
        (lambda out: out.mean(1).mean(), None),
        (lambda out: out[:2].square().mean(), None),
        (lambda out: out.log_softmax(0).mean(), None),
        (lambda out: (out.square() * LOGITS).mean(), None),
        (lambda out: out.square(), None),
    ],
)
def test_a_loss_is_read_or_refused(loss: Any, num_terms: int | None) -> None:
    out = LOGITS * 2
    made = loss(out)
    if num_terms is None:
        with pytest.raises(Unfit):
            read_loss(made, {out.grad_fn})
    else:
        form = read_loss(made, {out.grad_fn})
        assert form.num_terms == num_terms
        assert not form.has_targets or form.terms(6).sum() == num_terms


def test_a_loss_that_is_scaled_by_its_batch_has_another_signature() -> None:
    out = LOGITS * 2
    signatures = {read_loss(out.square().mean() / n, {out.grad_fn}).signature for n in (1, 2)}
    assert len(signatures) == 2


def test_sizes_are_looked_at_by_shares_and_not_for_long() -> None:
    dataset = [np.ones(1 + number) for number in range(9)]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert measured_share(dataset, 1, 3, 10.0).tolist() == [2, 5, 8]
    assert (state[0] == torch.get_rng_state()).all()
    assert state[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    examples = ("abc", ([1, 2], 7), {"a": torch.ones(2, 3)}, 5)
    assert [size_of(example) for example in examples] == [3, 2, 6, 1]


@pytest.mark.parametrize("padded", [True, False])
def test_a_price_is_what_the_steps_cost(padded: bool) -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 50, (2, 40, 4)).astype(np.float64)
    longest = sizes.max(axis=2)
    sums = 4 * longest, 4 * longest**2, sizes.sum(axis=2), (sizes**2).sum(axis=2)
    linear, square = (sums[0], sums[1]) if padded else (sums[2], sums[3])
    compute_s = 0.01 + 2e-4 * linear + 3e-6 * square
    compute_s[0, 5] *= 9  # A disturbed step.
    columns = (np.ones_like(linear), *sums, 7 * linear, compute_s, compute_s.max(axis=0) + 0.005)
    price = fit_price(FirstSteps(*np.broadcast_arrays(*columns)))
    assert price.padded == padded
    assert price.microbatch_s == pytest.approx(0.01, rel=1e-3)
    assert price.example.linear == pytest.approx(2e-4, rel=1e-3)
    assert price.example.quadratic == pytest.approx(3e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("plain_s", "divided_s", "gain", "is_won"),
    [
        ([1.0, 1.1, 0.9], [0.5, 0.6, 0.5], 2.0, True),
        ([1.0, 1.0, 1.0], [0.99, 0.99, 0.99], 1.01, False),
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], 0.83, False),
        ([1.0, 3.0, 0.4], [0.9, 2.5, 0.3], 1.11, False),
    ],
)
def test_a_plan_wins_by_more_than_noise(
    plain_s: list[float], divided_s: list[float], gain: float, is_won: bool
) -> None:
    """Steps are expected to take 10 s each, and the two ways take turns."""
    now_s = [0.0]
    trial = Trial([], clock=lambda: now_s[0])
    trial.end_step(float("nan"), is_divided=False)
    for pair in zip(plain_s, divided_s, strict=True):
        for is_divided, seconds in enumerate(pair):
            now_s[0] += 10 * seconds
            trial.end_step(10.0, is_divided=bool(is_divided))
    assert trial.gain == pytest.approx(gain, rel=0.01)
    assert trial.is_won == is_won
    assert trial.counts == (3, 3)
