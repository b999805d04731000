"""What a rank knows of its model, its data and its machine."""

import os
import platform
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

import paceline
from paceline.torch.model import processor_name
from paceline.torch.run._fetches import NO_LOADER, Fetches
from paceline.torch.run._find import is_parallel
from paceline.torch.run._host_cost import tiny_op_s
from paceline.torch.run._loop import Loop


def facts_of(loop: Loop, fetches: Fetches) -> dict[str, Any]:
    """Return what `facts.json` holds; None where it cannot be told."""
    return {
        **_of_model(loop.model),
        **(fetches.training.facts if fetches.training else NO_LOADER),
        "optimizer": type(loop.optimizer).__name__,
        **_of_ops(loop),
    }


def versions() -> dict[str, str]:
    """Return the versions that fix what a run does."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "paceline": paceline.__version__,
    }


def hardware() -> dict[str, Any]:
    """Return what this rank runs on, as far as it has used it."""
    # Whether CUDA is there must not be asked before the script does: it could not fork after that.
    is_used = torch.cuda.is_initialized()
    device = torch.cuda.get_device_name() if is_used else "cpu"
    return {"processor": processor_name(), "cores": os.cpu_count(), "device": device}


def _of_model(model: torch.nn.Module) -> dict[str, Any]:
    trained = [one for one in model.parameters() if one.requires_grad]
    bytes_cap = model.bucket_bytes_cap if isinstance(model, DistributedDataParallel) else None
    return {
        "parallel": type(model).__name__ if is_parallel(model) else "none",
        "num_parameters": sum(one.numel() for one in model.parameters()),
        "gradient_bytes": sum(one.numel() * one.element_size() for one in trained),
        "bucket_cap_mb": None if bytes_cap is None else bytes_cap / 2**20,
        "device": next((one.device.type for one in model.parameters()), "cpu"),
    }


def _of_ops(loop: Loop) -> dict[str, float | None]:
    if loop.ops is None or not loop.ops.num_ops:
        return {"host_s": None, "num_flops_per_element": None}
    device = next(loop.model.parameters()).device
    num_elements = loop.ops_counted.num_elements
    flops = loop.ops.num_flops / num_elements if num_elements > 0 else None
    return {"host_s": loop.ops.num_ops * tiny_op_s(device), "num_flops_per_element": flops}
