"""Guards in gloo processes: flipped bits, other seeds, ranks that stop, die or come late."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from paceline.balance import BalanceConfig
from paceline.errors import DivergenceError, RankFailedError
from paceline.testing import run_ranks
from paceline.torch import BalancedBatchSampler, ScheduledDataParallel, guard
from paceline.torch.guard import _watchdog

NUM_RANKS = 4
SIZES = [3, 1, 4, 1, 5, 9, 2, 6] * 4
Found = list[dict[str, Any]]
Step = Callable[[int], None]


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 1))


def train(
    model: nn.Module, optimizer: Any, rank: int, *, num_steps: int, at_step: Step | None = None
) -> None:
    """Train with `optimizer`, anything with a `step`; all-reduce by hand what nobody wraps."""
    generator = torch.Generator().manual_seed(rank)
    for step in range(num_steps):
        if at_step is not None:
            at_step(step)
        model(torch.randn(4, 8, generator=generator)).square().mean().backward()
        if not isinstance(model, DistributedDataParallel | ScheduledDataParallel):
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
        optimizer.step()
        model.zero_grad()


def flip_on(rank: int, at: int, parameter: torch.Tensor) -> Step:
    """Flip one bit of the last value on `rank` before step `at`."""

    def flip(step: int) -> None:
        if step == at and dist.get_rank() == rank:
            parameter.detach().view(-1).view(torch.int32)[-1] ^= 1 << 21

    return flip


def divergence(run: Callable[[], None]) -> str:
    with pytest.raises(DivergenceError) as raised:
        run()
    return str(raised.value)


def bits(model: nn.Module) -> list[list[float]]:
    return [parameter.detach().flatten().tolist() for parameter in model.parameters()]


def guard_ddp(rank: int) -> dict[str, Any]:
    trained = []
    for is_guarded in (False, True):
        model = DistributedDataParallel(new_model())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with guard(model, optimizer, every=2) if is_guarded else nullcontext() as guarded:
            train(model, optimizer, rank, num_steps=5)
        trained.append(bits(model))
    assert guarded is not None
    counts = [guarded.num_steps, guarded.num_checks]
    return {"same_bits": trained[0] == trained[1], "counts": counts}


def flip_in_ddp(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    flip = flip_on(2, 2, model.module[3].bias)

    def run() -> None:
        with guard(model, optimizer, every=2):
            train(model, optimizer, rank, num_steps=5, at_step=flip)

    return {"flip_in_ddp": divergence(run)}


def flip_in_scheduled(rank: int) -> dict[str, Any]:
    bare = new_model()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    model = ScheduledDataParallel(bare, optimizer, num_measure_steps=2, num_trial_steps=1)
    flip = flip_on(1, 7, bare[0].weight)

    def run() -> None:
        with guard(model, optimizer, every=10):
            train(model, model, rank, num_steps=12, at_step=flip)

    with guard(model, optimizer, every=5) as guarded:
        train(model, model, rank, num_steps=10)
    text = divergence(run)
    model.close()
    return {"scheduled_checks": guarded.num_checks, "flip_in_scheduled": text}


def flip_by_hand(rank: int) -> dict[str, Any]:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with guard(model, optimizer) as guarded:
        train(model, optimizer, rank, num_steps=3)
        guarded.check()
        flip_on(0, 0, model[1].weight)(0)
        text = divergence(guarded.check)
    with guard(model, optimizer, ignore=["1.weight"]) as guarded:
        guarded.check()
    return {"flip_by_hand": text}


def other_environments(rank: int) -> dict[str, Any]:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    odd = rank == 1

    def refused(data: BalancedBatchSampler | None = None, every: int = 100) -> str:
        def run() -> None:
            with guard(model, optimizer, data=data, every=every):
                raise AssertionError("the block must not begin")

        return divergence(run)

    sizes = [*SIZES, 4, 4, 4, 4] if odd else SIZES
    return {
        "seed": refused(BalancedBatchSampler(SIZES, batch_size=8, seed=5 if odd else 0)),
        "window": refused(
            BalancedBatchSampler(SIZES, BalanceConfig(batch_size=8, window=2 if odd else 1))
        ),
        "sizes": refused(BalancedBatchSampler(sizes, batch_size=8)),
        "every": refused(every=50 if odd else 100),
    }


def lose_a_batch(rank: int) -> dict[str, Any]:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = BalancedBatchSampler(SIZES, batch_size=8)

    def run() -> None:
        with guard(model, optimizer, data=data, every=1):
            batches = iter(data)

            def take(step: int) -> None:
                for _ in range(2 if step == 1 and rank == 3 else 1):
                    next(batches)

            train(model, optimizer, rank, num_steps=4, at_step=take)

    return {"lost": divergence(run)}


def leave_nothing(rank: int) -> dict[str, Any]:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def held() -> tuple[Any, ...]:
        hooks = (
            *(model._forward_pre_hooks, model._forward_hooks),
            *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        )
        names = sorted(thread.name for thread in threading.enumerate())
        return names, len(os.listdir("/proc/self/fd")), [len(one) for one in hooks]

    before = held()
    for _ in range(3):
        with guard(model, optimizer, patience_s=0.05):
            train(model, optimizer, rank, num_steps=1)
        with suppress(ArithmeticError), guard(model, optimizer):
            raise ArithmeticError
    dist.barrier()
    return {"left_nothing": held() == before}


class Tells(logging.Handler):
    """Keeps what is logged, and calls `on_first` once."""

    def __init__(self, on_first: Callable[[], object]) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._on_first = on_first

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        if len(self.texts) == 1:
            self._on_first()


def stall(rank: int, at_step: Step, on_first: Callable[[], object]) -> list[str]:
    """Train with little patience; rank 0 calls `on_first` when it has logged."""
    logger = logging.getLogger("paceline.guard")
    tells = Tells(on_first if rank == 0 else lambda: None)
    logger.addHandler(tells)
    model = DistributedDataParallel(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with guard(model, optimizer, patience_s=3.0):
        train(model, optimizer, rank, num_steps=4, at_step=at_step)
    logger.removeHandler(tells)
    return tells.texts


def stop_a_rank(rank: int) -> dict[str, Any]:
    pids: list[Any] = [None] * 2
    dist.all_gather_object(pids, os.getpid())

    def stop(step: int) -> None:
        if (rank, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGSTOP)

    return {"stopped": stall(rank, stop, lambda: os.kill(pids[1], signal.SIGCONT))}


def come_late(rank: int) -> dict[str, Any]:
    store = dist.distributed_c10d._get_default_store()

    def wait(step: int) -> None:
        if (rank, step) == (1, 1):
            store.wait(["go"], timedelta(seconds=60))

    return {"late": stall(rank, wait, lambda: store.set("go", "1"))}


def find_all(rank: int, folder: str, names: list[str]) -> None:
    found: dict[str, Any] = {}
    for name in names:
        found |= globals()[name](rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def found_by(num_ranks: int, folder: Path, *parts: Callable[[int], dict[str, Any]]) -> Found:
    run_ranks(find_all, num_ranks, str(folder), [part.__name__ for part in parts])
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(num_ranks)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    parts = guard_ddp, flip_in_ddp, flip_by_hand, other_environments, lose_a_batch, leave_nothing
    return found_by(NUM_RANKS, tmp_path_factory.mktemp("ranks"), *parts)


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    parts = stop_a_rank, come_late, flip_in_scheduled
    return found_by(2, tmp_path_factory.mktemp("ranks"), *parts)


def on_all(found: Found, key: str) -> Any:
    """Return what all ranks found alike."""
    values = [one[key] for one in found]
    assert values == values[:1] * len(found)
    return values[0]


def test_guarding_changes_no_bit_and_compares_when_it_is_due(found: Found) -> None:
    assert on_all(found, "same_bits")
    assert on_all(found, "counts") == [5, 2]


def test_a_flipped_bit_is_named_on_every_rank(found: Found) -> None:
    assert on_all(found, "flip_in_ddp").startswith(
        "after step 4: rank 2 differs from the other ranks in parameter or buffer '3.bias' of 6;"
    )
    assert on_all(found, "flip_by_hand").startswith(
        "after step 3: rank 0 differs from the other ranks in parameter or buffer '1.weight' of 6;"
    )


def test_a_flip_is_found_while_communication_overlaps_the_forward_pass(found_by_two: Found) -> None:
    assert on_all(found_by_two, "scheduled_checks") == 2
    assert on_all(found_by_two, "flip_in_scheduled").startswith(
        "after step 10: rank 1 differs from rank 0 (no majority says which is right) in parameter "
        "or buffer '0.weight'"
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("seed", "seed (rank 1: 5, rank 0: 0);"),
        ("window", "window (rank 1: 2, rank 0: 1);"),
        ("sizes", "number of examples (rank 1: 36, rank 0: 32), sizes (rank 1: "),
        ("every", "every (rank 1: 50, rank 0: 100);"),
    ],
)
def test_another_start_is_refused_on_every_rank(found: Found, key: str, text: str) -> None:
    start = "before the first step: rank 1 differs from the other ranks in "
    assert on_all(found, key).startswith(start + text)


def test_a_rank_elsewhere_in_the_data_is_named(found: Found) -> None:
    assert on_all(found, "lost").startswith(
        "after step 2: rank 3 differs from the other ranks in the plan of the data: "
        "steps of the epoch (rank 3: 3, rank 0: 2);"
    )


def test_threads_descriptors_and_hooks_are_gone_after_the_block(found: Found) -> None:
    assert on_all(found, "left_nothing")


def test_a_stopped_rank_is_named_once_per_wait(found_by_two: Found) -> None:
    (text,) = found_by_two[0]["stopped"]
    assert "for the end of step 3 (in forward); not arrived: rank 1 (step " in text
    assert "no sign of life for" in text
    assert all(len(one["stopped"]) <= 1 for one in found_by_two)


def test_a_late_rank_is_named_with_its_place(found_by_two: Found) -> None:
    (text,) = found_by_two[0]["late"]
    assert "; not arrived: rank 1 (step 2, before forward, waiting for data for " in text
    assert "no sign of life" not in text


def wait_for_nobody(rank: int) -> None:
    _watchdog.GRACE_S = 0.1
    model = DistributedDataParallel(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def hang(step: int) -> None:
        if (rank, step) == (1, 1):
            threading.Event().wait()

    with guard(model, optimizer, patience_s=1.0, abort_s=1.0):
        train(model, optimizer, rank, num_steps=2, at_step=hang)


def test_a_wait_in_gloo_ends_after_abort_s(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankFailedError, match=r"rank [01] died: .*exit code 75"):
        run_ranks(wait_for_nobody, 2, fresh=True)  # Its standard error is read here.
    errors = capfd.readouterr().err
    assert " has waited 1." in errors
    assert "; not arrived: rank 1 (step 2, before forward, waiting for data for " in errors
    assert "; ended after abort_s (1 s)" in errors


def outlive(rank: int, folder: str) -> None:
    """Unlike `run_ranks`, nobody ends the rank that is left over."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    method = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    model = DistributedDataParallel(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def die(step: int) -> None:
        if (rank, step) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with guard(model, optimizer, patience_s=2.0):
            train(model, optimizer, rank, num_steps=3, at_step=die)
    except RuntimeError as error:
        Path(folder, "notes").write_text("\n".join(error.__notes__), encoding="utf-8")


def test_the_error_after_a_death_names_the_dead(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=outlive, args=(rank, str(tmp_path))) for rank in (0, 1)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    note = (tmp_path / "notes").read_text("utf-8")
    assert note.startswith("paceline.guard: rank 0 (step 2, ")
    assert "lost rank 1 (step " in note
    assert note.endswith("stopped or dead)")
