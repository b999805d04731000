"""Numbers as people read them."""

from typing import NamedTuple

SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class Unit(NamedTuple):
    """A unit of time: its name, and how many of it a second has."""

    name: str
    per_s: float


def unit_for(largest_s: float) -> Unit:
    """Return the unit in which `largest_s` is a number that people can read.

    Examples:
        >>> unit_for(0.25), unit_for(12.0).name
        (Unit(name='ms', per_s=1000.0), 's')
    """
    for size, name in SECONDS:
        if largest_s >= size:
            return Unit(name, 1 / size)
    return Unit("µs", 1e6)


def time_text(seconds: float) -> str:
    """Return a time with three digits and its unit.

    Examples:
        >>> time_text(0.01234), time_text(75.0), time_text(0.0)
        ('12.3 ms', '75.0 s', '0 s')
    """
    if not seconds:
        return "0 s"
    unit = unit_for(seconds)
    return f"{number_text(seconds * unit.per_s)} {unit.name}"


def number_text(value: float) -> str:
    """Return three digits of a number, with commas from a thousand on.

    Examples:
        >>> number_text(12345.6), number_text(1.2345), number_text(75.04)
        ('12,346', '1.23', '75.0')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
