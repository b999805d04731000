"""What Linux says that this process holds."""

import ctypes
import gc
import os
from pathlib import Path


def rss_bytes() -> int:
    """Return the memory that is resident now."""
    return _status_bytes("VmRSS")


def peak_rss_bytes() -> int:
    """Return the most memory that was resident since the start, or since `reset_peak`."""
    return _status_bytes("VmHWM")


def reset_peak() -> None:
    """Begin anew to look for the peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def held() -> dict[str, int]:
    """Return resident memory, and how many threads and descriptors there are.

    What the C library holds free for later, as after each thread that ended, is given back first.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "rss_bytes": rss_bytes(),
        "num_threads": len(os.listdir("/proc/self/task")),
        "num_descriptors": len(os.listdir("/proc/self/fd")),
    }


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
