"""Ragged text with TensorFlow's MultiWorkerMirroredStrategy, two workers on this machine.

    python -m examples.tensorflow.train [--plain] [--epochs 2] [--resume]

`--plain` is the same job with equal shares of each shuffled batch, for comparison. The state is
saved in tensorflow-run/ after each epoch; a run goes on from there on any number of workers.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from examples.texts import GLOBAL_BATCH, Texts

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.tensorflow import BalancedLoader

WIDTH, RATE = 96, 0.05


class ByteModel:
    """One layer of attention that predicts the next byte, and plain gradient descent."""

    def __init__(self, strategy: Any) -> None:
        shapes = [(256, WIDTH), (WIDTH, 3 * WIDTH), (WIDTH, 256)]
        rng, self._strategy = np.random.default_rng(0), strategy
        with strategy.scope():
            self.trained = [tf.Variable(rng.normal(0, 0.05, s).astype("float32")) for s in shapes]
        self.gradients = tf.function(self._gradients, reduce_retracing=True)
        self.means = tf.function(self._means)

    def _gradients(self, x: Any, size: Any, weight: Any) -> Any:
        return self._strategy.run(self._own_gradients, args=(x, size, weight))

    def _own_gradients(self, x: Any, size: Any, weight: Any) -> Any:
        x = tf.cast(x, tf.int32)
        with tf.GradientTape() as tape:
            embed, mix, head = self.trained
            h = tf.gather(embed, x[:, :-1])
            q, k, v = tf.split(h @ mix, 3, axis=-1)
            scores = tf.matmul(q, k, transpose_b=True) / WIDTH**0.5
            past = tf.linalg.band_part(tf.ones_like(scores), -1, 0)
            logits = (h + tf.nn.softmax(scores - 1e9 * (1 - past)) @ v) @ head
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(x[:, 1:], logits)
            counts = tf.sequence_mask(size - 1, tf.shape(losses)[1], tf.float32)
            means = tf.reduce_sum(losses * counts, 1) / tf.cast(size - 1, tf.float32)
            total = tf.reduce_sum(tf.cast(weight, tf.float32) * means)
        return [tf.convert_to_tensor(one) for one in tape.gradient(total, self.trained)]

    def _means(self, gradients: Any) -> Any:
        def mean(own: Any) -> Any:
            # What comes from outside is on no device of the replica until it is copied.
            copied = [tf.identity(one) for one in own]
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, copied)

        return self._strategy.run(mean, args=(gradients,))

    def step(self, gradients: Any) -> None:
        """Average the gradients over workers and go one step down."""
        for one, mean in zip(self.trained, self.means(gradients), strict=True):
            one.assign_sub(RATE * mean)


def loader_of(texts: Texts, strategy: Any, *, is_plain: bool) -> Any:
    """Return balanced batches, or those that a plain shuffle deals out."""
    sizes = np.ones(len(texts)) if is_plain else texts.sizes
    counts: Any = "equal" if is_plain else "free"
    config = BalanceConfig(
        batch_size=GLOBAL_BATCH, counts=counts, padded=not is_plain, num_microbatches=1
    )
    cost = None if is_plain else paceline.QuadraticCost(6.0 * WIDTH, 1.0)
    return BalancedLoader(texts, sizes, config, strategy=strategy, cost=cost)


def report(way: str, strategy: Any, busy: list[float], bytes_per_s: float) -> None:
    """Print what the run cost; all workers call it."""
    rows = strategy.gather(tf.constant([busy]), axis=0).numpy()
    idle = 1 - rows.mean() / rows.max(axis=0).mean()
    if strategy.cluster_resolver.task_id == 0:
        print(
            f"{way}, measured: {len(busy)} steps, workers wait for the slowest {idle:.1%} of the "
            f"time, {bytes_per_s:,.0f} bytes/s",
            flush=True,
        )


def train(options: argparse.Namespace) -> None:
    """Train in this process."""
    way, texts = ("balanced", "plain")[options.plain], Texts(options.examples)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    loader, model = loader_of(texts, strategy, is_plain=options.plain), ByteModel(strategy)
    folder = Path("tensorflow-run", way)
    busy: list[float] = []
    if options.resume:
        loader.load_state_dict(json.loads((folder / "data.json").read_text(encoding="utf-8")))
        for one, saved in zip(
            model.trained, np.load(folder / "parameters.npz").values(), strict=True
        ):
            one.assign(saved)
    begin_s, num_epochs = time.perf_counter(), options.epochs - loader.epoch
    while loader.epoch < options.epochs:
        for batch in loader:
            step_s = time.perf_counter()
            gradients = model.gradients(batch["x"], batch["size"], batch["weight"])
            _ = gradients[0].numpy()
            busy.append(time.perf_counter() - step_s)
            model.step(gradients)
        if strategy.cluster_resolver.task_id == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "data.json").write_text(json.dumps(loader.state_dict()), encoding="utf-8")
            np.savez(folder / "parameters.npz", *[one.numpy() for one in model.trained])
    elapsed_s = time.perf_counter() - begin_s
    report(way, strategy, busy, sum(texts.sizes) * num_epochs / elapsed_s)


def main() -> None:
    """Start two workers, or train in one of them."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without balancing")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--examples", type=int, default=1200)
    flags.add_argument("--resume", action="store_true", help="go on from tensorflow-run/")
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--port", type=int, default=29421, help="where worker 0 listens")
    options = flags.parse_args()
    if "TF_CONFIG" in os.environ:
        train(options)
        return
    workers = [f"127.0.0.1:{options.port + rank}" for rank in range(options.workers)]
    command = [sys.executable, "-m", "examples.tensorflow.train", *sys.argv[1:]]
    ranks = []
    for rank in range(options.workers):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        ranks.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": json.dumps(task)}))
    sys.exit(max(abs(rank.wait()) for rank in ranks))


if __name__ == "__main__":
    main()
