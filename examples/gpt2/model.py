"""GPT-2: a decoder-only transformer with norms before the layers and a tied embedding.

The shape is that of A. Radford et al., "Language Models are Unsupervised Multitask Learners",
2019; there is no dropout, so that the same seed gives the same losses on any number of ranks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Target of a position that does not count.
IGNORED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One of the published shapes, or a small one.

    Attributes:
        num_layers: Transformer blocks.
        num_heads: Attention heads; divides `width`.
        width: Features of a token.
        context: Tokens that are seen at once, unless told otherwise.
        learning_rate: Peak. From 124 M parameters on that of T. Brown et al., "Language Models
            are Few-Shot Learners", 2020, table 2.1, for a model of like size.
    """

    num_layers: int
    num_heads: int
    width: int
    context: int
    learning_rate: float


SIZES = {
    "tiny": Size(num_layers=2, num_heads=2, width=32, context=64, learning_rate=3e-3),
    "1m": Size(num_layers=5, num_heads=4, width=128, context=256, learning_rate=1e-3),
    "10m": Size(num_layers=6, num_heads=6, width=384, context=256, learning_rate=1e-3),
    "124m": Size(num_layers=12, num_heads=12, width=768, context=1024, learning_rate=6e-4),
    "355m": Size(num_layers=24, num_heads=16, width=1024, context=1024, learning_rate=3e-4),
    "774m": Size(num_layers=36, num_heads=20, width=1280, context=1024, learning_rate=2.5e-4),
    "1.5b": Size(num_layers=48, num_heads=25, width=1600, context=1024, learning_rate=2e-4),
}


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, time, width)` to the same shape."""
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, time, width))
        return out


class Block(nn.Module):
    """Attention and a feed-forward net, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, time, width)` to the same shape."""
        x = x + self.attention(self.norm_attention(x))
        hidden = functional.gelu(self.widen(self.norm_mlp(x)), approximate="tanh")
        out: Tensor = x + self.project(hidden)
        return out


class GPT2(nn.Module):
    """Predicts the next token.

    Args:
        size: The shape.
        vocab_size: Tokens lie below it; rounded up to a multiple of 64, which suits matrix units.
        context: Longest sequence.
        seed: Of the initial weights.
    """

    def __init__(self, size: Size, *, vocab_size: int, context: int, seed: int = 0) -> None:
        super().__init__()
        self.size, self.context = size, context
        num_tokens = -(-vocab_size // 64) * 64
        self.embed = nn.Embedding(num_tokens, size.width)
        self.position = nn.Embedding(context, size.width)
        self.blocks = nn.ModuleList(
            Block(size.width, size.num_heads) for _ in range(size.num_layers)
        )
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, num_tokens, bias=False)
        self.head.weight = self.embed.weight
        matrices = [module for module in self.modules() if isinstance(module, nn.Linear)]
        self._num_matrix_weights = sum(module.weight.numel() for module in matrices)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        """Draw weights; what adds to a shortcut starts smaller, the more layers there are."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # Norms start at one, biases at zero, see below.
            std = 0.02 / math.sqrt(2 * self.size.num_layers) if "project" in name else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss over all targets that are not `IGNORED`.

        Args:
            inputs: Tokens, shape `(batch, time)`.
            targets: The token behind each of them, same shape.
        """
        at = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.embed(inputs) + self.position(at)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)).flatten(0, 1).float()
        return functional.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def training_flops(self, num_tokens: float, num_pairs: float) -> float:
        """Return floating-point operations of a forward and a backward pass.

        Six per token and weight of a matrix product, twelve per layer, feature and pair of tokens
        of a sequence, whether or not the mask hides it (A. Chowdhery et al., "PaLM", 2022,
        appendix B).

        Args:
            num_tokens: Predicted tokens.
            num_pairs: Squared sequence lengths, summed.
        """
        attention = 12.0 * self.size.num_layers * self.size.width
        return 6.0 * self._num_matrix_weights * num_tokens + attention * num_pairs


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the parameters for an optimizer: matrices decay, norms and biases do not."""
    trained = list(model.parameters())
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
