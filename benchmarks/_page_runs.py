"""Tables of recorded runs, of what is applied to them, and of published steps."""

from typing import Any

from _page_tables import ranged, result, table

SYSTEMS = {"ours": "**paceline**", "35 % of peak": "35 % of peak", "roofline": "roofline alone"}
EXAMPLES = ("ragged_text", "gpt2", "ordering")


def recording() -> str:
    found = result("run_overhead")
    share = found["share_of_a_50_ms_step"]
    rows = [["hooks, live line and writing, of a step of 50 ms", f"{share:.2%}"]]
    page = result("report_page")
    if page:
        slowest = max(max(seconds) for seconds in page["open_s"].values())
        what = f"page of {page['num_steps']:,} steps on {page['num_ranks']} ranks: size"
        rows += [[what, f"{page['page_bytes'] / 1e6:.2f} MB"]]
        rows += [["the same, opened in headless Chromium, slowest", f"{slowest:.1f} s"]]
    return table("what | figure", rows)


def applied() -> str:
    found = result("apply")
    rows = [
        ["predicted before", ranged(found["gain_predicted"])],
        ["measured, the same steps of both runs", ranged(found["gain_measured_same_steps"])],
        ["measured over predicted", ranged(found["measured_over_predicted"])],
    ]
    return table(f"{found['num_kept']} of {found['num_runs']} runs kept the plan | times", rows)


def simulated_steps() -> str:
    """Return simulated over measured steps of each example."""
    found = result("simulated_steps")
    rows = [
        [example, ranks, *(_ratio(ways[way]) for way in ("default", "tuned", "paced"))]
        for example in EXAMPLES
        for ranks, ways in found[example].items()
    ]
    whatif = _ratio(found["whatif, 2 to 4 ranks"])
    rows.append(["what-if, from 2 ranks to 4", "4 ranks", whatif, "", ""])
    return table("example | ranks | DDP, default | DDP, best buckets | paced", rows)


def _ratio(found: dict[str, Any]) -> str:
    return ranged(found["simulated_over_measured"])


def published_steps() -> str:
    """Return errors on published throughputs kept to the end; the mean is geometric."""
    kept = result("predict_published")["kept"]
    rows = [
        [
            name,
            f"{kept[key]['median_error']:.1f} %",
            f"{kept[key]['geometric_mean_ratio']:.2f}",
            f"{kept[key]['inside']:.0f} %" if "inside" in kept[key] else "",
        ]
        for key, name in SYSTEMS.items()
    ]
    head = "predicted by | median error | predicted over measured, mean | inside the interval"
    return table(head, rows)
