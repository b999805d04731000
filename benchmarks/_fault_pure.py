"""Faults that need one process."""

import random
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from _fault_readers import Reader, readers

from paceline.testing.faults import answer_of


def hunt(folder: Path, seed: str = "0", num: str = "100", name: str = "") -> None:
    """Print what is not refused clearly, once per place."""
    seen: Counter[Any] = Counter()
    for reader in readers(folder):
        if name not in reader.name:
            continue
        try:
            reader.read(reader.good)
        except Exception:
            print("GOOD FAILS", reader.name)
            traceback.print_exc()
            continue
        count: Counter[str] = Counter()
        for number in range(int(num)):
            rng = random.Random(f"{seed} {reader.name} {number}")
            bad = reader.mutate(reader.good, rng)
            answer, found = answer_of(lambda reader=reader, bad=bad: reader.read(bad))
            if answer == "accepted" and reader.is_checked and bad != reader.good:
                if found != reader.read(reader.good):
                    answer = "WRONG"
            count[answer] += 1
            if answer in ("unclear", "hangs", "WRONG"):
                frames = traceback.extract_tb(found.__traceback__) if answer != "WRONG" else []
                place = [f"{Path(f.filename).name}:{f.lineno}" for f in frames][-3:]
                key = (reader.name, answer, type(found).__name__, tuple(place[-2:]))
                seen[key] += 1
                if seen[key] == 1:
                    print(reader.name, number, answer, type(found).__name__, str(found)[:150].replace("\n","\\n"), place)
        print("   ", reader.name, dict(count), flush=True)
