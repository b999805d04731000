"""Score predictions on held-out tables: `python -m paceline.predict.evaluate --help`.

The scores are part of the repository, not of the installed package: this runs
`benchmarks/predict_evaluate.py` of the checkout that it is in.
"""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "predict_evaluate.py"


def main() -> int:
    """Run the checkout's script with the flags of this process."""
    if not SCRIPT.is_file():
        print(  # noqa: T201
            "error: scoring is part of Paceline's repository, not of the installed package; in a "
            "checkout run: python benchmarks/predict_evaluate.py --help",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(SCRIPT.parent))
    status: int = runpy.run_path(str(SCRIPT))["main"]()
    return status


if __name__ == "__main__":
    sys.exit(main())
