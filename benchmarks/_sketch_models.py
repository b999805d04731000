"""Models, data and training steps that the sketch and ordering benchmarks share."""

import gzip
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for num_in, num_out in pairwise(widths):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


class Block(nn.Module):
    """One pre-norm transformer block with causal attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3)
        q, k, v = heads.unbind(2)
        # Written out, because vmap runs torch's fused attention one example at a time.
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        score = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
        mixed = score.softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        grown: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return grown


class Gpt(nn.Module):
    """A language model over bytes; positions are looked up once for each example."""

    def __init__(self, width: int = 256, num_layers: int = 5, block: int = 128) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(block, width)
        self.blocks = nn.Sequential(*[Block(width, 8) for _ in range(num_layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.blocks(self.token(tokens) + self.position(places))
        logits: Tensor = self.head(self.norm(x))
        return logits


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), target.flatten())


def images(folder: Path, num: int, part: str = "train") -> tuple[Tensor, Tensor]:
    """Return the first Fashion-MNIST images, standardised, `(num, 1, 28, 28)`, and labels."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:num]
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        label = np.frombuffer(file.read(), np.uint8, offset=8)[:num].astype(np.int64)
    pixel = torch.from_numpy(raw.astype(np.float32) / 255.0)
    return (pixel - 0.286) / 0.353, torch.from_numpy(label)


def text_blocks(num: int, block: int) -> tuple[Tensor, Tensor]:
    """Return byte blocks of the standard library's source, and the bytes that follow each."""
    root = Path(sysconfig.get_paths()["stdlib"])
    joined = b"".join(path.read_bytes() for path in sorted(root.glob("*.py")))
    spread = np.linspace(0, len(joined) - block - 1, num).astype(np.int64)
    cut = np.stack([np.frombuffer(joined, np.uint8, block + 1, at) for at in spread])
    token = torch.from_numpy(cut.astype(np.int64))
    return token[:, :-1].contiguous(), token[:, 1:].contiguous()


Loss = Callable[[Tensor, Tensor], Tensor]
