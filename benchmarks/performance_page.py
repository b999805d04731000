"""Write docs/performance.md, the picture and the figures of the first pages from the results."""

import re
from pathlib import Path

from _page_examples import ragged_runs
from _page_picture import picture
from _page_sections import SECTIONS
from _page_tables import record, result, table
from _record import RESULTS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- figures: [^>]*-->\n).*?(<!-- end of figures -->)", re.DOTALL)
INTRO = """# Performance

Every table on this page is written by `python benchmarks/performance_page.py` from the files in
`benchmarks/results/`. It shows all that was compared, whether Paceline is ahead or behind.

| word | meaning |
| --- | --- |
| *measured* | read from a clock while real work ran |
| *emulated* | read from a clock while stand-ins (layers that sleep) ran |
| *simulated* | computed from costs, nothing ran |
| *predicted* | computed by a model that was fitted on other runs |

Square brackets hold quartiles. Nothing here was run on a GPU or between machines: see
[Several machines](several-machines.md) for what that means for you.
"""


def source(name: str, word: str) -> str:
    """Return where the figures of a file are from."""
    found = record(name)["environment"]
    return (
        f"*{word}* · {found['processor']}, {found['cores']} cores · {found['date']} · "
        f"`benchmarks/results/{name}.json`\n\n```sh\n{found['command']}\n```"
    )


def page() -> str:
    """Return the page; a file that no table shows is named at its end."""
    parts, room, shown = [INTRO], "", set()
    for section in SECTIONS:
        files = [name for name in section.files if record(name)["result"]]
        text = section.tables() if files else ""
        shown |= set(files)
        if not text:
            continue
        if section.room != room:
            room = section.room
            parts.append(f"## {room}\n")
        parts.append(f"### {section.title}\n")
        parts.extend([f"{section.says}\n"] if section.says else [])
        parts.append(f"{text}\n")
        parts.extend(f"{source(name, section.word)}\n" for name in files)
    rest = sorted({path.stem for path in RESULTS.glob("*.json")} - shown)
    if rest:
        rows = [[f"`{name}.json`", f"`{record(name)['environment']['command']}`"] for name in rest]
        parts.append(f"## Without a table here\n\n{table('file | command', rows)}\n")
    return "\n".join(parts)


def figures() -> str:
    """Return the figures of the first pages: balance, planning, the wire, and end to end."""
    name, run = next(iter(ragged_runs("ragged_training").items()))
    stable = run["ways"]["stable"]
    planned = result("balance")["plan_cpu_s"]["W=8"]["paceline stable"]["median"]
    steps = result("communication_emulated")["rows"]
    even = min(steps, key=lambda row: abs(row["wire_over_compute"] - 1) + (row["ranks"] != 2))
    rows = [
        [
            f"tokens per second, {name}, the plain shuffle's global batches (*measured*)",
            f"**{stable['over_default']['median']:.2f} x** default PyTorch, "
            f"**{stable['over_length_grouped']['median']:.2f} x** length-grouped batches",
            dated("ragged_training"),
        ],
        [
            "planning a million examples for 8 workers (*measured*)",
            f"**{planned:.2f}** CPU seconds",
            dated("balance"),
        ],
        [
            "step on a 1 Gbit/s link that takes as long as the compute (*emulated*)",
            f"**{even['paceline_over_ddp_25']:.2f} x** DDP's default, "
            f"**{even['paceline_over_ddp_best']:.2f} x** its best bucket size",
            dated("communication_emulated"),
        ],
        [
            "`paceline demo`, tokens per second end to end (*measured*)",
            f"**{demo_gain()}**",
            dated("demo"),
        ],
    ]
    return table("what | figure | file, date, hardware", rows)


def demo_gain() -> str:
    found = result("demo")
    tuned = found["paced"].get("over_tuned")
    beside = "" if tuned is None else f", {tuned:.2f} x tuned PyTorch"
    return f"{found['speedup']:.2f} x default PyTorch{beside}"


def dated(name: str) -> str:
    found = record(name)["environment"]
    return f"`{name}.json`, {found['date']}, {found['cores']} cores of an {found['processor']}"


def texts() -> dict[Path, str]:
    """Return what each file must hold."""
    name, run = next(iter(ragged_runs("ragged_training").items()))
    made = {
        ROOT / "docs/performance.md": page(),
        ROOT / "docs/speed.svg": picture(name, run["ways"]),
    }
    for path in (ROOT / "README.md", ROOT / "docs/index.md"):
        old = path.read_text(encoding="utf-8")
        made[path] = BLOCK.sub(lambda found: f"{found[1]}\n{figures()}\n\n{found[2]}", old)
    return made


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
