"""What figures show, as arrays; nothing is drawn here."""

from paceline.report.tables._buckets import Band, band_of, bucket_starts, means
from paceline.report.tables._even import simulate_even
from paceline.report.tables._spans import Bars, bars_of
from paceline.report.tables._steps_table import (
    CLASSES,
    WAITING,
    WIRE,
    Array,
    StepsTable,
    steps_table,
)
