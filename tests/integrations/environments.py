"""Run the tests of each framework in an environment of its own; write docs/compatibility.md.

    python tests/integrations/environments.py [FRAMEWORK ...]

An environment is built once, in `.integrations/FRAMEWORK`, torch first. Prints one line per
framework: its version, tests passed, seconds. Exits with 1 if any test failed, was skipped, or none
ran. The page is written once all frameworks have passed since the sources were changed last.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".integrations"
PAGE = ROOT / "docs/compatibility.md"
TORCH = os.environ.get("TORCH", "2.13.0")
FRAMEWORKS = (
    "lightning",
    "transformers",
    "accelerate",
    "ray",
    "torchdata",
    "torch_geometric",
    "dgl",
    "jax",
    "tensorflow",
)
# By what package indexes call them, where that is another name.
PACKAGES = {"torch_geometric": "torch-geometric", "tensorflow": "tensorflow-cpu"}
# What the tests of a framework need beside its extra.
BESIDE = {"torchdata": ["datasets>=4,<6"], "dgl": ["setuptools==69.5.1"]}
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
        version = self.versions.get(PACKAGES.get(self.framework, self.framework), "?")
        return self.framework, version, end, f"{self.seconds:.0f}"


def build(framework: str) -> Path:
    """Return the interpreter of a framework's environment, made if it is not there or is old."""
    folder = ENVIRONMENTS / framework
    python, stamp = folder / "bin/python", folder / ".built"
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + TORCH
    wanted += "".join(BESIDE.get(framework, ()))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"building {folder.relative_to(ROOT)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    # torch comes first and pinned: an open range would pull several gigabytes of CUDA packages.
    for packages in (
        ["--upgrade", "pip>=25.1"],
        [f"torch=={TORCH}"],
        ["--editable", f"{ROOT}[{framework}]"],
        ["--group", f"{ROOT}/pyproject.toml:integrations", *BESIDE.get(framework, ())],
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
    python, report = build(framework), report_of(framework)
    report.unlink(missing_ok=True)
    tests = [
        f"tests/integrations/test_{framework}.py",
        f"tests/test_imports.py::{FRESH}",
        "src/paceline/integrations/_exact_steps.py",
        "src/paceline/integrations/_planned_run.py",
    ]
    # Not every framework needs one.
    adaptor = f"src/paceline/integrations/{framework}.py"
    tests += [adaptor] * (ROOT / adaptor).exists()
    # Frameworks warn of what they use themselves as they are imported.
    options = ["-q", "--tb=short", "-W", "default::DeprecationWarning", f"--timeout={TIMEOUT_S}"]
    options += [f"--junitxml={report}"]
    command = [str(python), "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    result = result_of(framework)
    if not result.is_good:
        print(done.stdout + done.stderr, file=sys.stderr)
    return result


def report_of(framework: str) -> Path:
    """Return where pytest reports on the newest run of a framework's tests."""
    return ENVIRONMENTS / f"{framework}.xml"


def result_of(framework: str) -> Result:
    """Return what the newest run came to; it is not good if there was none or it is out of date."""
    versions = versions_of(ENVIRONMENTS / framework / "bin/python")
    num_passed, num_others, seconds = 0, 1, 0.0
    if report_of(framework).exists():
        suite = next(ElementTree.parse(report_of(framework)).getroot().iter("testsuite"))
        counts = [int(suite.get(kind, 0)) for kind in ("failures", "errors", "skipped")]
        began = datetime.datetime.fromisoformat(str(suite.get("timestamp"))).timestamp()
        num_others = sum(counts) + (began < newest_source())
        num_passed = int(suite.get("tests", 0)) - sum(counts)
        seconds = float(suite.get("time", 0))
    return Result(
        framework=framework,
        versions=versions,
        num_passed=num_passed,
        num_others=num_others,
        seconds=seconds,
    )


def newest_source() -> float:
    """Return when what the tests are about was changed last, in seconds of the epoch."""
    here = Path(__file__)
    tests = [path for path in here.parent.glob("*.py") if path != here]
    return max(path.stat().st_mtime for path in [*(ROOT / "src").rglob("*.py"), *tests])


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
    print(f"{'framework':14} {'version':10} {'passed':>8} {'seconds':>8}")
    is_good = True
    for framework in names or FRAMEWORKS:
        result = run(framework)
        name, version, passed, seconds = result.cells
        print(f"{name:14} {version:10} {passed:>8} {seconds:>8}", flush=True)
        is_good = is_good and result.is_good
    write_page()
    return 0 if is_good else 1


def write_page() -> None:
    """Write the page if the newest results of all frameworks are good."""
    if all((ENVIRONMENTS / framework).exists() for framework in FRAMEWORKS):
        results = [result_of(framework) for framework in FRAMEWORKS]
        if all(result.is_good for result in results):
            PAGE.write_text(page_of(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
