"""Record whatever trains in this process, from hooks that its script does not see."""

import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from paceline.run import RunFolder, Steps
from paceline.torch.run._chunks import STEPS_PER_CHUNK, Chunks
from paceline.torch.run._facts import facts_of
from paceline.torch.run._fetches import Fetches
from paceline.torch.run._find import modules_trained_by
from paceline.torch.run._live import LiveLine, Progress
from paceline.torch.run._loop import OPS_STEP, Loop

WRITE_EVERY_S = 10.0
# Still while the run warms up: it takes some milliseconds.
FACTS_AT = OPS_STEP + 1


class Recorder:
    """Waits for the first step of any optimizer, finds its model, and records the steps after it.

    Args:
        folder: The run's folder.
        rank: This process.
        live: The line to keep up to date, on rank 0.
        clock: Seconds that only go up; for tests.
    """

    def __init__(
        self,
        folder: RunFolder,
        rank: int,
        live: LiveLine | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.loop: Loop | None = None
        self._folder, self._rank, self._live, self._clock = folder, rank, live, clock
        self._fetches = Fetches(clock)
        self._chunks = Chunks(folder, rank)
        self._without_model: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._begun_s = self._drained_s = self._written_s = clock()
        self._has_facts = False
        # A signal's handler runs on the thread that it interrupts.
        self._lock = threading.RLock()

    def install(self) -> None:
        """Begin to watch this process."""
        self._fetches.install()
        self._handle = register_optimizer_step_post_hook(self._after_update)

    def first_steps(self) -> Steps:
        """Return the steps so far, of which there must be some; at most the first 1,000."""
        with self._lock:
            self._drain(self._clock())
            return self._chunks.held

    def finish(self) -> None:
        """Write what was recorded and remove all hooks; a second call does nothing."""
        with self._lock:
            self._handle.remove()
            self._fetches.remove()
            loop = self.loop
            if loop is None or not loop.is_open:
                return
            loop.end()
            self._drain(self._clock())
            self._write()
            if self._live:
                self._live.clear()

    def _after_update(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if self.loop is not None:
            if optimizer is self.loop.optimizer:
                self._end_step(self.loop)
        elif optimizer not in self._without_model:
            found = modules_trained_by(optimizer)
            if found:
                self.loop = Loop(found, optimizer, self._fetches)
            else:
                self._without_model.add(optimizer)

    def _end_step(self, loop: Loop) -> None:
        with self._lock:
            loop.end_step()
            if loop.num_steps == FACTS_AT:
                self._write_facts()
            now_s = self._clock()
            every_s = self._live.every_s if self._live else WRITE_EVERY_S
            if now_s - self._drained_s >= every_s or loop.num_held >= STEPS_PER_CHUNK:
                self._drain(now_s)
                if now_s - self._written_s >= WRITE_EVERY_S or self._chunks.is_full:
                    self._written_s = now_s
                    self._write()

    def _drain(self, now_s: float) -> None:
        assert self.loop is not None, "called once there is one"
        self._drained_s = now_s
        if not self.loop.num_held:  # The last step of a run may have been drained as it ended.
            return
        steps, spans = self.loop.drain()
        self._chunks.add(steps, spans)
        if self._live:
            elapsed_s = now_s - self._begun_s
            left = self._fetches.training.num_left if self._fetches.training else None
            self._live.show(Progress(self.loop.num_seen, steps, left, elapsed_s))

    def _write(self) -> None:
        self._chunks.write()
        self._write_facts()

    def _write_facts(self) -> None:
        """Once, in an early step: the loader may be gone at the end."""
        if not self._has_facts:
            assert self.loop is not None, "called once there is one"
            self._folder.write_facts(self._rank, facts_of(self.loop, self._fetches))
            self._has_facts = True
