"""The measuring communication hook beside plain DistributedDataParallel, on two gloo ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.nn.parallel import DistributedDataParallel

from paceline.errors import MeasurementError
from paceline.testing import run_ranks
from paceline.torch.comm.ddp._watch_buckets import BucketWatch, watch_buckets

Found = list[dict[str, Any]]
NUM_LAYERS = 6


def wrapped(bucket_cap_mb: float) -> DistributedDataParallel:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(NUM_LAYERS)))
    return DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb)


def train(ddp: DistributedDataParallel, rank: int, *, num_steps: int = 12) -> torch.Tensor:
    """Train, with some accumulation; return all parameters."""
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(rank)
    for step in range(num_steps):
        batch = torch.randn(4, 128, generator=generator)
        if step % 5 == 4:
            with ddp.no_sync():
                ddp(batch / 2).square().mean().backward()
        ddp(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in ddp.parameters()])


def hooked(
    rank: int, hook: Any = None, hook_state: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, BucketWatch]:
    ddp = wrapped(0.1)
    inner = {} if hook is None else {"hook": hook, "hook_state": hook_state}
    watch = watch_buckets(ddp, num_steps=6, **inner, **kwargs)
    return train(ddp, rank), watch


def plain(rank: int, hook: Any = None, *, bucket_cap_mb: float = 0.1) -> torch.Tensor:
    ddp = wrapped(bucket_cap_mb)
    if hook is not None:
        ddp.register_comm_hook(None, hook)
    return train(ddp, rank)


def power_state() -> PowerSGDState:
    return PowerSGDState(
        None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=0.5
    )


def find_all(rank: int, folder: str) -> None:
    unmeasured = watch_buckets(wrapped(0.1))
    with pytest.raises(MeasurementError, match="no step was measured yet; train for 5 steps"):
        unmeasured.advice()
    after, watch = hooked(rank)
    times, advice = watch.times(), watch.advice()
    by_hand = wrapped(0.1)  # As a framework does that takes a hook.
    by_hand.register_comm_hook(None, BucketWatch(by_hand).hook)
    halved, _ = hooked(rank, fp16_compress_hook)
    low_rank, power = hooked(rank, powerSGD_hook, power_state(), one_at_a_time=True)
    ranks = [torch.empty_like(low_rank) for _ in range(2)]
    dist.all_gather(ranks, low_rank)
    found = {
        "plain": torch.equal(after, plain(rank)),
        "by hand": torch.equal(after, train(by_hand, rank)),
        "fp16": torch.equal(halved, plain(rank, fp16_compress_hook)),
        "low rank": torch.equal(*ranks) and bool(low_rank.isfinite().all()),
        "num measured": [watch.num_measured, times.num_steps, power.num_measured],
        "hooks left": len(watch._handles),
        "tensors": times.tensors,
        "num_bytes": times.num_bytes.tolist(),
        "in order": bool(
            (times.ready_s <= times.done_s).all()
            and (times.ready_s[:-1] <= times.ready_s[1:]).all()
            and times.ready_s[0] > 0
            and times.backward_s + times.exposed_s <= times.step_s
        ),
        "advice": str(advice),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(find_all, 2, str(folder), timeout_s=60)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_numbers_stay_those_of_ddp_and_of_the_inner_hook(found: Found) -> None:
    for one in found:
        assert one["plain"]
        assert one["by hand"]
        assert one["fp16"]


def test_a_hook_that_sends_again_works_on_gloo_one_bucket_at_a_time(found: Found) -> None:
    assert [one["low rank"] for one in found] == [True, True]


def test_the_steps_asked_for_are_measured_and_the_hooks_removed(found: Found) -> None:
    for one in found:
        assert one["num measured"] == [6, 6, 6]
        assert one["hooks left"] == 0


def test_buckets_are_those_that_ddp_sent_in_their_order(found: Found) -> None:
    per_layer = 4 * (128 * 128 + 128)
    for one in found:
        assert sorted(tensor for bucket in one["tensors"] for tensor in bucket) == list(
            range(2 * NUM_LAYERS)
        )
        assert one["tensors"][0][0] >= 2 * NUM_LAYERS - 2
        assert len(one["tensors"]) > 1
        assert sum(one["num_bytes"]) == NUM_LAYERS * per_layer
        assert one["in order"]


def test_all_ranks_get_the_same_advice(found: Found) -> None:
    first, second = (one["advice"] for one in found)
    assert first == second
    assert first.startswith("bucket_cap_mb=")
    assert "(simulated); now" in first
    assert "(measured over 6 steps)" in first
