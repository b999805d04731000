"""Which sections the page of a run has."""

from paceline.report._chart import Chart
from paceline.report._even import simulate_even
from paceline.report._forecast import forecast_chart
from paceline.report._page import Page
from paceline.report._share_charts import distribution_chart, shares_chart
from paceline.report._step_axis import step_axis
from paceline.report._step_charts import (
    communication_chart,
    imbalance_chart,
    padding_chart,
    step_time_chart,
)
from paceline.report._steps_table import steps_table
from paceline.report._timeline_chart import timeline_chart
from paceline.report._verdict_part import verdict_part
from paceline.report._waiting_chart import waiting_chart
from paceline.report._what_if_chart import what_if_chart
from paceline.run import Run

STEPS_DRAWN = 60
NOT_RECORDED = "What the backward pass hides was not recorded."


def page_of(run: Run) -> Page:
    """Draw a run."""
    table = steps_table(run)
    axis = step_axis(table.num_steps)
    # The middle of a run is neither its warm-up nor its end.
    first = max(0, (run.num_steps - STEPS_DRAWN) // 2)
    num = min(STEPS_DRAWN, run.num_steps)
    measured = run.timeline(first=first, num=num)
    simulated = simulate_even(run.steps, first, num) if run.num_ranks > 1 else None
    forecast = forecast_chart(table.step_s, axis)
    charts: list[Chart | None] = [
        timeline_chart(measured, simulated),
        shares_chart(table),
        step_time_chart(table, axis),
        waiting_chart(table, axis),
        distribution_chart(table),
        communication_chart(table, axis, NOT_RECORDED),
        imbalance_chart(table, axis),
        padding_chart(table, axis),
        forecast,
        what_if_chart(run),
    ]
    return Page(
        info=run.info,
        run=table,
        verdict=verdict_part(run.verdict()),
        charts=[*filter(None, charts)],
    )
