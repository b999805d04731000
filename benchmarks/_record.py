"""What every benchmark shares: where it ran, and how its result is printed and kept."""

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print only the JSON object")
    made.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    return made


def finish(name: str, options: argparse.Namespace, result: dict[str, Any], *packages: str) -> None:
    """Print the result as one JSON object on the last line; save it if asked.

    Args:
        name: File name under `results/`, without the ending.
        options: What `parser` parsed.
        result: Plain values with units in their keys.
        *packages: Installed packages, besides NumPy and numba, whose versions matter.
    """
    record = {"result": result, "environment": _environment(packages)}
    if not options.json:
        for key, value in result.items():
            print(f"{key}: {json.dumps(value)}")
    print(json.dumps(record))
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(record, indent=1) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def spread(values: "list[float] | np.ndarray[Any, Any]") -> dict[str, float]:
    """Return median, quartiles and count."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q25": low, "q75": high, "num": len(values)}


def _environment(packages: tuple[str, ...]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in ("numpy", "numba", *packages)},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
