"""A balance configuration, from one or from the usual keywords of a sampler."""

from dataclasses import replace
from typing import Any

from paceline.balance import BalanceConfig, Tail


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
