"""Defer weight gradients to another lane, where that was measured to win."""

from paceline.torch.overlap.split._ops import Extras, OpArgs
from paceline.torch.overlap.split._split_backward import SplitBackward, split_backward
