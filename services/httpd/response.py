"""From what an application's machine answers to a checked response, and the heads that HTTPD writes.

A machine is not trusted: a reply is ``untrusted_*`` until :func:`read_reply` or :func:`read_part` has returned.
"""

import time
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import h11

from retinue.services.httpd.errors import BadReply, HttpError
from retinue.services.httpd.traceparent import Headers

SERVER: Final = b"retinue"
# More headers than any browser or proxy accepts would only be an attempt to exhaust HTTPD.
MAX_HEADERS: Final = 256
MAX_HEADER_BYTES: Final = 64 * 1024
# Headers about one connection (RFC 9110, 7.6.1), which is HTTPD's own business; of Connection only "close" is obeyed.
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
_REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


class Reply(NamedTuple):
    """A response, or (``status`` 0) a further part of one, as a machine gave it."""

    status: int
    headers: Headers
    body: bytes


class Head(NamedTuple):
    """A response's head, ready to be written. ``bodiless``: no body follows, whatever the headers say."""

    event: h11.Response
    close: bool
    bodiless: bool


def read_reply(untrusted_reply: Any) -> Reply:
    """A whole response: ``{"status"?, "headers"?, "body"?}``, or text or bytes alone. Raises :exc:`BadReply`."""
    if type(untrusted_reply) is not dict:
        body, is_text = _read_body(untrusted_reply)
        return Reply(200, [(b"content-type", _PLAIN if is_text else b"application/octet-stream")], body)
    _check_keys(untrusted_reply)
    status = untrusted_reply.get("status", 200)
    if type(status) is not int or not 200 <= status <= 599:
        raise BadReply(f"status is {str(status)[:40]!r}, not a number from 200 to 599")
    headers = _read_headers(untrusted_reply.get("headers"))
    body, is_text = _read_body(untrusted_reply.get("body", b""))
    if is_text and not any(name.lower() == b"content-type" for name, _ in headers):
        headers.append((b"content-type", _PLAIN))
    return Reply(status, headers, body)


_PLAIN: Final = b"text/plain; charset=utf-8"


def read_part(untrusted_part: Any) -> Reply:
    """A further part of a response that has begun: ``{"body"?}`` or None. Raises :exc:`BadReply`."""
    if untrusted_part is None:
        return Reply(0, [], b"")
    if type(untrusted_part) is not dict:
        raise BadReply("the end of a response is not a map")
    _check_keys(untrusted_part)
    if "status" in untrusted_part or "headers" in untrusted_part:
        raise BadReply("a second status or a second set of headers in one response")
    return Reply(0, [], _read_body(untrusted_part.get("body", b""))[0])


def _check_keys(untrusted_reply: dict[str, Any]) -> None:
    for key in untrusted_reply:
        if key not in ("status", "headers", "body"):
            raise BadReply(f"unknown key {str(key)[:40]!r} in a response (status, headers and body are known)")


def _read_body(untrusted_body: Any) -> tuple[bytes, bool]:
    if type(untrusted_body) is bytes:
        return untrusted_body, False
    if type(untrusted_body) is str:
        return untrusted_body.encode("utf-8", "replace"), True
    raise BadReply(f"the body is a {type(untrusted_body).__name__}, not bytes or text")


def _read_headers(untrusted_headers: Any) -> Headers:
    if untrusted_headers is None:
        return []
    if type(untrusted_headers) is dict:
        untrusted_headers = list(untrusted_headers.items())
    if type(untrusted_headers) is not list or len(untrusted_headers) > MAX_HEADERS:
        raise BadReply(f"headers are not a map or a list of at most {MAX_HEADERS} pairs")
    headers: Headers = []
    size = 0
    for pair in untrusted_headers:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise BadReply("a header is not a pair")
        name, value = (each.encode("latin-1", "replace") if type(each) is str else each for each in pair)
        if type(name) is not bytes or type(value) is not bytes:
            raise BadReply("a header's name or value is not bytes or text")
        size += len(name) + len(value)
        headers.append((name, value))
    if size > MAX_HEADER_BYTES:
        raise BadReply(f"the headers are {size} bytes long, the limit is {MAX_HEADER_BYTES}")
    return headers


def make_head(reply: Reply, method: str, *, more: bool, close: bool) -> Head:
    """The head to write for a checked reply; ``more`` says that further parts of the body will follow.

    Adds Date and Server where the application did not, and the length where it is known. Raises :exc:`BadReply`.
    """
    status = reply.status
    headers: Headers = []
    declared: int | None = None
    has_date = has_server = False
    for name, value in reply.headers:
        lower = name.lower()
        if lower in _HOP_BY_HOP:
            close = close or (lower == b"connection" and b"close" in value.lower())
            continue
        if lower == b"content-length":
            if not value.isdigit() or len(value) > 18 or (declared is not None and declared != int(value)):
                raise BadReply("content-length is not one number")
            declared = int(value)
            continue
        has_date = has_date or lower == b"date"
        has_server = has_server or lower == b"server"
        headers.append((name, value))
    bodiless = status in (204, 304) or method == "HEAD"
    if status in (204, 304):
        if reply.body:
            raise BadReply(f"a response with status {status} has a body")
        if status == 204:
            declared = None  # RFC 9110, 8.6: not even a zero
    elif not more:
        if declared is None and (reply.body or not bodiless):
            declared = len(reply.body)
        elif not bodiless and declared != len(reply.body):
            raise BadReply(f"content-length is {declared}, the body has {len(reply.body)} bytes")
    if declared is not None:
        headers.append((b"content-length", b"%d" % declared))
    if not has_date:
        headers.append((b"date", date()))
    if not has_server:
        headers.append((b"server", SERVER))
    if close:
        headers.append((b"connection", b"close"))
    try:
        event = h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, b""))
    except h11.LocalProtocolError as exc:
        raise BadReply(f"a header is not valid: {str(exc)[:200]}") from exc
    return Head(event, close, bodiless)


def refusal(error: HttpError) -> Reply:
    """The short plain text that answers a request which failed."""
    headers = [(b"content-type", _PLAIN)]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    reason = _REASONS.get(error.status, b"").decode("ascii")
    return Reply(error.status, headers, f"{error.status} {reason}\n{error.text}\n".encode())


# In English whatever the locale is. (email.utils has it as well, and costs a quarter of HTTPD's start.)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class _Clock:
    """The Date header, made once a second."""

    second = 0
    text = b""


def format_date(second: int) -> str:
    """A second since 1970 as the Date header says it (RFC 9110, 5.6.7)."""
    now = time.gmtime(second)
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    return f"{day}, {now.tm_mday:02} {month} {now.tm_year:04} {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"


def date() -> bytes:
    """Now, as the Date header says it."""
    second = int(time.time())
    if second != _Clock.second:
        _Clock.second, _Clock.text = second, format_date(second).encode("ascii")
    return _Clock.text
