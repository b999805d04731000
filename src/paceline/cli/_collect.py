"""`paceline collect`: measure training steps on one's own device into a table."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.cli._model_flags import add_model_flags, example_input, load_function
from paceline.errors import MissingExtraError

if TYPE_CHECKING:
    from paceline.torch.predict import CollectConfig


def add_collect(commands: Any) -> None:
    """Add the command to the subparsers of `paceline`."""
    collect = commands.add_parser(
        "collect",
        help="measure training steps on this device into a table for fit",
        description="Measure training steps of every combination of batch sizes, precisions and "
        "optimizers. Rows that the table already holds are not measured again.",
    )
    add_model_flags(collect)
    collect.add_argument("--output", type=Path, required=True, help="CSV table to add to")
    collect.add_argument("--batch", required=True, help="batch sizes: 32,64,128")
    collect.add_argument("--precision", default="32", help="32, 16 or 32,16 (default 32)")
    collect.add_argument("--optimizer", default="SGD", help="classes in torch.optim: SGD,AdamW")
    collect.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default cpu)")
    collect.add_argument("--name", help="of the model in the table (default: the function's)")
    collect.add_argument("--dataset", default="synthetic", help="name for the table")
    collect.add_argument("--dataset-size", type=int, default=0, help="training examples")
    collect.add_argument("--num-classes", type=int, default=0, help="of a classifier")
    collect.add_argument("--steps", type=int, default=20, help="measured per row (default 20)")
    collect.add_argument("--json", action="store_true", help="print one JSON object")
    collect.set_defaults(run=run_collect)


def run_collect(options: argparse.Namespace) -> int:
    """Measure what the table lacks, with a progress bar."""
    try:
        from rich.console import Console
        from rich.progress import Progress

        from paceline.torch.predict import collect_steps
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"collect needs {error.name}; install it with: pip install 'paceline[torch,report]'"
        ) from error
    config = _config(options)
    example, shape = example_input(options.input_shape)
    function = load_function(options.model)
    is_new: Counter[bool] = Counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        steps = collect_steps(function, example, config, options.output, input_shape=shape)
        for _, is_measured in progress.track(
            steps, total=len(config.setups()), description=config.name
        ):
            is_new[is_measured] += 1
    result = {"table": str(options.output), "measured": is_new[True], "kept": is_new[False]}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{options.output}: {is_new[True]} rows measured, {is_new[False]} were there")
    return 0


def _config(options: argparse.Namespace) -> "CollectConfig":
    from paceline.torch.predict import CollectConfig

    return CollectConfig(
        name=options.name or options.model.rpartition(":")[2],
        batch_sizes=_integers("batch", options.batch),
        precisions=_integers("precision", options.precision),
        optimizers=options.optimizer.split(","),
        device=options.device,
        dataset=options.dataset,
        dataset_size=options.dataset_size,
        num_classes=options.num_classes,
        num_steps=options.steps,
    )


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} must hold whole numbers with commas between, got {text!r}"
        ) from None
