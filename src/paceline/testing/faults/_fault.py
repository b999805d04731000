"""What happens to a rank, and where in its training loop."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch

from paceline.testing.faults._mutate import mutated_bytes

Action = Literal["kill", "stop", "terminate"]
SIGNALS: dict[Action, signal.Signals] = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A signal that one rank sends itself; picklable.

    Attributes:
        action: `"kill"` is SIGKILL, `"stop"` SIGSTOP until somebody sends SIGCONT, `"terminate"`
            SIGTERM, as a scheduler sends it before it takes the machine away.
        rank: Whom it happens to.
        step: At which step of the loop.
        point: At which place in it: the loop names its own.
        delay_s: How long after that place; so it strikes anywhere in what follows, in other
            threads and in collectives.

    Examples:
        >>> Fault(action="terminate", rank=1, step=3).at(rank=0, step=3)  # Another rank.
    """

    action: Action
    rank: int
    step: int
    point: str = "step"
    delay_s: float = 0.0

    def at(self, rank: int, step: int, point: str = "step") -> None:
        """Tell that `rank` is at this place; strikes if it is the one."""
        if (rank, step, point) != (self.rank, self.step, self.point):
            return
        if self.delay_s:
            timer = threading.Timer(self.delay_s, self.strike)
            timer.daemon = True
            timer.start()
        else:
            self.strike()

    def strike(self) -> None:
        """Send this process the signal."""
        os.kill(os.getpid(), SIGNALS[self.action])


@contextmanager
def at_call(owner: Any, name: str, number: int, strike: Callable[[], None]) -> Iterator[None]:
    """Inside, call `strike` before the call `number`, from 1, of the function `owner.name`.

    So a fault comes at an exact place of code that is not one's own: `at_call(os, "fsync", 2,
    fault.strike)` kills a rank while it writes a checkpoint.
    """
    before, lock, count = getattr(owner, name), threading.Lock(), 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            is_due = count == number
        if is_due:
            strike()
        return before(*args, **kwargs)

    with patch.object(owner, name, called):
        yield


def flip_bit(tensor: torch.Tensor, rng: random.Random, bits: range | None = None) -> None:
    """Flip one bit of one value of a tensor on the host, as a faulty memory does.

    Args:
        tensor: Changed in place.
        rng: Draws the value and the bit.
        bits: Of the value, from the lowest; unset for all.
    """
    values = tensor.detach().view(-1).view(torch.uint8).view(-1, tensor.element_size())
    bit = rng.choice(bits or range(8 * tensor.element_size()))
    values[rng.randrange(len(values)), bit // 8] ^= 1 << bit % 8


def damage(path: Path, rng: random.Random) -> None:
    """Damage a file: bits flipped, cut short, parts moved, words swapped; never left as it was."""
    before = path.read_bytes()
    after = before
    while after == before:
        after = mutated_bytes(before, rng)
    path.write_bytes(after)
