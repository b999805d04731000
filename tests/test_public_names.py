import paceline

PUBLIC = {
    "BalancedBatchSampler",
    "BalancedSampler",
    "Checkpoint",
    "DataLoader",
    "Job",
    "LayerCost",
    "LinearCost",
    "Link",
    "QuadraticCost",
    "ScheduledDataParallel",
    "Summary",
    "Timeline",
    "Worker",
    "measure_job",
    "simulate",
    "split_backward",
    "watch",
}


def test_the_public_names_are_those_of_the_first_tutorial() -> None:
    assert set(paceline.__all__) == PUBLIC
    assert set(dir(paceline)) == PUBLIC | {"__version__"}


def test_every_public_name_can_be_had() -> None:
    assert {name for name in PUBLIC if getattr(paceline, name).__name__ == name} == PUBLIC
