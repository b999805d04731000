from collections.abc import Iterator

import pytest

from paceline.predict.step import LoaderProbe, probe_loader


class Loader:
    """Yields batches and moves a clock on as it does: 1 s for the first, then 0.1 s each."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.now_s = 0.0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.num_batches):
            self.now_s += 0.1 if number else 1.0
            yield number


@pytest.mark.parametrize("num_workers", [0, 3])
def test_the_start_is_left_out_and_the_time_is_kept(num_workers: int) -> None:
    loader = Loader(1000)
    found = probe_loader(loader, batch_size=20, num_workers=num_workers, clock=lambda: loader.now_s)
    assert found.seconds_per_example == pytest.approx(0.1 / 20)
    assert found.num_workers == num_workers
    assert 5.0 < loader.now_s < 7.0


@pytest.mark.parametrize(("num_batches", "num_workers"), [(0, 0), (1, 0), (6, 3)])
def test_a_loader_that_ends_in_the_warm_up_is_refused(num_batches: int, num_workers: int) -> None:
    loader = Loader(num_batches)
    with pytest.raises(ValueError, match=f"to be timed, got {num_batches}"):
        probe_loader(loader, batch_size=1, num_workers=num_workers, clock=lambda: loader.now_s)


@pytest.mark.parametrize(
    ("num_workers", "num_cores", "seconds"), [(1, 4, 2.0), (8, 4, 0.5), (8, 16, 0.25), (0, 9, 2.0)]
)
def test_processes_share_the_cores(num_workers: int, num_cores: int, seconds: float) -> None:
    probe = LoaderProbe(seconds_per_example=1.0, num_workers=2, num_cores=2)
    there = probe.on(num_workers=num_workers, num_cores=num_cores)
    assert there.seconds_per_example == pytest.approx(seconds)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        probe_loader([1, 2], batch_size=0)
    with pytest.raises(ValueError, match="finite and positive"):
        LoaderProbe(seconds_per_example=0.0, num_workers=0, num_cores=1)
    with pytest.raises(ValueError, match="num_cores"):
        LoaderProbe(seconds_per_example=1.0, num_workers=0, num_cores=0)
