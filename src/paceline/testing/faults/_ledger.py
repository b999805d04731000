"""Whether each example went into the parameters exactly once, read from the parameters."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Balance:
    """What a ledger says of the epochs that have ended.

    Attributes:
        lost: Examples of an epoch that are missing, summed over epochs.
        repeated: Examples of an epoch that came more than once, summed.
    """

    lost: int
    repeated: int


class Ledger(nn.Module):
    """Counts the examples of each epoch in a parameter of the model that is trained.

    The gradient of its term is the same for each example of the global batch, so one step of SGD
    adds 1 to the count of each. What a crash undid, counts undo too: they come back with the
    checkpoint. Put it into the model and add its term to the loss *before* the loss is weighed;
    give it a parameter group of `torch.optim.SGD` of its own, with the global batch size as the
    learning rate, and neither momentum nor weight decay.

    Args:
        num_epochs: Epochs of the run.
        num_examples: Of the dataset; a multiple of the batch size, so that all steps are full.

    Examples:
        >>> ledger = Ledger(num_epochs=1, num_examples=4)
        >>> optimizer = torch.optim.SGD(ledger.parameters(), lr=2)
        >>> for batch in ([0, 1], [1, 2]):
        ...     ledger(0, torch.tensor(batch)).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> ledger.balance()
        Balance(lost=1, repeated=1)
    """

    def __init__(self, num_epochs: int, num_examples: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(num_epochs, num_examples))

    def forward(self, epoch: int, examples: torch.Tensor) -> torch.Tensor:
        """Return the term of a micro-batch; its value means nothing."""
        return -self.counts[epoch, examples].mean()

    def balance(self, num_epochs: int | None = None) -> Balance:
        """Compare the first `num_epochs` epochs, by default all, with one of each example."""
        counts = self.counts.detach()[:num_epochs].cpu().round().long()
        missing, more = (counts < 1).sum(), (counts > 1).sum()
        return Balance(lost=int(missing), repeated=int(more))
