import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.balance import (
    BalanceConfig,
    Limits,
    knee_of,
    measure_quality,
    mixing_frontier,
    plan_epoch,
    regime_of,
)
from paceline.cli import main
from paceline.comm import WireProblem, advise_buckets
from paceline.cost import Job, LayerCost, LinearCost, Link, QuadraticCost, Worker, example_costs

SIZES = np.random.default_rng(0).integers(1, 500, 1000)
KEYS = {
    "imbalance",
    "lower_bound",
    "reunion",
    "cost_autocorrelation",
    "plan_cpu_s",
    "num_steps",
    "num_examples",
    "regime",
    "workers",
    "batch_size",
    "counts",
    "window",
    "source",
}


def plan(sizes: Path, *arguments: str) -> int:
    """Return the exit status, whether the command returned it or the parser raised it."""
    usual = ["--sizes", str(sizes), "--workers", "8", "--batch-size", "64"]
    try:
        return main(["plan", *usual, *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed: one line on stderr and nothing else."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("paceline")
    assert "error: " in line
    return line


def the_result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the one JSON object that was printed."""
    printed = capsys.readouterr()
    assert printed.err == ""
    result: dict[str, Any] = json.loads(printed.out)
    return result


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    path = tmp_path / "sizes.npy"
    np.save(path, SIZES)
    return path


def test_the_keys_are_those_that_are_documented(
    sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(sizes, "--json") == 0
    result = the_result(capsys)
    assert set(result) == KEYS
    assert result["plan_cpu_s"] > 0
    assert (result["num_steps"], result["num_examples"]) == (16, 1000)
    assert result["source"] == "simulated"


@pytest.mark.parametrize(
    ("arguments", "settings", "workers"),
    [
        ([], {}, None),
        (["--counts", "free", "--window", "4", "--seed", "3"], {"counts": "free"}, None),
        (["--padded", "--window", "epoch"], {"padded": True, "window": 10**9}, None),
        (
            ["--microbatches", "2", "--max-tokens", "1500", "--max-examples", "9"],
            {"num_microbatches": 2, "limits": Limits(max_tokens=1500, max_examples=9)},
            None,
        ),
        (["--tail", "drop", "--max-cost", "1e9"], {"tail": "drop"}, None),
        (
            ["--speeds", "1,1,1,1,1,1,1,0.5", "--counts", "free"],
            {"counts": "free"},
            (*[Worker()] * 7, Worker(speed=0.5)),
        ),
    ],
)
def test_the_command_says_what_the_library_says(
    sizes: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    settings: dict[str, Any],
    workers: tuple[Worker, ...] | None,
) -> None:
    costs = example_costs(QuadraticCost(600.0, 1.0), SIZES)
    if "--seed" in arguments:
        settings = {**settings, "seed": 3, "window": 4}
    config = BalanceConfig(batch_size=64, num_workers=8, **settings)
    plans = [
        plan_epoch(costs, config, epoch=epoch, sizes=SIZES, workers=workers) for epoch in (0, 1)
    ]
    quality = measure_quality(plans[0], costs, config, plans[1])
    capsys.readouterr()  # The first to plan so may have said that it compiles.
    assert plan(sizes, "--cost", "quadratic:600,1", "--json", *arguments) == 0
    result = the_result(capsys)
    for name in ("imbalance", "lower_bound", "reunion", "cost_autocorrelation", "num_steps"):
        assert result[name] == getattr(quality, name)
    assert result["regime"] == str(regime_of(costs, config, workers=workers))


@pytest.mark.parametrize(
    ("text", "same"),
    [("linear", "linear:1"), ("linear:2,0", "linear"), ("quadratic:1,0", "linear")],
)
def test_costs_that_are_in_proportion_give_the_same_plan(
    sizes: Path, capsys: pytest.CaptureFixture[str], text: str, same: str
) -> None:
    assert plan(sizes, "--cost", text, "--json") == 0
    first = the_result(capsys)
    assert plan(sizes, "--cost", same, "--json") == 0
    assert the_result(capsys)["imbalance"] == pytest.approx(first["imbalance"])


def test_without_json_a_table_and_the_regime_are_printed(
    sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(sizes) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("imbalance")
    assert "simulated" in lines[0]
    assert lines[-1].startswith("Balancing helps")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 3)), "sizes must be one-dimensional, got shape (3, 3)"),
        (np.float64(3), "sizes must be one-dimensional, got shape ()"),
        (np.array([1.0] * 99 + [np.nan]), "sizes[99] is nan"),
        (np.array([1.0] * 99 + [np.inf]), "sizes[99] is inf"),
        (np.array([1] * 99 + [-1]), "sizes[99] is -1.0"),
        (np.zeros(0), "holds no sizes"),
        (np.full(100, 1e200), "the cost of sizes[0] = 1e+200 is inf"),
        (np.full(1000, 1e153), "costs are too large to add up"),
        (np.ones(7), "7 examples are fewer than 8 workers"),
        (np.array(["long", "short"]), "must hold numbers, got <U5"),
        (np.array([True, False]), "must hold numbers, got bool"),
        (np.ones(9, dtype=complex), "must hold numbers, got complex128"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: Any, message: str
) -> None:
    np.save(tmp_path / "bad.npy", values)
    assert plan(tmp_path / "bad.npy", "--cost", "quadratic:6144,1") == 2
    assert message in the_line(capsys)


def test_a_pickle_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "bad.npy", np.array([1, None], dtype=object), allow_pickle=True)
    assert plan(tmp_path / "bad.npy") == 2
    assert "is not a .npy file of numbers (Object arrays cannot be loaded" in the_line(capsys)


@pytest.mark.parametrize("content", [b"", b"hello", b"1,2,3\n" * 100, b"\x93NUMPY\x01\x00"])
def test_what_is_not_an_array_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    assert plan(tmp_path / "bad.npy") == 2
    assert "is not a .npy file of numbers" in the_line(capsys)


def test_a_file_that_was_cut_short_is_refused(
    sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes.write_bytes(sizes.read_bytes()[:500])
    assert plan(sizes) == 2
    assert "is not a .npy file of numbers" in the_line(capsys)


def test_a_header_that_promises_too_much_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**55,)}
    with (tmp_path / "bad.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    assert plan(tmp_path / "bad.npy") == 2
    assert "is not a .npy file of numbers" in the_line(capsys)


@pytest.mark.parametrize("name", ["missing.npy", "."])
def test_a_path_without_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert plan(tmp_path / name) == 2
    assert f"cannot read {tmp_path / name}: " in the_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "7"], "equal counts need a batch size that num_workers (7) divides, got 64"),
        (["--workers", "0"], "num_workers must be at least 1, got 0"),
        (["--workers", "two"], "argument --workers: invalid int value: 'two'"),
        (["--batch-size", "0"], "batch_size must be at least"),
        (["--batch-size", "-64"], "batch_size must be at least"),
        (["--batch-size", "2048", "--tail", "drop"], "tail='drop' leaves nothing of 1000 examples"),
        (["--cost", "quadratic:1"], "cost must be linear[:PER_TOKEN[,FIXED]] or quadratic:"),
        (["--cost", "cubic:1"], "got 'cubic:1'"),
        (["--cost", "linear:a"], "cost must hold numbers with commas between, got 'a'"),
        (["--cost", "quadratic:1,,2"], "cost must hold numbers with commas between"),
        (["--cost", "linear:-1"], "linear must be finite and non-negative, got -1.0"),
        (["--cost", "linear:nan"], "linear must be finite and non-negative, got nan"),
        (["--speeds", "1,1"], "workers must hold 8 entries, got 2"),
        (["--speeds", "1,1,1,1,1,1,1,0"], "speed must be finite and positive, got 0.0"),
        (["--speeds", "fast"], "speeds must hold numbers with commas between, got 'fast'"),
        (["--window", "0"], "window must be at least 1, got 0"),
        (["--window", "all"], "window must be a number of steps or 'epoch', got 'all'"),
        (["--microbatches", "0"], "num_microbatches must be at least 1, got 0"),
        (["--microbatches", "9"], "must be at least num_workers x num_microbatches = 72"),
        (["--max-tokens", "10"], "max_tokens is 10, but the size of example 0 alone is"),
        (["--max-cost", "10"], "max_cost is 10, but the cost of example 0 alone is"),
        (["--max-tokens", "-1"], "max_tokens must be positive, got -1"),
        (["--max-cost", "nan"], "max_cost must be positive, got nan"),
        (["--max-examples", "0"], "max_examples must be"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--tail", "cut"], "argument --tail: invalid choice: 'cut'"),
        (["--counts", "some"], "argument --counts: invalid choice: 'some'"),
    ],
)
def test_a_bad_value_is_answered_by_its_rule_in_one_line(
    sizes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert plan(sizes, *arguments) == 2
    assert message in the_line(capsys)


def test_the_sizes_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--workers", "2", "--batch-size", "4"]) == 2
    assert "the following arguments are required: --sizes" in the_line(capsys)


@pytest.mark.parametrize("is_json", [False, True])
def test_planning_needs_neither_torch_nor_rich(sizes: Path, is_json: bool) -> None:
    arguments = ["plan", "--sizes", str(sizes), "--workers", "2", "--batch-size", "8"]
    arguments += ["--json"] if is_json else []
    code = (
        "import sys; sys.modules['torch'] = sys.modules['rich'] = None\n"
        f"from paceline.cli import main; sys.exit(main({arguments}))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


LAYERS = [
    {"name": f"layer.{place}", "forward_s": 0.01, "backward_s": 0.02, "gradient_bytes": 4_000_000}
    for place in range(8)
]
LINK = {"alpha_s": 1e-3, "bytes_per_s": 2e8}
BUCKET_KEYS = {
    "bucket_cap_mb",
    "step_s",
    "default_step_s",
    "scheduled_step_s",
    "bound_s",
    "step_s_of_cap",
    "job",
    "source",
}
JOB = Job(
    source="measured", layers=tuple(LayerCost(**layer) for layer in LAYERS), link=Link(**LINK)
)


def job() -> Job:
    """Found by name, as a user's function would be."""
    return JOB


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"source": "measured", "layers": LAYERS, "link": LINK}))
    return path


def buckets(*arguments: str) -> int:
    return main(["plan", "--buckets", *arguments])


def test_a_job_file_gives_the_advice_of_the_library(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert buckets(str(job_file), "--json") == 0
    result = the_result(capsys)
    assert set(result) == BUCKET_KEYS
    problem = WireProblem.from_job(JOB, num_in_flight=2)
    advice = advise_buckets(problem)
    assert result["bucket_cap_mb"] == advice.bucket_cap_mb
    assert result["step_s"] == advice.step_s
    assert result["step_s_of_cap"] == {str(cap): s for cap, s in advice.step_s_of_cap.items()}
    assert result["bound_s"] <= result["scheduled_step_s"] <= result["step_s"]
    assert (result["job"], result["source"]) == ("measured", "simulated")


@pytest.mark.parametrize("name", ["JOB", "job"])
def test_a_module_gives_the_same_as_a_file(
    job_file: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert buckets(str(job_file), "--json") == 0
    expected = the_result(capsys)
    assert buckets(f"tests.cli.test_plan_command:{name}", "--json") == 0
    assert the_result(capsys) == expected


def test_the_table_marks_the_best_size(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert buckets(str(job_file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DistributedDataParallel(..., bucket_cap_mb=")
    assert "simulated from a job that is measured" in lines[0]
    (best,) = (line for line in lines if line.endswith("<- best"))
    assert f"bucket_cap_mb={best.split()[0]})" in lines[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a JSON file: Expecting value"),
        ("[1]", "does not hold a job (TypeError: list indices"),
        ("{}", "does not hold a job (KeyError: 'source'); it needs source, layers, each with"),
        ('{"source": "measured", "layers": []}', "does not hold a job (KeyError: 'link')"),
        (
            '{"source": "measured", "layers": [{"name": "a"}], "link": {}}',
            "missing 3 required keyword-only arguments",
        ),
        (
            '{"source": "measured", "layers": [], "link": {"alpha_s": 0, "bytes_per_s": 1}}',
            "nothing to put in buckets",
        ),
        (
            '{"source": "measured", "layers": [], "link": {"alpha_s": 0, "bytes_per_s": 0}}',
            "must be positive, got 0",
        ),
        (
            '{"source": "measured", "layers": [], "link": {"alpha_s": -1, "bytes_per_s": 1}}',
            "alpha_s must be",
        ),
        (
            '{"source": "guessed", "layers": [], "link": {"alpha_s": 0, "bytes_per_s": 1}}',
            "source must be one of",
        ),
    ],
)
def test_a_file_that_holds_no_job_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "bad.json").write_text(content)
    assert buckets(str(tmp_path / "bad.json")) == 2
    assert message in the_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json"], "cannot read missing.json: No such file"),
        (["job"], "buckets needs a .json file, or module:name of a Job"),
        (["no_such_module:job"], "cannot import no_such_module:job: No module named"),
        (["tests.cli.test_plan_command:nothing"], "has no attribute 'nothing'"),
        (["tests.cli.test_plan_command:LINK"], "must be a paceline.Job, got dict"),
        (["job.json", "--workers", "2"], "plans from a job alone; leave --workers out"),
    ],
)
def test_a_job_that_cannot_be_had_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert buckets(*arguments) == 2
    assert message in the_line(capsys)


def test_the_frontier_shows_what_mixing_costs_window_by_window(
    sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--padded", "--counts", "free", "--microbatches", "auto", "--frontier")
    assert plan(sizes, *flags, "--json") == 0
    rows = the_result(capsys)["frontier"]
    assert rows[0]["window"] == "1"
    assert rows[-1]["window"] == "epoch"
    config = BalanceConfig(
        batch_size=64, num_workers=8, counts="free", padded=True, num_microbatches="auto"
    )
    stops = mixing_frontier(example_costs(LinearCost(), SIZES), config, sizes=SIZES)
    assert [row["reunion"] for row in rows] == [stop.reunion for stop in stops]
    assert plan(sizes, *flags) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["window", "mixing", "imbalance", "padding", "reunion"]
    assert [line.split()[0] for line in lines[: len(rows)]] == [row["window"] for row in rows]
    starred = [line.split()[0] for line in lines[: len(rows)] if line.endswith("*")]
    assert starred == [str(knee_of(stops).window)]


def test_mixing_stands_for_a_window(sizes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    num_steps = len(SIZES) // 64
    for flags in (("--mixing", "0.5"), ("--window", str(round(num_steps**0.5)))):
        assert plan(sizes, *flags, "--json") == 0
        found.append(the_result(capsys))
    assert found[0]["window"] == found[1]["window"]
    assert found[0]["imbalance"] == found[1]["imbalance"]
    assert plan(sizes, "--mixing", "0.5", "--window", "2") == 2
    assert "two words for one" in the_line(capsys)
