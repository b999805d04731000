"""What people do around a training step, in every mode, against plain averaging of gradients."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from paceline import ScheduledDataParallel
from paceline.comm import WireProblem, plan_ddp, plan_p3
from paceline.testing import run_ranks
from paceline.torch.comm import _control, _plan_trial
from paceline.torch.comm._candidates import Candidate

NUM_MEASURED = 2
Step = Callable[[], None]


class Branched(nn.Module):
    """Two heads, one of which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(12, 16)
        self.heads = nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 4)])
        self.used = [True, True]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.trunk(x).tanh()
        return [head(hidden) for head, used in zip(self.heads, self.used, strict=True) if used]


class Averaged:
    """Plain data parallel, written down: after each backward pass gradients are averaged."""

    def __init__(self, bare: Branched, optimizer: torch.optim.Optimizer) -> None:
        self.bare, self.optimizer = bare, optimizer

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self.bare(x)
        return found

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.backward(**kwargs)
        for one in self.bare.parameters():
            is_used = torch.tensor(float(one.grad is not None))
            dist.all_reduce(is_used)
            if is_used:
                mean = torch.zeros_like(one) if one.grad is None else one.grad / 2
                dist.all_reduce(mean)
                one.grad = mean

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class Scheduled(Averaged):
    """The same calls, to the wrapper."""

    def __init__(self, bare: Branched, optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        super().__init__(bare, optimizer)
        self.model = ScheduledDataParallel(
            bare, optimizer, **{"num_measure_steps": NUM_MEASURED, **kwargs}
        )

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self.model(x)
        return found

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.backward(**kwargs)

    def step(self) -> None:
        self.model.step()


def loss_of(outputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(one - 0.5).square().mean() for one in outputs]).sum()


# Each habit takes one step, or none.


def plainly(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.backward(loss_of(way(x)))
    way.step()


def clip_bare(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.backward(loss_of(way(x)))
    clip_grad_norm_(way.bare.parameters(), 0.05)
    way.step()


def write(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.backward(loss_of(way(x)))
    first, second, *_ = way.bare.parameters()
    assert first.grad is not None
    first.grad.mul_(0.5)
    second.grad = torch.ones_like(second)
    way.step()


def read_on_rank_0(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.backward(loss_of(way(x)))
    if rank == 0:
        shown.append([float(p.grad.norm()) for p in way.bare.parameters() if p.grad is not None])
    way.step()


def skip_after_backward(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.backward(loss_of(way(x)))
    way.optimizer.zero_grad()


def two_losses_of_one_graph(way: Averaged, x: torch.Tensor, rank: int) -> None:
    first, second = way(x)
    way.backward(loss_of([first]), retain_graph=True)
    way.backward(loss_of([second]))
    way.step()


def two_passes_then_both_backward(way: Averaged, x: torch.Tensor, rank: int) -> None:
    losses = [loss_of(way(x)), loss_of(way(x + 1))]
    for loss in losses:
        way.backward(loss)
    way.step()


def unused_on(ranks: tuple[int, ...], way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.bare.used[1] = rank not in ranks
    way.backward(loss_of(way(x)))
    way.step()
    way.bare.used[1] = True


def loss_of_a_weight_alone(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way(x)
    way.backward(way.bare.trunk.weight.square().sum() * (1 + rank))
    way.step()


def gradient_penalty(way: Averaged, x: torch.Tensor, rank: int) -> None:
    x = x.clone().requires_grad_()
    loss = loss_of(way(x))
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    way.backward(loss + slope.square().sum())
    way.step()


def freeze(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.bare.heads[0].requires_grad_(False)
    plainly(way, x, rank)
    way.bare.heads[0].requires_grad_(True)


def deep_copy(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.backward(loss_of(way(x)))
    other = copy.deepcopy(way.bare)
    assert {type(one) for one in other.parameters()} == {nn.Parameter}
    way.step()


def fail_in_backward(way: Averaged, x: torch.Tensor, rank: int) -> None:
    def fail(_: torch.Tensor) -> None:
        raise ZeroDivisionError

    handle = way.bare.trunk.weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        way.backward(loss_of(way(x)))
    handle.remove()
    way.optimizer.zero_grad()


def optimizer_step(way: Averaged, x: torch.Tensor, rank: int) -> None:
    way.optimizer.zero_grad()
    way.backward(loss_of(way(x)))
    way.optimizer.step()


def accumulate(way: Averaged, x: torch.Tensor, rank: int) -> None:
    """`zero_grad` is forgotten: gradients add up."""
    for _ in range(2):
        way.backward(loss_of(way(x)))
        way.optimizer.step()
    way.optimizer.zero_grad()


def closure(way: Averaged, x: torch.Tensor, rank: int) -> None:
    def run() -> torch.Tensor:
        way.optimizer.zero_grad()
        loss = loss_of(way(x))
        way.backward(loss)
        return loss

    way.optimizer.step(run)
    way.optimizer.zero_grad()


def scale(way: Averaged, x: torch.Tensor, rank: int, *, clips: bool = False) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    way.backward(scaler.scale(loss_of(way(x))))
    if clips:
        scaler.unscale_(way.optimizer)
        clip_grad_norm_(way.bare.parameters(), 0.05)
    scaler.step(way.optimizer)
    scaler.update()
    way.optimizer.zero_grad()


shown: list[list[float]] = []
HABITS: dict[str, Callable[[Averaged, torch.Tensor, int], None]] = {
    "model.step()": plainly,
    "clip_grad_norm_ of the bare parameters": clip_bare,
    "write .grad": write,
    "read .grad on rank 0": read_on_rank_0,
    "zero_grad() in place of a step": skip_after_backward,
    "two losses of one graph": two_losses_of_one_graph,
    "two passes, then both backward": two_passes_then_both_backward,
    "a head is unused on rank 1": partial(unused_on, (1,)),
    "a head is unused": partial(unused_on, (0, 1)),
    "a loss of a weight alone": loss_of_a_weight_alone,
    "gradient penalty": gradient_penalty,
    "freeze a head": freeze,
    "copy the bare model": deep_copy,
    "a backward pass that raises": fail_in_backward,
}
# From the first of these on no communication overlaps the next forward pass.
OUTSIDE: dict[str, Callable[[Averaged, torch.Tensor, int], None]] = {
    "optimizer.step()": optimizer_step,
    "steps without zero_grad()": accumulate,
    "closure": closure,
    "GradScaler": scale,
    "GradScaler and clip_grad_norm_": partial(scale, clips=True),
}
REFUSED_IF_SHARDED = {
    "clip_grad_norm_ of the bare parameters": "parts of the averaged gradients exist",
    "write .grad": "parts of the averaged gradients exist",
    "read .grad on rank 0": "parts of the averaged gradients exist",
    "closure": "takes no closure",
    "GradScaler": "parts of the averaged gradients exist",
    "GradScaler and clip_grad_norm_": "parts of the averaged gradients exist",
}
# The averages are gone with the step: they cannot add up over steps.
CLEARS_IF_SHARDED = "steps without zero_grad()"


def twelfths(problem: WireProblem) -> Any:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 12)


def buckets(problem: WireProblem, planner: object) -> list[Candidate]:
    return [Candidate(plan_ddp(problem), 1.0, 25)]


def all_ways(problem: WireProblem, planner: object) -> list[Candidate]:
    plans = twelfths(problem), plan_ddp(problem)
    return [Candidate(plans[0], 0.0), Candidate(plans[1], 1.0), Candidate(plans[1], 1.0, 25)]


MODES: dict[str, dict[str, Any]] = {
    "measuring": {"num_measure_steps": 10**6},
    "trying": {"candidates": all_ways, "num_trial_steps": 2},
    "overlapped": {"choose": twelfths},
    "waiting": {"choose": plan_ddp},
    "plain": {"candidates": buckets},
    "sharded": {"choose": twelfths, "sharded": True},
    "sharded, waiting": {"choose": plan_ddp, "sharded": True},
}


# Where it is not the mode itself: modes that end, and what remains when overlap is given up.
ENDS = {
    ("overlapped", True): "plain",
    ("sharded", False): "overlapped",
    ("sharded", True): "waiting",
    ("sharded, waiting", False): "waiting",
}


@contextmanager
def both(
    rank: int, mode: str, new: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
) -> Iterator[tuple[Averaged, Scheduled]]:
    """Train in two ways, in the mode once it is reached."""
    kwargs = dict(MODES[mode])
    torch.manual_seed(0)
    one = Branched()
    two = copy.deepcopy(one)
    plain = Averaged(one, new(one.parameters(), lr=0.01))
    with ExitStack() as stack:
        if "candidates" in kwargs:
            stack.enter_context(patch.object(_control, "candidates", kwargs.pop("candidates")))
        # No plan leaves the trial early, so all take their turns.
        stack.enter_context(patch.object(_plan_trial, "SLOW", 1e9))
        scheduled = Scheduled(two, new(two.parameters(), lr=0.01), **kwargs)
        for step in range(NUM_MEASURED):
            for way in (plain, scheduled):
                plainly(way, batch(rank, step), rank)
        yield plain, scheduled
        scheduled.model.close()


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(10 * step + rank))


def same(one: Averaged, two: Scheduled, *, rounds: bool) -> bool:
    """Compare bit for bit; sharded gradients of several passes are added up in another order."""
    two.model.flush()
    rtol, atol = (1e-4, 1e-5) if rounds else (0.0, 0.0)
    pairs = zip(one.bare.parameters(), two.bare.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=rtol, atol=atol) for a, b in pairs)


def run_habits(rank: int, mode: str, names: list[str]) -> list[str]:
    """Return the habits after which parameters differ, or which were neither right nor refused."""
    wrong = []
    with both(rank, mode) as (plain, scheduled):
        for step, name in enumerate(names * 2):
            habit, x = {**HABITS, **OUTSIDE}[name], batch(rank, 5 + step)
            shown.clear()
            habit(plain, x, rank)
            habit(scheduled, x, rank)
            is_same = same(plain, scheduled, rounds="sharded" in mode)
            if not is_same or shown[:1] != shown[1:]:
                wrong.append(f"{mode}: {name}")
        scheduled.model.flush()
        found = scheduled.model._control.mode
    is_outside = set(names) <= set(OUTSIDE)
    if found != ENDS.get((mode, is_outside), ENDS.get((mode, False), mode)):
        wrong.append(f"{mode}: ended {found}")
    return wrong


def refused(rank: int, mode: str, name: str) -> str:
    with both(rank, mode) as (_, scheduled):
        # A habit that reads on one rank is to be refused on all here.
        with pytest.raises(ValueError, match=REFUSED_IF_SHARDED[name]) as info:
            {**HABITS, **OUTSIDE}[name](scheduled, batch(rank, 0), 0)
        scheduled.model.flush()
    return str(info.value)


def find_habits(rank: int, folder: str) -> None:
    wrong = []
    lines = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for mode in MODES:
            is_sharded = mode.startswith("sharded")
            for table in (HABITS, OUTSIDE):
                left_out = {*REFUSED_IF_SHARDED, CLEARS_IF_SHARDED} if is_sharded else ()
                names = [one for one in table if one not in left_out]
                wrong += run_habits(rank, mode, names)
    for name in REFUSED_IF_SHARDED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines.append(refused(rank, "sharded", name))
    texts = [str(one.message) for one in caught]
    content = {"wrong": wrong, "refused": lines, "warned": texts, **wrapped(rank)}
    Path(folder, f"{rank}.json").write_text(json.dumps(content), encoding="utf-8")


def wrapped(rank: int) -> dict[str, Any]:
    """Wrap twice, either way around; mix both calls; thaw."""
    bare = Branched()
    new = partial(torch.optim.AdamW, lr=0.01)
    refusals = []

    def note(run: Callable[[], Any]) -> None:
        with pytest.raises(ValueError) as info:  # noqa: PT011  # the texts are checked by the test
            run()
        refusals.append(str(info.value))

    parallel = DistributedDataParallel(bare)
    note(lambda: ScheduledDataParallel(parallel, new(bare.parameters())))
    nested = nn.Sequential(nn.Linear(12, 12), DistributedDataParallel(Branched()))
    note(lambda: ScheduledDataParallel(nested, new(nested.parameters())))
    other = Branched()
    note(lambda: ScheduledDataParallel(other, new(bare.parameters())))
    other.heads[1].requires_grad_(False)
    optimizer = new(other.parameters())
    with ScheduledDataParallel(other, optimizer) as model:
        note(lambda: ScheduledDataParallel(nn.Sequential(model), optimizer))
        note(lambda: DistributedDataParallel(model))
        outer = DistributedDataParallel(nn.Sequential(nn.Linear(12, 12), model))
        note(lambda: outer(batch(rank, 0)))
        loss_of(model(batch(rank, 0))).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        note(model.step)
        other.heads[1].requires_grad_(True)
        loss_of(model(batch(rank, 1))).backward()
        note(model.step)
        other.heads[1].requires_grad_(False)
        model.step()
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
        loss_of(model(batch(rank, 1))).backward()
        note(model.step)
    return {"nested": refusals}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_habits, 2, str(folder), timeout_s=30)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_each_habit_is_right_in_each_mode(found: list[dict[str, Any]]) -> None:
    assert [one["wrong"] for one in found] == [[], []]


def test_what_needs_whole_gradients_is_refused_where_there_are_parts(
    found: list[dict[str, Any]],
) -> None:
    for one in found:
        assert len(one["refused"]) == len(REFUSED_IF_SHARDED)
        assert all("\n" not in text and "sharded=False" in text for text in one["refused"])


def test_the_optimizers_own_step_warns_once_per_model(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        text = f"rank {rank}: optimizer.step() waits for all gradients; call model.step()"
        assert [line.startswith(text) for line in one["warned"]] == [True] * len(MODES)


def test_wrappers_and_parameters_that_do_not_belong_are_refused(
    found: list[dict[str, Any]],
) -> None:
    for rank, one in enumerate(found):
        expected = (
            "takes a bare model, but it is a DistributedDataParallel",
            "takes a bare model, but its '1' is a DistributedDataParallel",
            "must update parameters of the model only, but 6 of 6 in its group 0",
            "takes a bare model, but its '0' is a ScheduledDataParallel",
            "lies in a DistributedDataParallel",
            "lies in a DistributedDataParallel",
            "optimizer.step() has taken this step already",
            "'heads.1.weight', 'heads.1.bias' require(s) a gradient now",
            "must update parameters of the model only, but 1 of 1 in its group 1",
        )
        for text, part in zip(one["nested"], expected, strict=True):
            assert text.startswith(f"rank {rank}: ")
            assert part in text
