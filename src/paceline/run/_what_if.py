"""A measured run re-simulated: on more ranks, another wire, a faster device, with even batches."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paceline.cost import shared_cores_s, shared_work_s
from paceline.run._curve import Curve, Limit, Point, WhatIf
from paceline.run._disturbance import Disturbance
from paceline.run._wire_model import MIB, WireModel
from paceline.run.causes import Evidence

Array = NDArray[np.float64]
HOP_S = 5e-6
DDP_CAP_MB = 25.0
# Drawn steps of a point: as many as keep its draws below this, within the bounds.
MAX_DRAWS, LEAST_STEPS, MOST_STEPS = 500_000, 64, 2_000
# A loader with processes of its own that is waited for this much has nothing in store.
STALLS = 0.02
SEED = 20261121


def simulate_curve(evidence: Evidence, changed: WhatIf) -> Curve:
    """Draw steps of the measured run for each number of ranks."""
    grid = evidence.grid
    wire = _wire(evidence, changed)
    as_it_was = replace(changed, device_speed=1.0, balance="none", comm="ddp", bytes_per_s=None)
    own_wire = fitted_wire(evidence, as_it_was) if grid.is_joint else None
    replayed = _point(evidence, as_it_was, own_wire, grid.num_ranks)
    alone = _point(evidence, changed, None, 1)
    points = [_point(evidence, changed, wire, num) for num in changed.num_workers]
    return Curve(
        points=tuple(
            replace(one, efficiency=alone.step_s / max(one.step_s, 1e-12)) for one in points
        ),
        measured_step_s=float(grid.step_s.mean()),
        replayed_step_s=replayed.step_s,
        num_ranks=grid.num_ranks,
        wire=wire,
        changed=changed,
        notes=_notes(evidence, changed, wire),
    )


def _point(evidence: Evidence, changed: WhatIf, wire: WireModel | None, num_ranks: int) -> Point:
    """Simulate steps of `num_ranks` ranks; each draws a rank and a step of the measured run."""
    parts = _draw(evidence, changed, num_ranks)
    local_s: Array = sum(parts.values(), np.zeros(1))
    last = np.argmax(local_s, axis=0)[None]
    slowest_s = np.take_along_axis(local_s, last, axis=0)[0]
    mean_s = local_s.mean(axis=0)
    end_s = mean_s if changed.balance == "perfect" else slowest_s
    passes_s = (parts["compute"] + parts["small batch"]).mean(axis=0)
    exposed_s = _exposed_s(evidence, changed, wire, num_ranks, passes_s)
    seconds: dict[Limit, float] = {name: float(part.mean()) for name, part in parts.items()}
    seconds |= {"straggler": float((end_s - mean_s).mean()), "wire": float(exposed_s.mean())}
    step_s = sum(seconds.values())
    examples = float(evidence.grid.num_examples.mean()) * num_ranks
    return Point(
        num_workers=num_ranks,
        step_s=step_s,
        examples_per_s=examples / step_s if np.isfinite(examples) else None,
        efficiency=1.0,
        limit=max(seconds, key=lambda name: seconds[name]),
        parts_s=seconds,
    )


def _draw(evidence: Evidence, changed: WhatIf, num_ranks: int) -> dict[Limit, Array]:
    """Return seconds that drawn ranks spend on their own, each of shape `(num_ranks, steps)`."""
    grid, model, work = evidence.grid, evidence.model, evidence.work
    num_steps = int(np.clip(MAX_DRAWS // num_ranks, LEAST_STEPS, MOST_STEPS))
    random = np.random.default_rng([SEED, num_ranks])
    # With as many ranks as were measured, each stands for itself.
    rank = np.arange(num_ranks)[:, None] % grid.num_ranks
    picked = rank, random.integers(grid.num_steps, size=(num_ranks, num_steps))
    expected_s = model.predict(work)[picked]
    disturbed = _disturbances(evidence).drawn(picked, random)
    fixed_s = np.minimum(model.microbatch_s * work.num_microbatches[picked], expected_s)
    growing_s = (expected_s - fixed_s) / changed.device_speed
    if changed.balance != "none":
        growing_s = np.repeat(growing_s.mean(axis=0)[None], num_ranks, axis=0)
    update_s = grid.seconds["optimizer"][picked] / changed.device_speed
    parts: dict[Limit, Array] = {
        "compute": growing_s * disturbed,
        "small batch": fixed_s * disturbed + update_s,
        "loop": (grid.seconds["between"] + grid.seconds["after"])[picked],
        "loader": _data_s(evidence, changed, picked),
    }
    return parts if changed.num_cores is None else _on_cores(parts, evidence, changed, picked)


def _disturbances(evidence: Evidence) -> Disturbance:
    expected_s = np.maximum(evidence.model.predict(evidence.work), 1e-12)
    return Disturbance.of(evidence.grid.compute_s / expected_s)


def _on_cores(
    parts: dict[Limit, Array],
    evidence: Evidence,
    changed: WhatIf,
    picked: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> dict[Limit, Array]:
    """Stretch what ranks do on their own to what it takes where they share cores."""
    measured_s, num_ranks = evidence.grid.local_s, len(picked[0])
    # What was measured had been slowed by those who still computed, and by no more.
    work_s = shared_work_s(measured_s.T, changed.slowdown(len(measured_s))).T
    slower = (work_s / np.maximum(measured_s, 1e-12))[picked]
    slower = slower * _crowding(evidence, changed, num_ranks)
    local_s: Array = sum(parts.values(), np.zeros(1))
    ended_s = shared_cores_s((slower * local_s).T, changed.slowdown(num_ranks)).T
    return {name: part * (ended_s / np.maximum(local_s, 1e-12)) for name, part in parts.items()}


def _crowding(evidence: Evidence, changed: WhatIf, num_ranks: int) -> float:
    """Return how much longer work takes with `num_ranks` at it than with the measured ones."""
    measured = changed.slowdown(evidence.grid.num_ranks)
    return float(changed.slowdown(num_ranks)[-1] / measured[-1])


def _data_s(
    evidence: Evidence, changed: WhatIf, picked: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Array:
    """Return the wait for data: a loader that was waited for is not faster beside faster passes."""
    data_s = evidence.grid.seconds["data"]
    if evidence.fact("num_workers") and evidence.shares["data"] > STALLS:
        saved_s = evidence.grid.compute_s * (1 - 1 / changed.device_speed)
        data_s = np.maximum(data_s + saved_s, 0.0)
    return np.asarray(data_s[picked])


def _exposed_s(
    evidence: Evidence,
    changed: WhatIf,
    wire: WireModel | None,
    num_ranks: int,
    passes_s: Array,
) -> Array:
    if wire is None or num_ranks == 1:
        return np.zeros(1)
    forward, backward = share_of_passes(evidence)
    exposed_s = wire.exposed_s(num_ranks, forward * passes_s, backward * passes_s, changed.comm)
    # Between processes of one machine the cores are the wire.
    return exposed_s * _crowding(evidence, changed, num_ranks)


def share_of_passes(evidence: Evidence) -> tuple[float, float]:
    """Return the shares of the forward pass, and of the backward pass that sends."""
    seconds = evidence.grid.seconds
    whole_s = float(evidence.grid.compute_s.sum()) or 1.0
    num_passes = float(evidence.work.num_microbatches.mean())
    forward, backward = (float(seconds[name].sum()) / whole_s for name in ("forward", "backward"))
    return forward / num_passes, backward / num_passes


def _wire(evidence: Evidence, changed: WhatIf) -> WireModel | None:
    if max(changed.num_workers) == 1:
        return None
    if changed.bytes_per_s is None:
        return fitted_wire(evidence, changed)
    return replace(_blank_wire(evidence, changed), bytes_per_s=changed.bytes_per_s)


def fitted_wire(evidence: Evidence, changed: WhatIf) -> WireModel:
    if not evidence.grid.is_joint:
        raise ValueError(
            "the run's ranks met in no all-reduce, so nothing is known of their wire; pass its "
            "rate, as in --link 100Gbit/s"
        )
    forward, backward = share_of_passes(evidence)
    passes_s = evidence.grid.compute_s.mean(axis=0)
    return _blank_wire(evidence, changed).fitted(
        evidence.grid.num_ranks,
        forward * passes_s,
        backward * passes_s,
        float(evidence.grid.wire_s.mean()),
    )


def _blank_wire(evidence: Evidence, changed: WhatIf) -> WireModel:
    num_bytes = evidence.fact("gradient_bytes")
    if not num_bytes:
        raise ValueError(
            "the run does not say how many bytes its gradients have, so no wire can be simulated; "
            "ask for --workers 1"
        )
    cap_mb = evidence.fact("bucket_cap_mb") or DDP_CAP_MB
    hop_s = HOP_S if changed.hop_s is None else changed.hop_s
    return WireModel(
        gradient_bytes=float(num_bytes), bucket_bytes=cap_mb * MIB, hop_s=hop_s, bytes_per_s=1.0
    )


def _notes(evidence: Evidence, changed: WhatIf, wire: WireModel | None) -> tuple[str, ...]:
    notes = []
    if wire is not None and changed.bytes_per_s is None:
        notes.append(
            f"wire fitted to the measured exposed time: {wire.bytes_per_s * 8e-9:.3g} Gbit/s and "
            f"{1e6 * wire.hop_s:.3g} us a hop; pass the link if you know it"
        )
    if max(changed.num_workers) > evidence.grid.num_ranks:
        notes.append("more ranks are taken to vary independently, as the measured ones did")
    if not evidence.model.knows_fixed and changed.device_speed != 1:
        notes.append("what a micro-batch costs the host is not known, so all of it gets faster")
    return tuple(notes)
