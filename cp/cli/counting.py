"""``-n N``: how many lines a command prints."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Enough to see what happened, little enough for one look.
LINES_DEFAULT: Final = 100
# What `all` and every larger number mean: the largest integer of the wire that is one for everybody.
COUNT_MAX: Final = 2**31 - 1


def _count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A number of lines, or `all`."""
    if value is None:
        return None
    if value == "all":
        return COUNT_MAX
    if not (value.isascii() and value.isdecimal()):
        raise click.BadParameter(f"{value!r} is neither a number nor 'all'", ctx, param)
    return min(int(value[:20]), COUNT_MAX)


def count_option(what: str, default: int | None = LINES_DEFAULT) -> Callable[[_Function], _Function]:
    """``-n N``; None where none is given and there is no default."""
    shown = None if default is None else str(default)
    return click.option(
        *("-n", "--lines", "count"),
        callback=_count,
        default=shown,
        show_default=shown is not None,
        metavar="N",
        help=what,
    )
