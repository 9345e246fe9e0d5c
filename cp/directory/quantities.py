"""Sizes, times and percentages, which a topology file writes as a number and a unit in a string."""

import re
from typing import Final

from retinue.cp.directory.table import Table, shown

_SIZE: Final = re.compile(r"([1-9][0-9]{0,14})([KMG])", re.ASCII)
_ALMOST_SIZE: Final = re.compile(r"\s*([1-9][0-9]{0,14})\s*([kmg])(?:i?b)?\s*", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"K": 1024, "M": 1024**2, "G": 1024**3}
_SIZE_EXPECTED: Final = 'a size such as "64M"'

_DURATION: Final = re.compile(r"(0|[1-9][0-9]{0,14})(ms|s|m|h)", re.ASCII)
_ALMOST_DURATION: Final = re.compile(r"\s*([0-9]{1,15})\s*(ms|s|m|h)[a-z]*\s*", re.ASCII | re.IGNORECASE)
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


def read_duration(table: Table, key: str) -> float | None:
    """The seconds that ``key`` says; None as for :func:`read_size`."""
    value = table.value(key, str, _DURATION_EXPECTED)
    if value is None:
        return None
    if duration := _DURATION.fullmatch(value):
        return int(duration[1]) * _SECONDS[duration[2]]
    almost = _ALMOST_DURATION.fullmatch(value)
    hint = f'did you mean "{int(almost[1])}{almost[2].lower()}"?' if almost else ""
    table.wrong(key, f"{key} is {shown(value)}, expected {_DURATION_EXPECTED}", hint)
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
