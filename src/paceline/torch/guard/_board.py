"""What ranks tell each other while their training threads wait: where each one is.

Each rank sets one small key in the store of the process group; the others read it only when
they wait for long. The store is asked in a thread of its own, since a store whose host is
stopped answers nobody.
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from torch._C._distributed_c10d import PrefixStore, Store

from paceline.torch.guard._progress import Place
from paceline.torch.ranks import own_connection

JOIN_S = 5.0
# A process that has been silent for this many beats is taken to be stopped or dead.
SILENT_BEATS = 5


@dataclass(slots=True)
class Seen:
    """What is known of a rank.

    Attributes:
        beat: Number of its last message.
        place: Where it was then.
        since_s: When it got there, on this process's clock.
        heard_s: When its last message was first seen, likewise.
        left: How it left the guarded block; empty if it has not.
    """

    beat: int
    place: Place
    since_s: float
    heard_s: float
    left: str


class Board:
    """Publishes this rank's place once per beat, and reads the others' while it is asked to.

    Args:
        store: Of the process group.
        key: Equal on all ranks, and of this guard alone.
        rank: This rank.
        ranks: All of the group.
        now: Returns this rank's place, and since when it is there.
        beat_s: Seconds between two messages.

    Attributes:
        failure: What the store said when it failed; empty if it has not.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        rank: int,
        ranks: Sequence[int],
        now: Callable[[], tuple[Place, float]],
        beat_s: float,
    ) -> None:
        self._store = PrefixStore(key, own_connection(store))
        self._rank, self._ranks, self._now, self.beat_s = rank, ranks, now, beat_s
        self._beat = 0
        self._left = self.failure = ""
        self._stop, self._wanted = threading.Event(), threading.Event()
        self._seen: dict[int, Seen] = {}
        self._watched_since_s = self._answered_s = monotonic()
        self._publish()
        self._thread = threading.Thread(target=self._run, daemon=True, name="paceline-guard-board")

    def start(self) -> None:
        """Begin; every rank must have made its board."""
        self._thread.start()

    def watch(self, *, wanted: bool) -> None:
        """Begin or end to read what the others publish."""
        if wanted and not self._wanted.is_set():
            self._watched_since_s = self._answered_s = monotonic()
            self._seen = {}
            self._wanted.set()
        elif not wanted:
            self._wanted.clear()

    @property
    def is_settled(self) -> bool:
        """Whether it has been read for long enough to tell who is silent."""
        is_long = monotonic() - self._watched_since_s > (SILENT_BEATS + 2) * self.beat_s
        return self._wanted.is_set() and is_long

    @property
    def silent_store_s(self) -> float:
        """Seconds for which the store has not answered; 0 if it does."""
        waited_s = monotonic() - self._answered_s
        return waited_s if waited_s > SILENT_BEATS * self.beat_s else 0.0

    def view(self) -> dict[int, Seen]:
        """Return what is known of each rank."""
        return dict(self._seen)

    def is_silent(self, seen: Seen) -> bool:
        """Whether nothing came from a rank that has not left."""
        return not seen.left and monotonic() - seen.heard_s > SILENT_BEATS * self.beat_s

    def close(self, left: str) -> None:
        """Tell the others how this rank left, and end the thread.

        A store that does not answer is waited for `JOIN_S` seconds at most; the thread then
        ends with the store's own time limit.
        """
        self._left = left
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.beat_s):
                self._publish()
                if self._wanted.is_set():
                    self._read()
            self._publish()
        except RuntimeError as error:  # The store is gone; the watchdog tells.
            self.failure = str(error).split("\n")[0] or type(error).__name__

    def _publish(self) -> None:
        place, since_s = self._now()
        self._beat += 1
        message = [self._beat, *place, monotonic() - since_s, self._left]
        self._store.set(str(self._rank), json.dumps(message))

    def _read(self) -> None:
        blobs = self._store.multi_get([str(rank) for rank in self._ranks])
        self._answered_s = monotonic()
        for rank, blob in zip(self._ranks, blobs, strict=True):
            beat, step, num_forwards, phase, for_s, left = json.loads(blob)
            before = self._seen.get(rank)
            if before is None or before.beat != beat:
                place = Place(step, num_forwards, phase)
                now_s = self._answered_s
                self._seen[rank] = Seen(beat, place, now_s - for_s, now_s, left)
