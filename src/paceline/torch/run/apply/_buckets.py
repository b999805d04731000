"""Give DistributedDataParallel the buckets that an earlier run should have had."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch.nn.parallel import DistributedDataParallel


class Buckets:
    """Sets the size where a script leaves it open; patched in this process.

    Args:
        cap_mb: The size; None to leave all as it is.
        say: Prints one line.

    Attributes:
        used_mb: The size, once a model was wrapped with it.
    """

    def __init__(self, cap_mb: float | None, say: Callable[[str], None]) -> None:
        self.used_mb: float | None = None
        self._cap_mb, self._say = cap_mb, say
        self._own: Any = DistributedDataParallel.__init__

    def install(self) -> None:
        """Begin."""
        if self._cap_mb is None:
            return
        own, buckets = self._own, self

        def init(model: Any, *args: Any, **kwargs: Any) -> None:
            given = signature(own).bind(model, *args, **kwargs).arguments
            if given.get("bucket_cap_mb") is None:
                kwargs["bucket_cap_mb"] = buckets._cap_mb
                buckets.used_mb = buckets._cap_mb
                buckets._say(f"applied: DistributedDataParallel(bucket_cap_mb={buckets._cap_mb:g})")
            own(model, *args, **kwargs)

        DistributedDataParallel.__init__ = init  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        """Put the class back."""
        DistributedDataParallel.__init__ = self._own  # type: ignore[method-assign]
