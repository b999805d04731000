"""Step time: a roofline, boosted trees on what it misses, and the loader beside them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._boost import BoostConfig, Boosted, fit_boosted
from paceline.predict.step._features import feature_matrix
from paceline.predict.step._loader import LoaderRates, fit_loader_rates
from paceline.predict.step._roofline import Physics, Roofline, fit_roofline
from paceline.predict.step._rows import StepRows

FloatArray = NDArray[np.float64]

SHIFTS = ("known", "configuration", "dataset", "model", "device")
"""What is new about a row, from nothing to the whole device."""

WHOLE_STEP_SHIFTS = SHIFTS[:2]
"""Shifts under which the trees predict the whole step, loader included."""

COMPUTE = BoostConfig()
TOTAL = BoostConfig(num_trees=800, num_leaves=63, min_rows=5)
# Seven devices are too few to identify the effects of eight data-sheet numbers: each member
# sees half of them, is small, and the members are averaged.
NUM_MEMBERS = 6
MEMBER = BoostConfig(num_trees=200, num_leaves=8, min_rows=40)


@dataclass(frozen=True, slots=True, eq=False)
class StepLogs:
    """Predictions as logarithms of seconds, each of shape `(num_rows,)`.

    Attributes:
        compute: Of the device.
        feed: That the host needs for a batch, while the device computes.
        total: Of the step.
        physics: As `compute`, by the roofline alone.
        slow_feed: As `feed`, for an expensive dataset.
        balance: Launches over work in the roofline: positive where the host bounds.
        loader_known: Whether the dataset was measured on the host; shape likewise.
    """

    compute: FloatArray
    feed: FloatArray
    total: FloatArray
    physics: FloatArray
    slow_feed: FloatArray
    balance: FloatArray
    loader_known: NDArray[np.bool_]

    def trusting(self, share: float) -> "StepLogs":
        """With that share of what the trees add to the roofline, and the maximum as the step."""
        compute = self.physics + share * (self.compute - self.physics)
        return replace(self, compute=compute, total=np.maximum(compute, self.feed))

    def take(self, index: NDArray[np.intp]) -> "StepLogs":
        """The predictions of the rows at `index`."""
        return StepLogs(*(getattr(self, name)[index] for name in StepLogs.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class HostModel:
    """For devices and hosts that were measured."""

    roofline: Roofline
    compute: Boosted
    total: Boosted | None

    def logs(self, rows: StepRows, loader: LoaderRates, *, direct: bool) -> StepLogs:
        """Predict; `direct` asks the trees for the whole step, and else it is the maximum."""
        physics, feed = self.roofline.predict(rows), np.log(loader.feed_s(rows))
        compute = physics.total + self.compute.predict(_features(rows, physics))
        total = np.maximum(compute, feed)
        if direct and self.total is not None:
            base = np.maximum(physics.total, feed)
            total = base + self.total.predict(_step_features(rows, physics, feed))
        slow, known = np.log(loader.slow_feed_s(rows)), loader.is_known(rows)
        balance = physics.launch - physics.work
        return StepLogs(compute, feed, total, physics.total, slow, balance, known)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceModel:
    """For devices that were not measured: an average device and members on half its numbers."""

    roofline: Roofline
    members: tuple[tuple[tuple[int, ...], Boosted], ...]

    def logs(self, rows: StepRows, loader: LoaderRates) -> StepLogs:
        """Predict, with the loader of the median host."""
        physics = self.roofline.predict(rows)
        parts = [m.predict(_features(rows, physics, columns)) for columns, m in self.members]
        compute = physics.total + np.mean(parts, axis=0)
        feed = np.log(loader.of_other_hosts(rows))
        known = np.array([loader.on_some_host(str(n)) for n in rows.keys("family", "dataset")])
        slow, total = np.log(loader.slow_feed_s(rows)), np.maximum(compute, feed)
        balance = physics.launch - physics.work
        return StepLogs(compute, feed, total, physics.total, slow, balance, known)


@dataclass(frozen=True, slots=True, eq=False)
class StepModels:
    """Everything fitted on one set of rows; a part that a shift does not need may be absent."""

    loader: LoaderRates
    host: HostModel | None = None
    device: DeviceModel | None = None

    def logs(self, rows: StepRows, shift: str) -> StepLogs:
        """Predict under one of `SHIFTS`.

        Raises:
            ValueError: If the shift is unknown or its part was not fitted.
        """
        check_shift(shift)
        if shift == "device" and self.device is not None:
            return self.device.logs(rows, self.loader)
        if shift != "device" and self.host is not None:
            return self.host.logs(rows, self.loader, direct=shift in WHOLE_STEP_SHIFTS)
        raise ValueError(f"the part for shift {shift!r} was not fitted")


def check_shift(shift: str) -> None:
    """Raise `ValueError` unless `shift` is one of `SHIFTS`."""
    if shift not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, got {shift!r}")


def fit_step_models(rows: StepRows, shifts: tuple[str, ...] = SHIFTS) -> StepModels:
    """Fit what the given shifts need.

    Args:
        rows: Measured rows of any families together: kernels, bytes and FLOPs
            mean the same for all, and together they are more rows than any one family has.
        shifts: Those that will be asked for.
    """
    return StepModels(
        loader=fit_loader_rates(rows),
        host=_fit_host(rows, shifts) if set(shifts) - {"device"} else None,
        device=_fit_device(rows) if "device" in shifts else None,
    )


def _fit_host(rows: StepRows, shifts: tuple[str, ...]) -> HostModel:
    roofline = fit_roofline(rows)
    physics = roofline.predict(rows)
    target = np.log(rows["compute_s"]) - physics.total
    compute = fit_boosted(_features(rows, physics), target, COMPUTE)
    total = _fit_total(rows, physics) if set(shifts) & set(WHOLE_STEP_SHIFTS) else None
    return HostModel(roofline, compute, total)


def _fit_total(rows: StepRows, physics: Physics) -> Boosted:
    feed = np.log(fit_loader_rates(rows).feed_s(rows))
    target = np.log(rows.total_s) - np.maximum(physics.total, feed)
    return fit_boosted(_step_features(rows, physics, feed), target, TOTAL)


def _fit_device(rows: StepRows) -> DeviceModel:
    roofline = fit_roofline(rows, known_hosts=False)
    physics = roofline.predict(rows)
    target = np.log(rows["compute_s"]) - physics.total
    members = []
    for seed, columns in enumerate(_half_of_the_columns(feature_matrix(rows)[1].shape[1])):
        config = BoostConfig(
            num_trees=MEMBER.num_trees,
            num_leaves=MEMBER.num_leaves,
            min_rows=MEMBER.min_rows,
            seed=seed,
        )
        members.append((columns, fit_boosted(_features(rows, physics, columns), target, config)))
    return DeviceModel(roofline, tuple(members))


def _half_of_the_columns(num_columns: int) -> list[tuple[int, ...]]:
    """A random half of the columns and its complement, so that each is used equally often."""
    rng = np.random.default_rng(0)
    halves: list[tuple[int, ...]] = []
    while len(halves) < NUM_MEMBERS:
        order = rng.permutation(num_columns)
        for part in (order[: num_columns // 2], order[num_columns // 2 :]):
            halves.append(tuple(int(column) for column in np.sort(part)))
    return halves[:NUM_MEMBERS]


def _features(
    rows: StepRows, physics: Physics, device_columns: tuple[int, ...] | None = None
) -> FloatArray:
    work, device = feature_matrix(rows)
    chosen = device if device_columns is None else device[:, list(device_columns)]
    return np.hstack([work, chosen, physics.columns()])


def _step_features(rows: StepRows, physics: Physics, feed: FloatArray) -> FloatArray:
    base = np.maximum(physics.total, feed)
    return np.column_stack([_features(rows, physics), feed, feed - physics.total, base])
