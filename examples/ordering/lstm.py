"""A small LSTM language model, in an order that balances gradients.

    torchrun --nproc_per_node=4 examples/ordering/lstm.py --sorter D-GraB \
        --grad_acc 2 --backend gloo [--text file.txt]

`--text` names any file; without it, the text is the standard library's source.
"""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from _training import parser, run
from torch import Tensor, nn
from torch.nn import functional


class CharLstm(nn.Module):
    """Bytes in, logits of the next bytes out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(256, 32), nn.LSTM(32, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Take `(examples, positions)`."""
        logits: Tensor = self.head(self.lstm(self.embed(tokens))[0])
        return logits


def blocks(text: bytes, num: int, length: int) -> tuple[Tensor, Tensor]:
    """Return `num` pieces of the text, evenly spread, and the bytes that follow each byte."""
    if len(text) <= length:
        raise ValueError(f"the text must be longer than {length} bytes, got {len(text)}")
    starts = np.linspace(0, len(text) - length - 1, num).astype(np.int64)
    pieces = np.stack([np.frombuffer(text, np.uint8, length + 1, at) for at in starts])
    token = torch.from_numpy(pieces.astype(np.int64))
    return token[:, :-1], token[:, 1:]


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross entropy over examples and positions."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def main(arguments: list[str] | None = None) -> list[float]:
    """Read, cut, train."""
    flags = parser("A small LSTM language model")
    flags.add_argument("--text", type=Path, help="any file")
    flags.add_argument("--num_examples", type=int, default=512)
    flags.add_argument("--length", type=int, default=32, help="bytes of an example")
    options = flags.parse_args(arguments)
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [options.text] if options.text else sorted(root.glob("*.py"))[:60]
    text = b"".join(path.read_bytes() for path in paths)
    torch.manual_seed(options.seed)
    x, target = blocks(text, options.num_examples, options.length)
    return run(options, CharLstm(64), token_loss, x, target)


if __name__ == "__main__":
    main()
