"""What the user decides about plans: how one is chosen, and how long that may take."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from paceline.comm import BlockPlan, WireProblem
from paceline.torch.comm._candidates import Planner

Choose = Literal["measured", "simulated"] | BlockPlan | Planner


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a plan is chosen; the arguments of `ScheduledDataParallel`."""

    choose: Choose
    num_measure_steps: int
    num_trial_steps: int
    num_in_flight: int

    def __post_init__(self) -> None:
        is_way = self.choose in ("measured", "simulated") or isinstance(self.choose, BlockPlan)
        if not is_way and not callable(self.choose):
            raise ValueError(
                "choose must be 'measured', 'simulated', a BlockPlan, or a function from a "
                f"WireProblem to one, got {self.choose!r}; leave it unset to keep what is "
                "measured to be fastest"
            )
        least = {"num_measure_steps": 2, "num_trial_steps": 1, "num_in_flight": 1}
        for name, limit in least.items():
            if (found := getattr(self, name)) < limit:
                skip = "; pass choose='simulated' to skip the trial" if "trial" in name else ""
                raise ValueError(f"{name} must be at least {limit}, got {found}{skip}")

    @property
    def planner(self) -> Planner | None:
        """What makes the plan; None to choose among the promising ones."""
        given = self.choose
        if isinstance(given, BlockPlan):
            return lambda problem: _checked(given, problem)
        return None if isinstance(given, str) else given


def _checked(plan: BlockPlan, problem: WireProblem) -> BlockPlan:
    sent = np.bincount(plan.tensor, plan.num_bytes, minlength=len(problem.num_bytes))
    if len(sent) != len(problem.num_bytes) or not np.allclose(sent, problem.num_bytes):
        raise ValueError(
            f"the blocks of a given plan must make up this model's {len(problem.num_bytes)} "
            f"gradients of {problem.num_bytes.sum():g} bytes, in the order in which the forward "
            f"pass uses them, but those of {plan.name!r} make up {len(sent)} of "
            f"{sent.sum():g} bytes; pass choose= a function that makes the plan"
        )
    return plan
