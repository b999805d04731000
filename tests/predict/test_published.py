"""The table of published throughputs is what its benchmark says of it."""

import predict_published as benchmark
import pytest

from paceline.predict import Device

ROWS = benchmark.rows_of(benchmark.HERE / "predict_published.csv")
CNNS = {
    row["model"]: row for row in benchmark.rows_of(benchmark.HERE / "predict_published_cnns.csv")
}


def test_there_are_enough_rows_of_different_kinds_and_each_has_a_source() -> None:
    assert len(ROWS) >= 60
    assert len({row["device"] for row in ROWS}) >= 6
    assert len({row["model"].rstrip("0123456789") for row in ROWS}) >= 4
    assert all(row["source"] and float(row["examples_per_s"]) > 0 for row in ROWS)
    kept_aside = ("timm", "lambda", "llm-foundry")
    assert not [row for row in ROWS if any(word in row["source"].lower() for word in kept_aside)]


def test_halves_are_about_even_and_a_model_of_a_source_is_in_one() -> None:
    halves = [benchmark.half_of(row) for row in ROWS]
    assert 0.35 < halves.count("kept") / len(halves) < 0.65
    groups = {(row["source"], row["model"], half) for row, half in zip(ROWS, halves, strict=True)}
    assert len(groups) == len({group[:2] for group in groups})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}, {row['device']}")
def test_no_row_is_faster_than_its_device(row: dict[str, str]) -> None:
    device, execution = Device.named(row["device"]), benchmark.execution_of(row)
    work = benchmark.workload_of(row, CNNS)
    measured_s = work.batch_size * execution.micro_batches / float(row["examples_per_s"])
    ideal_s = benchmark.baselines(work, device, execution)["35 % of peak"] * benchmark.MFU
    # Fewer products than are counted suffice for 3 x 3 convolutions in 32 bits; depthwise ones
    # wait for memory.
    assert 0.5 * ideal_s < measured_s < 200 * ideal_s
