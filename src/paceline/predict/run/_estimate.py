"""From a step to a run: several workers, epochs, money, what bounds it, what to change."""

from dataclasses import dataclass
from typing import Literal

from paceline.cost import Job, LayerCost, Link, Worker
from paceline.predict._conformal import Estimate
from paceline.predict.run._bounds import layer_s, roofline_parts, shares_of_step, what_to_change
from paceline.predict.step import StepEstimate
from paceline.predict.work import (
    Bound,
    Device,
    MemoryEstimate,
    Sharding,
    Workload,
    estimate_memory,
)

SECONDS_PER_HOUR = 3600.0
# The backward pass computes two products for each one of the forward pass.
FORWARD_SHARE = 1 / 3
# Of a collective of no bytes between two neighbours, where the link does not say.
HOP_LATENCY_S = 5e-6
# ZeRO-3 gathers parameters twice and scatters gradients: three parts where an all-reduce has two
# (S. Rajbhandari et al., "ZeRO", SC 2020, section 7).
VOLUME_OF_DIVIDED_PARAMETERS = 1.5
# Of the world's electricity in 2023 (Ember, "Global Electricity Review 2024").
KG_CO2E_PER_KWH = 0.48


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """What fixes a run besides its step.

    Attributes:
        num_workers: Data-parallel workers.
        link: The wire of a collective among all of them; see `ring_link`.
        dataset_size: Training examples.
        epochs: How often they are seen.
        price_per_hour: Dollars per worker.
        micro_batches: Batches of each worker per step; gradients are exchanged after the last.
        sharding: What the workers divide; unset for nothing.
        kg_co2e_per_kwh: Of the electricity; the mean of the world is taken.
    """

    num_workers: int = 1
    micro_batches: int = 1
    sharding: Sharding | None = None
    kg_co2e_per_kwh: float = KG_CO2E_PER_KWH
    link: Link | None = None
    dataset_size: int = 0
    epochs: Estimate | None = None
    price_per_hour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("workers", "micro_batches"):
            number = self.num_workers if name == "workers" else self.micro_batches
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if self.num_workers > 1 and self.link is None:
            raise ValueError(
                f"{self.num_workers} workers need a link, such as 100Gbit/s or 25GB/s+10us"
            )
        if self.dataset_size < 0:
            raise ValueError(f"dataset_size must not be negative, got {self.dataset_size}")
        if not 0 <= self.price_per_hour < float("inf"):
            raise ValueError(f"price must not be negative, got {self.price_per_hour}")
        if self.epochs is not None and self.epochs.low < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs.low}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """Time, money and memory of a run.

    Attributes:
        step: Seconds per step of all workers; simulated for more than one.
        epoch: Seconds per pass over the dataset; None without a dataset size.
        run: Seconds of all epochs; None without epochs.
        cost: Dollars of all workers; None without a run or a price.
        kg_co2e: Of the electricity of all workers' boards at their full power, without hosts
            and cooling; None without a run or a device.
        exposed_s: Seconds per step in which workers only wait for the wire; simulated.
        ddp_step_s: Seconds per step as DistributedDataParallel would run it; simulated.
        schedule: Name of the plan that `step` is for.
        bound_by: What takes most of a step.
        shares: Parts of a step by what bounds them; they add up to 1.
        advice: What to change first.
        memory: On each worker.
        num_workers: Data-parallel workers.
        source: "predicted", "measured", or "simulated" from predicted layers.
    """

    step: Estimate
    epoch: Estimate | None
    run: Estimate | None
    cost: Estimate | None
    kg_co2e: Estimate | None
    exposed_s: float
    ddp_step_s: float
    schedule: str
    bound_by: Bound
    shares: dict[Bound, float]
    advice: str
    memory: MemoryEstimate
    num_workers: int
    source: Literal["predicted", "measured", "simulated"]


def estimate_run(
    workload: Workload, own: StepEstimate, setup: RunSetup, *, device: Device | None = None
) -> RunEstimate:
    """Extrapolate one worker's step to workers, epochs and money.

    With several workers the compute time is divided over the traced layers, and the block
    planner's schedules are simulated for the ends and the middle of its interval. The
    interval leaves out what the link may vary.

    Args:
        workload: One worker's step; several workers need its traced layers.
        own: One worker's step by itself; see `estimate_step`.
        setup: Workers, link, dataset, epochs, price.
        device: To say what bounds the step and whether it fits; None for the CPU.

    Raises:
        ValueError: If several workers are asked for and the workload has no layers.

    Examples:
        >>> work = Workload(family="MLP", batch_size=100, num_params=10,
        ...     forward_flops_per_example=1e6)
        >>> setup = RunSetup(dataset_size=1000, epochs=Estimate(2, 2, 3), price_per_hour=3.6)
        >>> found = estimate_run(work, StepEstimate(compute=Estimate(0.1, 0.1, 0.2)), setup)
        >>> found.epoch, round(found.cost.median, 6)
        (Estimate(median=1.0, low=1.0, high=2.0), 0.002)
    """
    wired, ddp_step_s, schedule = _with_workers(workload, own.compute, setup, device)
    exposed_s = max(wired.median - own.compute.median, 0.0)
    saved = 1 - wired.median / ddp_step_s if exposed_s else 0.0
    step = own.step if setup.num_workers == 1 else wired.plus(own.loader_wait)
    per_step = workload.batch_size * setup.num_workers * setup.micro_batches
    num_steps = -(-setup.dataset_size // per_step)
    epoch = step.scaled(num_steps) if setup.dataset_size else None
    run = epoch.times(setup.epochs) if epoch and setup.epochs else None
    price = setup.num_workers * setup.price_per_hour / SECONDS_PER_HOUR
    shares = shares_of_step(
        dict(own.shares) or roofline_parts(workload, device),
        compute_s=own.compute.median,
        loader_s=own.loader_wait.median,
        link_s=exposed_s,
    )
    bound_by = max(shares, key=lambda name: shares[name])
    kg_per_s = setup.num_workers * setup.kg_co2e_per_kwh * board_kw(device) / SECONDS_PER_HOUR
    memory = estimate_memory(
        workload,
        num_workers=setup.num_workers,
        foreach=device is not None,
        sharding=setup.sharding,
    )
    saved_over_ddp = f"{schedule} already saves {saved:.0%} of a step over DDP"
    return RunEstimate(
        step=step,
        epoch=epoch,
        run=run,
        cost=run.scaled(price) if run and price else None,
        kg_co2e=run.scaled(kg_per_s) if run and kg_per_s else None,
        exposed_s=exposed_s,
        ddp_step_s=ddp_step_s + own.loader_wait.median,
        schedule=schedule,
        bound_by=bound_by,
        shares=shares,
        advice=what_to_change(bound_by, workload, memory, device, saved_over_ddp=saved_over_ddp),
        memory=memory,
        num_workers=setup.num_workers,
        source="simulated" if setup.num_workers > 1 else own.source,
    )


def board_kw(device: Device | None) -> float:
    """Return what the board may draw; 0 for a CPU, whose power is not known."""
    return device.board_w / 1000 if device else 0.0


def predicted_job(
    workload: Workload,
    compute_s: float,
    *,
    num_workers: int = 1,
    link: Link | None = None,
    device: Device | None = None,
    volume: float = 1.0,
) -> Job:
    """Divide a step's predicted compute time over the traced layers, by a roofline.

    A third of a layer's share is the forward pass. What the optimizer takes is counted to the
    layers in proportion. `volume` multiplies the bytes that an all-reduce of gradients moves.
    """
    if not workload.layers:
        raise ValueError(
            "the workload has no layers, so that its gradients cannot be scheduled; trace the "
            "model with trace_workload"
        )
    weights = [layer_s(layer, workload, device) for layer in workload.layers]
    per_weight = compute_s / sum(weights)
    layers = tuple(
        LayerCost(
            name=layer.name,
            forward_s=FORWARD_SHARE * weight * per_weight,
            backward_s=(1 - FORWARD_SHARE) * weight * per_weight,
            gradient_bytes=int(4 * volume * layer.num_params),
        )
        for layer, weight in zip(workload.layers, weights, strict=True)
    )
    return Job(source="predicted", layers=layers, link=link, workers=(Worker(),) * num_workers)


def ring_link(
    bytes_per_s: float, num_workers: int, *, hop_latency_s: float = HOP_LATENCY_S
) -> Link:
    """Return the link of a ring all-reduce over wires of `bytes_per_s` each way.

    A ring of N sends each byte `2 (N - 1) / N` times in `2 (N - 1)` rounds (Patarasuk and Yuan,
    "Bandwidth optimal all-reduce algorithms", JPDC 69(2), 2009).

    Examples:
        >>> ring_link(1e9, 2).bytes_per_s
        1000000000.0
    """
    rounds = 2 * max(num_workers - 1, 1)
    return Link(
        alpha_s=rounds * hop_latency_s, bytes_per_s=bytes_per_s * max(num_workers, 2) / rounds
    )


def _with_workers(
    workload: Workload, compute: Estimate, setup: RunSetup, device: Device | None
) -> tuple[Estimate, float, str]:
    """Return seconds per step without the loader, the same under DDP, and the plan's name."""
    if setup.num_workers == 1:
        return compute, compute.median, "one worker"
    priced = [
        _price(workload, seconds, setup, device)
        for seconds in (compute.median, compute.low, compute.high)
    ]
    median, low, high = (ours for ours, _, _ in priced)
    return Estimate(median, min(low, median), max(high, median)), *priced[0][1:]


def _price(
    workload: Workload, compute_s: float, setup: RunSetup, device: Device | None
) -> tuple[float, float, str]:
    # Imported here: the planners compile loops, which one worker does not need.
    from paceline.comm import WireProblem, plan_blocks, plan_ddp, step_time_s

    divides = setup.sharding is not None and setup.sharding.level == "parameters"
    last_s = compute_s / setup.micro_batches
    job = predicted_job(
        workload,
        last_s,
        num_workers=setup.num_workers,
        link=setup.link,
        device=device,
        volume=VOLUME_OF_DIVIDED_PARAMETERS if divides else 1.0,
    )
    problem = WireProblem.from_job(job)
    plan = plan_blocks(problem)
    ours_s = compute_s - last_s + step_time_s(problem, plan)
    ddp_s = compute_s - last_s + step_time_s(problem, plan_ddp(problem))
    return (ours_s, ddp_s, plan.name) if ours_s < ddp_s else (ddp_s, ddp_s, "ddp")
