import pytest
import torch
from torch import nn

from paceline.torch.predict._calibrate_cpu import calibrate_cpu, this_machine
from paceline.torch.predict._calibration_models import TimedModel, standard_models
from paceline.torch.predict._measured_step import measure_step, threads, time_steps
from paceline.torch.predict._trace import trace_workload
from paceline.torch.predict._trace_setup import StepSetup


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


MODEL = TimedModel(small, torch.zeros(1, 8), (4, 64))


def test_a_calibrated_machine_predicts_steps() -> None:
    random = torch.get_rng_state()
    rates = calibrate_cpu([MODEL], with_standard=False)
    work = trace_workload(small, input_shape=(8,), batch_size=16, kernels="cpu")
    estimate = rates.step_time(work)
    assert 0 < estimate.low <= estimate.median <= estimate.high
    assert rates.machine["threads"] == "1"
    assert torch.equal(random, torch.get_rng_state())


def test_the_standard_models_run_every_class_of_operator() -> None:
    classes = set()
    for timed in standard_models():
        work = trace_workload(
            timed.build,
            timed.example_input,
            batch_size=2,
            optimizer=timed.optimizer,
            kernels="cpu",
        )
        classes |= {operator.operator_class for operator in work.operators}
    assert classes == {
        "matmul",
        "conv",
        "depthwise",
        "attention",
        "recurrent",
        "gather",
        "elementwise",
        "view",
    }


def test_steps_are_timed_one_by_one() -> None:
    seconds = time_steps(small(), None, StepSetup(batch_size=4), input_shape=(8,), num_steps=5)
    assert len(seconds) == 5
    assert min(seconds) > 0


def test_threads_are_put_back_on_errors_too() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        assert torch.get_num_threads() == before + 1
        raise KeyError

    with pytest.raises(KeyError), threads(before + 1):
        fail()
    assert torch.get_num_threads() == before


def test_a_machine_names_itself() -> None:
    assert set(this_machine(2)) == {"processor", "threads", "torch", "python", "date"}


def test_a_measured_step_keeps_to_its_budget() -> None:
    lines: list[str] = []
    setup = StepSetup(batch_size=512)
    whole, part = (
        measure_step(small, None, setup, input_shape=(8,), budget_s=budget_s, say=lines.append)
        for budget_s in (1e9, 1e-9)
    )
    assert [found.source for _, found in (whole, part)] == ["measured", "predicted"]
    assert [work.batch_size for work, _ in (whole, part)] == [512, 512]
    assert part[0].saved_bytes_per_example == pytest.approx(whole[0].saved_bytes_per_example)
    assert [line.split()[-2] for line in lines] == ["2", "512", "2", "2"]
