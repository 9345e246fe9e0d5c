"""What an end of a path is made with."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs

from retinue.pipes.overflow import Overflow
from retinue.pipes.transport import Transport

if TYPE_CHECKING:
    from retinue.pipes.path import Path

Rebind = Callable[["Path"], Awaitable[Transport]]
OnDrop = Callable[["Path"], None]


@attrs.frozen
class Options:
    """The arguments of :class:`~retinue.pipes.path.Path`, which says what each is for."""

    name: str
    peer: str
    limit: int
    largest: int
    overflow: Overflow
    on_drop: OnDrop | None
    rebind: Rebind | None
    quiesced: bool
