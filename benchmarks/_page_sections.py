"""The tables of docs/performance.md, in their order, and the files that they are from."""

from collections.abc import Callable
from typing import NamedTuple

from _page_examples import (
    bounds,
    imbalance,
    no_gain,
    orders,
    planning,
    ragged,
    tails,
    time_to_loss,
)
from _page_examples import sketches as sketch_costs
from _page_runs import applied, published_steps, recording, simulated_steps
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
    saving,
    simulator,
    verdicts,
    watching,
    wire,
    wire_faults,
)


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
        lambda: ragged("ragged_training"),
    ),
    Section(
        "Balance",
        "Speech and images of mixed resolutions",
        ("ragged_speech_vision",),
        "measured",
        "The same on real lengths of speech and on made-up images; contents are random.",
        lambda: ragged("ragged_speech_vision"),
    ),
    Section(
        "Balance",
        "Time to a validation loss",
        ("end_to_end",),
        "measured",
        "Two ranks. Every way has its own best learning rate, chosen with a seed that is not "
        "scored. The target is what default training ends with. Ratios are to runs of one seed; "
        "*best peer* is the peer with the lowest median.",
        time_to_loss,
    ),
    Section(
        "Balance",
        "Where there is nothing to gain",
        ("no_gain",),
        "measured",
        "Whole loops with their loaders, time per token over that of default PyTorch.",
        no_gain,
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
        "Long tails and many workers",
        ("balance_tails",),
        "simulated",
        "Imbalance, reunion in brackets, of both ends of the dial and its knee; the lower bound, "
        "and the sorted epoch cut into steps. Four examples per worker and step, free counts.",
        tails,
    ),
    Section(
        "Balance",
        "Planning",
        ("balance",),
        "measured",
        "CPU seconds per million examples, kernels compiled. Measured before padded windows were "
        "made faster.",
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
        "Overlap",
        "Checkpoints while training goes on",
        ("async_checkpoint",),
        "measured",
        "An MLP of 8.4 million parameters with AdamW; 101 MB are saved once in 20 steps.",
        saving,
    ),
    Section(
        "Predict", "Steps on a CPU", ("predict_cpu",), "predicted, measured", "", processor_steps
    ),
    Section(
        "Predict",
        "Steps on GPUs",
        ("predict_tables",),
        "predicted",
        "Rows of the public CHRONOS tables that were held out; CNN / MLP / Transformer. Scored "
        "with the predictor before file version 2.",
        held_out_steps,
    ),
    Section(
        "Predict",
        "Published throughputs",
        ("predict_published",),
        "predicted",
        "The half of the rows that was kept to the end; sources in `predict_published.csv`. Means "
        "are geometric.",
        published_steps,
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
    Section(
        "Watching",
        "Verdicts of paceline run",
        ("verdict",),
        "measured; the slow wire is emulated",
        "Causes planted in three scripts: a plain loop, gradient accumulation, the Trainer.",
        verdicts,
    ),
    Section(
        "Watching",
        "Recording a run, and its page",
        ("run_overhead", "report_page"),
        "measured",
        "",
        recording,
    ),
    Section(
        "Watching",
        "What --apply gains",
        ("apply",),
        "measured on an emulated link",
        "A script with ragged lengths on two ranks, 1 Gbit/s: speed over the run without.",
        applied,
    ),
    Section(
        "Watching",
        "Steps simulated beforehand",
        ("simulated_steps",),
        "simulated over measured",
        "",
        simulated_steps,
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
