"""The fitted predictor: models, intervals per kind of shift, and probes of the user's device."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from paceline.predict.step._calibration import (
    Calibration,
    HeldOut,
    calibrate,
    chosen_trust,
    held_out_predictions,
    step_estimates,
)
from paceline.predict.step._estimate import StepEstimate
from paceline.predict.step._probe import ProbeKernel, fit_probe_kernel, probed_logs
from paceline.predict.step._probe_trials import NUM_PROBES, calibrate_probed
from paceline.predict.step._rows import StepRows, concatenate
from paceline.predict.step._time import SHIFTS, StepLogs, StepModels, check_shift, fit_step_models


@dataclass(frozen=True, slots=True, eq=False)
class StepPredictor:
    """Predicts step times; made by `fit_step_predictor` or `load_step_predictor`.

    Attributes:
        models: What was fitted.
        calibrations: Intervals by shift.
        trust: By shift, how much of the trees' correction carries over; None for all of it.
        kernel: How far probes reach; None without the shift "device".
        probed: Intervals by number of probes.
        seen: Names by "device", "dataset" and "model" that the tables held.
        provenance: What it was fitted on, free text by name.
        probes: Measured steps of the user's own devices.
    """

    models: StepModels
    calibrations: Mapping[str, Calibration]
    trust: Mapping[str, float | None]
    kernel: ProbeKernel | None
    probed: Mapping[int, Calibration]
    seen: Mapping[str, frozenset[str]]
    provenance: Mapping[str, str] = field(default_factory=dict)
    probes: StepRows | None = None

    def predict(self, rows: StepRows, *, shift: str | None = None) -> list[StepEstimate]:
        """Estimate every row.

        Args:
            rows: Work and devices; measured times, if any, are not looked at.
            shift: What is new about the rows. By default the widest that holds for each
                row: a device, else a dataset, else a model that the tables
                lack, else a new configuration. A device with probes counts as
                a device whatever is asked for.

        Raises:
            ValueError: If the shift is unknown or the predictor was not fitted for it.
        """
        shifts = [self._shift(rows, row, shift) for row in range(len(rows))]
        keys = list(zip(shifts, rows["device"].astype(str).tolist(), strict=True))
        found: dict[int, StepEstimate] = {}
        for key in sorted(set(keys)):
            at = [row for row, other in enumerate(keys) if other == key]
            found.update(zip(at, self._predict_device(rows.take(at), *key), strict=True))
        return [found[row] for row in range(len(rows))]

    def with_probes(self, probes: StepRows) -> "StepPredictor":
        """The same predictor with measured steps of the user's devices added.

        Estimates for these devices then start from what an unseen device would
        take, corrected by the probes: the user's host is not the one of the tables,
        even when the device is.

        Raises:
            ValueError: If the probes carry no times or the predictor has no kernel.
        """
        if not probes.is_measured or self.kernel is None:
            raise ValueError(
                "probes must carry compute_s and loader_s, and the predictor must be fitted for "
                "the shift 'device'"
            )
        both = probes if self.probes is None else concatenate([self.probes, probes])
        return replace(self, probes=both)

    def _shift(self, rows: StepRows, row: int, asked: str | None) -> str:
        if self._probes_of(str(rows["device"][row])) is not None:
            return "device"
        if asked is not None:
            check_shift(asked)
            return asked
        for name in ("device", "dataset", "model"):
            if str(rows[name][row]) not in self.seen[name]:
                return name
        return "configuration"

    def _logs(self, rows: StepRows, shift: str) -> StepLogs:
        logs, trust = self.models.logs(rows, shift), self.trust[shift]
        return logs if trust is None else logs.trusting(trust)

    def _probes_of(self, device: str) -> StepRows | None:
        if self.probes is None or device not in self.probes["device"]:
            return None
        return self.probes.take(self.probes["device"] == device)

    def _predict_device(self, rows: StepRows, shift: str, device: str) -> list[StepEstimate]:
        """Estimate rows of one device under one shift."""
        if shift not in self.calibrations:
            raise ValueError(
                f"the predictor has no intervals for shift {shift!r}, only for "
                f"{', '.join(self.calibrations)}; fit it with that shift"
            )
        logs, table = self._logs(rows, shift), self.calibrations[shift]
        probes = self._probes_of(device)
        if probes is not None and self.kernel is not None:
            known = HeldOut(probes, self._logs(probes, "device"))
            loader = self.models.loader.without(device)
            table = self.probed[max(num for num in self.probed if num <= len(probes))]
            logs = probed_logs(rows, logs, known, self.kernel, loader)
        return step_estimates(logs, rows["family"], table, shift)


def fit_step_predictor(
    rows: StepRows,
    *,
    shifts: tuple[str, ...] = SHIFTS,
    probe_counts: tuple[int, ...] = NUM_PROBES,
    provenance: Mapping[str, str] | None = None,
    seed: int = 0,
) -> StepPredictor:
    """Fit the models on all rows, and the intervals on inner folds per kind of shift.

    Args:
        rows: Measured rows, such as `read_step_tables` returns. An interval for a shift needs
            at least two units of that kind.
        shifts: Those that will be asked for; each costs its inner folds, all of them
            about a minute for 8,500 rows.
        probe_counts: Numbers of probes of a new device that intervals are calibrated for; in
            between the next lower one holds. None of them leaves probes out.
        provenance: Where the rows come from; kept as it is.
        seed: Of the random assignment of units to inner folds, and of the rows that fit the probes.

    Raises:
        ValueError: If the rows carry no times or a shift has fewer than two units.
        MissingExtraError: If LightGBM is not installed.
    """
    if not rows.is_measured:
        raise ValueError("rows to fit on must carry compute_s and loader_s")
    held_out = {shift: held_out_predictions(rows, shift, seed=seed + 1) for shift in shifts}
    trust = {shift: chosen_trust(part, shift) for shift, part in held_out.items()}
    held_out = {shift: part.trusting(trust[shift]) for shift, part in held_out.items()}
    models = fit_step_models(rows, shifts)
    kernel, probed = None, {}
    if "device" in shifts and probe_counts:
        kernel = fit_probe_kernel(held_out["device"], seed=seed)
        probed = {
            num: calibrate_probed(held_out["device"], kernel, models.loader, num)
            for num in probe_counts
        }
    return StepPredictor(
        models=models,
        calibrations={shift: calibrate(held_out[shift], shift) for shift in shifts},
        trust=trust,
        kernel=kernel,
        probed=probed,
        seen={
            name: frozenset(str(value) for value in np.unique(rows[name]))
            for name in ("device", "dataset", "model")
        },
        provenance=dict(provenance or {}),
    )
