"""PyTorch's own DistributedDataParallel: the time of its buckets, and a better size."""

from paceline.torch.comm.ddp._bucket_times import BucketTimes, DDPAdvice
from paceline.torch.comm.ddp._watch_buckets import BucketWatch, watch_buckets
