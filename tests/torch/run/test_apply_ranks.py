"""`--apply` on two ranks: gradients stay what plain data-parallel training has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from paceline.cost import QuadraticCost
from paceline.run import RunFolder, checks_of
from paceline.testing import run_ranks
from paceline.torch.run._recorder import Recorder
from paceline.torch.run.apply import Applier, Verifier, _apply, _trial
from paceline.torch.run.apply._price import Price
from paceline.torch.run.apply._weights import Weights

NUM, VOCABULARY, IGNORED = 120, 20, 0
Loss = Callable[[nn.Module, Any], torch.Tensor]


class Texts(torch.utils.data.Dataset[torch.Tensor]):
    """Lengths from 2 to 21."""

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> torch.Tensor:
        length = 2 + index * 7 % 20
        return 1 + (torch.arange(length) * (index + 3)) % (VOCABULARY - 1)


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED)


class Causal(nn.Module):
    """Each output depends on the positions before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.embed(ids).cumsum(1))
        return found


class Pooled(Causal):
    """The mean over the text without its padding; one score for each text."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = (ids != IGNORED)[..., None]
        found: torch.Tensor = self.head((self.embed(ids) * mask).sum(1) / mask.sum(1))
        return found


class Careless(Causal):
    """The mean over the text and its padding."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.embed(ids).mean(1))
        return found


class Normed(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(8), self.head)  # type: ignore[assignment]


def over_tokens(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1])
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED)


def over_tokens_2d(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    weight = torch.linspace(0.5, 2.0, VOCABULARY, dtype=torch.float64)
    logits = model(ids[:, :-1]).transpose(1, 2)
    return cross_entropy(logits, ids[:, 1:], weight, ignore_index=IGNORED) / 2


def over_examples(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(ids), ids[:, 0])


def squares(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(ids)
    return (found - ids[:, :1]).square().mean()


def over_padding(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(ids)
    return found.square().mean()


def contrastive(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found = model(ids)
    return cross_entropy(found @ found.T, torch.arange(len(ids)))


class Case:
    """A script: model, loss, and how it loops."""

    def __init__(
        self,
        model: type[nn.Module],
        loss: Loss,
        *,
        accumulate: int = 1,
        num_workers: int = 0,
        keeps: bool = True,
        random: bool = False,
        epochs: int = 2,
        wrapped: bool = True,
    ) -> None:
        self.model, self.loss = model, loss
        self.accumulate, self.num_workers, self.keeps = accumulate, num_workers, keeps
        self.random, self.epochs, self.wrapped = random, epochs, wrapped


def train(case: Case) -> list[torch.Tensor]:
    torch.manual_seed(0)
    dataset = Texts()
    generator = torch.Generator().manual_seed(torch.distributed.get_rank())
    sampler: Any = DistributedSampler(dataset, drop_last=True)
    if case.random:
        sampler = RandomSampler(dataset, generator=generator, num_samples=NUM // 2)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=sampler,
        num_workers=case.num_workers,
        multiprocessing_context="fork" if case.num_workers else None,
        collate_fn=padded,
    )
    validation = DataLoader(dataset, batch_size=4, collate_fn=padded)
    model = case.model().double()
    model = DistributedDataParallel(model) if case.wrapped else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for epoch in range(case.epochs):
        if not case.random:
            sampler.set_epoch(epoch)
        for number, ids in enumerate(loader, start=1):
            (case.loss(model, ids) / case.accumulate).backward()
            if number % case.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        next(iter(validation))
    return [one.detach().clone() for one in model.parameters()]


def fixed_price(steps: Any) -> Price:
    """Cost by padded length, as a measured one of so small a model would be noise."""
    return Price(QuadraticCost(1.0, 0.0), 0.0, True, 0.0)


def apply(
    case: Case, rank: int, path: str, kind: type[Applier] = Applier
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    recorder = Recorder(RunFolder(Path(path)), rank)
    recorder.install()
    applier = kind(recorder, lambda line: None, bucket_cap_mb=2.0)
    applier.install()
    parameters = []
    try:
        parameters = train(case)
    except SystemExit:
        assert kind is Verifier
    finally:
        told = dict(applier.finish())
        recorder.finish()
    return parameters, told


EXACT = {
    "tokens": Case(Causal, over_tokens),
    "tokens-2d-accumulated": Case(Causal, over_tokens_2d, accumulate=3, epochs=5),
    "examples-workers": Case(Pooled, over_examples, num_workers=1),
    "squares-random": Case(Pooled, squares, random=True),
    "returned": Case(Causal, over_tokens, keeps=False),
}
REFUSED = {
    "BatchNorm1d mixes": Case(Normed, over_examples),
    "depends on what it is batched with": Case(Careless, over_examples),
    "mean over padding": Case(Causal, over_padding),
    "not under DistributedDataParallel": Case(Causal, over_tokens, wrapped=False),
    "may mix examples": Case(Pooled, contrastive),
}


def compare_with_plain(rank: int, path: str) -> None:
    _apply.fit_price = fixed_price
    _apply.FIRST_STEPS = _apply.TRIAL_STEPS = _trial.TRIAL_STEPS = 8
    for name, case in {**EXACT, **REFUSED}.items():
        _apply.Trial.is_won = case.keeps  # type: ignore[assignment, method-assign]
        plain = train(case)
        parameters, told = apply(case, rank, f"{path}/{name}")
        for before, after in zip(plain, parameters, strict=True):
            torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12, msg=f"{name} {told}")
        assert told["bucket_cap_mb"] == (2.0 if case.wrapped else None)
        if name in REFUSED:
            assert told["outcome"] == "refused", (name, told)
            assert name in told["why_not"], told
        else:
            assert told["outcome"] == ("kept" if case.keeps else "returned"), (name, told)
            assert told["num_applied"] >= 4, (name, told)

    verify(rank, path)


def verify(rank: int, path: str) -> None:
    """Both kinds of loss pass; once nothing is weighed, they do not."""
    own = Weights.weigh
    for is_weighed in (True, False):
        if not is_weighed:
            Weights.weigh = lambda *_: 1.0  # type: ignore[method-assign]
        for name in ("tokens", "tokens-2d-accumulated", "squares-random"):
            place = f"{path}/verify-{name}-{is_weighed}"
            told = apply(EXACT[name], rank, place, Verifier)[1]
            rows = {check.name: check.passed for check in checks_of(told)}
            passed = {"gradients": is_weighed, "partition": True, "resume": True, "shuffle": None}
            assert rows == passed, (name, told)
    Weights.weigh = own  # type: ignore[method-assign]


def test_gradients_stay_those_of_plain_training_or_nothing_is_changed(tmp_path: Path) -> None:
    run_ranks(compare_with_plain, 2, str(tmp_path))
