"""Compare replicas every few steps, and name the rank that the others wait for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from paceline.errors import RankStalledError, TransferError
from paceline.torch.guard._board import Board
from paceline.torch.guard._diagnosis import gone
from paceline.torch.guard._divergence import Replicas
from paceline.torch.guard._progress import Place, Progress
from paceline.torch.guard._replicated import Data, bare_of, environment, sampler_of
from paceline.torch.guard._watchdog import LOGGER, Watchdog, beat_of
from paceline.torch.model import check_trains
from paceline.torch.ranks import fresh_key, is_of_communication, own_store


@contextmanager
def guard(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    data: Data | None = None,
    every: int = 100,
    patience_s: float = 60.0,
    abort_s: float | None = None,
    ignore: Collection[str] = (),
    process_group: dist.ProcessGroup | None = None,
) -> Iterator["Guard"]:
    """Guard the data-parallel training loop inside the `with` block; all ranks must enter it.

    **Divergence.** At the start ranks compare versions, the model's tensors and the
    settings of `data`; there and every `every` optimizer steps they compare the bits of all
    parameters and buffers, and their place in the plan of `data`. One bit that differs on one
    rank is found and raises on all ranks alike. Running statistics of normalization layers in
    training are left out, and what DistributedDataParallel was told to ignore.

    **Stalls.** A thread per rank watches how long the present step takes. After `patience_s`
    seconds it logs one warning per step to the logger `"paceline.guard"`: which ranks have not
    arrived, where they are and since when, and which give no sign of life. After
    `abort_s` it ends the job; see `docs/guard.md` for how. When communication fails,
    the error gets a note that names the ranks that are gone.

    Costs a microsecond per hook, and a pass over the parameters every `every` steps.

    Args:
        model: The module that the loop calls; with a data-parallel wrapper, the wrapper.
        optimizer: Its `step()`, or that of `ScheduledDataParallel`, ends a step.
        data: Loader or sampler that splits the examples over ranks; unset to leave it out.
        every: Steps between two comparisons, at least 1; equal on all ranks.
        patience_s: Seconds that one step may take, everything between two steps included,
            before it is logged.
        abort_s: Seconds that one step may take before the job ends, at least `patience_s`;
            unset for never.
        ignore: Names of parameters and buffers that differ over ranks on purpose, as in
            `named_parameters()` of the model inside the wrapper.
        process_group: Ranks that train together; unset for the default group, if there is one.

    Yields:
        The guard; ask it to `check` at any time.

    Raises:
        ValueError: If an argument is out of range or does not fit the others.
        DivergenceError: If ranks differ; on every rank alike.
        RankStalledError: After `abort_s`, if the training thread can be interrupted.

    Examples:
        >>> layer = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> with guard(layer, optimizer, every=2) as guarded:
        ...     for _ in range(4):
        ...         layer(torch.ones(2, 4)).sum().backward()
        ...         optimizer.step()
        >>> guarded.num_steps, guarded.num_checks
        (4, 0)
    """
    _check_numbers(every, patience_s, abort_s)
    _check_model(model, optimizer, data, ignore)
    guarded = Guard(model, data, ignore, process_group, every=every)
    left = "left the block"
    try:
        guarded._begin(optimizer, patience_s, abort_s)
        yield guarded
    except BaseException as error:
        left = f"left with {type(error).__name__}"
        explained = guarded._explained(error)
        if explained is error:
            raise
        raise explained from None
    finally:
        guarded._end(left)


class Guard:
    """What `guard` yields.

    Attributes:
        num_checks: Comparisons after the first; 0 in a single process.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Data | None,
        ignore: Collection[str],
        group: dist.ProcessGroup | None,
        *,
        every: int,
    ) -> None:
        self._model, self._group, self._every = model, group, every
        self._facts = {"every": str(every), **environment(model, data, ignore)}
        is_parallel = dist.is_available() and dist.is_initialized()
        self._rank = dist.get_rank() if is_parallel else 0
        self._replicas = Replicas(model, data, ignore, group) if is_parallel else None
        self._progress = Progress(self._at_step)
        self._board: Board | None = None
        self._watchdog: Watchdog | None = None
        self.num_checks = 0

    @property
    def num_steps(self) -> int:
        """Optimizer steps that have ended inside the block."""
        return self._progress.now[0].step

    def check(self) -> None:
        """Compare replicas now; all ranks must call it after the same step.

        Raises:
            DivergenceError: If ranks differ; on every rank alike.
        """
        self._compare(self.num_steps)

    def _begin(
        self, optimizer: torch.optim.Optimizer, patience_s: float, abort_s: float | None
    ) -> None:
        if self._replicas is not None:
            self._replicas.check_environment(self._facts)
            self._board = self._new_board(self._replicas.ranks, beat_of(patience_s))
            # Also the barrier after which all ranks have published their places.
            self._replicas.check(0)
            self._board.start()
        self._progress.attach(self._model, optimizer)
        self._watchdog = Watchdog(
            self._progress, self._board, self._rank, patience_s=patience_s, abort_s=abort_s
        )
        self._watchdog.start()

    def _new_board(self, ranks: list[int], beat_s: float) -> Board:
        """Return a board under a key of its own."""
        store, key = own_store(self._group), f"paceline/{fresh_key(self._group)}"
        return Board(store, key, self._rank, ranks, self._where, beat_s)

    def _where(self) -> tuple[Place, float]:
        return self._progress.now

    def _at_step(self, step: int) -> None:
        if step % self._every == 0:
            self._compare(step)

    def _compare(self, step: int) -> None:
        if self._replicas is not None:
            self._replicas.check(step)
            self.num_checks += 1

    def _explained(self, error: BaseException) -> BaseException:
        """Return what to raise for `error`: with a note of the ranks that are gone, if any."""
        if self._watchdog is not None:
            self._watchdog.close()
            if self._watchdog.verdict and isinstance(error, KeyboardInterrupt):
                return RankStalledError(self._watchdog.verdict)
        if self._board is not None and _is_of_lost_rank(error):
            missing = gone(self._board, self._rank)
            if missing:
                place, _ = self._progress.now
                note = f"rank {self._rank} ({place}) lost {missing}"
                LOGGER.warning(note)
                error.add_note(f"paceline.guard: {note}")
        return error

    def _end(self, left: str) -> None:
        self._progress.remove_hooks()
        if self._watchdog is not None:
            self._watchdog.close()
        if self._board is not None:
            self._board.close(left)


def _is_of_lost_rank(error: BaseException) -> bool:
    return isinstance(error, TransferError) or is_of_communication(error)


def _check_numbers(every: int, patience_s: float, abort_s: float | None) -> None:
    if not isinstance(every, int) or every < 1:
        raise ValueError(
            f"every must be a whole number of steps, at least 1, got {every!r}; leave it unset "
            "for 100"
        )
    if not patience_s > 0:
        raise ValueError(
            f"patience_s must be positive, got {patience_s}; use float('inf') to log nothing"
        )
    if abort_s is not None and not abort_s >= patience_s:
        raise ValueError(
            f"abort_s must be at least patience_s ({patience_s:g}), got {abort_s}; a step is "
            "reported before the job ends for it"
        )


def _check_model(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data | None,
    ignore: Collection[str],
) -> None:
    check_trains(optimizer, model)
    bare = bare_of(model)
    names = {name for name, _ in (*bare.named_parameters(), *bare.named_buffers())}
    unknown = sorted({*ignore} - names)
    if unknown:
        raise ValueError(
            f"ignore must name parameters or buffers of the model, got {unknown[0]!r}; names are "
            "those of the model inside the data-parallel wrapper"
        )
    if data is not None:
        sampler_of(data)
