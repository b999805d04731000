"""The readers of what a run has saved: states, checkpoints, the files of example and demo."""

import json
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _fault_reader import Reader, from_file, mutated_and

from paceline.balance import BalanceConfig, Cursor, EpochPlanner
from paceline.cost import Worker
from paceline.demo._corpus import Corpus
from paceline.demo._result import DemoResult, WayResult
from paceline.order import order_policies, pair_balance
from paceline.predict.remaining import RemainingEpochs, RemainingTime, StopRule
from paceline.testing.faults import mutated_state
from paceline.torch import AsyncCheckpoint, BalancedBatchSampler, DataLoader, Replica
from paceline.torch.checkpoint._whole import read_content, sealed

EXAMPLE = Path(__file__).parents[1] / "examples/gpt2"
NUM_EXAMPLES = 12
SIZES = [float(1 + number % 5) for number in range(NUM_EXAMPLES)]
CONFIG = BalanceConfig(batch_size=4, num_workers=2)


def saved_readers(folder: Path) -> list[Reader]:
    """Return them; their files lie in `folder`."""
    return [*_states(), *_checkpoints(folder), *_example(folder), *_demo(folder)]


def _states() -> list[Reader]:
    time, epochs = RemainingTime(100), RemainingEpochs(StopRule(patience=3))
    for value in (0.5, 0.25, 0.2):
        time.update(value)
        epochs.update(value)

    def told_time(state: Any) -> Any:
        left = RemainingTime(100)
        left.load_state_dict(state)
        left.update(0.1)
        return left.line()

    def told_epochs(state: Any) -> Any:
        left = RemainingEpochs(StopRule(patience=3))
        left.load_state_dict(state)
        return left.remaining()

    return [
        Reader("state of remaining time", time.state_dict(), told_time, mutated_state),
        Reader("state of remaining epochs", epochs.state_dict(), told_epochs, mutated_state),
        *(_planner(name) for name in ("shuffle", "flip-flop", "grab", "pair-balance")),
        _loader(),
    ]


def _planner(name: str) -> Reader:
    def planner() -> EpochPlanner:
        order = None if name == "shuffle" else order_policies()[name](NUM_EXAMPLES, 2, 0)
        return EpochPlanner(SIZES, CONFIG, order=order)

    saved = planner()
    saved.begin_epoch(1)
    if saved.order is not None:
        rows = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 3))
        saved.order.observe(np.arange(NUM_EXAMPLES), rows)  # type: ignore[attr-defined]
    at = Cursor(workers=(Worker(), Worker()), epoch=1, num_steps=1)

    def read(state: Any) -> Any:
        fresh = planner()
        cursor = fresh.load_state_dict(state)
        return fresh.plan(cursor).examples.tolist(), cursor.num_steps

    return Reader(f"state of a sampler, {name}", saved.state_dict(at), read, mutated_state)


def _loader() -> Reader:
    def loader() -> DataLoader[float]:
        order = pair_balance(NUM_EXAMPLES)
        place = Replica(rank=0, num_replicas=2)
        batches = BalancedBatchSampler(SIZES, CONFIG, process_group=place, order=order)
        return DataLoader(SIZES, batch_sampler=batches)  # type: ignore[arg-type]

    saved = loader()
    next(iter(saved))

    def read(state: Any) -> Any:
        fresh = loader()
        fresh.load_state_dict(state)
        return [batch.tolist() for batch in fresh]

    return Reader("state of a loader", saved.state_dict(), read, mutated_state)


def _checkpoints(folder: Path) -> list[Reader]:
    state = {"weights": {"a": torch.arange(12.0).view(3, 4)}, "flags": torch.tensor([True]), "n": 7}
    with AsyncCheckpoint(folder / "checkpoint") as saving:
        path = saving.save(1, state).wait()
    index, tensors = path / "index.json", path / "tensors.safetensors"
    good_index, good_tensors = index.read_bytes(), tensors.read_bytes()
    body = json.loads(good_index)
    del body["sha256"]

    def read(new_index: bytes, new_tensors: bytes) -> Any:
        index.write_bytes(new_index)
        tensors.write_bytes(new_tensors)
        found = read_content(path).state
        return found["weights"]["a"].tolist(), found["flags"].tolist(), found["n"]

    def read_sealed(found: Any) -> Any:
        index.write_bytes(found if isinstance(found, bytes) else sealed(found))
        tensors.write_bytes(good_tensors)
        return read_content(path) is not None

    return [
        Reader(
            "checkpoint index", good_index, lambda raw: read(raw, good_tensors), is_checked=True
        ),
        Reader("checkpoint data", good_tensors, lambda raw: read(good_index, raw), is_checked=True),
        Reader("checkpoint index, sealed", body, read_sealed, partial(mutated_and, sealed)),
    ]


def _beside(folder: Path, *names: str) -> list[Any]:
    """Import modules that lie in `folder`, and forget their names: they are not ours."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        return [import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) == str(folder / f"{name}.py"):
                del sys.modules[name]


def _example(folder: Path) -> list[Reader]:
    data, progress, shards = _beside(EXAMPLE, "data", "progress", "shards")
    there = folder / "shards"
    there.mkdir(exist_ok=True)
    documents = [np.arange(1, 5, dtype=np.uint16), np.arange(3, dtype=np.uint16)]
    sums = {
        split: shards.write_part(there, split, 0, documents, np.uint16) for split in shards.SPLITS
    }
    counts = dict.fromkeys(shards.SPLITS, 7), dict.fromkeys(shards.SPLITS, 2)
    shard = shards.Shard(end_source=1, num_tokens=counts[0], num_documents=counts[1], checksum=sums)
    manifest = shards.Manifest(settings={"a": 1}, vocab_size=257, shards=[shard], is_complete=True)
    manifest.save(there)
    good = (there / "manifest.json").read_bytes()

    def corpus(_: Path) -> Any:
        found = data.Corpus(there, "train")
        whole = shards.whole_shards(there, found.manifest.shards)
        sizes = data.documents(found, 8).sizes.tolist(), data.packed(found, 2).sizes.tolist()
        return len(whole), found.manifest.digest, sizes

    def damaged(name: str) -> Reader:
        path = there / name

        def read(raw: bytes) -> Any:
            (there / "manifest.json").write_bytes(good)
            before = path.read_bytes()
            try:
                path.write_bytes(raw)
                return corpus(path)
            finally:
                path.write_bytes(before)

        return Reader(f"shard of {name.split('.')[1]}", path.read_bytes(), read)

    metrics = b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'
    return [
        Reader("manifest", good, from_file(there / "manifest.json", corpus)),
        damaged("train-00000.tokens.npy"),
        damaged("train-00000.documents.npy"),
        Reader(
            "metrics", metrics, from_file(folder / "metrics.jsonl", lambda p: progress._cut(p, 1))
        ),
    ]


def _demo(folder: Path) -> list[Reader]:
    way = WayResult(
        tokens_per_s=1.0, tokens_per_s_range=(0.5, 2.0), p50_s=1.0, p90_s=2.0, idle=(0.1, 0.2),
        padding=0.1, measured_step_s=1.0, predicted_step_s=1.0, final_loss=2.0,
        over_plain=1.0, over_tuned=0.5,
    )  # fmt: skip
    result = DemoResult(
        plain=way, tuned=way, paced=replace(way, p50_s=0.5), window=way, fastest="paced",
        speedup=1.5, speedup_range=(1.0, 2.0), tuned_bucket_mb=25.0,
        max_loss_difference=0.0, predicted_step_s=1.0, measured_step_s=1.0, num_ranks=2,
        num_rounds=3, num_examples=96, trace="trace.json", summary="summary.json",
        recorded="plain",
    )  # fmt: skip
    result.save(folder / "summary.json")
    corpus = Corpus(text=np.arange(9, dtype=np.uint8), offsets=np.array([0, 4, 9]))
    corpus.save(folder / "corpus.npz")

    def read(path: Path) -> Any:
        found = Corpus.load(path)
        return [found[number].tolist() for number in range(len(found))]

    return [
        Reader(
            "demo result",
            (folder / "summary.json").read_bytes(),
            from_file(folder / "summary.json", DemoResult.load),
        ),
        Reader(
            "demo corpus",
            (folder / "corpus.npz").read_bytes(),
            from_file(folder / "corpus.npz", read),
        ),
    ]
