"""Sizes, times and percentages, which a topology file writes as a number and a unit in a string; and bare numbers."""

import re
from typing import Final

from retinue.cp.directory.table import Table, described, shown

_SIZE: Final = re.compile(r"([1-9][0-9]{0,14})([KMG])", re.ASCII)
_ALMOST_SIZE: Final = re.compile(r"\s*([1-9][0-9]{0,14})\s*([kmg])(?:i?b)?\s*", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"K": 1024, "M": 1024**2, "G": 1024**3}
_SIZE_EXPECTED: Final = 'a size such as "64M"'

_DURATION: Final = re.compile(r"(0|[1-9][0-9]{0,14})(ms|s|m|h)", re.ASCII)
_ALMOST_DURATION: Final = re.compile(r"\s*([0-9]{1,15})\s*(ms|s|m|h)[a-z]*\s*", re.ASCII | re.IGNORECASE)
# 0.1s is 100ms: there are no fractions, but a unit that is fine enough.
_FRACTION: Final = re.compile(r"\s*([0-9]{0,6})\.([0-9]{1,3})\s*s[a-z]*\s*", re.ASCII | re.IGNORECASE)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_EXPECTED: Final = 'a time such as "10s"'

_PERCENT: Final = re.compile(r"([1-9][0-9]{0,14})%", re.ASCII)
_ALMOST_PERCENT: Final = re.compile(r"\s*([1-9][0-9]{0,14})\s*(?:%|percent)?\s*", re.ASCII | re.IGNORECASE)
_PERCENT_EXPECTED: Final = 'a percentage of one processor such as "30%"'


def read_size(table: Table, key: str) -> int | None:
    """The bytes that ``key`` says; None if it is not there or, once that has been reported, no size."""
    value = table.value(key, str, _SIZE_EXPECTED)
    if value is None:
        return None
    if size := _SIZE.fullmatch(value):
        return int(size[1]) * _UNITS[size[2]]
    almost = _ALMOST_SIZE.fullmatch(value)
    hint = f'did you mean "{almost[1]}{almost[2].upper()}"?' if almost else ""
    table.wrong(key, f"{key} is {shown(value)}, expected {_SIZE_EXPECTED}", hint)
    return None


def read_duration(table: Table, key: str, expected: str = _DURATION_EXPECTED) -> float | None:
    """The seconds that ``key`` says; None as for :func:`read_size`."""
    value = table.value(key, str, expected)
    if value is None:
        return None
    if duration := _DURATION.fullmatch(value):
        return int(duration[1]) * _SECONDS[duration[2]]
    hint = ""
    if almost := _ALMOST_DURATION.fullmatch(value):
        hint = f'did you mean "{int(almost[1])}{almost[2].lower()}"?'
    elif fraction := _FRACTION.fullmatch(value):
        hint = f'did you mean "{int(fraction[1] + fraction[2].ljust(3, "0"))}ms"?'
    table.wrong(key, f"{key} is {shown(value)}, expected {expected}", hint)
    return None


def read_span(
    table: Table,
    key: str,
    least: float,
    most: float,
    expected: str = _DURATION_EXPECTED,
    *,
    fewer: str = "",
    more: str = "",
) -> float | None:
    """The seconds that ``key`` says, from ``least`` to ``most``; None as for :func:`read_size`.

    ``fewer`` and ``more`` say how to have less and more than that.
    """
    span = read_duration(table, key, expected)
    if span is None or least <= span <= most:
        return span
    value = f'{key} is "{table.values[key]}"'
    if span < least:
        table.wrong(key, f'{value}, and the shortest is "{as_duration(least)}"', fewer)
    else:
        table.wrong(key, f'{value}, and the longest is "{as_duration(most)}"', more)
    return None


def read_number(table: Table, key: str, least: int, most: int, fewer: str = "") -> int | None:
    """The whole number that ``key`` says, from ``least`` to ``most``; None as for :func:`read_size`.

    ``fewer`` says how to have less than that.
    """
    expected = f"a number from {least} to {most}"
    value = table.value(key, int, expected)
    if value is None or least <= value <= most:
        return value
    table.wrong(key, f"{key} is {described(value)}, expected {expected}", fewer if value < least else "")
    return None


def read_fraction(table: Table, key: str, least: float, most: float) -> float | None:
    """The number that ``key`` says, whole or not, from ``least`` to ``most``; None as for :func:`read_size`."""
    value = table.values.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
        return float(value)
    if key in table.values:
        table.wrong(key, f"{key} is {described(value)}, expected a number from {least:g} to {most:g}")
    return None


def read_percent(table: Table, key: str, maximum: int) -> int | None:
    """The percents that ``key`` says, 1 to ``maximum``; None as for :func:`read_size`."""
    value = table.value(key, str, _PERCENT_EXPECTED)
    if value is None:
        return None
    percent = _PERCENT.fullmatch(value)
    if percent is None:
        almost = _ALMOST_PERCENT.fullmatch(value)
        hint = f'did you mean "{almost[1]}%"?' if almost else ""
        table.wrong(key, f"{key} is {shown(value)}, expected {_PERCENT_EXPECTED}", hint)
    elif int(percent[1]) > maximum:
        table.wrong(key, f'{key} is "{value}", and the most is "{maximum}%"')
    else:
        return int(percent[1])
    return None


def as_size(size: int) -> str:
    """Bytes as one would write them in the file; a fraction of a K is rounded up."""
    for unit in ("G", "M"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{-(-size // _UNITS['K'])}K"


def as_duration(seconds: float) -> str:
    """Seconds as one would write them in the file; a fraction of a millisecond is rounded."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0 and (milliseconds >= size or unit == "s"):
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
