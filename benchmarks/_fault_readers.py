"""Every reader of outside input, with a good input to be damaged."""

import io
import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _fault_reader import Reader, from_file, mutated_and
from _fault_saved import NUM_EXAMPLES, SIZES, saved_readers

from paceline.cli import main as command
from paceline.cli._estimate import parse_link
from paceline.cli._model_flags import parse_shape
from paceline.cost import Job, LayerCost, Link
from paceline.predict import CpuRates, OperatorWork, Workload
from paceline.predict.epochs import Runs, fit_convergence
from paceline.predict.run._fitted import FORMAT, epochs_predictor, read_runs
from paceline.predict.step import digest_of, load_step_predictor, read_step_tables
from paceline.predict.step._predictor_file import FORMAT as STEP_FORMAT
from paceline.predict.step._predictor_file import VERSION
from paceline.testing import bytes_per_s
from paceline.testing.faults import mutated_bytes
from paceline.torch import example_sizes
from paceline.torch.predict._collect_table import read_rows


def readers(folder: Path) -> list[Reader]:
    """Return all readers; their files lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_planning(folder),
        *_predicting(folder),
        *_tables(folder),
        *saved_readers(folder),
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
            from_file(buckets, lambda path: run_command("plan", "--buckets", str(path), "--json")),
        ),
        Reader("sizes", sizes.read_bytes(), from_file(folder / "sizes.npy", plan_of)),
        Reader(
            "sizes of floats",
            _npy(np.array(SIZES, dtype=np.float32)),
            from_file(folder / "sizes.npy", plan_of),
        ),
        Reader(
            "sizes cache",
            _npy(np.array(SIZES)),
            from_file(
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
            from_file(rates_file, lambda path: CpuRates.load(path).step_time(load)),
        ),
        *_predictor(folder, "steps", STEP_FORMAT, steps, load_step_predictor),
        *_predictor(folder, "epochs", FORMAT, epochs, epochs_predictor.__wrapped__),
    ]


def _predictor(
    folder: Path, name: str, label: str, content: dict[str, Any], load: Callable[[Path], Any]
) -> list[Reader]:
    """As a file that was changed, and as one that another program wrote with a right checksum."""

    def document(inside: Any) -> bytes:
        text = {"format": label, "version": VERSION, "sha256": digest_of(inside), "content": inside}
        return json.dumps(text).encode()

    read = from_file(folder / f"{name}.json", lambda path: load(path) is not None)
    return [
        Reader(f"{name} predictor", document(content), read, is_checked=True),
        Reader(
            f"{name} predictor, sealed",
            content,
            lambda found: read(found if isinstance(found, bytes) else document(found)),
            partial(mutated_and, document),
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
            from_file(steps / "a.csv", lambda path: len(read_step_tables(path.parent))),
        ),
        Reader(
            "convergence table",
            _csv(run_rows()),
            from_file(runs / "a.csv", lambda path: len(read_runs([path]))),
        ),
        Reader(
            "collected table",
            _csv([collected] * 3),
            from_file(folder / "collected.csv", lambda path: len(read_rows(path))),
        ),
    ]


def _csv(rows: list[dict[str, Any]]) -> bytes:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


if __name__ == "__main__":
    # A long run: python benchmarks/_fault_readers.py SEED NUM_PER_READER [NAME]
    from _fault_pure import hunt

    hunt(Path(os.environ.get("TMPDIR", "/tmp")) / f"paceline-hunt-{os.getpid()}", *sys.argv[1:])
