"""Train with MultiWorkerMirroredStrategy and a loop of one's own; see `contract.py`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
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

from paceline.integrations.tensorflow import BalancedLoader


class Source:
    """The sequences, as arrays."""

    def __init__(self) -> None:
        sequences = Sequences()
        self._items = [sequences[i]["x"].numpy() for i in range(len(sequences))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self._items[index]}


class Model:
    """The reverser, its momenta and the gradients that are summed up over a step."""

    def __init__(self, strategy: Any) -> None:
        begin = [one.detach().numpy() for one in Reverser().parameters()]
        self._strategy = strategy
        with strategy.scope():
            self.trained = [tf.Variable(one) for one in begin]
            self.momenta = [tf.Variable(np.zeros_like(one)) for one in begin]
        self.summed = [np.zeros_like(one) for one in begin]

    @tf.function(reduce_retracing=True)
    def gradients(self, x: Any, size: Any, weight: Any) -> Any:
        return self._strategy.run(self._gradients, args=(x, size, weight))

    def _gradients(self, x: Any, size: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            inner, inner_bias, outer, outer_bias = self.trained
            hidden = tf.tanh(tf.einsum("nlc,dc->nld", x, inner) + inner_bias)
            found = tf.einsum("nld,cd->nlc", hidden, outer) + outer_bias
            is_token = tf.sequence_mask(size, tf.shape(x)[1], tf.float64)
            losses = tf.reduce_sum((found - x[..., ::-1]) ** 2, -1) * is_token
            means = tf.reduce_sum(losses, 1) / tf.cast(size, tf.float64)
            total = tf.reduce_sum(weight * means)
        return tape.gradient(total, self.trained)

    @tf.function
    def means(self, summed: Any) -> Any:
        return self._strategy.run(self._means, args=(summed,))

    def _means(self, summed: Any) -> Any:
        # What comes from outside is on no device of the replica until it is copied.
        own = [tf.identity(one) for one in summed]
        mean = tf.distribute.ReduceOp.MEAN
        return tf.distribute.get_replica_context().all_reduce(mean, own)

    def step(self) -> None:
        for one, momentum, mean in zip(
            self.trained, self.momenta, self.means(self.summed), strict=True
        ):
            momentum.assign(0.9 * momentum + mean)
            one.assign_sub(LEARNING_RATE * momentum)
        self.summed = [np.zeros_like(one) for one in self.summed]


def train(strategy: Any, saved: Path, num_micro: int, point: int | None, record: Record) -> Model:
    loader = BalancedLoader(Source(), SIZES, config_of(num_micro), strategy=strategy)
    model, num_steps = Model(strategy), point or 0
    if point is not None:
        loader.load_state_dict(json.loads((saved / f"{point}.json").read_text(encoding="utf-8")))
        arrays = np.load(saved / f"{point}.npz")
        for i, one in enumerate([*model.trained, *model.momenta]):
            one.assign(arrays[str(i)])
    while loader.epoch < NUM_EPOCHS:
        for batch in loader:
            examples = batch["example"].numpy()[batch["weight"].numpy() > 0].tolist()
            is_step_end = bool(batch["is_step_end"].numpy())
            record.batches.append([examples, is_step_end])
            new = model.gradients(batch["x"], batch["size"], batch["weight"])
            model.summed = [one + more for one, more in zip(model.summed, new, strict=True)]
            if is_step_end:
                model.step()
                num_steps += 1
                if point is None and strategy.cluster_resolver.task_id == 0:
                    save(saved / f"{num_steps}", loader, model)
    assert num_steps == NUM_EPOCHS * STEPS_PER_EPOCH
    return model


def save(path: Path, loader: BalancedLoader, model: Model) -> None:
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(loader.state_dict()), encoding="utf-8")
    arrays = {str(i): one.numpy() for i, one in enumerate([*model.trained, *model.momenta])}
    np.savez(path.with_suffix(".npz"), **arrays)


def strategy_of(ports: list[int], rank: int) -> Any:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": cluster, "task": {"type": "worker", "index": rank}}
    )
    return tf.distribute.MultiWorkerMirroredStrategy()


def main() -> None:
    folder, num_ranks = arguments()
    rank, *ports = map(int, sys.argv[3:])
    strategy, record = strategy_of(ports, rank), Record()
    for num_micro, point in runs_of(num_ranks):
        model = train(strategy, folder / f"{num_micro}", num_micro, point, record)
        flat = np.concatenate([one.numpy().ravel() for one in model.trained]).tolist()
        record.runs[f"{num_micro} from {point}"] = {"batches": record.batches, "parameters": flat}
        record.batches = []
    record.write(folder, num_ranks, rank)


if __name__ == "__main__":
    main()
