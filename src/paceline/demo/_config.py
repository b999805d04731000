"""What fixes a demo run."""

import os
from dataclasses import dataclass
from pathlib import Path

EXAMPLES_PER_RANK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the user may choose.

    Attributes:
        num_ranks: Gloo processes, at least 2.
        seconds: Wall time to aim for, 15 to 90.
        output: Folder for the trace and the summary; made if it is missing.
        seed: Of the weights and of the order of the examples.
    """

    num_ranks: int = 2
    seconds: float = 60.0
    output: Path = Path("paceline-demo")
    seed: int = 0

    def __post_init__(self) -> None:
        most = 4 * (os.cpu_count() or 1)
        if not 2 <= self.num_ranks <= most:
            raise ValueError(
                f"ranks must lie in [2, {most}] on this machine, got {self.num_ranks}; with one "
                "rank there is nobody to wait for"
            )
        if not 15 <= self.seconds <= 90:
            raise ValueError(f"seconds must lie in [15, 90], got {self.seconds:g}")

    def make_output(self) -> None:
        """Create the output folder.

        Raises:
            ValueError: If it cannot be written to.
        """
        probe = self.output / f".paceline-{os.getpid()}"
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"output must be a folder that can be written to, got {self.output}: "
                f"{error.strerror}"
            ) from error
