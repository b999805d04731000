"""A small decoder-only transformer on bytes."""

import torch
from torch import nn
from torch.nn import functional as F

CONTEXT_BYTES = 1024
NUM_BYTES = 256


class Block(nn.Module):
    """Causal self-attention and a feed-forward net, both pre-norm and residual."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, time, dim)` to the same shape."""
        batch, time, dim = x.shape
        qkv = self.qkv(self.norm_attention(x))
        heads = qkv.view(batch, time, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, time, dim))
        out: torch.Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class ByteTransformer(nn.Module):
    """Predicts the next byte; padding follows the text, where causal attention ignores it."""

    def __init__(self, dim: int = 64, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_BYTES, dim)
        self.position = nn.Embedding(CONTEXT_BYTES, dim)
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, NUM_BYTES)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Map bytes `(batch, time)` to logits `(batch, time, 256)`."""
        at = torch.arange(text.shape[1], device=text.device)
        x = self.embed(text) + self.position(at)
        logits: torch.Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def example_losses(logits: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return each example's mean next-byte loss over its own bytes, shape `(batch,)`."""
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), text[:, 1:], reduction="none")
    real = torch.arange(1, text.shape[1]) < lengths[:, None]
    return (losses * real).sum(dim=1) / (lengths - 1)
