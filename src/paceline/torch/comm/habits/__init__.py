"""Habits that users bring from other wrappers: each works here, or is refused in one line."""

from paceline.torch.comm.habits._nesting import check_bare, check_outermost, refuse_wrapping
from paceline.torch.comm.habits._outside_step import OutsideSteps
from paceline.torch.comm.habits._ownership import Ownership
from paceline.torch.comm.habits._withheld import WithheldGradients, is_withholdable
