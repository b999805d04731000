"""Write docs/performance.md, the picture and the figures of the first pages from the results."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from _page_examples import (
    bounds,
    imbalance,
    orders,
    planning,
    ragged,
    ragged_runs,
)
from _page_examples import sketches as sketch_costs
from _page_picture import picture
from _page_tables import record, result, table
from _page_times import (
    demo,
    faults,
    first_minute,
    held_out_epochs,
    held_out_steps,
    lanes,
    lanes_on_a_wire,
    peaks,
    policies,
    processor_steps,
    simulator,
    watching,
    wire,
    wire_faults,
)
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


class Section(NamedTuple):
    """One table, the files it is from, and what its figures are."""

    room: str
    title: str
    files: tuple[str, ...]
    word: str
    says: str
    tables: Callable[[], str]


SECTIONS = (
    Section("End to end", "The demo", ("demo",), "measured", "", demo),
    Section(
        "Balance",
        "Ragged examples in training",
        ("ragged_training",),
        "measured",
        "A byte transformer; the ways take turns. *Reunion* says how many times likelier than by "
        "chance two examples that shared a step share one again in the next epoch: 1.0 is a "
        "plain shuffle.",
        ragged,
    ),
    Section(
        "Balance",
        "Imbalance and mixing",
        ("balance",),
        "simulated",
        "Makespan over (total cost / workers), reunion in brackets. Global batch 256.",
        imbalance,
    ),
    Section(
        "Balance",
        "Planning",
        ("balance",),
        "measured",
        "CPU seconds per million examples, kernels compiled.",
        planning,
    ),
    Section(
        "Communication",
        "Steps on a limited link",
        ("communication_emulated", "communication_real"),
        "measured or emulated, as its first column says",
        "Milliseconds per step over 1 Gbit/s between network namespaces of one machine. "
        "Where DDP's best bucket size is as fast, the trial keeps DDP.",
        wire,
    ),
    Section(
        "Communication",
        "Policies",
        ("communication_simulated",),
        "simulated",
        "Seven published models, 2 to 1,024 ranks. P3's slices have one fixed size.",
        policies,
    ),
    Section(
        "Communication",
        "Links and ranks that fail",
        ("communication_faults",),
        "measured",
        "A collective may take 10 s, or 60 s where the link comes back.",
        wire_faults,
    ),
    Section("Overlap", "Lanes", ("overlap",), "measured", "", lanes),
    Section("Overlap", "Lanes and the wire", ("overlap_wire",), "emulated", "", lanes_on_a_wire),
    Section(
        "Predict", "Steps on a CPU", ("predict_cpu",), "predicted, measured", "", processor_steps
    ),
    Section(
        "Predict",
        "Steps on GPUs",
        ("predict_tables",),
        "predicted",
        "Rows of the public CHRONOS tables that were held out; CNN / MLP / Transformer.",
        held_out_steps,
    ),
    Section(
        "Predict",
        "Epochs until convergence",
        ("predict_tables",),
        "predicted",
        "CNN / MLP / Transformer, beside the best constant per optimizer.",
        held_out_epochs,
    ),
    Section("Predict", "Peak memory on a CPU", ("predict_memory",), "predicted", "", peaks),
    Section(
        "Order",
        "Herding bounds",
        ("herding",),
        "simulated, times measured",
        "1,000 random vectors on each of 16 workers; time relative to D-GraB's pass.",
        lambda: bounds("herding"),
    ),
    Section(
        "Order",
        "Herding bounds, large",
        ("herding_large",),
        "simulated, times measured",
        "10,000 random vectors on each of 100 workers, one trial.",
        lambda: bounds("herding_large"),
    ),
    Section(
        "Order",
        "Training",
        ("ordering",),
        "measured",
        "Excess loss at the end of training, lower is better, each order at its best rate; mean "
        "and deviation over seeds, and seconds of an epoch.",
        lambda: orders("ordering"),
    ),
    Section(
        "Order",
        "Training, eight seeds",
        ("ordering_mlp",),
        "measured",
        "",
        lambda: orders("ordering_mlp"),
    ),
    Section(
        "Order", "Sketching", ("sketch_cost",), "measured", "Ratios to a plain step.", sketch_costs
    ),
    Section(
        "Watching",
        "Recorder and guard",
        ("watch_overhead", "guard_overhead"),
        "measured",
        "",
        watching,
    ),
    Section("Watching", "Simulator", ("simulator",), "measured", "", simulator),
    Section(
        "The first minute",
        "Import and first plan",
        ("first_minute",),
        "measured",
        "A fresh copy of the package; the slowest rank's first plan for eight workers.",
        first_minute,
    ),
    Section("Faults", "Faults and their ends", ("faults",), "measured", "", faults),
)


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
    name, run = next(iter(ragged_runs().items()))
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
    name, run = next(iter(ragged_runs().items()))
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
