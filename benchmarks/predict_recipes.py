"""Claim: peak memory is predicted within 10 % for GPT-2 with dropout, checkpoints, accumulation.

The peak of a real step is that of the CPU allocator's account. Sizes of what FSDP2 divides over
four gloo ranks are compared with the predicted ones byte for byte. Needs transformers.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from _record import finish, parser
from torch import nn

from paceline.predict import estimate_memory
from paceline.predict.work import Sharding
from paceline.testing import measure_peak_bytes, run_ranks
from paceline.torch.predict import StepSetup, threads, trace_workload

NUM_RANKS, BATCH_SIZE, NUM_TOKENS, TRACED_BATCH_SIZE = 4, 4, 256, 2
LAYERS, WIDTH, HEADS = 6, 384, 6
RECIPES: dict[str, dict[str, Any]] = {
    "without dropout": {},
    "with dropout": {"dropout": 0.1},
    "checkpoints": {"recomputed": True},
    "checkpoints, dropout": {"recomputed": True, "dropout": 0.1},
    "4 accumulated": {"num_accumulated": 4},
    "4 accumulated, checkpoints, dropout": {
        "num_accumulated": 4, "recomputed": True, "dropout": 0.1,
    },
    "bfloat16 throughout": {"param_bits": 16},
}  # fmt: skip
TOKENS = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
INPUTS = {"input_ids": TOKENS, "labels": TOKENS}


def gpt2(dropout: float = 0.0) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    made: nn.Module = GPT2LMHeadModel(config)
    return made


def peak_row(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    settings = dict(recipe)
    dropout = settings.pop("dropout", 0.0)

    def build() -> nn.Module:
        return gpt2(dropout)

    bits = 16 if settings.get("param_bits") == 16 else 32
    setup = StepSetup(batch_size=BATCH_SIZE, optimizer="AdamW", precision_bits=bits, **settings)
    measured = measure_peak_bytes(build, INPUTS, setup)
    own, small = (
        trace_workload(build, INPUTS, batch_size=size, optimizer="AdamW", kernels="cpu", **settings)
        for size in (BATCH_SIZE, TRACED_BATCH_SIZE)
    )
    peaks = [
        estimate_memory(work.with_batch_size(BATCH_SIZE), foreach=False).peak
        for work in (own, small)
    ]
    return {
        "recipe": name,
        "measured_peak_bytes": measured,
        "predicted_peak_bytes": peaks[0],
        "relative_error": peaks[0] / measured - 1.0,
        "relative_error_from_batch_of_2": peaks[1] / measured - 1.0,
    }


def hold_with_fsdp(rank: int, path: str) -> None:
    """Train one step with FSDP2, a group per block, and write what this rank holds."""
    from torch.distributed.fsdp import fully_shard

    model: Any = gpt2()
    for block in model.transformer.h:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    # Its step releases gradients only at the next one.
    model(**{name: value.expand(2, -1) for name, value in INPUTS.items()}).loss.backward()
    optimizer.step()
    held = {
        "parameters": storage_bytes([p.to_local() for p in model.parameters()]),
        "gradients": storage_bytes([p.grad.to_local() for p in model.parameters()]),
        "optimizer": storage_bytes(
            [
                value.to_local()
                for state in optimizer.state.values()
                for name, value in state.items()
                if name != "step"
            ]
        ),
    }
    Path(path, f"{rank}.json").write_text(json.dumps(held), encoding="utf-8")


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def sharded_rows() -> list[dict[str, Any]]:
    work = trace_workload(gpt2, INPUTS, batch_size=2, optimizer="AdamW", kernels="cpu")
    divided = Sharding(num_workers=NUM_RANKS, level="parameters")
    memory = estimate_memory(work, sharding=divided)
    predicted = {
        "parameters": memory.parameters,
        "gradients": divided.held_bytes(work, "gradients"),
        "optimizer": memory.optimizer,
    }
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(hold_with_fsdp, NUM_RANKS, folder)
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    return [
        {"what": what, "predicted_bytes": size, "measured_bytes": [rank[what] for rank in ranks]}
        for what, size in predicted.items()
    ]


def main() -> None:
    options = parser((__doc__ or "").partition("\n")[0]).parse_args()
    with threads(1):
        torch.manual_seed(0)
        rows = [peak_row(name, recipe) for name, recipe in RECIPES.items()]
    sharded = sharded_rows()
    result = {
        "model": f"GPT-2 with {LAYERS} layers of width {WIDTH}, {BATCH_SIZE} x {NUM_TOKENS} tokens",
        "rows": rows,
        "worst_absolute_relative_error": max(abs(row["relative_error"]) for row in rows),
        "worst_absolute_relative_error_from_batch_of_2": max(
            abs(row["relative_error_from_batch_of_2"]) for row in rows
        ),
        "sharded": sharded,
        "sharded_sizes_equal": all(
            row["predicted_bytes"] == max(row["measured_bytes"]) for row in sharded
        ),
        "intra_op_threads": 1,
    }
    finish("predict_recipes", options, result, "torch", "transformers")


if __name__ == "__main__":
    main()
