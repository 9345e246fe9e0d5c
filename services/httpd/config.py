"""What HTTPD can be told, with the reason for each default. Sizes are in bytes, times in seconds."""

import attrs
from attrs.validators import ge, gt, min_len


@attrs.frozen(kw_only=True)
class Config:
    """``routes`` is required: path prefix -> local name of the edge to the machine that answers below it."""

    routes: dict[str, str] = attrs.field(validator=min_len(1))
    # One line per request on the logger retinue.httpd.access.
    access_log: bool = True

    # The request line (414 above it). RFC 9112, section 3: at least 8000 octets should be supported.
    max_request_line: int = attrs.field(default=8192, validator=ge(64))
    # Request line and headers together (431 above it): four times what a browser with many cookies sends.
    max_head: int = attrs.field(default=32 * 1024, validator=ge(128))
    max_headers: int = attrs.field(default=100, validator=ge(1))
    # A request's body (413 above it). It is passed on piece by piece, so this protects applications, not HTTPD.
    max_body: int = attrs.field(default=1024 * 1024 * 1024, validator=ge(0))

    # From the first byte of a request to the end of its headers (408).
    head_time: float = attrs.field(default=10.0, validator=gt(0))
    # The longest silence within a request's body (408).
    body_time: float = attrs.field(default=30.0, validator=gt(0))
    # How long a connection may lie idle between requests before it is closed.
    idle_time: float = attrs.field(default=60.0, validator=gt(0))
    # How long a client may take to accept one slice (64 KiB) of a response before its connection is cut.
    write_time: float = attrs.field(default=60.0, validator=gt(0))
    # A client that has closed its sending side is either gone or waiting politely: it gets what comes within this time.
    # Longer than patience, so that it gets that answer too.
    half_closed_time: float = attrs.field(default=3.0, validator=gt(0))

    # How long a request waits for a machine that is starting or being restarted (503).
    patience: float = attrs.field(default=2.0, validator=gt(0))
    # How long a machine may take to begin its response, not counting the time it waits for the request's body (504).
    answer_time: float = attrs.field(default=60.0, validator=gt(0))
    # How long requests in flight may go on when the system stops.
    drain_time: float = attrs.field(default=5.0, validator=ge(0))
