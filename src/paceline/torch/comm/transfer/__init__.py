"""What sends blocks, whole or sharded: the worker thread, the payloads, what is waited for."""

from paceline.torch.comm.transfer._admission import (
    check_plain_tensors,
    check_sharded,
    checked_group,
)
from paceline.torch.comm.transfer._layout import Payload, Piece, payloads_of
from paceline.torch.comm.transfer._route import Route
from paceline.torch.comm.transfer._trained import Trained
from paceline.torch.comm.transfer._waits import PendingUpdates, WaitRequest
from paceline.torch.comm.transfer._worker import Worker
