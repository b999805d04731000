"""DDP and our scheduler on a real wire, side by side, in rounds."""

import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _record import spread
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import paceline
from paceline.testing import EmulatedModel, bytes_per_s, netlab

WIDTH, NUM_FEATURES, BATCH = 256, 64, 2
LAYER_BYTES = 4 * (12 * WIDTH**2 + 13 * WIDTH)
# 1,448 bytes of payload in an Ethernet frame of 1,514.
PAYLOAD_SHARE = 1448 / 1514
DEFAULT_MB = 25
SCHEDULED = "ScheduledDataParallel"
Method = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the result."""

    compute: str
    rate: str
    ranks: int
    gradient_mb: float
    forward_ms: float
    layers: int
    tokens: int
    buckets_mb: tuple[float, ...]
    rounds: int
    steps: int
    measure_steps: int


def wire_row(case: Case, *, limit_s: float) -> dict[str, Any]:
    """Run one case in a lab of its own."""
    with tempfile.TemporaryDirectory() as folder, netlab(case.ranks, case.rate) as lab:
        out = str(Path(folder) / "found.json")
        lab.start(_measure, asdict(case), out, timeout_s=60, limit_s=limit_s)
        found = json.loads(Path(out).read_text(encoding="utf-8"))
    return _row(case, found)


def wire_seconds(num_bytes: float, ranks: int, rate: str) -> float:
    """Return the time of an all-reduce on a ring at the nominal rate less headers."""
    return 2 * (ranks - 1) / ranks * num_bytes / (bytes_per_s(rate) * PAYLOAD_SHARE)


def _row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    seconds = {name: spread(times) for name, times in found["seconds"].items()}
    median = {name: values["median"] for name, values in seconds.items()}
    wire_s = wire_seconds(found["gradient_bytes"], case.ranks, case.rate)
    best = min((name for name in median if name.startswith("ddp")), key=median.__getitem__)
    row = {
        "compute": case.compute,
        "wire": "netlab (tbf)",
        "rate": case.rate,
        "ranks": case.ranks,
        "gradient_mb": found["gradient_bytes"] / 1e6,
        "num_tensors": found["num_tensors"],
        "compute_s": median["alone"],
        "wire_s": wire_s,
        "wire_from": "nominal rate less TCP/IP headers",
        "wire_measured_s": found["wire_measured_s"],
        "wire_over_compute": wire_s / median["alone"],
        "bound_s": max(median["alone"], wire_s),
        "ddp_25_s": median["ddp 25"],
        "ddp_best_s": median[best],
        "ddp_best_bucket_mb": float(best.split()[1]),
        "ddp_best_over_bound": median[best] / max(median["alone"], wire_s),
        "spread_s": seconds,
    }
    return row | _ours(row, median, found)


def _ours(row: dict[str, Any], median: dict[str, float], found: dict[str, Any]) -> dict[str, Any]:
    if "paceline" not in median:
        return {"paceline_s": None, "paceline_skipped": f"paceline has no {SCHEDULED}"}
    ours_s = median["paceline"]
    return {
        "paceline_s": ours_s,
        "paceline_over_bound": ours_s / row["bound_s"],
        "paceline_over_ddp_best": ours_s / row["ddp_best_s"],
        "paceline_over_ddp_25": ours_s / row["ddp_25_s"],
        "paceline_explained": found["explained"],
    }


def _measure(rank: int, settings: dict[str, Any], out: str) -> None:
    """Take rounds over all methods, each round in another order; rank 0 writes what it saw."""
    case = Case(**settings)
    torch.manual_seed(0)
    model = _model(case)
    batch = _batch(case, rank)
    methods, scheduled = _methods(case, model, batch)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(case.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(_time_steps(methods[name], case.steps))
            if name == "paceline" and scheduled is not None:
                scheduled.flush()
    found = {
        "seconds": seconds,
        "gradient_bytes": sum(4 * value.numel() for value in model.parameters()),
        "num_tensors": len(list(model.parameters())),
        "wire_measured_s": _all_reduce_s(model),
        "explained": "" if scheduled is None else str(scheduled.explain()),
    }
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


def _model(case: Case) -> nn.Module:
    if case.compute == "emulated":
        forward_s = case.forward_ms / 1e3 / case.layers
        num_bytes = int(case.gradient_mb * 1e6 / case.layers)
        ones = [1] * case.layers
        return EmulatedModel(
            [forward_s * one for one in ones],
            [2 * forward_s * one for one in ones],
            [num_bytes * one for one in ones],
        )
    num_layers = max(1, round(case.gradient_mb * 1e6 / LAYER_BYTES))
    layers = (
        nn.TransformerEncoderLayer(
            WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        for _ in range(num_layers)
    )
    ends = nn.Linear(NUM_FEATURES, WIDTH), nn.Linear(WIDTH, NUM_FEATURES)
    return nn.Sequential(ends[0], *layers, ends[1])


def _batch(case: Case, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    shape = (4,) if case.compute == "emulated" else (BATCH, case.tokens, NUM_FEATURES)
    return torch.randn(*shape, generator=generator)


def _methods(
    case: Case, model: nn.Module, batch: torch.Tensor
) -> tuple[dict[str, Method], Any | None]:
    """Return a training step per method, past its warm-up, and our wrapper if there is one."""
    methods = {"alone": _plain_step(copy.deepcopy(model), batch)}
    for bucket_mb in case.buckets_mb:
        # The default is not the same as 25 that is given: its first bucket has 1 MiB.
        cap_mb = None if bucket_mb == DEFAULT_MB else bucket_mb
        wrapped = DistributedDataParallel(copy.deepcopy(model), bucket_cap_mb=cap_mb)
        methods[f"ddp {bucket_mb:g}"] = _plain_step(wrapped, batch)
    scheduled = _scheduled(case, copy.deepcopy(model))
    if scheduled is not None:
        methods["paceline"] = _scheduled_step(scheduled, batch)
    for name, method in methods.items():
        for _ in range(3):
            method()
        if name == "paceline" and scheduled is not None:
            # It measures and tries plans on live steps first; all ranks end that at one step.
            while not scheduled.explain().startswith("plan"):
                method()
            scheduled.flush()
    return methods, scheduled


def _plain_step(model: nn.Module, batch: torch.Tensor) -> Method:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return step


def _scheduled(case: Case, model: nn.Module) -> Any | None:
    if SCHEDULED not in paceline.__all__:
        return None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    wrap: Any = getattr(paceline, SCHEDULED)
    return wrap(model, optimizer, num_measure_steps=case.measure_steps)


def _scheduled_step(model: Any, batch: torch.Tensor) -> Method:
    def step() -> None:
        model(batch).square().mean().backward()
        model.step()

    return step


def _time_steps(method: Method, num_steps: int) -> float:
    """Return seconds per step between the ends of two steps, so in the steady state."""
    dist.barrier()
    method()
    start_s = time.perf_counter()
    for _ in range(num_steps):
        method()
    return (time.perf_counter() - start_s) / num_steps


def _all_reduce_s(model: nn.Module, num_repeats: int = 3) -> float:
    payload = torch.cat([value.detach().flatten() for value in model.parameters()])
    seconds = []
    for _ in range(num_repeats):
        dist.barrier()
        start_s = time.perf_counter()
        dist.all_reduce(payload)
        seconds.append(time.perf_counter() - start_s)
    return spread(seconds)["median"]
