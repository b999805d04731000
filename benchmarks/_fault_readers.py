"""Every reader of outside input, with a good input to be damaged."""

import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.balance import BalanceConfig, Cursor, EpochPlanner
from paceline.cli import main as command
from paceline.cli._estimate import parse_link
from paceline.cli._model_flags import parse_shape
from paceline.cost import Job, LayerCost, Link, Worker
from paceline.demo._corpus import Corpus
from paceline.demo._result import DemoResult, WayResult
from paceline.order import order_policies, pair_balance
from paceline.predict import CpuRates, OperatorWork, Workload
from paceline.predict.epochs import Runs, fit_convergence
from paceline.predict.remaining import RemainingEpochs, RemainingTime, StopRule
from paceline.predict.run._fitted import FORMAT, epochs_predictor, read_runs
from paceline.predict.step import digest_of, load_step_predictor, read_step_tables
from paceline.predict.step._predictor_file import FORMAT as STEP_FORMAT
from paceline.testing import bytes_per_s
from paceline.testing.faults import mutated_bytes, mutated_state
from paceline.torch import AsyncCheckpoint, BalancedBatchSampler, DataLoader, Replica, example_sizes
from paceline.torch.checkpoint._whole import read_content, sealed
from paceline.torch.predict._collect_table import read_rows

EXAMPLE = Path(__file__).parents[1] / "examples/gpt2"
NUM_EXAMPLES = 12
SIZES = [float(1 + number % 5) for number in range(NUM_EXAMPLES)]
CONFIG = BalanceConfig(batch_size=4, num_workers=2)


@dataclass(frozen=True, slots=True)
class Reader:
    """One way in.

    Attributes:
        name: For reports.
        good: What it accepts.
        read: Takes `good` or what was made of it.
        mutate: Makes that.
        is_checked: Whether it has a checksum, so that it must refuse what is not `good`.
    """

    name: str
    good: Any
    read: Callable[[Any], Any]
    mutate: Callable[[Any, random.Random], Any] = mutated_bytes
    is_checked: bool = False


def readers(folder: Path) -> list[Reader]:
    """Return all readers; their files lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_planning(folder),
        *_predicting(folder),
        *_tables(folder),
        *_states(),
        *_checkpoints(folder),
        *_example(folder),
        *_demo(folder),
    ]


def run_command(*arguments: str) -> str:
    """Run a `paceline` command in this process; a status of 2 raises its one line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = command(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
    if status:
        raise ValueError(err.getvalue().removesuffix("\n"))
    return out.getvalue()


def _file(path: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def written(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return written


def _planning(folder: Path) -> list[Reader]:
    job = Job(
        source="measured",
        layers=tuple(
            LayerCost(name=str(i), forward_s=1e-3, backward_s=2e-3, gradient_bytes=4_000_000)
            for i in range(4)
        ),
        link=Link(1e-4, 1e9),
    )
    assert job.link is not None
    plain = {
        "source": job.source,
        "layers": [asdict(layer) for layer in job.layers],
        "link": asdict(job.link),
    }
    sizes = folder / "plan.npy"
    np.save(sizes, np.array(SIZES))
    plan = ["plan", "--sizes", str(sizes), "--workers", "2", "--batch-size", "4", "--json"]

    def plan_of(path: Path) -> Any:
        return json.loads(run_command(*plan[:1], "--sizes", str(path), *plan[3:]))["num_steps"]

    def flags(values: Any) -> Any:
        return run_command(*plan[:3], *(str(value) for pair in values.items() for value in pair))

    good_flags = {
        "--workers": "2", "--batch-size": "4", "--cost": "quadratic:1,2,3", "--window": "2",
        "--speeds": "1,0.5", "--microbatches": "1", "--max-tokens": "100", "--max-cost": "1e9",
        "--max-examples": "8", "--seed": "3",
    }  # fmt: skip
    buckets = folder / "job.json"
    return [
        Reader(
            "job",
            json.dumps(plain).encode(),
            _file(buckets, lambda path: run_command("plan", "--buckets", str(path), "--json")),
        ),
        Reader("sizes", sizes.read_bytes(), _file(folder / "sizes.npy", plan_of)),
        Reader("sizes of floats", _npy(np.float32(SIZES)), _file(folder / "sizes.npy", plan_of)),
        Reader(
            "sizes cache",
            _npy(np.array(SIZES)),
            _file(
                folder / "cache.npy",
                lambda path: example_sizes(list(range(NUM_EXAMPLES)), float, cache=path).tolist(),
            ),
        ),
        Reader("plan flags", good_flags, flags, _mutated_flags),
        Reader("link flag", "10Gbit/s+20us", parse_link, _mutated_text),
        Reader("shape flag", "3,224:int64", parse_shape, _mutated_text),
        Reader("rate of the lab", "100mbit", bytes_per_s, _mutated_text),
    ]


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _mutated_text(text: str, rng: random.Random) -> str:
    return mutated_bytes(text.encode(), rng).decode("latin-1")


def _mutated_flags(flags: dict[str, str], rng: random.Random) -> dict[str, str]:
    name = rng.choice(sorted(flags))
    return {**flags, name: _mutated_text(flags[name], rng).replace("\0", "")}


def _predicting(folder: Path) -> list[Reader]:
    rates = CpuRates(coefficients={"matmul": (1e-6, 1e-10)}, machine={"processor": "any"})
    rates_file = folder / "rates.json"
    rates.save(rates_file)
    work = OperatorWork(
        operator="mm", operator_class="matmul", phase="forward", flops=1e6, read_bytes=0.0,
        written_bytes=0.0, num_calls=2, dims=(1, 50, 100, 100),
    )  # fmt: skip
    load = Workload(
        family="MLP", batch_size=1, num_params=0, forward_flops_per_example=2e6, operators=(work,)
    )
    steps = {
        "provenance": {"source": "none"}, "seen": {"family": ["MLP"]}, "loader": {"a|b": 0.1},
        "host": None, "device": None, "calibrations": {}, "trust": {"known": 1.0}, "kernel": None,
        "probed": {},
    }  # fmt: skip
    epochs = {"provenance": {}, "predictor": fit_convergence(Runs.from_rows(run_rows())).to_dict()}
    return [
        Reader(
            "rates",
            rates_file.read_bytes(),
            _file(rates_file, lambda path: CpuRates.load(path).step_time(load)),
        ),
        *_predictor(folder, "steps", STEP_FORMAT, steps, load_step_predictor),
        *_predictor(folder, "epochs", FORMAT, epochs, epochs_predictor.__wrapped__),
    ]


def _predictor(
    folder: Path, name: str, label: str, content: dict[str, Any], load: Callable[[Path], Any]
) -> list[Reader]:
    """As a file that was changed, and as one that another program wrote with a right checksum."""

    def document(inside: Any) -> bytes:
        text = {"format": label, "version": 1, "sha256": digest_of(inside), "content": inside}
        return json.dumps(text).encode()

    def mutated(inside: Any, rng: random.Random) -> Any:
        while True:
            try:
                return document(mutated_state(inside, rng))
            except (TypeError, ValueError, RecursionError):
                continue  # No JSON holds it.

    read = _file(folder / f"{name}.json", lambda path: load(path) is not None)
    return [
        Reader(f"{name} predictor", document(content), read, is_checked=True),
        Reader(
            f"{name} predictor, sealed",
            content,
            lambda found: read(found if isinstance(found, bytes) else document(found)),
            mutated,
        ),
    ]


def run_rows() -> list[dict[str, Any]]:
    """Return invented runs until convergence."""
    return [
        {
            "architecture": "MLP", "model": model, "dataset": dataset, "optimizer": optimizer,
            "dataset_size": 1000, "learning_rate": 1e-3, "batch_size": batch, "param_count": 10_000,
            "patience_P": 5, "min_delta": 1e-4, "max_epochs": 200, "T_conv": 10 + batch // 32,
        }
        for model in "ab"
        for dataset in "XY"
        for optimizer in ("SGD", "AdamW")
        for batch in (32, 128)
    ]  # fmt: skip


def _tables(folder: Path) -> list[Reader]:
    columns = {
        "dataset": "STL10", "input_shape": "\"(3, 96, 96)\"", "optimizer": "SGD", "batch_size": 32,
        "precision": 16, "model": "mixer", "architecture": "MLP", "embed_dim": 128, "depth": 8,
        "param_count": 2e6, "avg_loader_ms": 0.3, "avg_compute_ms": 5.0,
        "flops_train_per_batch": 3e9, "act_bytes_per_sample_proxy": 32768, "gpu_name": "Tesla T4",
        "FP16": 65130, "FP32": 8141, "GPU Memory Bandwidth (GB/s)": 320, "Cores": 2560, "SM": 40,
        "TC": 320, "Boost Clock (MHz)": 1600,
    }  # fmt: skip
    steps, runs = folder / "tables", folder / "runs"
    steps.mkdir(exist_ok=True)
    runs.mkdir(exist_ok=True)
    collected = {**columns, "compute_ms": 5.0, "loader_wait_ms": 0.3}
    return [
        Reader(
            "step table",
            _csv([columns] * 3),
            _file(steps / "a.csv", lambda path: len(read_step_tables(path.parent))),
        ),
        Reader(
            "convergence table",
            _csv(run_rows()),
            _file(runs / "a.csv", lambda path: len(read_runs([path]))),
        ),
        Reader(
            "collected table",
            _csv([collected] * 3),
            _file(folder / "collected.csv", lambda path: len(read_rows(path))),
        ),
    ]


def _csv(rows: list[dict[str, Any]]) -> bytes:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


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

    def mutated(found: Any, rng: random.Random) -> Any:
        while True:
            try:
                return sealed(mutated_state(found, rng))
            except (TypeError, ValueError, RecursionError):
                continue

    def read_sealed(found: Any) -> Any:
        index.write_bytes(found if isinstance(found, bytes) else sealed(found))
        tensors.write_bytes(good_tensors)
        return read_content(path) is not None

    return [
        Reader("checkpoint index", good_index, lambda raw: read(raw, good_tensors), is_checked=True),
        Reader("checkpoint data", good_tensors, lambda raw: read(good_index, raw), is_checked=True),
        Reader("checkpoint index, sealed", body, read_sealed, mutated),
    ]


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _example(folder: Path) -> list[Reader]:
    with _beside(EXAMPLE):
        import data
        import progress
        import shards
    there = folder / "shards"
    there.mkdir(exist_ok=True)
    documents = [np.arange(1, 5, dtype=np.uint16), np.arange(3, dtype=np.uint16)]
    sums = {split: shards.write_part(there, split, 0, documents, np.uint16) for split in shards.SPLITS}
    counts = dict.fromkeys(shards.SPLITS, 7), dict.fromkeys(shards.SPLITS, 2)
    shard = shards.Shard(
        end_source=1, num_tokens=counts[0], num_documents=counts[1], checksum=sums
    )
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
        Reader("manifest", good, _file(there / "manifest.json", corpus)),
        damaged("train-00000.tokens.npy"),
        damaged("train-00000.documents.npy"),
        Reader("metrics", metrics, _file(folder / "metrics.jsonl", lambda p: progress._cut(p, 1))),
    ]


def _demo(folder: Path) -> list[Reader]:
    way = WayResult(
        tokens_per_s=1.0, tokens_per_s_range=(0.5, 2.0), p50_s=1.0, p90_s=2.0, idle=(0.1, 0.2),
        padding=0.1, measured_step_s=1.0, predicted_step_s=1.0, final_loss=2.0,
    )  # fmt: skip
    result = DemoResult(
        plain=way, paced=replace(way, p50_s=0.5), speedup=1.5, speedup_range=(1.0, 2.0),
        max_loss_difference=0.0, predicted_step_s=1.0, measured_step_s=1.0, num_ranks=2,
        num_rounds=3, num_examples=96, trace="trace.json", summary="summary.json",
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
            _file(folder / "summary.json", DemoResult.load),
        ),
        Reader("demo corpus", (folder / "corpus.npz").read_bytes(), _file(folder / "corpus.npz", read)),
    ]


if __name__ == "__main__":
    # A long run: python benchmarks/_fault_readers.py SEED NUM_PER_READER [NAME]
    from _fault_pure import hunt

    hunt(Path(os.environ.get("TMPDIR", "/tmp")) / f"paceline-hunt-{os.getpid()}", *sys.argv[1:])
