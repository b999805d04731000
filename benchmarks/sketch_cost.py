"""Claim: sketches of all layers cost a few percent of a step, and order as gradients do.

Times are processor seconds on one intra-op thread, medians of blocks of steps in which the
ways take turns; plain and sketched steps are those of one model whose hooks come and go, as
two models differ by several percent in where their tensors lie. Memory is the peak resident
set of a process that runs one way only, so that what torch allocates counts (plain and
sketched: the median of five); herding is that of exact per-example gradients.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _record import finish, parser, spread
from _sketch_models import FASHION_MNIST, Gpt, Loss, images, lenet, mlp, text_blocks, token_loss
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from paceline.order import OrderPolicy, herding_bound, mean_balance, pair_balance
from paceline.torch.order import GradientSketch

EVERY = 4
Step = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is trained, and how much of it is looked at."""

    make: Callable[[], nn.Module]
    loss: Loss
    batch_size: int
    rate: float
    block: int
    num_blocks: int
    num_herded: int
    dim: int = 1024
    skip: tuple[str, ...] = ()


CASES = {
    "mlp": Case(
        make=partial(mlp, 784, 512, 512, 10),
        loss=functional.cross_entropy,
        batch_size=64,
        rate=0.1,
        block=10,
        num_blocks=60,
        num_herded=512,
        dim=768,
    ),
    "lenet": Case(
        make=lenet,
        loss=functional.cross_entropy,
        batch_size=64,
        rate=0.1,
        block=10,
        num_blocks=40,
        num_herded=1024,
        dim=2048,
    ),
    "gpt": Case(
        make=Gpt,
        loss=token_loss,
        batch_size=16,
        rate=0.05,
        block=2,
        num_blocks=8,
        num_herded=256,
        dim=1024,
    ),
}
# The same without the layers that take most of the time.
SKIPPED = {
    "mlp": replace(CASES["mlp"], skip=("1", "3"), dim=384),
    "lenet": replace(CASES["lenet"], skip=("0",)),
}
WAYS = ("plain", "sketch", "vmap", "grab-sampler")


def data_of(name: str, folder: Path, num: int) -> tuple[Tensor, Tensor]:
    return text_blocks(num, 128) if name == "gpt" else images(folder, num)


def example_gradients(case: Case, model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """Return the functional way: one gradient per example, as torch.func makes it."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return case.loss(functional_call(model, parameters, (x[None],)), y[None])

    return vmap(grad(loss), (None, 0, 0))


def step_of(case: Case, way: str, x: Tensor, y: Tensor) -> tuple[Step, nn.Module]:
    """Return one training step on a fixed batch, done in one of the ways."""
    torch.manual_seed(0)
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sketch = GradientSketch(model, dim=case.dim) if way == "sketch" else None
    sorter: Any = None
    if way == "grab-sampler":
        from grabsampler.sorter import PairBalance as Sorter

        num_params = sum(p.numel() for p in model.parameters())
        sorter = Sorter(len(x) * 4096, num_params, device="cpu")
        sorter.reset_epoch()

    def backward() -> None:
        optimizer.zero_grad()
        case.loss(model(x), y).backward()
        if sketch is not None:
            sketch.take()
        optimizer.step()

    per_example = example_gradients(case, model)

    def by_example() -> None:
        grads = per_example({k: p.detach() for k, p in model.named_parameters()}, x, y)
        if sorter is not None:
            sorter.step(grads)
        for key, parameter in model.named_parameters():
            parameter.grad = grads[key].mean(0)
        optimizer.step()

    return (backward if way in ("plain", "sketch") else by_example), model


def block_times(case: Case, steps: dict[str, Step]) -> dict[str, Any]:
    """Time the ways in turn, a block of steps each, and return each block's median step."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for index in range(-1, case.num_blocks):
        for way in list(steps)[:: 1 if index % 2 else -1]:
            took = [seconds_of(steps[way]) for _ in range(case.block + 1)][1:]
            if index >= 0:
                seconds[way].append(float(np.median(took)))
    return {way: np.array(values) for way, values in seconds.items()}


def seconds_of(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def switched(case: Case, x: Tensor, y: Tensor) -> dict[str, Step]:
    """Return plain and sketched steps of one model; the first of a block moves the hooks."""
    torch.manual_seed(0)
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sketch = GradientSketch(model, dim=case.dim, every=2, skip=case.skip)

    def step(is_sketched: bool) -> None:
        if sketch.is_on != is_sketched:
            sketch.set_epoch(0 if is_sketched else 1)
        optimizer.zero_grad()
        case.loss(model(x), y).backward()
        if is_sketched:
            sketch.take()
        optimizer.step()

    return {"plain": partial(step, False), "sketch": partial(step, True)}


def times(case: Case, x: Tensor, y: Tensor, others: tuple[str, ...]) -> dict[str, Any]:
    """Return what each way costs relative to plain steps."""
    pair = block_times(case, switched(case, x, y))
    ways = {way: step_of(case, way, x, y)[0] for way in ("plain", *others)}
    slow = block_times(replace(case, block=1, num_blocks=6), ways)
    ratio = pair["sketch"] / pair["plain"]
    return {
        "plain_step_s": spread(pair["plain"]),
        "sketch": spread(ratio),
        "sketch_ratio_of_medians": float(np.median(pair["sketch"]) / np.median(pair["plain"])),
        # Three epochs of four run without hooks: the mean over such a cycle.
        f"sketch_every_{EVERY}": spread(1 + (ratio - 1) / EVERY),
        **{way: spread(slow[way] / slow["plain"]) for way in others},
    }


def skipping(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return cost and herding of sketches without the layers that take most of the time."""
    case = SKIPPED[name]
    found: dict[str, Any] = {"skip": case.skip, "dim": case.dim}
    if "times" not in options.skip:
        pair = block_times(case, switched(case, *data_of(name, options.data, case.batch_size)))
        found["sketch"] = spread(pair["sketch"] / pair["plain"])
    if "herding" not in options.skip:
        found["herding"] = herding(case, name, options.data)
    return found


def peak_bytes(name: str, way: str, folder: Path) -> int:
    """Return the peak resident set of a fresh process that trains one way."""
    command = [sys.executable, __file__, "--data", str(folder), "--peak", name, way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def print_peak(name: str, way: str, folder: Path) -> None:
    case = CASES[name]
    step, _ = step_of(case, way, *data_of(name, folder, case.batch_size))
    # Compiled code is loaded by the order, whatever it learns from.
    settled(pair_balance(64), np.zeros((64, 8), np.float32), rounds=1)
    for _ in range(3 if name == "gpt" else 20):
        step()
    # Not ru_maxrss: that begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(1024 * int(peak_kib))


def herding(case: Case, name: str, folder: Path, seeds: int = 3) -> dict[str, Any]:
    """Order by exact gradients and by their sketches; return the bounds over random's."""
    torch.manual_seed(0)
    model = case.make()
    x, y = data_of(name, folder, case.num_herded)
    warm_up(case, model, x, y)
    with GradientSketch(model, dim=case.dim, skip=case.skip) as sketch:
        parts = list(zip(x.split(case.batch_size), y.split(case.batch_size), strict=True))
        rows = [sketched_batch(case, model, sketch, *part) for part in parts]
        sketches = torch.cat(rows).numpy()
        width, left_out = sketch.dim, sketch.left_out
    exact = exact_gradients(case, model, parts)
    result: dict[str, Any] = {"dim": width, "num_examples": len(x), "left_out": left_out}
    chance = np.random.default_rng(0)
    random = [bound(exact, chance.permutation(len(x))) for _ in range(5)]
    for policy in (pair_balance, mean_balance):
        ratios = {
            key: [bound(exact, settled(policy(len(x), seed=seed), by)) for seed in range(seeds)]
            for key, by in (("exact", isometric(exact)), ("sketch", sketches))
        }
        result[policy(len(x)).name] = {
            **{
                f"{key}_over_random": float(np.mean(v) / np.mean(random))
                for key, v in ratios.items()
            },
            "sketch_over_exact": float(np.mean(ratios["sketch"]) / np.mean(ratios["exact"])),
        }
    return result


def warm_up(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train for a hundred steps, so that gradients are not those of a random model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=case.rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100 if case.num_blocks > 10 else 20):
        pick = torch.randperm(len(x), generator=generator)[: case.batch_size]
        optimizer.zero_grad()
        case.loss(model(x[pick]), y[pick]).backward()
        optimizer.step()


def sketched_batch(
    case: Case, model: nn.Module, sketch: GradientSketch, x: Tensor, y: Tensor
) -> Tensor:
    case.loss(model(x), y).backward()
    return sketch.take()


def exact_gradients(
    case: Case, model: nn.Module, parts: list[tuple[Tensor, Tensor]]
) -> "np.ndarray[Any, np.dtype[np.float32]]":
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    shape = sum(len(x) for x, _ in parts), sum(p.numel() for p in parameters.values())
    made = np.empty(shape, np.float32)
    per_example, at = example_gradients(case, model), 0
    for x, y in parts:
        grads = per_example(parameters, x, y)
        made[at : at + len(x)] = torch.cat([g.flatten(1) for g in grads.values()], 1).numpy()
        at += len(x)
    return made


def isometric(rows: Any) -> Any:
    """Return shorter rows with the same inner products, which are all that an order sees."""
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    return (vectors * np.sqrt(values.clip(0))).astype(np.float32)


def settled(policy: OrderPolicy, rows: Any, rounds: int = 8) -> Any:
    """Return the order after some epochs of looking at the same rows."""
    for epoch in range(rounds):
        ids = policy.order(epoch)
        for part in np.array_split(ids, max(1, len(ids) // 64)):
            policy.observe(part, rows[part])
        policy.end_epoch()
    return policy.order(rounds)


def bound(rows: Any, order: Any) -> float:
    return herding_bound(rows, order).per_example


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--data", type=Path, default=FASHION_MNIST, help="folder of Fashion-MNIST")
    flags.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    flags.add_argument("--skip", nargs="*", default=[], choices=["times", "memory", "herding"])
    flags.add_argument("--peak", nargs=2, metavar=("MODEL", "WAY"), help="used by itself")
    options = flags.parse_args()
    torch.set_num_threads(1)
    others, why = others_that_run()
    if options.peak:
        model, way = options.peak
        print_peak(model, way, options.data)
        return
    result: dict[str, Any] = {"left_out_ways": why}
    for name in options.only:
        case, found = CASES[name], {}
        if "times" not in options.skip:
            found = times(case, *data_of(name, options.data, case.batch_size), others)
        if "memory" not in options.skip:
            peaks = {
                way: float(np.median([peak_bytes(name, way, options.data) for _ in range(num)]))
                for way, num in (("plain", 5), ("sketch", 5), *((other, 1) for other in others))
            }
            found["peak_bytes"] = peaks
            found["peak_over_plain"] = {w: peaks[w] / peaks["plain"] for w in peaks}
        if "herding" not in options.skip:
            found["herding"] = herding(case, name, options.data)
        if name in SKIPPED:
            found["skipping"] = skipping(name, options)
        result[name] = found
        print(name, json.dumps(found), file=sys.stderr)
    finish("sketch_cost", options, result, "torch", "grab-sampler")


def others_that_run() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the peers' ways that can run here, and why others cannot."""
    # grab-sampler imports this for a projection that pair balance does not use.
    stand_in = ModuleType("torch_sparse")
    stand_in.SparseTensor = object  # type: ignore[attr-defined]
    sys.modules.setdefault("torch_sparse", stand_in)
    try:
        import grabsampler.sorter  # noqa: F401
    except ImportError as error:
        return ("vmap",), {"grab-sampler": str(error)}
    # Its sampler calls torch's with an argument that torch no longer takes; the part that
    # costs time, its sorter, is run as the sampler would.
    return ("vmap", "grab-sampler"), {}


if __name__ == "__main__":
    main()
