"""From the bytes of a request's head to a checked :class:`Request`. Everything here is untrusted until it is one."""

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

import h11

from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import HttpError
from retinue.services.httpd.traceparent import Headers, with_trace

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
# RFC 9112, 5.2: a server refuses a folded header line or replaces the fold. Proxies disagree about it, so: refuse.
_FOLD: Final = re.compile(rb"\n[ \t]")
# RFC 9110, 7.2 and RFC 3986, 3.2.2: a registered name, an IPv4 address or a bracketed IPv6 address, and a port.
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-fvV:.]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]*)(?::[0-9]*)?")
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]+)(.*)")

NOT_HTTP: Final = "The request is not valid HTTP/1.1."


class Request(NamedTuple):
    """A request's head, checked. ``length`` is the size of its body in bytes, None when it comes in chunks."""

    method: str
    target: bytes  # as the client wrote it
    path: str  # decoded
    raw_path: bytes
    query: bytes
    http_version: str  # "1.0" or "1.1"
    headers: Headers  # lower-case names
    length: int | None
    expects_continue: bool
    trace: str  # that of traceparent among the headers, which every request has


def head_size(buffer: bytearray, config: Config) -> int:
    """How many bytes at the start of the buffer are a request's head; 0 while its end has not come.

    Raises :exc:`HttpError` 400, 414 or 431 as soon as it is clear that it cannot become one.
    """
    if not 0x20 < buffer[0] < 0x7F:  # somebody speaks TLS, or worse, and would wait for an answer
        raise HttpError(400, NOT_HTTP)
    line_end = buffer.find(b"\n", 0, config.max_request_line + 2)
    if line_end < 0 and len(buffer) > config.max_request_line:
        raise HttpError(414, f"The request line is longer than {config.max_request_line} bytes.")
    end = _BLANK_LINE.search(buffer, 0, config.max_head)
    if end is not None:
        return end.end()
    if len(buffer) >= config.max_head:
        raise HttpError(431, f"The request's headers are longer than {config.max_head} bytes.")
    return 0


def parse(conn: h11.Connection, head: bytes, config: Config) -> Request:
    """The request whose head this is. ``conn`` is fresh, and has read the head afterwards.

    Raises :exc:`HttpError` 400, 417, 431, 501 or 505; the connection cannot go on then.
    """
    if _FOLD.search(head):
        raise HttpError(400, "Folded header lines are not accepted.")
    conn.receive_data(head)
    try:
        event = conn.next_event()
    except h11.RemoteProtocolError as exc:
        raise HttpError(501 if exc.error_status_hint == 501 else 400, NOT_HTTP) from exc
    if type(event) is not h11.Request:
        raise HttpError(400, NOT_HTTP)
    version = event.http_version
    if not version.startswith(b"1."):
        raise HttpError(505, "This server speaks HTTP/1.1.")
    method = event.method.decode("ascii")
    if method == "CONNECT":
        raise HttpError(501, "This server is not a proxy.")
    headers: Headers = list(event.headers)
    if len(headers) > config.max_headers:
        raise HttpError(431, f"The request has more than {config.max_headers} headers.")
    authority, target = _split(event.target, method)
    length, expects, headers = _check_headers(headers, version, authority)
    trace, headers = with_trace(headers)
    raw_path, _, query = target.partition(b"?")
    return Request(
        method,
        event.target,
        unquote(raw_path.decode("ascii")),
        raw_path,
        query,
        "1.0" if version == b"1.0" else "1.1",
        headers,
        length,
        expects,
        trace,
    )


def _split(target: bytes, method: str) -> tuple[bytes | None, bytes]:
    """(authority or None, path and query) of a request target, RFC 9112, 3.2."""
    if b"#" in target:
        raise HttpError(400, "The request target has a fragment.")
    if target.startswith(b"/") or (target == b"*" and method == "OPTIONS"):
        return None, target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise HttpError(400, "The request target is not a path.")
    rest = absolute[2]
    return absolute[1], rest if rest.startswith(b"/") else b"/" + rest


def _check_headers(headers: Headers, version: bytes, authority: bytes | None) -> tuple[int | None, bool, Headers]:
    """(length of the body, whether 100 Continue is awaited, the headers) after the checks that h11 leaves to us."""
    host: bytes | None = None
    length: int | None = 0
    lengths = encodings = 0
    expects = False
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"content-length":
            lengths += 1
            length = int(value)  # digits, and not too many: h11 has checked
        elif name == b"transfer-encoding":
            encodings += 1
        elif name == b"expect" and version != b"1.0":
            if value.lower() != b"100-continue":
                raise HttpError(417, "The only expectation this server meets is 100-continue.")
            expects = True
    if encodings:
        # RFC 9112, 6.1 and 6.3: both headers, or chunks from a client of HTTP/1.0, smell of request smuggling.
        if lengths or version == b"1.0":
            raise HttpError(400, "The length of the request's body is ambiguous.")
        length = None
    if authority is not None and version != b"1.0" and host is None:
        raise HttpError(400, "The Host header is missing.")
    if authority is not None:  # RFC 9112, 3.2.2: it replaces what Host says
        host = authority
        headers = [(b"host", authority), *(each for each in headers if each[0] != b"host")]
    if host is None:
        if version != b"1.0":
            raise HttpError(400, "The Host header is missing.")
    elif _HOST.fullmatch(host) is None:
        raise HttpError(400, "The Host header is not a host.")
    return length, expects, headers
