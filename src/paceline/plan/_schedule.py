"""What was decided for a job: who computes what, which block is sent when, on which lane."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from paceline._files import read_json, shown, told, write_json
from paceline.balance import BalanceConfig, Limits
from paceline.plan._graph import Blocks, Part
from paceline.plan._lines import (
    BALANCE_LINES,
    BF16,
    BUCKET_LINE,
    PADDED_LINES,
    SCHEDULED_LINE,
)

SCHEMA = 1
DDP_CAP_MB = 25
Change = Literal["nothing", "order of data", "numerics"]
CHANGES: tuple[Change, ...] = ("nothing", "order of data", "numerics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What was decided for a job: plain data, equal on every rank; made by `tune`.

    Two schedules are equal if they decide alike, whatever was simulated for them.

    Attributes:
        config: What fixes the global batches, and who computes what of them if `is_balanced`;
            None where nothing is known of the examples.
        is_balanced: Whether examples go to workers by cost; else as DistributedSampler deals them.
        order: Which examples come when: "shuffle", or another order that samplers know by name.
        blocks: Gradients that are sent together, in the order of sending.
        bucket_cap_mb: What makes DistributedDataParallel send these blocks; None where each layer
            waits for its own gradients alone, as under ScheduledDataParallel.
        compression: "bf16" to send half the bytes.
        deferred: Layers whose weight gradients run on a lane of their own; None for all there are.
        changes: What of the training this changes besides its time.
        step_s: Simulated seconds per step.
        plain_step_s: The same of plain data parallel training.
    """

    config: BalanceConfig | None
    is_balanced: bool = False
    order: str = "shuffle"
    blocks: Blocks = ()
    bucket_cap_mb: int | None = DDP_CAP_MB
    compression: Literal["bf16"] | None = None
    deferred: tuple[str, ...] | None = ()
    changes: Change = "nothing"
    step_s: float = field(default=0.0, compare=False)
    plain_step_s: float = field(default=0.0, compare=False)

    @property
    def is_plain(self) -> bool:
        """Whether this is DistributedSampler and DistributedDataParallel, as they come."""
        return not self.lines

    @property
    def gain(self) -> float:
        """Simulated share of the plain step that is saved."""
        return 1 - self.step_s / self.plain_step_s if self.plain_step_s else 0.0

    @property
    def lines(self) -> tuple[str, ...]:
        """What to write for it; empty if it is plain."""
        found = []
        if self.config is not None and self.is_balanced:
            found.append(_balance_lines(self.config, self.order))
        if self.bucket_cap_mb is None:
            given = f", {BF16})" if self.compression else ")"
            found.append(SCHEDULED_LINE.replace(")", given, 1))
        elif self.bucket_cap_mb != DDP_CAP_MB:
            found.append(f"model = {BUCKET_LINE.format(cap=self.bucket_cap_mb)}")
        if self.deferred != ():
            found.append("paceline.split_backward(model)  # docs/overlap.md")
        return tuple(found)

    def digest(self) -> str:
        """Return a fingerprint of what was decided; ranks compare it before the first use."""
        decided = {name: value for name, value in self.to_dict().items() if "step_s" not in name}
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        found = {name: getattr(self, name) for name in self.__slots__}
        if self.config is not None:
            limits = asdict(self.config.limits)
            limits = {name: None if value == inf else value for name, value in limits.items()}
            found["config"] = {**asdict(self.config), "limits": limits}
        found["blocks"] = [[list(part) for part in block] for block in self.blocks]
        found["deferred"] = None if self.deferred is None else list(self.deferred)
        return {"schema": SCHEMA, **found}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a schedule of what `to_dict` returned.

        Raises:
            ValueError: If it holds something else, or another schema.
        """
        given = dict(values)
        if (schema := given.pop("schema", None)) != SCHEMA:
            raise ValueError(
                f"a schedule must have schema {SCHEMA}, got {shown(schema)}; read it with the "
                "version of Paceline that wrote it"
            )
        try:
            if given["config"] is not None:
                given["config"] = _config_of(given["config"])
            given["blocks"] = tuple(
                tuple(Part(*map(int, part)) for part in block) for block in given["blocks"]
            )
            given["deferred"] = None if given["deferred"] is None else tuple(given["deferred"])
            return cls(**given)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"this is no schedule: {type(error).__name__}, {told(error)}"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write it as JSON in place of what is there; a reader never finds half of it."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file cannot be read or holds something else.
        """
        found = read_json(Path(path))
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold a JSON object, got {shown(found)}")
        return cls.from_dict(found)

    def __str__(self) -> str:
        plain = f"{1e3 * self.plain_step_s:.4g} ms"
        if self.is_plain:
            return (
                f"plain data parallel training stays: simulated {plain} per step, and nothing that "
                "was tried saves 1 % of it"
            )
        rows = [
            f"simulated {1e3 * self.step_s:.4g} ms per step instead of {plain} in plain data "
            f"parallel training ({self.gain:.0%} less); changes {self.changes}",
            f"who computes what: {_assignment(self)}",
            f"order: {self.order}",
            f"blocks: {len(self.blocks)}, {_sending(self)}",
            f"lanes: {_lanes(self)}",
        ]
        return "\n".join([*rows, *(line for part in self.lines for line in part.splitlines())])


def _balance_lines(config: BalanceConfig, order: str) -> str:
    is_short = config.counts == "equal" and not config.padded
    if (order, config.window) == ("shuffle", 1) and (is_short or config.cuts_to_cost):
        lines = BALANCE_LINES if is_short else PADDED_LINES
        return lines.format(batch_size=config.batch_size)
    given = [f"batch_size={config.batch_size}", f"counts={config.counts!r}"]
    given += ["padded=True"] if config.padded else []
    given += ["microbatch_cost=fixed"] if config.cuts_to_cost else []
    given += [f"window={config.window}"] if config.window > 1 else []
    asked = "" if order == "shuffle" else f", order={order!r}"
    lines = (
        f"config = BalanceConfig({', '.join(given)})  # docs/balance.md\n"
        f"batches = paceline.BalancedBatchSampler(sizes, config, cost=cost{asked})\n"
    )
    if config.counts == "equal":
        return f"{lines}loader = paceline.DataLoader(dataset, batch_sampler=batches)"
    return (
        f"{lines}loader = paceline.DataLoader(dataset, batch_sampler=batches, with_info=True)\n"
        "# the loop then needs info.loss_weight and info.is_step_end"
    )


def _assignment(schedule: Schedule) -> str:
    config = schedule.config
    if config is None or not schedule.is_balanced:
        return "as DistributedSampler deals it"
    moves = f", over windows of {config.window} steps" if config.window > 1 else ""
    return f"by cost, {config.counts} counts per worker{moves}"


def _sending(schedule: Schedule) -> str:
    if schedule.bucket_cap_mb is not None:
        return f"DistributedDataParallel's with bucket_cap_mb={schedule.bucket_cap_mb}"
    half = " in 16 bits" if schedule.compression else ""
    return f"each layer's next forward pass waits for its own alone{half}"


def _lanes(schedule: Schedule) -> str:
    if schedule.deferred == ():
        return "passes and updates on main, blocks on comm"
    which = "all" if schedule.deferred is None else str(len(schedule.deferred))
    return f"passes and updates on main, blocks on comm, {which} weight gradients on assist"


def _config_of(values: Mapping[str, Any]) -> BalanceConfig:
    limits = {name: value for name, value in values["limits"].items() if value is not None}
    return BalanceConfig(**{**values, "limits": Limits(**limits)})
