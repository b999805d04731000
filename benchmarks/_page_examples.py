"""Tables of what decides which worker gets which example, and in which order."""

from typing import Any

from _page_tables import bold, ranged, result, table

WAYS = {
    "default": "torch `DistributedSampler`",
    "group_by_length": "Hugging Face `LengthGroupedSampler`",
    "group_by_length_distributed": "Hugging Face `DistributedLengthGroupedSampler`",
    "batch_rebalance": "Hugging Face `BatchRebalanceSampler`",
    "token_buckets": "lhotse `DynamicBucketingSampler`",
    "stable": "**paceline**, micro-batches by plan",
    "window": "**paceline**, the same, window of 16 steps",
    "packed": "**paceline**, packed",
    "packed_window": "**paceline**, packed, window of 16 steps",
}


def ragged_runs(file: str) -> dict[str, dict[str, Any]]:
    """Return every comparison on ragged examples of a file by its name."""
    return {
        f"{data['data']}, {ranks.removesuffix('_ranks')} ranks": run
        for data in result(file).values()
        if isinstance(data, dict) and "data" in data
        for ranks, run in data.items()
        if ranks.endswith("_ranks")
    }


def ragged(file: str) -> str:
    """Return a table for each kind of data and number of ranks."""
    head = "way | tokens/s | over default | over length-grouped | padding | reunion"
    parts = []
    for name, run in ragged_runs(file).items():
        rows = []
        for way, found in run["ways"].items():
            rows.append(
                [
                    WAYS[way],
                    ranged(found["tokens_per_s"], 0),
                    ranged(found["over_default"]),
                    ranged(found["over_length_grouped"]),
                    f"{found['padding']:.0%}",
                    f"{found['reunion']:.1f}",
                ]
            )
        parts.append(f"{name[0].upper()}{name[1:]}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def time_to_loss() -> str:
    """Return how soon each way reaches the target, and where it ends."""
    found = result("end_to_end")
    rows = [
        [
            WAYS[way],
            f"{one['learning_rate']:g}",
            f"{one['seeds_at_target']}",
            *(
                ranged(one[key]) if one[key] else "never"
                for key in ("time_to_target_s", "over_default", "over_best_peer")
            ),
            ranged(one["last_loss"], 3),
        ]
        for way, one in found["ways"].items()
    ]
    head = "way | learning rate | seeds there | s | over default | over best peer | last loss"
    return f"Target: a loss of {found['target_loss']:.3f}.\n\n{table(head, rows)}"


def no_gain() -> str:
    """Return the cost of balancing where it cannot help."""
    rows = [
        [
            case,
            str(one["ranks"]),
            str(one["examples_per_rank"]),
            ranged(one["time_over_default"], 3),
        ]
        for case, one in result("no_gain")["cases"].items()
    ]
    return table("case | ranks | examples per rank | time over default", rows)


def imbalance() -> str:
    """Return imbalance and reunion of every system, on both data sets."""
    parts = []
    for kind, cases in result("balance")["quality_simulated"].items():
        rows: dict[str, dict[str, str]] = {}
        for case, systems in cases.items():
            for system, found in systems.items():
                cell = f"{found['imbalance']:.3f} ({found['reunion']:.1f})"
                rows.setdefault(system, {})[case] = cell
        lines = [
            [bold(system), *(row.get(case, "") for case in cases)] for system, row in rows.items()
        ]
        parts.append(f"Models that are {kind}:\n\n{table(' | '.join(['system', *cases]), lines)}")
    return "\n\n".join(parts)


def tails() -> str:
    """Return what the dial reaches where one example costs more than a worker's share."""
    rows = []
    for case, found in result("balance_tails")["cases_simulated"].items():
        name, is_shown, _ = case.partition(", 4 per worker")
        if is_shown:
            stops = (found["stops"][0], found["knee"], found["stops"][-1], found["sorted"])
            cells = [f"{stop['imbalance']:.3f} ({stop['reunion']:.1f})" for stop in stops]
            rows.append([name, f"{found['largest_over_share']:.1f}", f"{found['lower_bound']:.3f}"])
            rows[-1] += cells
    head = "sizes, cost, workers | largest over a worker's share | bound | mixing 1: plain shuffle"
    return table(f"{head} | **knee** | **mixing 0: epoch** | sorted", rows)


def planning() -> str:
    """Return CPU seconds of planning, and memory of plans."""
    times = result("balance")["plan_cpu_s"]
    rows = [
        [bold(system), *(f"{times[ranks][system]['median']:.2f}" for ranks in times)]
        for system in times["W=8"]
    ]
    return table(" | ".join(["system", *times]), rows)


def bounds(name: str) -> str:
    """Return herding bounds by round, and the time of a pass."""
    found = result(name)["policies"]
    rounds = range(len(next(iter(found.values()))["bounds"]))
    rows = [
        [
            f"**{name}**" if name == "halve-and-herd" else name,
            *(f"{bound:.1f}" for bound in one["bounds"]),
            f"{one['relative_time']:.1f}",
        ]
        for name, one in found.items()
    ]
    return table(" | ".join(["order", *(f"round {one}" for one in rounds), "time"]), rows)


def orders(name: str) -> str:
    """Return the loss at the end of training in every order, and the seconds of an epoch."""
    tasks = result(name)
    methods = dict.fromkeys(method for task in tasks.values() for method in task["methods"])
    rows = [[method, *(trained(task, method) for task in tasks.values())] for method in methods]
    heads = (f"{task}, {found['epochs']} epochs" for task, found in tasks.items())
    return table(" | ".join(["order", *heads]), rows)


def trained(task: dict[str, Any], method: str) -> str:
    found = task["methods"].get(method)
    if found is None:
        return ""
    loss = found["excess_loss"]
    return f"{loss['mean']:.4f} ± {loss['std']:.4f} ({found['epoch_s']:.2f} s)"


def sketches() -> str:
    """Return what sketching adds to a step, beside other ways to per-example gradients."""
    ways = ("sketch_every_4", "vmap", "grab-sampler")
    rows = [
        [
            model,
            ranged(found["sketch"]),
            ranged(found["skipping"]["sketch"]) if "skipping" in found else "",
            *(ranged(found[way]) for way in ways),
            f"{found['peak_over_plain']['sketch']:.3f}",
        ]
        for model, found in result("sketch_cost").items()
        if model != "left_out_ways"
    ]
    head = (
        "model | sketch every step | without the most expensive layers | every fourth epoch | vmap"
        " | grab-sampler's way | peak memory"
    )
    return table(head, rows)
