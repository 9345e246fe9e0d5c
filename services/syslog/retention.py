"""How much is kept, as the config of SYSLOG says it."""

import re
from typing import Any, Final

import attrs

_SIZE: Final = re.compile(r"([1-9][0-9]{0,14})([KMGT])", re.ASCII)
_SIZES: Final = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_AGE: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])", re.ASCII)
_AGES: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Less than that is not enough for one batch.
LEAST_BYTES: Final = 1024 * 1024


@attrs.frozen
class Retention:
    """The oldest records are removed when there are more than ``records``, or they take more than ``bytes``, or they
    were stored more than ``age`` seconds ago. None: however many, however large, however old."""

    records: int
    bytes: int | None = None
    age: float | None = None


def bytes_of(text: str | int) -> int:
    """The bytes of a size such as "512M", or of a number of them. ValueError when it is none."""
    if isinstance(text, int):
        return text
    size = _SIZE.fullmatch(text)
    if size is None:
        raise ValueError(f'{text!r} is no size such as "512M" or "20G"')
    return int(size[1]) * _SIZES[size[2]]


def seconds_of(text: str) -> float:
    """The seconds of a time such as "30d". ValueError when it is none."""
    age = _AGE.fullmatch(text)
    if age is None:
        raise ValueError(f'{text!r} is no time such as "30d" or "12h"')
    return int(age[1]) * _AGES[age[2]]


def check_bytes(_: object, attribute: "attrs.Attribute[Any]", value: str | int | None) -> None:
    """Validator: a size that is large enough, or none."""
    try:
        if value is not None and bytes_of(value) < LEAST_BYTES:
            raise ValueError('the least is "1M"')
    except ValueError as exc:
        raise ValueError(f"'{attribute.name}': {exc}") from None


def check_age(_: object, attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    """Validator: a time, or none."""
    try:
        if value is not None:
            seconds_of(value)
    except ValueError as exc:
        raise ValueError(f"'{attribute.name}': {exc}") from None
