"""Compare replicas while they train, and name the rank that the others wait for."""

from paceline.torch.guard._guard import Guard, guard

__all__ = ["Guard", "guard"]
