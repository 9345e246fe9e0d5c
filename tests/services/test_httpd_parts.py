"""The parts of HTTPD that do no I/O: routes, a request's head, an application's reply."""

from email.utils import formatdate
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import BadReply, BadRoute, HttpError
from retinue.services.httpd.request import Request, head_size, parse
from retinue.services.httpd.response import format_date, make_head, read_part, read_reply
from retinue.services.httpd.routes import Routes
from retinue.services.httpd.service import BadOpening, read_opening
from retinue.services.httpd.traceparent import read_traceparent

CONFIG = Config(routes={"/": "app"})


def parsed(head: bytes, config: Config = CONFIG) -> Request:
    assert head_size(bytearray(head), config) == len(head)
    return parse(h11.Connection(h11.SERVER, config.max_head), head, config)


def refused(head: bytes, config: Config = CONFIG) -> int:
    with pytest.raises(HttpError) as caught:
        parsed(head, config)
    return caught.value.status


# -- routes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "edge"),
    [
        ("/", "web"),
        ("/other", "web"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x/y", "api"),
        ("/apix", "web"),
        ("/api/v2", "new"),
        ("/api/v2/x", "new"),
        ("/api/v22", "api"),
        ("/%61pi", "web"),  # routes see decoded paths: this one was written %2561pi
        ("", None),
        ("api", None),
    ],
)
def test_routes_longest_prefix_of_whole_segments_wins(path: str, edge: str | None) -> None:
    routes = Routes({"/": "web", "/api/": "api", "/api/v2": "new"}, ("web", "api", "new"))
    assert routes.find(path) == edge


def test_routes_without_a_root_leave_other_paths_unserved() -> None:
    routes = Routes({"/api": "api"}, ("api",))
    assert routes.find("/api") == "api"
    assert routes.find("/") is None


@pytest.mark.parametrize("table", [{"api": "a"}, {"/a?b": "a"}, {"/a": "nobody"}, {"/a": "a", "/a/": "a"}, {"//": "a"}])
def test_routes_that_cannot_be_obeyed_are_refused(table: dict[str, str]) -> None:
    with pytest.raises(BadRoute):
        Routes(table, ("a",))


# -- a request's head -----------------------------------------------------------------------------------------------


def test_request_fields() -> None:
    request = parsed(b"POST /a%20b/%C3%A9?x=%31 HTTP/1.1\r\nHost: h:80\r\nX-A: 1\r\nContent-Length: 5\r\n\r\n")
    assert (request.method, request.path, request.raw_path) == ("POST", "/a b/é", b"/a%20b/%C3%A9")
    assert (request.query, request.http_version, request.length) == (b"x=%31", "1.1", 5)
    assert request.headers[:-1] == [(b"host", b"h:80"), (b"x-a", b"1"), (b"content-length", b"5")]
    assert request.headers[-1][0] == b"traceparent"


def test_request_in_absolute_form_takes_the_host_from_the_target() -> None:
    request = parsed(b"GET http://real.example:81?q HTTP/1.1\r\nHost: other\r\n\r\n")
    assert (request.path, request.query, request.headers[:-1]) == ("/", b"q", [(b"host", b"real.example:81")])


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00-%s-00f067aa0ba902b7-01" % TRACE.encode()


def test_request_of_a_trace_keeps_its_headers_as_they_are() -> None:
    """The one of its client, of this version of the header or of a later one."""
    for value in (PARENT, b"cc" + PARENT[2:] + b"-what-the-future-brings", PARENT[:-2] + b"00"):
        headers = [(b"host", b"h"), (b"traceparent", value), (b"tracestate", b"a=b")]
        head = b"GET / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % each for each in headers) + b"\r\n"
        assert parsed(head).headers == headers
        assert parsed(head).trace == TRACE


@pytest.mark.parametrize(
    "values",
    [
        [],
        [PARENT, PARENT],
        [PARENT.upper()],
        [b"ff" + PARENT[2:]],
        [PARENT + b"-more"],
        [PARENT[:-1]],
        [b"cc" + PARENT[2:] + b"more"],
        [b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"],
        [PARENT[:36] + b"0" * 16 + b"-01"],
        [b"00-%s-00f067aa0ba902b7" % TRACE.encode()],
        [b""],
    ],
    ids=repr,
)
def test_request_without_a_trace_begins_one(values: list[bytes]) -> None:
    """Each its own; what could not be read does not reach the application, nor what belongs to it."""
    lines = b"".join(b"Traceparent: %s\r\n" % value for value in values)
    head = b"GET / HTTP/1.1\r\nHost: h\r\nTracestate: a=b\r\n" + lines + b"\r\n"
    first, second = parsed(head), parsed(head)
    assert TRACE not in (first.trace, second.trace)
    assert first.trace != second.trace
    host, (name, value) = first.headers
    assert (host, name) == ((b"host", b"h"), b"traceparent")
    assert read_traceparent(value) == first.trace


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400),  # folded
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: cake\r\nContent-Length: 1\r\n\r\n", 417),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 100 + b"\r\n", 431),
    ],
)
def test_request_that_is_refused(head: bytes, status: int) -> None:
    assert refused(head) == status


def test_request_line_and_head_are_limited_to_the_byte() -> None:
    config = Config(routes={"/": "app"}, max_request_line=100, max_head=200)
    line = b"GET /" + b"x" * (100 - 14) + b" HTTP/1.1"
    assert len(line) == 100
    head = line + b"\r\nHost: a\r\nX: %b\r\n\r\n"
    fitting = head % (b"y" * (200 - len(head) + 2))
    assert len(fitting) == 200
    parsed(fitting, config)
    assert refused(fitting.replace(b"xx", b"xxx", 1), config) == 414
    assert refused(fitting.replace(b"yy", b"yyy", 1), config) == 431


def test_head_size_refuses_before_the_end_has_come() -> None:
    for start, status in ((b"\x16\x03\x01", 400), (b"GET /" + b"x" * 9000, 414)):
        with pytest.raises(HttpError) as caught:
            head_size(bytearray(start), CONFIG)
        assert caught.value.status == status
    assert head_size(bytearray(b"GET / HT"), CONFIG) == 0


# -- an application's reply -----------------------------------------------------------------------------------------


def test_reply_may_be_short() -> None:
    assert read_reply("ü").headers == [(b"content-type", b"text/plain; charset=utf-8")]
    assert read_reply(b"x").body == b"x"
    reply = read_reply({"status": 404, "headers": {"X-A": "1"}, "body": "no"})
    assert (reply.status, reply.body) == (404, b"no")
    assert reply.headers == [(b"X-A", b"1"), (b"content-type", b"text/plain; charset=utf-8")]


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        [],
        {"status": 101},
        {"status": 600},
        {"status": "200"},
        {"status": True},
        {"stauts": 200},
        {"body": 7},
        {"headers": 7},
        {"headers": [[b"a"]]},
        {"headers": [[b"a", 7]]},
        {"headers": [[b"a", b"b"]] * 300},
        {"headers": [[b"a", b"b" * 70000]]},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "b\r\nset-cookie: c"}},
        {"headers": {"a": "b\0"}},
        {"headers": {"": "b"}},
        {"headers": {"content-length": "3"}, "body": b"four"},
        {"headers": [["content-length", "4"], ["content-length", "5"]], "body": b"four"},
        {"headers": {"content-length": "-1"}},
        {"status": 204, "body": b"x"},
        {"status": 304, "body": b"x"},
    ],
)
def test_reply_that_is_garbage_is_refused(reply: Any) -> None:
    with pytest.raises(BadReply):
        make_head(read_reply(reply), "GET", more=False, close=False)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, database=None)  # the tree may be read-only
@given(
    json_like | st.fixed_dictionaries({}, optional={"status": json_like, "headers": json_like, "body": json_like}),
    st.booleans(),
)
def test_reply_of_any_shape_is_a_head_or_a_bad_reply(reply: Any, more: bool) -> None:
    for read in (read_reply, read_part):
        try:
            checked = read(reply)
            if checked.status:
                make_head(checked, "GET", more=more, close=False)
        except BadReply:
            pass


def test_head_leaves_the_connection_to_httpd() -> None:
    reply = read_reply({"headers": {"Connection": "close, x", "Transfer-Encoding": "chunked", "Keep-Alive": "x"}})
    head = make_head(reply, "GET", more=False, close=False)
    names = [name for name, _ in head.event.headers]
    assert head.close
    assert sorted(names) == [b"connection", b"content-length", b"date", b"server"]


def test_head_keeps_the_applications_date_and_server() -> None:
    reply = read_reply({"headers": {"Date": "today", "Server": "mine"}})
    headers = dict(make_head(reply, "GET", more=False, close=False).event.headers)
    assert (headers[b"date"], headers[b"server"]) == (b"today", b"mine")


# -- tcp.open -------------------------------------------------------------------------------------------------------


def test_opening() -> None:
    assert read_opening({"type": "tcp.open", "client": ["::1", 1], "server": None}) == (("::1", 1), None)


@pytest.mark.parametrize("client", [["a"], ["a", "b"], ["a\n", 1], ["a", -1], ["a", True], "a", ["x" * 65, 1]])
def test_opening_with_a_false_address_is_refused(client: Any) -> None:
    with pytest.raises(BadOpening):
        read_opening({"type": "tcp.open", "client": client})
    with pytest.raises(BadOpening):
        read_opening(client)


# -- the Date header ------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_date_is_that_of_the_standard_library(second: int) -> None:
    assert format_date(second) == formatdate(second, usegmt=True)
