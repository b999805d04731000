"""Four gloo ranks, two by two: ranks of one tensor-parallel group get the same examples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed.device_mesh import init_device_mesh

from paceline.errors import PlanMismatchError
from paceline.testing import run_ranks
from paceline.timeline import Kind, Timeline
from paceline.torch import BalancedBatchSampler

SIZES = np.random.default_rng(3).integers(1, 60, 96)


def measured(num_steps: int, seconds: list[float]) -> Timeline:
    steps, ranks = (values.ravel() for values in np.indices((num_steps, 2)))
    return Timeline.from_columns(
        "measured",
        rank=ranks,
        step=steps,
        start_s=steps,
        duration_s=np.tile(seconds, num_steps),
        kind=Kind.BACKWARD,
    )


def walk(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def sampler(sizes: Any = SIZES) -> BalancedBatchSampler:
        return BalancedBatchSampler(
            sizes, batch_size=16, counts="free", process_group=mesh, data_axis="dp"
        )

    batches = sampler()
    found: dict[str, Any] = {"place": [batches.num_replicas, batches.rank]}
    found["first"] = list(batches)
    # Each tensor-parallel group would learn another speed from its own clocks.
    batches.refit(measured(len(found["first"]), [1.0, 2.0 + rank % 2]))
    found["speeds"] = [worker.speed for worker in batches.workers]
    batches.set_epoch(1)
    found["second"] = list(batches)
    try:
        # Ranks 1 and 3 have other sizes: both data-parallel groups agree within themselves.
        next(iter(sampler(SIZES + rank % 2)))
        found["refused"] = ""
    except PlanMismatchError as error:
        found["refused"] = str(error)
    wrong = []
    for group, axis in ((mesh, "cp"), (mesh["dp"], "dp"), (None, "dp")):
        try:
            BalancedBatchSampler(SIZES, batch_size=16, process_group=group, data_axis=axis)
        except ValueError as error:
            wrong.append(str(error))
    found["wrong"] = wrong
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mesh")
    run_ranks(walk, 4, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_data_is_shared_along_the_data_axis_only(found: list[dict[str, Any]]) -> None:
    assert [each["place"] for each in found] == [[2, 0], [2, 0], [2, 1], [2, 1]]
    for epoch in ("first", "second"):
        streams = [each[epoch] for each in found]
        assert streams[0] == streams[1]
        assert streams[2] == streams[3]
        both = [example for batch in streams[0] + streams[2] for example in batch]
        assert sorted(both) == list(range(len(SIZES)))


def test_all_agree_on_what_one_of_them_measured(found: list[dict[str, Any]]) -> None:
    assert all(each["speeds"] == found[0]["speeds"] for each in found)
    assert found[0]["speeds"][0] > found[0]["speeds"][1]


def test_groups_that_agree_within_themselves_only_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("sizes" in each["refused"] for each in found)


def test_a_mesh_that_does_not_fit_is_refused(found: list[dict[str, Any]]) -> None:
    for each in found:
        no_axis, part, no_mesh = each["wrong"]
        assert "got DeviceMesh with the axes ('dp', 'tp')" in no_axis
        assert "needs a mesh of all 4 ranks, got one of 2" in part
        assert "got NoneType" in no_mesh
