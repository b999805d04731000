"""Run tasks on lanes beside the training loop."""

from paceline.torch.overlap._lane_optimizer import LaneOptimizer
from paceline.torch.overlap._lanes import Lanes
from paceline.torch.overlap._prefetch import Prefetch
from paceline.torch.overlap._task import Handle
