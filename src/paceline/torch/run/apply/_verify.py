"""Compare gradients of divided batches with those of plain ones, on a script's model and data.

The script runs as it is, but its optimizers change nothing. A few global batches come three times:
as they were dealt, so once more, and divided. Then the script is ended.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.optimizer import register_optimizer_step_pre_hook

from paceline.cost import QuadraticCost
from paceline.torch.run.apply._apply import Applier
from paceline.torch.run.apply._deal import Deal, Dealt
from paceline.torch.run.apply._job import Job, dealt_by_all
from paceline.torch.run.apply._loss_form import Unfit
from paceline.torch.run.apply._price import FirstSteps, Price, divided, fit_price

NUM_PROBES, NUM_TURNS = 4, 3


class Verifier(Applier):
    """Divides as `Applier` does, and holds the averaged gradients against the plain ones."""

    def install(self) -> None:
        """Begin; from here on no optimizer changes a parameter."""
        super().install()
        self._first_probe, self._num_probed = 0, 0
        self._gradients: list[torch.Tensor] = []
        self._differences: list[tuple[float, float]] = []
        self._freeze = register_optimizer_step_pre_hook(self._before_update)

    def finish(self) -> Mapping[str, Any]:
        """Put everything back, and return what was found."""
        self._freeze.remove()
        told = super().finish()
        if self._differences:
            again, other = map(max, zip(*self._differences, strict=True))
            told = {**told, "again": again, "divided": other, "num_probes": len(self._differences)}
        return told

    def before_fetch(self, deal: Deal) -> None:
        """End the script where all was probed."""
        is_probed = self._job is not None and deal is self._job.deal and self.state == "trial"
        if is_probed and deal.num_asked == len(deal.batches):
            raise SystemExit(0)
        super().before_fetch(deal)

    def _price_of(self, measured: FirstSteps) -> Price:
        """Whether it is worth it is no question here."""
        try:
            return fit_price(measured)
        except Unfit:
            return Price(QuadraticCost(1.0, 0.0), 0.0, True, 0.0)

    def _divide(self, deal: Deal, first: int) -> None:
        job = self._job
        assert job is not None, "settled before"
        dealt = dealt_by_all(deal.full(first), job.talk)
        if not dealt.size:
            return
        found = divided(job.price, job.sizes, dealt, job.microbatches)
        batches = list(job.batches(dealt, found))
        if not any(batch.is_divided for batch in batches):
            raise Unfit("all examples are of one size, so nothing is divided")
        self.told = {
            "changed": job.changed,
            "num_batches": len(batches),
            "is_partition": _is_partition(dealt, batches, job),
            "is_same_later": _is_same_later(dealt, found.owner, job),
            "correlation": _correlation(dealt),
        }
        deal.batches[first:] = _probes(deal.own[first:], batches, job.microbatches)
        self._first_probe = first
        self._say(f"compares {NUM_TURNS} times {NUM_PROBES} steps")

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Keep the averaged gradients, and leave nothing to update with."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        found = [one.grad.detach().flatten().double() for one in parameters if one.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        deal = self._job.deal if self._job else None
        if deal is not None and deal.num_asked > self._first_probe and found:
            self._gradients.append(torch.cat(found))
            if len(self._gradients) == NUM_TURNS:
                plain, again, other = self._gradients
                scale = float(plain.norm()) or 1.0
                self._differences.append(
                    (float((again - plain).norm()) / scale, float((other - plain).norm()) / scale)
                )
                self._gradients = []


def _probes(own: list[list[int]], batches: list[Dealt], microbatches: int) -> list[Dealt]:
    """Return whole steps, each plain, plain again, and divided; those that are divided first."""
    steps = range(0, len(batches) - microbatches + 1, microbatches)
    chosen = sorted(
        steps, key=lambda at: not any(one.is_divided for one in batches[at : at + microbatches])
    )
    probes = []
    for at in chosen[:NUM_PROBES]:
        plain = [Dealt(rows) for rows in own[at : at + microbatches]]
        probes += [*plain, *plain, *batches[at : at + microbatches]]
    return probes


def _is_partition(dealt: NDArray[np.int64], batches: list[Dealt], job: Job) -> bool:
    """Whether all ranks together compute each global batch, each example as often as dealt."""
    counts = np.array([len(batch.rows) for batch in batches])
    rows = np.concatenate([batch.rows for batch in batches]).astype(np.int64)
    number = np.repeat(np.arange(len(batches)), counts)
    ranks = job.talk.gather(np.stack([number, rows]))
    computed = np.concatenate(ranks, axis=1)
    computed = computed[:, np.lexsort(computed[::-1])]
    wanted = np.sort(dealt.reshape(len(dealt), -1), axis=1)
    return np.array_equal(computed[1], wanted.ravel()) and len(wanted) == len(batches)


def _is_same_later(dealt: NDArray[np.int64], owner: NDArray[np.int64], job: Job) -> bool:
    """Whether a run that begins in the middle divides the rest in the same way."""
    middle = len(dealt) // 2
    if not middle:
        return True
    rest = divided(job.price, job.sizes, dealt[middle:], job.microbatches)
    return np.array_equal(rest.owner, owner[middle:])


def _correlation(dealt: NDArray[np.int64]) -> float:
    """Return how far the order of examples follows their order in the dataset, -1 to 1."""
    found = np.corrcoef(dealt.ravel(), np.arange(dealt.size))[0, 1]
    return float(np.nan_to_num(found))
