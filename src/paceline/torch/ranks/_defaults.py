"""Load what keeps a process group alive before there is one.

Functions of `torch.distributed.nn` have the default group as a default argument. The module is
loaded by the first `DistributedDataParallel`, that is after `init_process_group`, and so holds
the group for ever: `destroy_process_group` ends none of gloo's threads, and one that lets go of
a tensor while the interpreter shuts down aborts the process ("terminate called without an active
exception"). Loaded before, it holds nothing.
"""

from importlib import import_module

from torch import distributed as dist

if not dist.is_initialized():
    import_module("torch.distributed.nn")
