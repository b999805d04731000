"""Run the tests of each framework in an environment of its own; write docs/compatibility.md.

    python tests/integrations/environments.py [FRAMEWORK ...]

An environment is built once, in `.integrations/FRAMEWORK`, torch first. Prints one line per
framework: its version, tests passed, seconds. Exits with 1 if any test failed, was skipped, or none
ran. The page is written only if all frameworks were run and passed.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".integrations"
PAGE = ROOT / "docs/compatibility.md"
TORCH = os.environ.get("TORCH", "2.13.0")
FRAMEWORKS = ("lightning", "transformers", "accelerate")
# The runs of one contract, which all belong to the setup of its first test.
TIMEOUT_S = 1200
FRESH = "test_a_fresh_process_imports_nothing_heavy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the tests of one framework came to."""

    framework: str
    versions: dict[str, str]
    num_passed: int
    num_others: int
    seconds: float

    @property
    def is_good(self) -> bool:
        return self.num_passed > 0 and self.num_others == 0

    @property
    def cells(self) -> tuple[str, ...]:
        end = f"{self.num_passed}" + f", {self.num_others} NOT" * (self.num_others > 0)
        version = self.versions.get(self.framework, "?")
        return self.framework, version, end, f"{self.seconds:.0f}"


def build(framework: str) -> Path:
    """Return the interpreter of a framework's environment, made if it is not there or is old."""
    folder = ENVIRONMENTS / framework
    python, stamp = folder / "bin/python", folder / ".built"
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + TORCH
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"building {folder.relative_to(ROOT)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    # torch comes first and pinned: an open range would pull several gigabytes of CUDA packages.
    for packages in (
        ["--upgrade", "pip>=25.1"],
        [f"torch=={TORCH}"],
        ["--editable", f"{ROOT}[{framework}]"],
        ["--group", f"{ROOT}/pyproject.toml:integrations"],
    ):
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(command, check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def versions_of(python: Path) -> dict[str, str]:
    """Return the version of each package of an environment."""
    command = [str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {package["name"].lower(): package["version"] for package in json.loads(listed)}


def run(framework: str) -> Result:
    """Run a framework's tests; what they print is shown if one fails."""
    python = build(framework)
    report = ENVIRONMENTS / f"{framework}.xml"
    report.unlink(missing_ok=True)
    tests = [
        f"tests/integrations/test_{framework}.py",
        f"tests/test_imports.py::{FRESH}",
        f"src/paceline/integrations/{framework}.py",
        "src/paceline/integrations/_exact_steps.py",
    ]
    start = time.monotonic()
    options = ["-q", "--tb=short", f"--timeout={TIMEOUT_S}", f"--junitxml={report}"]
    command = [str(python), "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    num_passed, num_others = counts_in(report)
    if done.returncode or num_others:
        print(done.stdout + done.stderr, file=sys.stderr)
        num_others = num_others or 1
    return Result(
        framework=framework,
        versions=versions_of(python),
        num_passed=num_passed,
        num_others=num_others,
        seconds=seconds,
    )


def counts_in(report: Path) -> tuple[int, int]:
    """Return how many tests passed, and how many failed, broke or were skipped."""
    if not report.exists():
        return 0, 1
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    num_all = sum(int(suite.get("tests", 0)) for suite in suites)
    kinds = ("failures", "errors", "skipped")
    num_others = sum(int(suite.get(kind, 0)) for suite in suites for kind in kinds)
    return num_all - num_others, num_others


def page_of(results: list[Result]) -> str:
    """Return the page of what works together."""
    versions = results[0].versions
    rows = "\n".join(f"| {' | '.join(result.cells)} |" for result in results)
    beside = ", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy", "numba"))
    return f"""# What works together

Written by `make test-integrations` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, with
Python {platform.python_version()}, {beside}, on {platform.system()} {platform.machine()} without
a GPU. Each framework has an environment of its own. Seconds are measured, with the start of all
ranks.

| framework | version | tests passed | seconds |
| --- | --- | --- | --- |
{rows}

Each passes one contract, on 203 ragged examples, two epochs, with its usual launcher: each
example once per epoch, equally many steps on all ranks, in every framework the global batches
that the seed gives, and parameters within 3e-7 of one plain process, with and without
accumulation. Runs that began on two gloo ranks went on from inside an epoch, from its end and from
inside the next, on one, two and three ranks.
"""


def main(names: list[str]) -> int:
    """Run the frameworks named, or all; return the exit status."""
    unknown = sorted(set(names) - set(FRAMEWORKS))
    if unknown:
        print(f"no framework {unknown[0]!r}; there are {', '.join(FRAMEWORKS)}", file=sys.stderr)
        return 2
    results = []
    print(f"{'framework':14} {'version':10} {'passed':>8} {'seconds':>8}")
    for framework in names or FRAMEWORKS:
        results.append(run(framework))
        name, version, passed, seconds = results[-1].cells
        print(f"{name:14} {version:10} {passed:>8} {seconds:>8}", flush=True)
    is_good = all(result.is_good for result in results)
    if is_good and len(results) == len(FRAMEWORKS):
        PAGE.write_text(page_of(results), encoding="utf-8")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
