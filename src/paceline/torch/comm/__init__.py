"""Execute plans of gradient blocks under a training loop, or DDP where no plan wins."""

from paceline.torch.comm._scheduled import ScheduledDataParallel
