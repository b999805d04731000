"""A balance configuration, from one or from the usual keywords of a sampler."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from paceline.balance import BalanceConfig, Tail
from paceline.cost import ExampleCost, LinearCost, checked_column
from paceline.order import OrderPolicy


def config_of(
    config: BalanceConfig | None, num_replicas: int, tail: Tail, **keywords: Any
) -> BalanceConfig:
    """Return the configuration for `num_replicas` workers.

    Args:
        config: A whole configuration; unset to make one of `keywords`.
        num_replicas: Data-parallel ranks.
        tail: What happens to a last batch that is not full, unless `drop_last`.
        keywords: Short for settings of a configuration; None where not passed.

    Raises:
        ValueError: If both or neither are passed, or they do not fit the ranks.
    """
    given = {name: value for name, value in keywords.items() if value is not None}
    if config is None:
        return _from_keywords(num_replicas, tail, **given)
    if not isinstance(config, BalanceConfig):
        raise ValueError(
            f"config must be a BalanceConfig, got {config!r}; pass batch_size={config!r}"
        )
    if given:
        name, value = next(iter(given.items()))
        raise ValueError(
            f"a config holds every setting, got one and {name}={value!r}; set it in the config"
        )
    if config.num_workers not in (1, num_replicas):
        raise ValueError(
            f"the config is for {config.num_workers} workers, and there are {num_replicas} "
            "replicas; leave num_workers out of it"
        )
    return replace(config, num_workers=num_replicas)


def _from_keywords(
    num_replicas: int, tail: Tail, *, drop_last: bool = False, **given: Any
) -> BalanceConfig:
    if "batch_size" not in given:
        raise ValueError(
            "a sampler needs the examples per step over all ranks, got none; pass batch_size= or a "
            "BalanceConfig"
        )
    return BalanceConfig(num_workers=num_replicas, tail="drop" if drop_last else tail, **given)


def checked_sizes(sizes: Any) -> NDArray[np.float64]:
    """Return one number per example.

    Raises:
        ValueError: If `sizes` is something else that a user may have meant to pass.
    """
    if isinstance(sizes, BalanceConfig | int | float):
        raise ValueError(
            f"sizes come first and the config or batch_size= after them, got {sizes!r} as sizes"
        )
    with suppress(TypeError, ValueError):
        if not isinstance(sizes, Dataset):
            return np.asarray(sizes, dtype=np.float64)
    raise ValueError(
        f"sizes must be one number per example, got a {type(sizes).__name__}; measure a dataset "
        "with example_sizes(dataset, size)"
    )


def checked_cost(cost: ExampleCost | None) -> ExampleCost:
    """Return `cost`, or the size itself if it is unset.

    Raises:
        ValueError: If it cannot be called.
    """
    if cost is not None and not callable(cost):
        raise ValueError(
            "cost must turn sizes into costs, such as paceline.QuadraticCost(6.0 * width, 1.0), "
            f"got {cost!r}"
        )
    return LinearCost() if cost is None else cost


def checked_loss_terms(
    loss_terms: ArrayLike | None, num_examples: int, order: OrderPolicy | None
) -> NDArray[np.float64] | None:
    """Return how many terms of the loss each example has, None for one each.

    Raises:
        ValueError: If a number is not positive, or they do not fit the sizes or the order.
    """
    if loss_terms is None:
        return None
    if order is not None and order.needs_rows:
        raise ValueError(
            f"order={order.name!r} learns from losses that are means over examples, and loss_terms "
            "say otherwise; leave out one"
        )
    terms = checked_column("loss_terms", loss_terms)
    if len(terms) != num_examples:
        raise ValueError(
            f"loss_terms must have {num_examples} entries like sizes, got {len(terms)}"
        )
    bad = np.flatnonzero(terms == 0)
    if bad.size:
        raise ValueError(
            f"loss_terms must be positive, but loss_terms[{bad[0]}] is 0 ({bad.size} are); leave "
            "out examples that have no loss"
        )
    return terms
