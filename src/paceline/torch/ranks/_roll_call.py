"""Find out which rank is missing, once communication has failed.

An error of gloo or NCCL tells what this rank was waiting for, not whom: a rank that died takes
its neighbours with it, and these the others. So each rank answers a call through the store of
the process group, in a thread of its own; who does not answer is stopped, dead or cut off.
"""

import json
import re
import threading
from contextlib import suppress
from time import monotonic, sleep

from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore

from paceline.errors import PacelineError, TransferError
from paceline.torch.ranks._gather import fresh_key
from paceline.torch.ranks._meeting import named, own_store

# How often the store is asked whether some rank calls.
BEAT_S = 0.5
# A rank that does not answer for so long is named.
PATIENCE_S = 5.0
# How long a store that does not answer is waited for besides.
STORE_S = 2.0
STORE = "the host of the process group's store (torchrun, or else rank 0)"
# Backends raise plain RuntimeErrors, with the path of their source in the text.
COMMUNICATION = re.compile(r"gloo|nccl", re.IGNORECASE)


class RollCall:
    """Answers when another rank calls, and calls the others; all ranks of `group` must make one.

    Costs one small request to the store per half second.

    Args:
        group: Ranks that train together; unset for the default group.

    Attributes:
        place: Counts what all ranks do alike, to tell who is behind.
        left: What the others are told once this rank has closed its roll call.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._store = PrefixStore(f"paceline/{fresh_key(group)}", own_store(group))
        self._ranks: list[int] = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.rank = dist.get_rank()
        self.place, self.left = 0, "has closed the model"
        self._wake, self._told = threading.Event(), threading.Event()
        self._is_asked = self._is_over = False
        self._text = ""
        self._thread = threading.Thread(target=self._run, daemon=True, name="paceline-roll-call")
        self._thread.start()

    def missing(self) -> str:
        """Say who does not answer, has left or is behind; takes a few seconds."""
        self._is_asked = True
        self._wake.set()
        if self._told.wait(PATIENCE_S + STORE_S):
            return self._text
        return f"{STORE} does not answer"

    def close(self) -> None:
        """End the thread, and tell ranks that call later how this one left."""
        self._is_over = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(STORE_S)

    def _run(self) -> None:
        was_called = False
        try:
            while not self._is_over:
                self._wake.wait(BEAT_S)
                self._wake.clear()
                if self._told.is_set():
                    continue
                if self._is_asked or (not was_called and self._store.check(["call"])):
                    was_called = True
                    self._call()
            self._answer(self.left)
        except RuntimeError as error:  # The store is gone.
            reason = str(error).split("\n")[0]
            self._tell(f"{STORE} is gone ({reason})")

    def _call(self) -> None:
        """Answer, call all ranks, and wait for their answers.

        Who is called does so, too: its own collectives may fail only when the caller has ended.
        """
        self._answer()
        self._store.set("call", "")
        silent, end_s = self._silent(), monotonic() + PATIENCE_S
        # The host of the store may be the first to end.
        with suppress(RuntimeError):
            while silent and monotonic() < end_s and not self._is_over:
                sleep(BEAT_S / 5)
                silent = self._silent()
        if silent:
            self._tell(f"{named(silent)} does not answer: stopped, dead or cut off")
        elif self._is_asked:
            self._tell(self._late())

    def _answer(self, left: str = "") -> None:
        self._store.set(str(self.rank), json.dumps([self.place, left]))

    def _tell(self, text: str) -> None:
        self._text = text
        self._told.set()

    def _silent(self) -> list[int]:
        return [rank for rank in self._ranks if not self._store.check([str(rank)])]

    def _late(self) -> str:
        """Say who has left, else who is behind; all ranks have answered."""
        blobs = self._store.multi_get([str(rank) for rank in self._ranks])
        answers = {rank: json.loads(blob) for rank, blob in zip(self._ranks, blobs, strict=True)}
        gone = [f"rank {rank} {left}" for rank, (_, left) in answers.items() if left]
        if gone:  # Who left because of another rank is not the one to name.
            return min(gone, key=lambda text: TransferError.__name__ in text)
        first = max(place for place, _ in answers.values())
        behind = [rank for rank, (place, _) in answers.items() if place < first]
        if behind:
            return f"{named(behind)} answers but is behind the others"
        return "all ranks answer: a link is down or too slow"


def is_of_communication(error: BaseException) -> bool:
    """Whether `error` comes from a backend or a store, and not from the program."""
    if isinstance(error, PacelineError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or COMMUNICATION.search(str(error)) is not None
