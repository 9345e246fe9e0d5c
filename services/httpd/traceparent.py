"""The header ``traceparent`` of W3C Trace Context: which trace a request belongs to, as its client says, or a new one.

A request whose client says nothing, or nothing that can be read, begins a trace of its own, and the application is told
so by the same header. What a client says is passed on as it is: HTTPD is no span of the trace.
"""

import os
import re
from typing import Final

from retinue.pipes import new_trace

Headers = list[tuple[bytes, bytes]]

# version, trace-id, parent-id, flags; later versions may add more behind them. Version ff is none.
_PARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)
_ZEROS: Final = b"0" * 32


def read_traceparent(untrusted: bytes) -> str | None:
    """The trace in a value of the header; None when it is not valid."""
    found = _PARENT.fullmatch(untrusted)
    if found is None or found[1] == _ZEROS or found[2] == _ZEROS[:16]:
        return None
    if found[3] is not None and untrusted.startswith(b"00"):
        return None  # version 00 has nothing more
    return found[1].decode()


def make_traceparent(trace: str) -> bytes:
    """A value for a trace that begins here, with the flag that says that it is recorded: HTTPD logs under it."""
    parent = int.from_bytes(os.urandom(8), "big") or 1
    return f"00-{trace}-{parent:016x}-01".encode()


def with_trace(headers: Headers) -> tuple[str, Headers]:
    """The trace of a request, and its headers with exactly one valid traceparent."""
    values = [value for name, value in headers if name == b"traceparent"]
    if len(values) == 1 and (trace := read_traceparent(values[0])) is not None:
        return trace, headers
    trace = new_trace()
    # tracestate means nothing without the traceparent that it came with.
    kept = [each for each in headers if each[0] not in (b"traceparent", b"tracestate")]
    return trace, [*kept, (b"traceparent", make_traceparent(trace))]
