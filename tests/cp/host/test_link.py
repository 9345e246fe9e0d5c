"""The link: what it carries, and what it refuses on either side."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from tests.leaks import assert_none_left, descriptors

from retinue.cp.host.errors import LinkError, LinkLimit
from retinue.cp.host.link import (
    DESCRIPTORS_MAX,
    MESSAGE_MAX,
    QUEUE_MAX,
    TEXT_MAX,
    Link,
    clipped,
    close_all,
    descriptor_list,
    field,
    link_pair,
)


@pytest.fixture
def raw_and_link() -> Iterator[tuple[socket.socket, Link]]:
    """A bare socket, to speak nonsense with, and a link that listens to it."""
    raw, sock = link_pair()
    link = Link(sock)
    with raw, contextlib.closing(link):
        yield raw, link


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    left, right = map(Link, link_pair())
    with contextlib.closing(left), contextlib.closing(right):
        yield left, right


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_message_arrives_whole_with_its_descriptors_and_in_order(links: tuple[Link, Link]) -> None:
    left, right = links
    read, write = os.pipe()
    left.post({"number": 1})
    left.post({"number": 2, "text": "é"}, [write])
    assert not is_open(write)
    assert right.receive() == ({"number": 1}, [])
    received = right.receive()
    assert received is not None
    message, [descriptor] = received
    assert message == {"number": 2, "text": "é"}
    assert not os.get_inheritable(descriptor)
    os.write(descriptor, b"x")
    assert os.read(read, 1) == b"x"
    close_all([read, descriptor])
    with pytest.raises(BlockingIOError):
        right.receive()


def test_end_of_the_other_side_is_none(links: tuple[Link, Link]) -> None:
    left, right = links
    left.post({"last": "words"})
    left.close()
    assert right.receive() == ({"last": "words"}, [])
    assert right.receive() is None
    with pytest.raises(ConnectionError):
        right.post({"too": "late"})


def test_messages_wait_when_the_peer_does_not_read_and_none_is_lost(links: tuple[Link, Link]) -> None:
    left, right = links
    count = 0
    while not left.waiting:
        left.post({"number": count, "padding": "x" * 1000})
        count += 1
    for _ in range(10):
        left.post({"number": count}, descriptor_list([0]))
        count += 1
    received: list[int] = []
    while len(received) < count:
        message = right.receive()
        assert message is not None
        received.append(message[0]["number"])
        close_all(message[1])
        left.flush()
    assert received == list(range(count))
    assert not left.waiting


def test_too_much_is_refused_by_the_sender_and_its_descriptors_are_closed(links: tuple[Link, Link]) -> None:
    left, _ = links
    read, write = os.pipe()
    with pytest.raises(LinkLimit) as caught:
        left.post({"text": "x" * MESSAGE_MAX}, [read, write])
    assert (caught.value.what, caught.value.limit) == ("bytes", MESSAGE_MAX)
    assert caught.value.value > MESSAGE_MAX
    assert not is_open(read)
    assert not is_open(write)
    with pytest.raises(LinkLimit, match="5 descriptors, the limit is 4"):
        left.post({}, descriptor_list([0] * (DESCRIPTORS_MAX + 1)))


def test_peer_that_never_reads_is_given_up(links: tuple[Link, Link]) -> None:
    left, _ = links
    while not left.waiting:
        left.post({"padding": "x" * 1000})
    for _ in range(QUEUE_MAX - 1):
        left.post({})
    with pytest.raises(LinkLimit, match="queue"):
        left.post({})


@pytest.mark.parametrize(
    "packet",
    [b"{", b"[]", b"1", b"null", b"\xff\xfe", b"{}" * 2, b"[" * 60000, b'"' + b"x" * MESSAGE_MAX + b'"'],
    ids=["cut", "list", "number", "null", "not-utf8", "two", "deep", "too-long"],
)
def test_nonsense_is_refused_by_the_receiver(raw_and_link: tuple[socket.socket, Link], packet: bytes) -> None:
    raw, link = raw_and_link
    raw.send(packet)
    with pytest.raises(LinkError):
        link.receive()


def test_too_many_descriptors_are_refused_by_the_receiver_and_none_stays_open(
    raw_and_link: tuple[socket.socket, Link],
) -> None:
    raw, link = raw_and_link
    before = descriptors()
    rights = struct.pack(f"{DESCRIPTORS_MAX + 6}i", *[0] * (DESCRIPTORS_MAX + 6))
    raw.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(LinkLimit, match="descriptors"):
        link.receive()
    raw.sendmsg([b"nonsense"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("2i", 0, 0))])
    with pytest.raises(LinkError):
        link.receive()
    assert_none_left(before)


@pytest.mark.parametrize(
    ("message", "kind"),
    [({}, str), ({"a": 1}, str), ({"a": "1"}, int), ({"a": True}, int), ({"a": None}, dict), ({"a": 1}, float)],
)
def test_field_of_another_type_is_refused(message: dict[str, object], kind: type[object]) -> None:
    with pytest.raises(LinkError, match="'a'"):
        field(message, "a", kind)


def test_clipped_text_keeps_its_end() -> None:
    assert clipped("short") == "short"
    text = clipped("x" * TEXT_MAX + "the reason")
    assert len(text) == TEXT_MAX
    assert text.endswith("the reason")
    assert text.startswith("...")
    assert len(json.dumps({"text": clipped("\0" * 2 * TEXT_MAX)})) < MESSAGE_MAX
