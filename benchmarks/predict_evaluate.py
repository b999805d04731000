"""Hold tables out and score the predictor; also `python -m paceline.predict.evaluate`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _predict_score_epochs import (
    evaluate_convergence,
    summary_lines,
    transfer_convergence,
)
from _predict_score_step import REGIMES, evaluate_regime, evaluate_transfer

from paceline.errors import PacelineError
from paceline.predict import read_step_tables

TARGETS = ("step", "convergence")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one evaluation and print it; the last line of `--json` is one JSON object."""
    options = _parser().parse_args(arguments)
    started = time.process_time()
    try:
        result = _evaluate(options)
    except (ValueError, PacelineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result["cpu_s"] = round(time.process_time() - started, 1)
    print(json.dumps(result) if options.json else _table(result, options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m paceline.predict.evaluate",
        description="Score predictions on measured tables whose units were held out.",
    )
    parser.add_argument("--data", type=Path, help="folder of tables; units are held out in turn")
    parser.add_argument("--train", type=Path, help="folder of tables to fit on")
    parser.add_argument("--test", type=Path, help="folder of tables to score, with --train")
    parser.add_argument("--target", choices=TARGETS, default="step", help="what is predicted")
    parser.add_argument("--regime", choices=tuple(REGIMES), help="what is held out together")
    parser.add_argument(
        "--probes", type=int, default=0, help="measured rows per held-out GPU and family"
    )
    parser.add_argument(
        "--loader-probe", action="store_true", help="with lodo: as if each loader had been timed"
    )
    parser.add_argument("--compute-only", action="store_true", help="leave whole steps out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    if (options.train is None) != (options.test is None):
        raise ValueError("--train and --test must be given together")
    if options.target == "convergence":
        if options.train is not None:
            return transfer_convergence(options.train, options.test, seed=options.seed)
        if options.data is None:
            raise ValueError("--target convergence needs --data DIR, or --train DIR --test DIR")
        return evaluate_convergence(options.data, seed=options.seed)
    if options.train is not None:
        train, test = read_step_tables(options.train), read_step_tables(options.test)
        result = evaluate_transfer(train, test, seed=options.seed)
    elif options.data is not None and options.regime is not None:
        result = evaluate_regime(
            read_step_tables(options.data),
            options.regime,
            num_probes=options.probes,
            loader_probe=options.loader_probe,
            seed=options.seed,
        )
    else:
        raise ValueError("pass --data DIR --regime NAME, or --train DIR --test DIR")
    return _compute_only(result) if options.compute_only else result


def _compute_only(result: dict[str, Any]) -> dict[str, Any]:
    for scores in result["families"].values():
        del scores["total"]
    return result


def _table(result: dict[str, Any], options: argparse.Namespace) -> str:
    if options.target == "convergence":
        return "\n".join(summary_lines(result))
    title = result.get("regime", "transfer")
    lines = [
        f"{title}: {result['num_scored']} rows scored, {result['cpu_s']} s of CPU",
        f"{'family':<12} {'':<8} {'rows':>6} {'MAPE':>7} {'median':>7} {'inside':>7} {'width':>7}",
    ]
    for family, scores in result["families"].items():
        for quantity, s in scores.items():
            lines.append(
                f"{family:<12} {quantity:<8} {s['num_rows']:>6} {s['mape']:>6.1f}% "
                f"{s['median_ape']:>6.1f}% {s['coverage']:>6.1f}% x{s['half_width_factor']:>6.2f}"
            )
    for family, error in result.get("repeats_mape", {}).items():
        lines.append(f"{family:<12} repeats of a row miss it by {error:.1f}%")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
