"""The GPT-2 example: preparation resumes, and all ways of training give the same losses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import paceline
from paceline.comm import plan_p3
from paceline.testing import run_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt2"
TEXT = Path(json.__file__).parent  # A few files of the standard library.
NUM_STEPS, STOP_AFTER = 18, 13
COMMON = (
    "--size tiny --context 32 --batch-size 8 --micro-batch 2 --validate-every 0 "
    f"--checkpoint-every 0 --log-every 6 --steps {NUM_STEPS} --device cpu"
).split()
# One spawn trains all of these on two ranks, one after the other.
TWO_RANK_RUNS = {
    "ddp": "--parallel ddp --clip 0",
    "scheduled": "--parallel scheduled --clip 0",
    "deferred": "--parallel scheduled --clip 0 --deferred-weight-gradients all",
    "documents": "--parallel ddp --documents --context 128 --clip 0.5",
    "balanced": "--parallel ddp --balanced --context 128 --clip 0.5",
    "balanced scheduled": "--parallel scheduled --balanced --context 128 --clip 0.5",
}


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], ModuleType]]:
    """Import the modules that lie beside the scripts, and forget them in the end."""
    before, num_threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLE))
    yield import_module
    torch.set_num_threads(num_threads)
    sys.path.remove(str(EXAMPLE))
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(EXAMPLE / f"{name}.py"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def data(example: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    assert example("prepare").main(prepare_flags(folder)) == 0
    return folder


def prepare_flags(folder: Path) -> list[str]:
    flags = ["--out", str(folder), "--shard-tokens", "8000", "--validation", "0.2", "--json"]
    return [str(TEXT), *flags]


def run_flags(data: Path, out: Path, flags: str = "") -> list[str]:
    return ["--data", str(data), "--out", str(out), *COMMON, *flags.split()]


def as_single(name: str) -> str:
    return TWO_RANK_RUNS[name].replace("--parallel ddp", "--parallel single")


def losses_in(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(losses) == list(range(1, NUM_STEPS + 1))
    return list(losses.values())


def stop_after(rank: int) -> Any:
    """Have `rank` receive SIGTERM during a step; the others learn of it one step later."""
    loop = import_module("loop")
    step, made = loop.Run._step, []

    def interrupted(run: Any, data: Any) -> torch.Tensor:
        made.append(data)
        if len(made) == STOP_AFTER and run._world.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        found: torch.Tensor = step(run, data)
        return found

    return patch.object(loop.Run, "_step", interrupted)


def train_on_two_ranks(rank: int, data: Path, outs: Path) -> None:
    sys.path.insert(0, str(EXAMPLE))
    main = import_module("train").main
    # A plan that goes on behind the next forward pass, from the fifth step on.
    overlapping = partial(paceline.ScheduledDataParallel, choose=plan_p3, num_measure_steps=4)
    with patch.object(paceline, "ScheduledDataParallel", overlapping):
        for name, flags in TWO_RANK_RUNS.items():
            assert main(run_flags(data, outs / name, flags)) == 0
    # Rank 1 alone is asked to end; both must leave after the same step.
    for name in ("ddp", "balanced"):
        stopped = run_flags(data, outs / f"{name} stopped", TWO_RANK_RUNS[name])
        with stop_after(rank=1):
            assert main(stopped) == 0
        if name == "ddp":
            assert main(stopped) == 0  # As a launcher does that starts it again.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture(scope="module")
def outs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-ranks")
    run_ranks(train_on_two_ranks, 2, data, folder, timeout_s=60)
    return folder


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("scheduled", "ddp"),
        ("deferred", "ddp"),
        ("balanced scheduled", "balanced"),
        ("ddp stopped", "ddp"),
    ],
)
def test_losses_are_bitwise_those_of_the_other_way(outs: Path, name: str, same: str) -> None:
    assert losses_in(outs / name) == losses_in(outs / same)


def test_balancing_shares_out_otherwise_and_changes_nothing_else(outs: Path) -> None:
    plain, balanced = losses_in(outs / "documents"), losses_in(outs / "balanced")
    assert plain != balanced  # Other sums, so other roundings.
    np.testing.assert_allclose(plain, balanced, rtol=1e-4)


def test_losses_fall(outs: Path) -> None:
    assert losses_in(outs / "ddp")[-1] < losses_in(outs / "ddp")[0] - 1


@pytest.fixture(scope="module")
def plain(
    example: Callable[[str], ModuleType], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One process that accumulates what two ranks see at once."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert example("train").main(run_flags(data, out, as_single("ddp"))) == 0
    return out


def test_one_process_that_accumulates_trains_as_two_ranks(plain: Path, outs: Path) -> None:
    np.testing.assert_allclose(losses_in(plain), losses_in(outs / "ddp"), rtol=1e-4)


def test_one_process_goes_on_where_two_ranks_stopped(
    example: Callable[[str], ModuleType], data: Path, outs: Path
) -> None:
    stopped = outs / "balanced stopped"
    flags = run_flags(data, stopped, f"{as_single('balanced')} --resume")
    assert example("train").main(flags) == 0
    np.testing.assert_allclose(losses_in(stopped), losses_in(outs / "balanced"), rtol=1e-4)


def test_deferring_changes_no_bit(
    example: Callable[[str], ModuleType], data: Path, plain: Path, tmp_path: Path
) -> None:
    flags = as_single("ddp") + " --deferred-weight-gradients all"
    assert example("train").main(run_flags(data, tmp_path, flags)) == 0
    assert losses_in(tmp_path) == losses_in(plain)


def test_torchrun_trains_as_spawned_ranks_do(data: Path, outs: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = run_flags(data, tmp_path, TWO_RANK_RUNS["scheduled"])
    done = subprocess.run(
        [*launch, str(EXAMPLE / "train.py"), *flags],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"scheduled: 2 rank(s) on cpu, step 0 of {NUM_STEPS} is done"
    assert sum(line.startswith("step ") and "tokens/s" in line for line in lines) == 3
    assert lines[-1].startswith(f"scheduled: measuring: step {NUM_STEPS} of 20")
    assert losses_in(tmp_path) == losses_in(outs / "scheduled")


def test_stopping_keeps_what_was_done_and_resuming_loses_nothing(
    example: Callable[[str], ModuleType],
    data: Path,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = example("train").main
    flags = run_flags(data, tmp_path, as_single("ddp") + " --checkpoint-every 5")
    with stop_after(rank=0):
        assert main(flags) == 0
    assert f"step {STOP_AFTER}: asked to end" in capsys.readouterr().out
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000010", f"step_{STOP_AFTER:08d}"]
    assert main([*flags, "--resume"]) == 0
    assert losses_in(tmp_path) == losses_in(plain)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--size 3b", "unknown --size '3b'; use one of tiny, 1m"),
        ("--data nowhere", "nowhere holds no shards; run: python prepare.py --out nowhere"),
        ("--batch-size 7", "must be a multiple of --micro-batch times the ranks (2 x 1 = 2)"),
        ("--batch-size 100000", "must not exceed the"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--clip -1", "--clip must not be negative"),
        ("--context 100000", "must not exceed the 0 examples"),
        ("--context 4000", "less validation text than one sequence of 4000"),
        ("--parallel ddp", "needs ranks; start it with: torchrun"),
        ("--parallel ddp --deferred-weight-gradients", "use --parallel scheduled"),
        ("--resume", "there is no checkpoint in"),
        ("--timeout-s 0", "--timeout-s must lie between 0 and 86400, got 0"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(
    example: Callable[[str], ModuleType],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    assert example("train").main(run_flags(data, tmp_path, flags)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--resume never", "is a checkpoint of an earlier run; pass --resume"),
        ("--resume --batch-size 16", "batch_size was 8 and is 16"),
        ("--resume --documents", "documents was False and is True"),
        ("--resume --steps 99", "steps was 18 and is 99"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(
    example: Callable[[str], ModuleType],
    data: Path,
    outs: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    before = losses_in(outs / "ddp")
    given = run_flags(data, outs / "ddp", f"--clip 0 {flags}")
    assert example("train").main(given) == 2
    assert message in capsys.readouterr().err
    assert losses_in(outs / "ddp") == before


def test_preparing_goes_on_where_it_was_interrupted(
    example: Callable[[str], ModuleType],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, flags = example("prepare"), prepare_flags(tmp_path)
    write = prepare.write_part
    with patch.object(prepare, "write_part", side_effect=interrupt_third(write)):
        assert prepare.main(flags) == 130
    assert example("train").main(run_flags(tmp_path, tmp_path / "run")) == 2
    assert "is not finished" in capsys.readouterr().err
    assert prepare.main(flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_kept"] == 1 < report["num_shards"]
    assert contents(tmp_path) == contents(data)


def interrupt_third(write: Callable[..., int]) -> Callable[..., int]:
    calls: list[int] = []

    def written(*args: Any) -> int:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)

    return written


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_damaged_shard_is_made_anew(
    example: Callable[[str], ModuleType],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, flags = example("prepare"), prepare_flags(tmp_path)
    assert prepare.main(flags) == 0
    whole = json.loads(capsys.readouterr().out)
    damaged = tmp_path / "train-00001.tokens.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert prepare.main(flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {**whole, "num_kept": 1}
    assert contents(tmp_path) == contents(data)


def test_shards_hold_each_document_of_each_file(
    example: Callable[[str], ModuleType], data: Path
) -> None:
    corpus = example("data").Corpus(data, "train")
    found = [
        bytes(tokens[begin:end].astype(np.uint8)).removesuffix(b"\x00")
        for tokens, offsets in zip(corpus.tokens, corpus.documents, strict=True)
        for begin, end in pairwise(offsets)
    ]
    text = b"".join(path.read_bytes() for path in sorted(TEXT.glob("*.py")))
    assert len(found) > 20
    assert all(document in text for document in found)
    both = [corpus.manifest.total("num_tokens", split) for split in ("train", "validation")]
    num_documents = sum(
        corpus.manifest.total("num_documents", split) for split in ("train", "validation")
    )
    assert sum(both) == len(text) + num_documents


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tokenizer words", "must be bytes, bpe or a tokenizer.json, got 'words'"),
        ("--shard-tokens 0", "--shard-tokens must be positive, got 0"),
        ("--validation 1", "--validation must lie between 0 and 1"),
        ("--shard-tokens 9000", "shard_tokens was 8000 and is 9000; pass another --out"),
    ],
)
def test_what_cannot_be_prepared_is_said(
    example: Callable[[str], ModuleType],
    data: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    before = contents(data)
    assert example("prepare").main([*prepare_flags(data), *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert contents(data) == before


def test_text_that_is_not_there_leaves_no_folder(
    example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("prepare").main(["nowhere", "--out", str(tmp_path / "shards")]) == 2
    assert "nowhere is not there; pass text files" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_long_documents_come_in_pieces_that_predict_each_token_once(
    example: Callable[[str], ModuleType], data: Path
) -> None:
    module = example("data")
    corpus = module.Corpus(data, "train")
    pieces = module.documents(corpus, 100)
    num_predicted = sum(int((np.diff(offsets) - 1).sum()) for offsets in corpus.documents)
    assert pieces.sizes.sum() == num_predicted
    assert 1 <= pieces.sizes.min() < pieces.sizes.max() == 100
    batch = module.collate([pieces[i] for i in range(len(pieces))])
    assert batch.num_tokens == num_predicted
    ends = [pieces[i][-1] for i in range(len(pieces)) if len(pieces[i]) <= 100]
    assert set(ends) <= {256} | {pieces[i + 1][0] for i in range(len(pieces) - 1)}


@pytest.mark.parametrize(
    ("name", "num_millions"),
    [("124m", 124.4), ("355m", 354.8), ("774m", 774.0), ("1.5b", 1557.6)],
)
def test_sizes_are_those_that_were_published(
    example: Callable[[str], ModuleType], name: str, num_millions: float
) -> None:
    model = example("model")
    size = model.SIZES[name]
    # Per block: 12 width^2 weights and 13 width biases and norms; the head is the embedding.
    per_block = 12 * size.width**2 + 13 * size.width
    count = size.num_layers * per_block + (50257 + size.context + 2) * size.width
    assert count / 1e6 == pytest.approx(num_millions, rel=5e-4)


def test_the_model_has_as_many_weights_as_its_size_says_and_does_not_look_ahead(
    example: Callable[[str], ModuleType],
) -> None:
    model = example("model")
    size = model.SIZES["tiny"]
    gpt2 = model.GPT2(size, vocab_size=257, context=8)
    expected = 2 * (12 * 32**2 + 13 * 32) + (320 + 8 + 2) * 32
    assert sum(parameter.numel() for parameter in gpt2.parameters()) == expected
    tokens = torch.arange(8)[None]
    targets = torch.tensor([[1, 2, 3, *[model.IGNORED] * 5]])
    changed = torch.cat([tokens[:, :3], tokens[:, 3:] + 40], dim=1)
    assert gpt2(tokens, targets).item() == pytest.approx(gpt2(changed, targets).item())
    weights = 2 * 12 * 32**2 + 320 * 32
    assert gpt2.training_flops(10, 100) == 6 * weights * 10 + 12 * 2 * 32 * 100


def test_the_learning_rate_rises_and_falls(example: Callable[[str], ModuleType]) -> None:
    rate = example("schedule").learning_rate
    found = [rate(step, num_steps=6, num_warmup=2, peak=1.0) for step in range(6)]
    np.testing.assert_allclose(found, [0.5, 1.0, 1.0, 0.775, 0.325, 0.1])
