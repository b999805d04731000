"""Run a model without a trace of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Put back gradients, buffers and random state on leaving."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    is_cuda = any(parameter.is_cuda for parameter, _ in gradients)
    devices = [torch.cuda.current_device()] if is_cuda else []
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for module, name, buffer, saved in buffers:
                    setattr(module, name, buffer.copy_(saved))
