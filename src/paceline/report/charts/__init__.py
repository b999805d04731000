"""The sections of a page, drawn with bokeh."""

from paceline.report.charts._chart import Chart, section
from paceline.report.charts._forecast import forecast_chart
from paceline.report.charts._shares import distribution_chart, shares_chart
from paceline.report.charts._step_axis import step_axis
from paceline.report.charts._steps import (
    communication_chart,
    imbalance_chart,
    padding_chart,
    step_time_chart,
)
from paceline.report.charts._timeline import timeline_chart
from paceline.report.charts._waiting import waiting_chart
from paceline.report.charts._what_if import scaling_of, what_if_chart
