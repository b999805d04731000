"""Step time: a roofline, boosted trees on what it misses, and the loader beside them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paceline.predict.step._boost import BoostConfig, Boosted, fit_boosted
from paceline.predict.step._execution import Execution
from paceline.predict.step._features import feature_matrix
from paceline.predict.step._loader import LoaderRates, fit_loader_rates
from paceline.predict.step._roofline import Physics, Roofline, fit_roofline
from paceline.predict.step._rows import FloatArray, StepRows

SHIFTS = ("known", "configuration", "dataset", "model", "device", "device+model")
"""What is new about a row, from nothing to the device and the model together."""

WHOLE_STEP_SHIFTS = SHIFTS[:2]
"""Shifts under which the trees predict the whole step, loader included."""

DEVICE_SHIFTS = SHIFTS[4:]
"""Shifts under which the device was never measured."""

COMPUTE = BoostConfig()
TOTAL = BoostConfig(num_trees=800, num_leaves=63, min_rows=5)
# Seven devices are too few to identify the effects of eight data-sheet numbers: each member
# sees half of them, is small, and the members are averaged.
NUM_MEMBERS = 6
MEMBER = BoostConfig(num_trees=200, num_leaves=8, min_rows=40)


@dataclass(frozen=True, slots=True, eq=False)
class StepLogs:
    """Predictions as logarithms of seconds, each of shape `(num_rows,)`."""

    compute: FloatArray  # of the device
    feed: FloatArray  # that the host needs for a batch, while the device computes
    total: FloatArray  # of the step
    physics: FloatArray  # as `compute`, by the roofline alone
    slow_feed: FloatArray  # as `feed`, for an expensive dataset
    balance: FloatArray  # launches over work in the roofline: positive where the host bounds
    launch_share: FloatArray  # by how much of itself the step follows the pace of launches
    loader_known: NDArray[np.bool_]  # whether the dataset was measured on the host; shape likewise

    def trusting(self, share: float) -> "StepLogs":
        """With that share of what the trees add to the roofline, and the maximum as the step."""
        compute = self.physics + share * (self.compute - self.physics)
        return replace(self, compute=compute, total=np.maximum(compute, self.feed))

    def of_execution(self, effect: FloatArray, micro_batches: int) -> "StepLogs":
        """With a compute time that differs by so many log seconds, and so many batches to load."""
        batches = np.log(micro_batches)
        compute, feed = self.compute + effect, self.feed + batches
        change = np.maximum(compute, feed) - np.maximum(self.compute, self.feed)
        return replace(
            self,
            compute=compute,
            feed=feed,
            total=self.total + change,
            slow_feed=self.slow_feed + batches,
        )

    def take(self, index: NDArray[np.intp]) -> "StepLogs":
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
        return _logs(physics, compute, feed, total, slow, known)


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
        return _logs(physics, compute, feed, total, slow, known)


@dataclass(frozen=True, slots=True, eq=False)
class StepModels:
    """Everything fitted on one set of rows; a part that a shift does not need may be absent."""

    loader: LoaderRates
    host: HostModel | None = None
    device: DeviceModel | None = None

    def logs(self, rows: StepRows, shift: str) -> StepLogs:
        """Predict under one of `SHIFTS`; its part must have been fitted."""
        part = self._part(shift)
        if isinstance(part, DeviceModel):
            return part.logs(rows, self.loader)
        return part.logs(rows, self.loader, direct=shift in WHOLE_STEP_SHIFTS)

    def effect(self, rows: StepRows, shift: str, execution: Execution) -> FloatArray:
        """By how many log seconds the roofline changes if steps are run in another way."""
        roofline = self._part(shift).roofline
        changed: FloatArray = roofline.predict(rows, execution).total - roofline.predict(rows).total
        return changed

    def _part(self, shift: str) -> HostModel | DeviceModel:
        check_shift(shift)
        part = self.device if shift in DEVICE_SHIFTS else self.host
        if part is None:
            raise ValueError(f"the part for shift {shift!r} was not fitted")
        return part


def check_shift(shift: str) -> None:
    if shift not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, got {shift!r}")


def fit_step_models(rows: StepRows, shifts: tuple[str, ...] = SHIFTS) -> StepModels:
    """Fit what the given shifts need, to measured rows of any families together.

    Kernels, bytes and FLOPs mean the same for all, and together they are more rows than any one
    family has.
    """
    return StepModels(
        loader=fit_loader_rates(rows),
        host=_fit_host(rows, shifts) if set(shifts) - set(DEVICE_SHIFTS) else None,
        device=_fit_device(rows) if set(shifts) & set(DEVICE_SHIFTS) else None,
    )


def _fit_host(rows: StepRows, shifts: tuple[str, ...]) -> HostModel:
    roofline = fit_roofline(rows)
    physics = roofline.predict(rows)
    target = np.log(rows["compute_s"]) - physics.total
    compute = fit_boosted(_features(rows, physics), target, COMPUTE)
    if not set(shifts) & set(WHOLE_STEP_SHIFTS):
        return HostModel(roofline, compute, None)
    feed = np.log(fit_loader_rates(rows).feed_s(rows))
    target = np.log(rows.total_s) - np.maximum(physics.total, feed)
    return HostModel(
        roofline, compute, fit_boosted(_step_features(rows, physics, feed), target, TOTAL)
    )


def _fit_device(rows: StepRows) -> DeviceModel:
    roofline = fit_roofline(rows, known_hosts=False)
    physics = roofline.predict(rows)
    target = np.log(rows["compute_s"]) - physics.total
    members = []
    for seed, columns in enumerate(_half_of_the_columns(feature_matrix(rows)[1].shape[1])):
        features = _features(rows, physics, columns)
        members.append((columns, fit_boosted(features, target, replace(MEMBER, seed=seed))))
    return DeviceModel(roofline, tuple(members))


def _half_of_the_columns(num_columns: int) -> list[tuple[int, ...]]:
    """A random half of the columns and its complement, so that each is used equally often."""
    rng = np.random.default_rng(0)
    halves: list[tuple[int, ...]] = []
    while len(halves) < NUM_MEMBERS:
        order = rng.permutation(num_columns)
        parts = np.split(order, [num_columns // 2])
        halves += [tuple(np.sort(part).tolist()) for part in parts]
    return halves[:NUM_MEMBERS]


def _logs(
    physics: Physics,
    compute: FloatArray,
    feed: FloatArray,
    total: FloatArray,
    slow: FloatArray,
    known: NDArray[np.bool_],
) -> StepLogs:
    return StepLogs(
        compute=compute,
        feed=feed,
        total=total,
        physics=physics.total,
        slow_feed=slow,
        balance=physics.balance,
        launch_share=physics.launch_share,
        loader_known=known,
    )


def _features(
    rows: StepRows, physics: Physics, device_columns: tuple[int, ...] | None = None
) -> FloatArray:
    work, device = feature_matrix(rows)
    chosen = device if device_columns is None else device[:, list(device_columns)]
    return np.hstack([work, chosen, physics.columns()])


def _step_features(rows: StepRows, physics: Physics, feed: FloatArray) -> FloatArray:
    base = np.maximum(physics.total, feed)
    return np.column_stack([_features(rows, physics), feed, feed - physics.total, base])
