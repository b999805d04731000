"""What the machine calls its processor."""

import platform
from contextlib import suppress
from pathlib import Path


def processor_name() -> str:
    """Return the name of the processor; empty if the machine does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
