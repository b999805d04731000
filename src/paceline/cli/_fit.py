"""`paceline fit`: measured tables into a predictor file."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a predictor to measured tables",
        description="Fit a predictor to tables of measured steps and, if they are there, of "
        "epochs until convergence; write it as one JSON file with its provenance.",
    )
    fit.add_argument("tables", type=Path, nargs="?", help="folder of CSV tables")
    fit.add_argument("--train", type=Path, help="the same, beside --test")
    fit.add_argument("--test", type=Path, help="folder of other tables to score the fit on")
    fit.add_argument("--output", type=Path, required=True, help="predictor file to write")
    fit.add_argument("--source", default="", help="where the tables come from, kept in the file")
    fit.add_argument("--json", action="store_true", help="print one JSON object")
    fit.set_defaults(run=run_fit)


def run_fit(options: argparse.Namespace) -> int:
    from paceline.predict.run import fit_predictor, score_predictor

    if (options.tables is None) == (options.train is None):
        raise ValueError("pass one folder of tables: as the argument or as --train DIR")
    tables = options.tables or options.train
    for folder in (tables, options.test):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"tables must be a folder of CSV files, got {folder}")
    result = fit_predictor(tables, options.output, source=options.source)
    if options.test is not None:
        result["scores"] = score_predictor(options.output, options.test)
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key:<18}{value}" for key, value in result.items()))
    return 0
