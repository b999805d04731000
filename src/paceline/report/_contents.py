"""Which sections the page of a run has."""

from paceline.report._page import Page
from paceline.report._verdict_part import verdict_part
from paceline.report.charts import (
    Chart,
    communication_chart,
    distribution_chart,
    forecast_chart,
    imbalance_chart,
    padding_chart,
    scaling_of,
    shares_chart,
    step_axis,
    step_time_chart,
    timeline_chart,
    waiting_chart,
    what_if_chart,
)
from paceline.report.tables import simulate_even, steps_table
from paceline.run import Run

STEPS_DRAWN = 60


def page_of(run: Run) -> Page:
    """Draw a run."""
    table = steps_table(run)
    axis = step_axis(table.num_steps)
    # The middle of a run is neither its warm-up nor its end.
    first = max(0, (run.num_steps - STEPS_DRAWN) // 2)
    num = min(STEPS_DRAWN, run.num_steps)
    measured = run.timeline(first=first, num=num)
    simulated = simulate_even(run.steps, first, num) if table.is_joint else None
    scaling = scaling_of(run)
    forecast = forecast_chart(table.step_s, axis)
    charts: list[Chart | None] = [
        timeline_chart(measured, simulated),
        shares_chart(table),
        step_time_chart(table, axis),
        waiting_chart(table, axis),
        distribution_chart(table),
        communication_chart(table, axis, scaling.wire_s),
        imbalance_chart(table, axis),
        padding_chart(table, axis),
        forecast,
        what_if_chart(scaling),
    ]
    return Page(
        info=run.info,
        run=table,
        verdict=verdict_part(run.verdict()),
        charts=[*filter(None, charts)],
    )
