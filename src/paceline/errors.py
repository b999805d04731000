"""Every exception that Paceline raises on purpose and that a caller may want to catch.

What a user passed wrongly is a plain `ValueError`; the types here are for
conditions that a program can act on.
"""


class PacelineError(Exception):
    """Base of all exceptions below."""


class CheckpointError(PacelineError, RuntimeError):
    """A checkpoint could not be written, or what lies on disk is not what was written."""


class DivergenceError(PacelineError, RuntimeError):
    """Replicas that must be equal differ; the message names step, ranks and what differs."""


class GraphError(PacelineError, ValueError):
    """A task graph cannot run: a cycle, or lanes and dependencies that wait for each other."""


class LabError(PacelineError, RuntimeError):
    """The network lab cannot run on this machine, or one of its commands failed."""


class MeasurementError(PacelineError, RuntimeError):
    """A live job could not be measured, for example because no gradient ever arrived."""


class MissingExtraError(PacelineError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class PlanMismatchError(PacelineError, ValueError):
    """Ranks disagree on what to send: another model or another plan on some rank."""


class RankFailedError(PacelineError, RuntimeError):
    """A rank of a spawned job ended with an error; the message names the rank."""


class RankStalledError(PacelineError, RuntimeError):
    """A rank was waited for longer than the caller allows; the message names it and its place."""


class StateMismatchError(PacelineError, ValueError):
    """A saved state does not fit what it is loaded into: other data, configuration or version."""


class TaskError(PacelineError, RuntimeError):
    """A task of a lane raised, was cancelled, or could not run; the message names it."""


class TraceError(PacelineError, RuntimeError):
    """A model cannot be traced, for example because its control flow depends on data."""


class TransferError(PacelineError, RuntimeError):
    """A gradient block did not get through; the message names the rank and the block."""
