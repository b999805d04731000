"""Claim: step time and epochs are predicted for what was held out, with intervals that hold.

Runs every evaluation of `python -m paceline.predict.evaluate` on one folder of measured tables,
those of CHRONOS: random rows, new configurations, datasets, models and GPUs, a new model on a new
GPU, ten probes of a new GPU, a new dataset whose loader was timed (*emulated* by ten rows), and
epochs until convergence. Errors are of *predictions* against *measured* steps.
"""

from pathlib import Path

from _predict_score_epochs import evaluate_convergence
from _predict_score_step import evaluate_regime
from _record import finish, parser

from paceline.predict import read_step_tables

RUNS = (("rand", 0), ("grp", 0), ("lodo", 0), ("lomo", 0), ("logo", 0), ("logo", 1), ("logo", 10),
        ("both", 0))  # fmt: skip


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--data", type=Path, required=True, help="folder of tables")
    options = flags.parse_args()
    rows = read_step_tables(options.data)
    steps = {
        f"{regime}, {num_probes} probes" if num_probes else regime: evaluate_regime(
            rows, regime, num_probes=num_probes
        )
        for regime, num_probes in RUNS
    }
    steps["lodo, timed loader"] = evaluate_regime(rows, "lodo", loader_probe=True)
    result = {"step_time": steps, "convergence": evaluate_convergence(options.data)}
    finish("predict_tables", options, result, "lightgbm")


if __name__ == "__main__":
    main()
