"""Start the demo's ranks and return what they found."""

import tempfile
import time
from pathlib import Path

from paceline.demo._config import DemoConfig
from paceline.demo._corpus import standard_library_functions
from paceline.demo._progress import Notes, reporting
from paceline.demo._result import DemoResult
from paceline.demo._train import train_all_ways
from paceline.testing import run_ranks

READING_SHARE = 0.1


def run_demo(config: DemoConfig) -> DemoResult:
    """Train in every way on all ranks; return what was measured. Progress goes to stderr.

    Raises:
        ValueError: If the output folder cannot be written to.
        RankFailedError: If a rank failed; no process is left behind.
    """
    end_s = time.monotonic() + config.seconds
    config.make_output()
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        notes = Notes(Path(folder) / "notes.txt")
        with reporting(notes, config.seconds) as reporter:
            reporter.say("reading Python's standard library")
            corpus = Path(folder) / "corpus.npz"
            standard_library_functions(budget_s=READING_SHARE * config.seconds).save(corpus)
            reporter.say(f"starting {config.num_ranks} ranks")
            run_ranks(
                train_all_ways,
                config.num_ranks,
                config,
                corpus,
                notes,
                end_s,
                while_waiting=reporter.poll,
            )
            reporter.poll()
    return DemoResult.load(config.output / "summary.json")
