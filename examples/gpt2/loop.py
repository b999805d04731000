"""The training loop."""

from contextlib import nullcontext

import torch
from data import Batch, Feed, Step
from model import GPT2
from options import Options
from parallel import Replica, World
from progress import Progress
from schedule import learning_rate, set_learning_rate
from validate import Validation, autocast

import paceline


class Run:
    """The training loop and what it works on."""

    def __init__(
        self,
        options: Options,
        world: World,
        model: GPT2,
        optimizer: torch.optim.Optimizer,
        replica: Replica,
        feed: Feed,
    ) -> None:
        self._options, self._world, self._feed = options, world, feed
        self._model, self._optimizer, self._replica = model, optimizer, replica

    def train(
        self,
        first_step: int,
        progress: Progress,
        validation: Validation,
        checkpoint: paceline.Checkpoint,
    ) -> None:
        """Go from `first_step` to the end; validate and save on the way."""
        options = self._options
        steps = self._feed.steps()
        for number in range(first_step + 1, options.steps + 1):
            step = next(steps)
            rate = self._set_rate(number)
            loss = self._step(step)
            flops = self._model.training_flops(step.num_tokens, step.num_pairs)
            progress.note(number, step, loss, rate, flops)
            is_last, is_asked = number == options.steps, checkpoint.should_stop()
            if is_last or _is_due(number, options.validate_every):
                self._validate(number, progress, validation)
            if is_last or is_asked or _is_due(number, options.checkpoint_every):
                self._save(number, progress, checkpoint)
            if is_asked:
                progress.say(f"step {number}: asked to end; the same command goes on from here")
                return

    def _validate(self, number: int, progress: Progress, validation: Validation) -> None:
        self._replica.flush()
        progress.note_validation(number, validation.loss(self._model))
        progress.pause()

    def _save(self, number: int, progress: Progress, checkpoint: paceline.Checkpoint) -> None:
        self._replica.flush()
        progress.show()
        checkpoint.save(number)
        progress.say(f"step {number}: writing a checkpoint")
        progress.pause()

    def _set_rate(self, number: int) -> float:
        options = self._options
        rate = learning_rate(
            number - 1,
            num_steps=options.steps,
            num_warmup=options.warmup_steps,
            peak=options.learning_rate,
        )
        set_learning_rate(self._optimizer, rate)
        return rate

    def _step(self, step: Step) -> torch.Tensor:
        """Make one optimizer step; return this rank's part of the summed loss."""
        losses = []
        for index, batch in enumerate(step.batches, start=1):
            is_last = index == len(step.batches)
            with nullcontext() if is_last else self._replica.no_sync():
                losses.append(self._backward(batch, step.num_tokens))
        if self._options.clip:
            self._replica.clip(self._options.clip)
        self._replica.update()
        return torch.stack(losses).sum()

    def _backward(self, batch: Batch, num_tokens: int) -> torch.Tensor:
        """Add the gradients of one micro-batch; return its summed loss."""
        here = batch.to(self._world.device)
        with autocast(self._options, self._world):
            loss: torch.Tensor = self._replica.model(here.inputs, here.targets)
        # Gradients are averaged over the ranks, so this makes them the mean over all tokens of
        # the global batch, however many this rank has.
        (loss * (self._world.num_ranks / num_tokens)).backward()
        return loss.detach()


def _is_due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
