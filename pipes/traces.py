"""The trace of a request: an id that follows it over paths, from the message that brought it to all that it causes.

It is kept in a context variable. A message that is sent while there is one carries it, if the other end can read it;
the handler of a message runs in that of the message. Ids are those of W3C Trace Context: 16 bytes, not all zero,
written as 32 lower-case hexadecimal digits. Nothing is decided by them: whoever sends a message may name any.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from retinue.pipes.wire import NO_TRACE, TRACE_SIZE

# The trace that the running task works for, as it travels; None for none.
current: Final[ContextVar[bytes | None]] = ContextVar("retinue trace", default=None)

_TRACE: Final = re.compile(r"[0-9a-f]{32}")


def trace() -> str | None:
    """The id of the trace in which this task or thread works, 32 lower-case hexadecimal digits; None without one."""
    ident = current.get()
    return None if ident is None else ident.hex()


def new_trace() -> str:
    """An id that nothing else has."""
    ident = NO_TRACE
    while ident == NO_TRACE:
        ident = os.urandom(TRACE_SIZE)
    return ident.hex()


def is_trace(untrusted: str) -> bool:
    """Whether a text is the id of a trace: 32 lower-case hexadecimal digits that are not all zero."""
    return _TRACE.fullmatch(untrusted) is not None and untrusted.strip("0") != ""


@contextmanager
def tracing(ident: str | None) -> Iterator[None]:
    """Work in the trace of this id for the length of the block, or in none (None); tasks that are begun in it do too.

    ValueError for what is no id of a trace.
    """
    if ident is not None and not is_trace(ident):
        raise ValueError(f"{ident!r} is no trace: 32 lower-case hexadecimal digits, not all zero, are expected")
    token = current.set(None if ident is None else bytes.fromhex(ident))
    try:
        yield
    finally:
        current.reset(token)
