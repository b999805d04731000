"""Ragged text with JAX and Grain in two processes on this machine.

    python -m examples.jax.train [--plain] [--epochs 2] [--resume]

`--plain` is the same job with equal shares of each shuffled batch, for comparison. The state is
saved in jax-run/ after each epoch; a run goes on from there in any number of processes.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from examples.texts import GLOBAL_BATCH, Texts
from jax.experimental.multihost_utils import process_allgather

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.jax import BalancedLoader, ProcessMean

WIDTH, NUM_HEADS, RATE = 96, 4, 0.05
Parameters = dict[str, Any]


def parameters() -> Parameters:
    """Return those of a transformer of one layer that predicts the next byte."""
    shapes = {"embed": (256, WIDTH), "mix": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH)}
    shapes |= {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH), "head": (WIDTH, 256)}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(0, 0.05, shape)) for name, shape in shapes.items()}


def logits_of(p: Parameters, x: Any) -> Any:
    """Return what follows each byte of `x`, shape `(examples, length)`."""
    h = p["embed"][x]
    q, k, v = jnp.split((h @ p["mix"]).reshape(*x.shape, NUM_HEADS, -1), 3, axis=-1)
    h = h + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(h.shape) @ p["out"]
    h = h + jax.nn.gelu(h @ p["up"]) @ p["down"]
    return h @ p["head"]


@jax.jit
@jax.value_and_grad
def loss_and_gradient(p: Parameters, x: Any, size: Any, weight: Any) -> Any:
    """Return the weighted sum over examples of each example's mean loss."""
    x = x.astype(jnp.int32)
    found = jax.nn.log_softmax(logits_of(p, x[:, :-1]))
    losses = -jnp.take_along_axis(found, x[:, 1:, None], axis=-1)[..., 0]
    counts = jnp.arange(losses.shape[1]) < (size - 1)[:, None]
    return (weight * (losses * counts).sum(1) / (size - 1)).sum()


def loader_of(texts: Texts, *, is_plain: bool) -> BalancedLoader:
    """Return balanced batches, or those that a plain shuffle deals out."""
    sizes = np.ones(len(texts)) if is_plain else texts.sizes
    counts: Any = "equal" if is_plain else "free"
    config = BalanceConfig(
        batch_size=GLOBAL_BATCH, counts=counts, padded=not is_plain, num_microbatches=1
    )
    cost = None if is_plain else paceline.QuadraticCost(6.0 * WIDTH, 1.0)
    return BalancedLoader(texts, sizes, config, cost=cost)


def compile_all(p: Parameters, loader: BalancedLoader, num_epochs: int) -> None:
    """Run every shape once that batches will have, so that no compiler is measured."""
    shapes: set[tuple[int, ...]] = set()
    while loader.epoch < num_epochs:
        shapes |= {batch["x"].shape for batch in loader}
    for rows, length in sorted(shapes):
        batch = np.zeros((rows, length), np.uint8), np.full(rows, 2), np.ones(rows)
        loss_and_gradient(p, *batch)


class Clock:
    """Seconds that this process computes, and seconds until all have."""

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.begin_s = time.perf_counter()

    def report(self, way: str, num_bytes: int) -> None:
        """Print what the run cost; all processes call it."""
        elapsed = time.perf_counter() - self.begin_s
        busy = np.asarray(process_allgather(np.array(self.busy)))
        idle = 1 - busy.mean() / busy.max(axis=0).mean()
        if jax.process_index() == 0:
            print(
                f"{way}, measured: {len(self.busy)} steps, processes wait for the slowest "
                f"{idle:.1%} of the time, {num_bytes / elapsed:,.0f} bytes/s",
                flush=True,
            )


def train_epoch(loader: BalancedLoader, p: Parameters, clock: Clock) -> Parameters:
    """Train for one epoch, or for what is left of it."""
    mean_of = ProcessMean()
    for batch in loader:
        begin_s = time.perf_counter()
        found = loss_and_gradient(p, batch["x"], batch["size"], batch["weight"])
        jax.block_until_ready(found)
        clock.busy.append(time.perf_counter() - begin_s)
        _, gradient = mean_of(found)
        p = jax.tree.map(lambda one, change: one - RATE * change, p, gradient)
    return p


def train(options: argparse.Namespace) -> None:
    """Train in this process."""
    way, texts = ("balanced", "plain")[options.plain], Texts(options.examples)
    p, loader = parameters(), loader_of(texts, is_plain=options.plain)
    folder = Path("jax-run", way)
    if options.resume:
        loader.set_state(json.loads((folder / "data.json").read_text(encoding="utf-8")))
        p = {name: jnp.asarray(one) for name, one in np.load(folder / "parameters.npz").items()}
    compile_all(p, loader_of(texts, is_plain=options.plain), options.epochs)
    clock, num_epochs = Clock(), options.epochs - loader.epoch
    while loader.epoch < options.epochs:
        p = train_epoch(loader, p, clock)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "data.json").write_text(json.dumps(loader.get_state()), encoding="utf-8")
            np.savez(folder / "parameters.npz", **{name: np.asarray(p[name]) for name in p})
    clock.report(way, sum(texts.sizes) * num_epochs)


def main() -> None:
    """Start two processes, or train in one of them."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without balancing")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--examples", type=int, default=1200)
    flags.add_argument("--resume", action="store_true", help="go on from jax-run/")
    flags.add_argument("--processes", type=int, default=2)
    flags.add_argument("--port", type=int, default=29411, help="where process 0 listens")
    flags.add_argument("--rank", type=int, help="of this process; unset to start all")
    options = flags.parse_args()
    if options.rank is None:
        command = [sys.executable, "-m", "examples.jax.train", *sys.argv[1:]]
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(options.processes)
        ]
        sys.exit(max(abs(rank.wait()) for rank in ranks))
    jax.distributed.initialize(f"127.0.0.1:{options.port}", options.processes, options.rank)
    train(options)


if __name__ == "__main__":
    main()
