"""Says in one line that PyTorch is missing; imported before anything that needs it."""

from paceline.errors import MissingExtraError

try:
    import torch as torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError(
        "paceline.torch needs PyTorch; install it with: pip install 'paceline[torch]'"
    ) from None
