"""Train with JAX and Grain, one process per rank; see `contract.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tests.integrations.data import (
    LEARNING_RATE,
    NUM_EPOCHS,
    SIZES,
    STEPS_PER_EPOCH,
    Record,
    Reverser,
    Sequences,
    arguments,
    config_of,
    runs_of,
)

from paceline.integrations.jax import BalancedLoader, ProcessMean

Parameters = list[Any]


class Source:
    """The sequences, as arrays."""

    def __init__(self) -> None:
        sequences = Sequences()
        self._items = [sequences[i]["x"].numpy() for i in range(len(sequences))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self._items[index]}


def parameters() -> Parameters:
    return [jnp.asarray(one.detach().numpy()) for one in Reverser().parameters()]


@jax.jit
@jax.grad
def gradient(parameters: Parameters, x: Any, size: Any, weight: Any) -> Any:
    inner, inner_bias, outer, outer_bias = parameters
    found = jnp.tanh(x @ inner.T + inner_bias) @ outer.T + outer_bias
    is_token = jnp.arange(x.shape[1]) < size[:, None]
    losses = jnp.square(found - x[..., ::-1]).sum(-1) * is_token
    return (weight * losses.sum(1) / size).sum()


@jax.jit
def sgd(parameters: Parameters, momenta: Parameters, gradients: Parameters) -> Any:
    momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, gradients)
    return jax.tree.map(lambda p, m: p - LEARNING_RATE * m, parameters, momenta), momenta


def train(saved: Path, num_micro: int, point: int | None, record: Record) -> Parameters:
    # Each worker imports all of this anew: one run has them.
    has_workers = (jax.process_count(), num_micro, point) == (2, 2, 9)
    loader = BalancedLoader(Source(), SIZES, config_of(num_micro), num_workers=2 * has_workers)
    mean_of, trained = ProcessMean(), parameters()
    momenta = jax.tree.map(jnp.zeros_like, trained)
    zeros, num_steps = momenta, point or 0
    if point is not None:
        loader.set_state(json.loads((saved / f"{point}.json").read_text(encoding="utf-8")))
        arrays = np.load(saved / f"{point}.npz")
        trained = [jnp.asarray(arrays[f"p{i}"]) for i in range(4)]
        momenta = [jnp.asarray(arrays[f"m{i}"]) for i in range(4)]
    while loader.epoch < NUM_EPOCHS:
        summed = zeros
        for batch in loader:
            add(record, batch)
            new = gradient(trained, batch["x"], batch["size"], batch["weight"])
            summed = jax.tree.map(jnp.add, summed, new)
            if batch["is_step_end"]:
                trained, momenta = sgd(trained, momenta, mean_of(summed))
                summed, num_steps = zeros, num_steps + 1
                if point is None and jax.process_index() == 0:
                    save(saved / f"{num_steps}", loader, trained, momenta)
    assert num_steps == NUM_EPOCHS * STEPS_PER_EPOCH
    return trained


def add(record: Record, batch: Any) -> None:
    examples = batch["example"][batch["weight"] > 0].tolist()
    record.batches.append([examples, bool(batch["is_step_end"])])


def save(path: Path, loader: BalancedLoader, trained: Parameters, momenta: Parameters) -> None:
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(loader.get_state()), encoding="utf-8")
    names = {f"p{i}": one for i, one in enumerate(trained)}
    names |= {f"m{i}": one for i, one in enumerate(momenta)}
    np.savez(path.with_suffix(".npz"), **{name: np.asarray(one) for name, one in names.items()})


def main() -> None:
    folder, num_ranks = arguments()
    rank, port, *_ = map(int, sys.argv[3:])
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_ranks, rank)
    record = Record()
    for num_micro, point in runs_of(num_ranks):
        trained = train(folder / f"{num_micro}", num_micro, point, record)
        flat = np.concatenate([np.asarray(one).ravel() for one in trained]).tolist()
        record.runs[f"{num_micro} from {point}"] = {"batches": record.batches, "parameters": flat}
        record.batches = []
    record.write(folder, num_ranks, rank)


if __name__ == "__main__":
    main()
