"""Claim: on a large device, GPT-2 small at micro-batch 1 to 4 gains from a split backward pass.

Exits with a reason where there is no CUDA device.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from _record import finish, parser, spread

from paceline.torch.overlap.split import split_backward

NUM_LAYERS, NUM_HEADS, WIDTH, NUM_TOKENS, VOCABULARY = 12, 12, 768, 1024, 50257
MICRO_BATCHES = (1, 2, 4)
ROUNDS = 40


class Block(nn.Module):
    """A block of GPT-2: attention and a feed-forward part, each behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on hidden states of shape `(batch, tokens, WIDTH)`."""
        heads = self.qkv(self.norm_1(x)).unflatten(2, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        grown: Tensor = functional.gelu(self.up(self.norm_2(x)), approximate="tanh")
        added: Tensor = x + self.down(grown)
        return added


class Gpt2(nn.Module):
    """GPT-2 small; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(NUM_TOKENS, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(NUM_LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean loss of predicting each next token."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.tokens(tokens) + self.places(places)))
        logits = functional.linear(x, self.tokens.weight)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def row(micro_batch: int, *, is_bf16: bool) -> dict[str, Any]:
    """Let the trial decide, then time plain and split in turns."""
    torch.manual_seed(0)
    plain = Gpt2().cuda()
    ours = copy.deepcopy(plain)
    tokens = torch.randint(0, VOCABULARY, (micro_batch, NUM_TOKENS), device="cuda")

    def seconds(model: nn.Module) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        model.zero_grad(set_to_none=True)
        begin.record()
        with torch.autocast("cuda", torch.bfloat16, enabled=is_bf16):
            loss = model(tokens)
        loss.backward()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    with split_backward(ours) as split:
        while split.plan is None:
            seconds(ours)
        found = np.array([(seconds(plain), seconds(ours)) for _ in range(ROUNDS + 3)])[3:]
        return {
            "micro_batch": micro_batch,
            "precision": "bf16" if is_bf16 else "fp32",
            "plain_s": spread(found[:, 0]),
            "split_s": spread(found[:, 1]),
            "speedup": float(np.median(found[:, 0]) / np.median(found[:, 1])),
            "defers": split.plan.defers,
            "explained": split.explain(),
        }


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device, and PyTorch sees none here")
    result = {
        "device": torch.cuda.get_device_name(),
        "gpt2_small": [row(n, is_bf16=b) for n in MICRO_BATCHES for b in (False, True)],
    }
    finish("overlap_gpu", options, result, "torch")


if __name__ == "__main__":
    main()
