"""Find a script's training loader, learn what its batches cost, and divide them anew."""

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.torch.run.apply._buckets import Buckets
from paceline.torch.run.apply._deal import Deal, Dealt, why_no_deal
from paceline.torch.run.apply._first_batches import Agreed, FirstBatches
from paceline.torch.run.apply._first_steps import gather_first_steps, microbatches_per_step
from paceline.torch.run.apply._independence import check_independent
from paceline.torch.run.apply._job import Job, Recorded, dealt_by_all, lengths_of
from paceline.torch.run.apply._loss_form import Unfit
from paceline.torch.run.apply._patches import Patches
from paceline.torch.run.apply._price import FirstSteps, Price, divided, fit_price
from paceline.torch.run.apply._sizes import measured_share
from paceline.torch.run.apply._talk import Talk
from paceline.torch.run.apply._trial import TRIAL_STEPS, Trial, is_turn
from paceline.torch.run.apply._weights import Weights

FIRST_STEPS = 16
LEAST_PREDICTED = 1.05
State = Literal["first", "trial", "kept", "returned", "refused"]


class Applier:
    """Divides a script's global batches over its ranks, from the first steps on that allow it.

    Args:
        recorded: The recorder of this rank.
        say: Prints one line; called on every rank.
        bucket_cap_mb: Buckets for DistributedDataParallel, where the script leaves them open.

    Attributes:
        state: "first" while nothing is changed, "trial" while the plan and the plain way take
            turns, then how it went on.
        told: What `run.json` says of it.
    """

    def __init__(
        self,
        recorded: Recorded,
        say: Callable[[str], None] | None = None,
        *,
        bucket_cap_mb: float | None = None,
    ) -> None:
        self.state: State = "first"
        self.told: dict[str, Any] = {}
        self._recorded, self._say = recorded, say or _to_stderr
        self._deals: weakref.WeakKeyDictionary[Any, Deal] = weakref.WeakKeyDictionary()
        self._first = FirstBatches()
        self._now: tuple[Deal, Any] | None = None
        self._why_not = ""
        self._job: Job | None = None
        self._trial = Trial([])
        self._last_step = 0
        self._patches = Patches(self)
        self._buckets = Buckets(bucket_cap_mb, self._say)

    def install(self) -> None:
        """Begin; the classes of torch are patched in this process."""
        self._patches.install()
        self._buckets.install()

    def finish(self) -> Mapping[str, Any]:
        """Put the classes back, and return what became of it."""
        self._patches.remove()
        self._buckets.remove()
        self._first.remove()
        if self.state == "first" and not self.told:
            self._refuse(self._why_not or f"fewer than {FIRST_STEPS} steps were taken")
        num_plain, num_divided = self._trial.counts
        if self._job is not None and np.isfinite(self._trial.gain):
            self.told |= {"gain": self._trial.gain, "num_plain": num_plain}
            self.told |= {"num_applied": num_divided}
        return {**self.told, "outcome": self.state, "bucket_cap_mb": self._buckets.used_mb}

    def sampler_of(self, loader: Any, own: Any) -> Any:
        """Return what a loader draws indices from."""
        why = why_no_deal(loader)
        if why:
            self._why_not = self._why_not or why
            return own
        if loader not in self._deals:
            self._deals[loader] = Deal(weakref.proxy(loader), own, self._begin_pass)
        return self._deals[loader]

    def before_fetch(self, deal: Deal) -> None:
        """The loop asks for a batch: the place where all ranks can talk."""
        loop = self._recorded.loop
        if loop is not None and deal.trains:
            self._at_step_end(deal, loop.num_seen)
        deal.num_asked += 1

    def after_fetch(self, deal: Deal, batch: Any) -> None:
        """The loop gets a batch."""
        is_first = self.state == "first"
        self._now = deal, batch if is_first else None
        loop = self._recorded.loop
        if is_first and loop is not None:
            self._first.look_at(loop.model)

    def before_backward(self, loss: torch.Tensor) -> float:
        """Look at a loss, or weigh it."""
        newest = self._now[0].newest if self._now else None
        if self._now is None or newest is None:
            return 1.0
        deal, batch = self._now
        deal.trains = True
        loop = self._recorded.loop
        if self.state == "first" and loop is not None:
            self._first.add(loss, loop.num_steps, newest.rows, batch)
        if not newest.is_divided:
            return 1.0
        assert self._job is not None, "nothing is divided before"
        try:
            return self._job.weights.weigh(self._first.read(loss), newest)
        except Unfit as error:
            raise RuntimeError(
                f"rank {self._job.talk.rank}: {error}, so the divided batch cannot be weighed; run "
                "without --apply"
            ) from None

    def _at_step_end(self, deal: Deal, num_seen: int) -> None:
        if num_seen == self._last_step:
            return
        self._last_step = num_seen
        if self.state == "first" and num_seen > FIRST_STEPS:
            self._settle(deal)
        elif self._job is not None and deal is self._job.deal:
            asked = deal.batches[: deal.num_asked][-self._job.microbatches :]
            self._trial.end_step(
                sum(one.plain_s for one in asked), is_divided=any(one.is_divided for one in asked)
            )
            if self.state == "trial" and self._trial.num_steps >= TRIAL_STEPS:
                self._decide(deal)

    def _begin_pass(self, deal: Deal) -> None:
        if self._job is None or deal is not self._job.deal or self.state not in ("trial", "kept"):
            return
        try:
            self._divide(deal, 0)
        except Unfit as error:  # The pass before had no batch left to tell from.
            self._refuse(str(error))

    def _settle(self, deal: Deal) -> None:
        """Learn what batches cost and begin the trial, or say why not; on all ranks at once."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            self._refuse("one rank alone has nothing to share; start two or more")
            return
        talk = Talk()
        try:
            agreed = talk.together(self._first_agreed)
            self._job = self._new_job(deal, agreed, talk)
            self._divide(deal, deal.first_free(self._job.microbatches))
            self.state = "trial"
        except Unfit as error:
            self._job = None
            self._refuse(str(error))
        finally:
            self._first.forget_call()

    def _first_agreed(self) -> Agreed:
        loop = self._recorded.loop
        assert loop is not None, "it has stepped"
        if not isinstance(loop.model, DistributedDataParallel):
            raise Unfit(
                f"{type(loop.model).__name__} is not under DistributedDataParallel, so nobody "
                "knows how its gradients are averaged"
            )
        agreed = self._first.agreed()
        if self._first.call is None:
            raise Unfit("the model is never called in train() mode")
        return agreed

    def _new_job(self, deal: Deal, agreed: Agreed, talk: Talk) -> Job:
        first, dataset, size = self._first, deal.loader.dataset, deal.loader.batch_size
        talk.same("loss or batch size", f"{agreed} {size}")
        microbatches = talk.together(lambda: microbatches_per_step(first.rows))
        steps = self._recorded.first_steps()
        epoch_s = float(np.median(np.diff(steps.begin_s))) * len(deal) / microbatches
        share = talk.together(lambda: measured_share(dataset, talk.rank, talk.num_ranks, epoch_s))
        sizes = np.zeros(len(dataset))
        for rank, part in enumerate(talk.gather(share)):
            sizes[rank :: talk.num_ranks] = part
        talk.together(lambda: self._check_independent(sizes))
        measured = gather_first_steps(steps, first.rows, sizes, talk)
        price = self._price_of(measured)
        ratios = measured.step_s.mean(axis=0) / price.plain_s(measured)
        self._trial = Trial(ratios.tolist())
        weights = Weights(agreed, size, talk)
        return Job(deal, talk, weights, price, sizes, microbatches)

    def _price_of(self, measured: FirstSteps) -> Price:
        return fit_price(measured)

    def _check_independent(self, sizes: NDArray[np.float64]) -> None:
        loop, call = self._recorded.loop, self._first.call
        assert loop is not None, "checked before"
        assert call is not None, "checked before"
        assert self._now is not None, "a batch came"
        lengths = lengths_of(call, self._now[1], sizes[self._first.called_for])
        check_independent(loop.model.module, call, lengths)

    def _divide(self, deal: Deal, first: int) -> None:
        """Divide all whole batches from number `first` on."""
        job = self._job
        assert job is not None, "settled before"
        dealt = dealt_by_all(deal.full(first), job.talk)
        if not dealt.size:
            return
        found = divided(job.price, job.sizes, dealt, job.microbatches)
        if not self.told:
            self._begin_trial(job, float(found.plain_s.sum() / found.after_s.sum()))
        for place, batch in enumerate(job.batches(dealt, found)):
            if is_turn((job.num_planned + place) // job.microbatches):
                deal.batches[first + place] = batch
            else:
                deal.batches[first + place] = batch.undone(deal.own[first + place])
        job.num_planned += len(dealt)

    def _begin_trial(self, job: Job, predicted: float) -> None:
        if predicted < LEAST_PREDICTED:
            raise Unfit(f"batches are even as they are; others would be {predicted:.2f} x as fast")
        self.told = {"changed": job.changed, "predicted": predicted, "cost": job.price.told()}
        self._say(f"applied: {job.changed} (predicted {predicted:.2f} x)")

    def _decide(self, deal: Deal) -> None:
        """Keep the plan if it measured faster on rank 0; else return to the plain way."""
        job = self._job
        assert job is not None, "settled before"
        told = np.array([self._trial.gain, self._trial.is_won], dtype=np.float64)
        gain, is_won = job.talk.of_first(told).tolist()
        if is_won:
            self.state = "kept"
            self._say(f"kept: measured {gain:.2f} x over {TRIAL_STEPS} steps in turns")
            return
        self.state = "returned"
        for place in range(deal.first_free(job.microbatches), len(deal.batches)):
            deal.batches[place] = Dealt(deal.own[place])
        self._say(f"not kept: measured {gain:.2f} x, so batches are as the script deals them again")

    def _refuse(self, why: str) -> None:
        self.state = "refused"
        self.told = {"why_not": why}
        self._first.remove()
        if self._recorded.loop is not None:  # Else it was said already that nothing trains.
            self._say(f"not applied: {why}")


def _to_stderr(line: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        sys.stderr.write(f"paceline: {line}\n")
