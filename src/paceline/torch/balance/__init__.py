"""Samplers and a loader that deliver what an epoch plan gave this rank."""

from paceline.torch.balance._batch_info import BatchInfo, carry_info
from paceline.torch.balance._batch_sampler import BalancedBatchSampler
from paceline.torch.balance._distributed_sampler import BalancedSampler
from paceline.torch.balance._epoch_walk import BatchPass
from paceline.torch.balance._example_sizes import example_sizes
from paceline.torch.balance._loader import DataLoader
from paceline.torch.balance._packing import Packed, pack, packed_attention
