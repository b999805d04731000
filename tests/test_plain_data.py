"""What rooms hand to each other is plain data: nobody changes it, nothing is added to it."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import is_dataclass

import pytest

RULES = ("_herded.HerdRule", "_signs.SignRule", "_signs.MeanSigns", "_signs.PairSigns")
PURE = ("timeline", "cost", "balance", "comm", "order", "overlap", "predict", "plan")
# A fit in progress.
CHANGES = {"paceline.predict.step._roofline._Problem"}
# Rules share attributes with a base, and a plan keeps its digest once it is asked for.
WITHOUT_SLOTS = {f"paceline.order.{name}" for name in RULES}
WITHOUT_SLOTS |= {"paceline.balance.cursor._rest.KeptPlan"}


def plain_classes() -> Iterator[type]:
    for room in PURE:
        module = importlib.import_module(f"paceline.{room}")
        names = [module.__name__]
        if hasattr(module, "__path__"):
            found = pkgutil.walk_packages(module.__path__, f"{module.__name__}.")
            names += [one.name for one in found]
        for name in names:
            for value in vars(importlib.import_module(name)).values():
                if isinstance(value, type) and is_dataclass(value) and value.__module__ == name:
                    yield value


CLASSES = {f"{one.__module__}.{one.__qualname__}": one for one in plain_classes()}


@pytest.mark.parametrize("name", CLASSES)
def test_plain_data_is_frozen_and_has_slots(name: str) -> None:
    one = CLASSES[name]
    assert one.__dataclass_params__.frozen == (name not in CHANGES)  # type: ignore[attr-defined]
    assert ("__slots__" in vars(one)) == (name not in WITHOUT_SLOTS)
