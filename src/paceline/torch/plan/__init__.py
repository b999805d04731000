"""Advice for a live model."""

from paceline.torch.plan._advise import advise
