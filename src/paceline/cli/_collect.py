"""`paceline collect`: measure training steps on one's own device into a table."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import MissingExtraError

if TYPE_CHECKING:
    from paceline.torch.predict import CollectConfig

INTEGERS = ("int64", "int32")


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
    num_measured = num_kept = 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(config.name, total=len(config.setups()))
        for _, is_new in collect_steps(
            function, example, config, options.output, input_shape=shape
        ):
            num_measured += is_new
            num_kept += not is_new
            progress.advance(task)
    result = {"table": str(options.output), "measured": num_measured, "kept": num_kept}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{options.output}: {num_measured} rows measured, {num_kept} were there")
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


def add_model_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags that say what the model and its inputs are."""
    command.add_argument(
        "model",
        help="FILE.py:FUNCTION that returns a module, or a pair of it and an example input",
    )
    command.add_argument("--input-shape", help="of one example: 3,224,224, or 128:int64 for tokens")


def load_function(text: str) -> Callable[[], Any]:
    """Return the function that `FILE.py:FUNCTION` names; runs the file.

    Raises:
        ValueError: If the text has another form, or there is no such file or function.
    """
    name, _, function = text.rpartition(":")
    path = Path(name)
    if not name.endswith(".py") or not function.isidentifier():
        raise ValueError(f"model must be FILE.py:FUNCTION such as train.py:build, got {text!r}")
    if not path.is_file():
        raise ValueError(f"cannot read {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ValueError(f"cannot import {path}: {error}") from error
    finally:
        sys.path.pop(0)
    found = vars(module).get(function)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ValueError(
            f"{path} has no function {function!r}; it has {', '.join(names) or 'none'}"
        )
    build: Callable[[], Any] = found
    return build


def parse_shape(text: str | None) -> "tuple[tuple[int, ...] | None, str | None]":
    """Return the sizes and the integer type that `3,224,224` or `128:int64` stand for."""
    if text is None:
        return None, None
    sizes, _, kind = text.partition(":")
    try:
        shape = tuple(int(part) for part in sizes.split(",") if part.strip())
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or kind not in ("", *INTEGERS):
        raise ValueError(
            f"input-shape must be positive sizes such as 3,224,224, with :int64 for tokens, got "
            f"{text!r}"
        )
    return shape, kind or None


def example_input(text: str | None) -> "tuple[Any, tuple[int, ...] | None]":
    """Return example input and input shape, one of them or none, for `trace_workload`."""
    import torch

    shape, kind = parse_shape(text)
    if kind is None or shape is None:
        return None, shape
    return torch.zeros((1, *shape), dtype=getattr(torch, kind)), None
