"""The pieces that let habits from other wrappers work; none needs a second process."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from paceline.torch.comm.habits import OutsideSteps, Ownership, WithheldGradients, check_bare
from paceline.torch.comm.sharded._layout import ShardLayout
from paceline.torch.comm.sharded._update import ELEMENTWISE, ShardedUpdate
from paceline.torch.model import PartialUpdate


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def test_parameters_that_the_optimizer_leaves_out_are_named(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"rank 3: .* leaves out '1.weight', '1.bias', which"):
        ownership = Ownership(model, optimizer, 3)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    ownership.check()


def test_what_no_rank_would_average_is_refused(model: nn.Module) -> None:
    foreign = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(5))], lr=0.1)
    with pytest.raises(ValueError, match=r"rank 1: .* 1 of 5 in its group 0 .* shape \(5,\)"):
        Ownership(model, foreign, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1].requires_grad_(False)
    ownership = Ownership(model, optimizer, 1)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"1 of 4 in its group 0"):
        ownership.check()
    optimizer.param_groups[0]["params"][0] = model[0].weight
    model[1].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'1.bias' require\(s\) a gradient now"):
        ownership.check()


def test_swapped_arguments_are_told_apart(model: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"rank 0: .* call ScheduledDataParallel\(model, optim"):
        Ownership(model, model, 0)  # type: ignore[arg-type]


def test_groups_that_are_added_later_are_updated_too(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    one = torch.optim.SGD(model[0].parameters(), lr=0.1)
    two = torch.optim.SGD(other[0].parameters(), lr=0.1)
    whole = PartialUpdate(one)
    parameters = list(other.parameters())
    parts = ShardedUpdate(two, parameters, ShardLayout(parameters, 1), 0)
    for update in (whole, parts):
        update.begin()
    one.add_param_group({"params": list(model[1].parameters()), "lr": 0.5})
    two.add_param_group({"params": list(other[1].parameters()), "lr": 0.5})
    before = model[1].weight.detach().clone()
    for update in (whole, parts):
        update.begin()
    whole.apply([model[1].weight], [torch.ones(1, 2)])
    own = next(segment for segment in parts.part_of if segment.tensor == 2)
    parts.apply([own], [torch.ones(2)])
    assert torch.equal(model[1].weight, before - 0.5)
    assert torch.equal(other[1].weight, before - 0.5)


USES: dict[str, Callable[[nn.Module], object]] = {
    "read": lambda model: next(model.parameters()).grad,
    "write": lambda model: setattr(next(model.parameters()), "grad", None),
    "clip": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
    "step": lambda model: torch.optim.SGD(model.parameters(), lr=0.1).step(),
}


@pytest.mark.parametrize("use", USES)
def test_a_gradient_on_its_way_is_brought_home_by_whoever_looks(use: str, model: nn.Module) -> None:
    calls = []

    def home() -> None:
        withheld.let_go()
        calls.append(model[0].bias.grad)  # Can be read by now.

    withheld = WithheldGradients(list(model.parameters()), home)
    model(torch.ones(3)).sum().backward()
    withheld.hold()
    assert isinstance(model[0].weight, nn.Parameter)
    USES[use](model)
    assert len(calls) == 1
    assert {type(one) for one in model.parameters()} == {nn.Parameter}


def test_copies_of_parameters_are_plain_ones(model: nn.Module) -> None:
    withheld = WithheldGradients(list(model.parameters()), lambda: None)
    withheld.hold()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {type(one) for one in other.parameters()} == {nn.Parameter}
        assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_where_only_parts_exist_gradients_may_be_dropped_but_not_read(model: nn.Module) -> None:
    def refuse() -> None:
        raise ValueError("only parts exist")

    withheld = WithheldGradients(list(model.parameters()), refuse, may_drop=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for drop in (optimizer.zero_grad, model.zero_grad):
        model(torch.ones(3)).sum().backward()
        withheld.hold()
        with pytest.raises(ValueError, match="only parts exist"):
            _ = model[0].weight.grad
        drop()
        withheld.let_go()
        assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("is_foreach", [False, True])
def test_a_step_without_gradients_changes_nothing(
    kind: type[torch.optim.Optimizer], is_foreach: bool, model: nn.Module
) -> None:
    """So sharded updates may take the place of an `optimizer.step()` that was called."""
    optimizer = kind(model.parameters(), lr=0.1, foreach=is_foreach)
    before = copy.deepcopy(model.state_dict()), str(optimizer.state_dict())
    optimizer.step()
    assert str(optimizer.state_dict()) == before[1]
    assert all(torch.equal(before[0][key], value) for key, value in model.state_dict().items())


class Told:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_outside_step(self, *, has_closure: bool) -> None:
        self.calls.append("with closure" if has_closure else "before")

    def after_outside_step(self) -> None:
        self.calls.append("after")


def test_steps_from_outside_are_told_until_the_handles_end_that(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = Told()
    outside = OutsideSteps(optimizer, told)
    optimizer.step()
    optimizer.step(lambda: torch.zeros(()))
    optimizer.step(closure=lambda: torch.zeros(()))
    with outside.own():
        optimizer.step()
    assert told.calls == ["before", "after", *["with closure", "after"] * 2]
    for handle in outside.handles:
        handle.remove()
    optimizer.step()
    assert len(told.calls) == 6


def test_nothing_is_said_where_all_is_well(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ownership(model, torch.optim.SGD(model.parameters(), lr=0.1), 0).check()


def test_a_fully_sharded_part_is_refused_though_nothing_imports_it_for_that() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    part = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(part)
    with pytest.raises(ValueError, match="its '0' is a FullyShardedDataParallel, which averages"):
        check_bare(nn.Sequential(part), nn.Identity, rank=0)
