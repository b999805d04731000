"""The plain way: PyTorch's own DistributedDataParallel, for any backward pass."""

from paceline.torch.comm.plain._plain_parallel import PlainParallel
