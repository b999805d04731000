"""Tables of communication, lanes, predictions, and what watching costs."""

from _page_tables import bold, ranged, result, table

DEMO = {
    "plain": "default PyTorch",
    "tuned": "tuned PyTorch: length-grouped batches, best bucket size",
    "paced": "**paceline**, the global batches of the default",
    "window": "**paceline**, with a window",
}


def wire() -> str:
    """Return live steps on a limited link, in milliseconds."""
    head = (
        "compute, ranks | MB | wire over compute | bound | DDP, default | DDP, best size (MiB)"
        " | **paceline** | over bound | over best DDP"
    )
    rows = [
        [
            f"*{row['compute']}*, {row['ranks']}",
            f"{row['gradient_mb']:.0f}",
            f"{row['wire_over_compute']:.2f}",
            *(f"{1000 * row[key]:.0f}" for key in ("bound_s", "ddp_25_s")),
            f"{1000 * row['ddp_best_s']:.0f} ({row['ddp_best_bucket_mb']:g})",
            f"{1000 * row['paceline_s']:.0f}",
            f"{row['paceline_over_bound']:.2f}",
            f"{row['paceline_over_ddp_best']:.2f}",
        ]
        for name in ("communication_emulated", "communication_real")
        for row in result(name)["rows"]
    ]
    return table(head, rows)


def policies() -> str:
    """Return the worst simulated step of every communication policy over the lower bound."""
    found = result("communication_simulated")["summary"]
    rows = [
        [bold(name.removesuffix("_s").replace("_", " ")), f"{worst:.2f}"]
        for name, worst in sorted(found["worst_of_all_over_bound"].items(), key=lambda one: one[1])
    ]
    cases, better = found["num_cases"], found["num_better_than_all_baselines"]
    worse = found["num_worse_than_a_baseline"]
    text = f"Of {cases} cases paceline's plan beats every other in {better} and loses in {worse}."
    return f"{text}\n\n{table('policy | worst step over the lower bound', rows)}"


def lanes() -> str:
    """Return what deferring weight gradients and updates gained."""
    found = result("overlap")
    rows = [
        [
            f"backward pass, 24 layers of {row['hidden']}, batch {row['batch']}",
            str(row["plain_threads"]),
            *(ranged(row[key], 1, 1e-3) for key in ("plain_s", "split_s")),
            ranged(row["speedup"]),
            "yes" if row["defers"] else "no",
        ]
        for row in found["split_backward"]
    ] + [
        [
            f"AdamW update of {row['num_parameters']:,} parameters",
            str(row["threads"]),
            *(ranged(row[key], 1, 1e-3) for key in ("plain_s", "lanes_s")),
            ranged(row["speedup"]),
            "no" if row["kept"].startswith("nothing") else "yes",
        ]
        for row in found["optimizer"]
    ]
    head = "what | threads | plain, ms | on lanes, ms | speedup | does the trial keep it"
    added = ranged({k: 100 * v for k, v in found["checkpoint"]["added_share"].items()}, 0)
    share = (
        f"A checkpoint of {found['checkpoint']['num_parameters']:,} parameters adds {added} % to"
    )
    return (
        f"{table(head, rows)}\n\n{share} the {found['checkpoint']['steps_around']} steps around it."
    )


def lanes_on_a_wire() -> str:
    """Return what a split backward pass gains beside scheduled communication."""
    found = result("overlap_wire")
    rows = [[name, ranged(times, 1, 1e-3)] for name, times in found["spread_s"].items()]
    return table("`ScheduledDataParallel`, 50 MB over 1 Gbit/s | step, ms", rows)


def saving() -> str:
    found = result("async_checkpoint")
    rows = [
        [bold(name), ranged(way["added_s"], 0, 1e-3), ranged(way["blocked_s"], 0, 1e-3)]
        for name, way in found["ways"].items()
    ]
    return table("way | added to 20 steps, ms | the call itself, ms", rows)


def wire_faults() -> str:
    """Return how runs ended whose link or rank failed."""
    rows = [
        [
            row["fault"],
            str(row["ranks"]),
            "completed" if row["ended"] == "completed" else "error",
            "" if row["seconds_after_fault"] is None else f"{row['seconds_after_fault']:.0f}",
            {True: "yes", False: "**no**", None: ""}[row["replicas_equal"]],
        ]
        for row in result("communication_faults")["rows"]
    ]
    head = "fault | ranks | ended with | seconds after the fault | replicas equal"
    return table(head, rows)


def processor_steps() -> str:
    """Return predicted beside measured steps on a CPU."""
    rows = [
        [
            f"{row['model']}, batch {row['batch_size']}",
            f"{1000 * row['measured_s']:.1f}",
            f"{1000 * row['predicted_s']:.1f}",
            f"{row['relative_error']:+.0%}",
        ]
        for row in result("predict_cpu")["rows"]
    ]
    return table("model | measured, ms | predicted, ms | error", rows)


def held_out_steps() -> str:
    """Return errors of step times that were held out."""
    rows = []
    for regime, found in result("predict_tables")["step_time"].items():
        families = found["families"].values()
        cells = (
            " / ".join(f"{one[part][key]:.0f}" for one in families)
            for part, key in (("total", "mape"), ("compute", "mape"), ("total", "coverage"))
        )
        rows.append([f"{found['shift']} (`{regime}`)", *cells])
    head = "held out | step, MAPE % | compute alone, MAPE % | inside the 90 % interval, %"
    return table(head, rows)


def held_out_epochs() -> str:
    """Return errors of numbers of epochs, beside the best constant."""
    families = result("predict_tables")["convergence"]["families"].values()
    rows = [
        [
            f"{held} (`{regime}`)",
            *(
                " / ".join(f"{one[regime][key]:.0f}" for one in families)
                for key in ("mape", "constant_mape", "coverage")
            ),
        ]
        for regime, held in (("cv5", "rows"), ("lodo", "data sets"), ("lomo", "models"))
    ]
    head = "held out | MAPE % | best constant, MAPE % | inside the 90 % interval, %"
    return table(head, rows)


def peaks() -> str:
    """Return errors of predicted peak memory."""
    found = result("predict_memory")
    rows = [
        [
            name,
            f"{one['absolute_relative_error']['median']:.2%}",
            f"{one['largest_underestimate']:+.1%}",
            f"{one['largest_overestimate']:+.1%}",
        ]
        for name, one in (
            ("the batch that was traced", found["same_batch"]),
            ("a large batch, traced with a small one", found["large_from_smallest_batch"]),
        )
    ]
    return table("peak of | median error | largest underestimate | largest overestimate", rows)


def watching() -> str:
    """Return what watching and guarding take of a step."""
    watch, guard = result("watch_overhead"), result("guard_overhead")
    rows = [
        [
            "`paceline.watch`",
            f"{watch['hooks_share_of_step']:.2%}",
            ranged(watch["step_s"], 1, 1e-3),
        ],
        [
            "`paceline.torch.guard`",
            f"{guard['share_of_step']:.2%}",
            ranged(guard["step_s"], 1, 1e-3),
        ],
    ]
    return table("part | share of a step | step, ms", rows)


def simulator() -> str:
    found = result("simulator")
    rows = [
        ["simulate a million tasks", ranged(found["simulate_cpu_s"])],
        ["sum up a million spans", ranged(found["summary_cpu_s"])],
    ]
    if long := found.get("long_run"):
        what = (
            f"simulate {long['num_steps']} steps of {long['num_ranks']:,} ranks and "
            f"{long['num_layers']:,} layers, {long['num_tasks'] / 1e6:.0f} million tasks"
        )
        rows.append([what, f"{long['cpu_s']:.0f} ({long['peak_bytes'] / 1e9:.1f} GB at most)"])
    return table("what | CPU seconds", rows)


def demo() -> str:
    """Return the ways that the demo trains, as it prints them."""
    ways = {
        name: way
        for name, way in result("demo").items()
        if isinstance(way, dict) and "tokens_per_s" in way
    }
    rows = [
        [
            DEMO.get(name, name),
            f"{way['tokens_per_s']:,.0f}",
            f"{way['p50_s']:.3f} / {way['p90_s']:.3f}",
            f"{way['padding']:.0%}",
            f"{way['measured_step_s']:.3f}",
            f"{way['predicted_step_s']:.3f}",
            f"{way['final_loss']:.4f}",
        ]
        for name, way in ways.items()
    ]
    head = (
        "way | tokens/s | step p50 / p90, s | padding | mean step, s: measured | simulated before"
        " | last loss"
    )
    return table(head, rows)


def first_minute() -> str:
    """Return what the first start and the next one take."""
    rows = [
        [
            case,
            start,
            *(
                f"{found[start][key]['median']:.2f}"
                for key in ("import_torch_s", "import_paceline_torch_s")
            ),
            f"{found[start]['slowest_first_plan_s']:.2f}",
        ]
        for case, found in result("first_minute").items()
        for start in ("cold", "warm")
    ]
    return table("case | start | import torch, s | import paceline.torch, s | first plan, s", rows)


def faults() -> str:
    """Return how many faults of each kind ended how."""
    found = result("faults")
    counts = ("tried", "recovered", "refused_clearly", "still_valid")
    rows = [
        [kind, *(f"{one[key]:,}" for key in counts), f"{broken(one, counts):,}"]
        for kind, one in found["faults"].items()
    ]
    return table("fault | tried | recovered | refused clearly | still valid | broken", rows)


def broken(found: dict[str, int], fine: tuple[str, ...]) -> int:
    return sum(number for key, number in found.items() if key not in fine)


def verdicts() -> str:
    """Return how many verdicts of `paceline run` were right, by what was planted."""
    runs = result("verdict")["runs"]
    planted = dict.fromkeys(" and ".join(run["planted"]) or "nothing" for run in runs)
    rows = []
    for plant in planted:
        same = [run for run in runs if (" and ".join(run["planted"]) or "nothing") == plant]
        rows.append([plant, str(len(same)), str(sum(run["right"] for run in same))])
    total = [f"**{len(runs)}**", f"**{sum(run['right'] for run in runs)}**"]
    return table("planted | runs | told, and nothing else", [*rows, ["**all**", *total]])
