"""Which mode a model is in: what it is doing, and how its gradients are sent."""

from collections.abc import Sequence
from enum import StrEnum

from paceline.torch.comm._candidates import Candidate
from paceline.torch.comm._executor import Executor
from paceline.torch.comm._gradient_feed import GradientFeed
from paceline.torch.comm.plain import PlainParallel
from paceline.torch.comm.transfer import Route, Trained, payloads_of


class Mode(StrEnum):
    """What a model is doing.

    The last three are also the ways to send gradients. While it measures, a model waits;
    while it tries plans, it does what the plan whose turn it is asks for.
    """

    MEASURING = "measuring"
    """Steps are timed, with DistributedDataParallel's default buckets."""
    TRYING = "trying"
    """Plans take turns."""
    OVERLAPPED = "overlapped"
    """Communication overlaps the backward pass and the next forward pass."""
    WAITING = "waiting"
    """Communication overlaps the backward pass; the optimizer waits for all gradients."""
    PLAIN = "plain"
    """DistributedDataParallel itself runs the model."""


class ModeSwitch:
    """The one place where a mode is entered.

    Args:
        trained: The parameters.
        executor: Executes plans.
        feed: Tells of gradients.
        plain: Takes over from both in the plain mode.

    Attributes:
        mode: What the model is doing.
        way: How gradients are sent: overlapped, waiting or plain.
        current: The plan that is executed.
    """

    mode = way = Mode.WAITING
    current: Candidate

    def __init__(
        self, trained: Trained, executor: Executor, feed: GradientFeed, plain: PlainParallel
    ) -> None:
        self._trained, self._executor = trained, executor
        self._feed, self._plain = feed, plain

    def enter(self, mode: Mode, way: Mode, one: Candidate, order: Sequence[int]) -> None:
        """Execute `one` in this way: plain from the next forward pass on, else backward pass.

        Whether all gradients are waited for changes at once. Tensor `i` of the plan is
        parameter `order[i]`.
        """
        self.mode, self.way, self.current = mode, way, one
        if way is Mode.PLAIN and one.bucket_mb is not None:
            self._executor.flush()
            self._feed.attach(takes_gradients=False)
            self._plain.enter(one.bucket_mb)
            return
        self._plain.leave()
        self._feed.attach()
        payloads = payloads_of(one.plan, self._trained.parameters, order)
        self._executor.use(Route(payloads, self._trained.parameters), order)

    def close(self) -> None:
        """End the executor's threads, and remove all hooks on parameters."""
        self._executor.close()
        self._plain.leave()
        self._feed.detach()
