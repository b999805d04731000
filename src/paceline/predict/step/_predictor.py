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
    of_family,
    step_estimates,
)
from paceline.predict.step._estimate import StepEstimate
from paceline.predict.step._execution import Execution
from paceline.predict.step._loader_probe import LoaderProbe
from paceline.predict.step._probe import (
    NUM_PROBES,
    ProbeKernel,
    calibrate_probed,
    fit_probe_kernel,
    probed_logs,
)
from paceline.predict.step._rows import FloatArray, StepRows, concatenate
from paceline.predict.step._time import SHIFTS, StepLogs, StepModels, check_shift, fit_step_models

NINE_OF_TEN = 1.645  # standard deviations to either side
# Assumed: by how much of itself the effect of another execution may be wrong.
EFFECT_SPREAD = 0.5


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

    def predict(
        self,
        rows: StepRows,
        *,
        shift: str | None = None,
        execution: Execution | None = None,
        loader: LoaderProbe | None = None,
    ) -> list[StepEstimate]:
        """Estimate every row.

        Args:
            rows: Work and devices; measured times, if any, are not looked at.
            shift: What is new about the rows, one of `SHIFTS`, on hosts that the tables know. By
                default all that the tables lack, the host among it: "host+dataset+model" or
                "device+model", or else a new configuration. A device with probes is a known host.
            execution: How the steps are run, where not as in the tables; its precision must have
                the bits that the rows say.
            loader: A timed loader, which stands in for what the tables say of loaders.

        Raises:
            ValueError: If the shift is unknown, the predictor was not fitted for it, or the
                execution's precision contradicts the rows.
        """
        check_bits(rows, execution)
        shifts = [self._shift(rows, row, shift) for row in range(len(rows))]
        keys = list(zip(shifts, rows["device"].astype(str).tolist(), strict=True))
        found: dict[int, StepEstimate] = {}
        for key in sorted(set(keys)):
            at = [row for row, other in enumerate(keys) if other == key]
            part = self._predict_device(rows.take(at), *key, execution, loader)
            found.update(zip(at, part, strict=True))
        return [found[row] for row in range(len(rows))]

    def with_probes(self, probes: StepRows) -> "StepPredictor":
        """The same predictor with measured steps of the user's devices added.

        Estimates for these devices then start from what an unseen device would take, corrected by
        the probes: the user's host is not the one of the tables, even when the device is.

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
        probes = self._probes_of(str(rows["device"][row]))
        if asked is not None and probes is None:
            check_shift(asked)
            return asked
        new = [
            name
            for name in ("device", "dataset", "model")
            if str(rows[name][row]) not in self.seen[name]
            and (probes is None or rows[name][row] not in probes[name])
        ]
        if probes is not None:
            return "+".join(["device", *new])
        if not new:
            return "configuration"
        return "+".join(new if "device" in new else ["host", *new])

    def _logs(self, rows: StepRows, shift: str) -> StepLogs:
        logs, trust = self.models.logs(rows, shift), self.trust[shift]
        return logs if trust is None else logs.trusting(trust)

    def _probes_of(self, device: str) -> StepRows | None:
        if self.probes is None or device not in self.probes["device"]:
            return None
        return self.probes.take(self.probes["device"] == device)

    def _predict_device(
        self,
        rows: StepRows,
        shift: str,
        device: str,
        execution: Execution | None,
        loader: LoaderProbe | None,
    ) -> list[StepEstimate]:
        probes = self._probes_of(device)
        base, rest = self._calibrated(shift, is_probed=probes is not None)
        logs, table = self._logs(rows, base), self.calibrations[base]
        extra = self._extra(rows, logs, base, rest)
        if probes is not None and self.kernel is not None:
            known = HeldOut(probes, self._logs(probes, base))
            others = self.models.loader.without(device)
            table = self.probed[max(num for num in self.probed if num <= len(probes))]
            logs = probed_logs(rows, logs, known, self.kernel, others)
        if execution is not None:
            effect, num = self.models.effect(rows, base, execution), execution.micro_batches
            logs = logs.of_execution(effect, num)
            # So many micro-batches take so many times longer: nothing about that is uncertain.
            extra = np.hypot(extra, EFFECT_SPREAD * np.abs(effect - np.log(num)))
        found = step_estimates(logs, rows["family"], table, shift, extra=extra)
        if loader is None:
            return found
        batches = execution.micro_batches if execution else 1
        feeds = [loader.feed(batches * float(size)) for size in rows["batch_size"]]
        return [
            replace(one, loader=feed, total=loader.step(one.compute, feed))
            for one, feed in zip(found, feeds, strict=True)
        ]

    def _calibrated(self, shift: str, *, is_probed: bool) -> tuple[str, frozenset[str]]:
        """The calibration that covers most of what is new, and what it leaves."""
        new = frozenset(shift.split("+"))
        order = ("device",) if is_probed else ("device+model", "device", "model", "dataset", shift)
        for base in order:
            covered = frozenset(base.split("+"))
            if covered <= new and base in self.calibrations:
                return base, new - covered
        raise ValueError(
            f"the predictor has no intervals for shift {shift!r}, only for "
            f"{', '.join(self.calibrations)}; fit it with that shift"
        )

    def _extra(self, rows: StepRows, logs: StepLogs, base: str, rest: frozenset[str]) -> FloatArray:
        """Half widths in log seconds to add to the calibrated interval for what else is new.

        A host is independent of the rest. A second novelty shares most of its error, what the
        models miss, with the calibrated one, so that the wider of the two holds.
        """
        widths = [self._widths(name, rows) for name in sorted(rest & set(self.calibrations))]
        wider = np.max([self._widths(base, rows), *widths], axis=0)
        total = wider**2 - self._widths(base, rows) ** 2
        if "host" in rest and self.models.host is not None:
            spread = NINE_OF_TEN * self.models.host.roofline.host_spread
            total = total + (spread * logs.launch_share) ** 2
        return np.asarray(np.sqrt(total), dtype=np.float64)

    def _widths(self, shift: str, rows: StepRows) -> FloatArray:
        table = self.calibrations[shift]["compute"]
        return np.array([of_family(table, str(name)).high for name in rows["family"]])


def check_bits(rows: StepRows, execution: Execution | None) -> None:
    if execution is None or not len(rows):
        return
    wrong = np.flatnonzero(rows["precision_bits"] != execution.precision_bits)
    if wrong.size:
        raise ValueError(
            f"precision {execution.precision} needs rows of {execution.precision_bits} bits, but "
            f"row {wrong[0]} has {rows['precision_bits'][wrong[0]]:.0f}; describe the work with "
            f"precision {execution.precision_bits}"
        )


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
        provenance={**(provenance or {}), "held_out": _held_out_text(held_out)},
    )


def _held_out_text(held_out: Mapping[str, HeldOut]) -> str:
    """What the fit scored on its own inner folds, for people."""
    parts = []
    for shift, part in held_out.items():
        error = 100 * np.abs(np.expm1(-part.residuals("compute")))
        family = part.rows["family"]
        means = [f"{name} {error[family == name].mean():.1f}" for name in np.unique(family)]
        parts.append(f"{shift}: {', '.join(means)}")
    return f"MAPE of compute in percent by what was held out; {'; '.join(parts)}"
