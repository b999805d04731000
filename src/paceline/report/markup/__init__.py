"""Elements of a page, and numbers with their units."""

from paceline.report.markup._html import Html, element, joined, table
from paceline.report.markup._units import Unit, number_text, time_text, unit_for
