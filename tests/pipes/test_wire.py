"""Frames: shapes, limits at both ends, garbage."""

import contextlib
import os
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.pipes import LimitExceeded, ProtocolViolation, wire
from retinue.pipes.wire import Decoder, Kind

ID = 2**63 - 1
TRACE = bytes(range(16))

# Every kind, with the extremes of what it may hold.
GOOD: list[list[Any]] = [
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, wire.MAX_LIMIT, ID, ID, ID, ID, ID, 1],
    [Kind.HELLO, 1, 64],  # of another version nothing is known
    [Kind.HELLO, -5, "what", {}],
    [Kind.HELLO, 2**40],
    [Kind.SEND, 1, None],
    [Kind.SEND, ID, {"a": [1, b"x", 1.5, True]}],
    [Kind.SEND, -1, None],
    [Kind.SEND, -ID, "priority", 3],
    [Kind.SEND, 1, None, 0],
    [Kind.SEND, 1, None, 1],
    [Kind.CALL, 1, "x", wire.MAX_DESCRIPTORS],
    [Kind.CALL, -1, None, 0, 1],
    [Kind.CALL, 1, [], wire.MAX_DESCRIPTORS, wire.MAX_REMAINING],
    [Kind.CALL, 7, [[], {}]],
    [Kind.SEND, 1, None, 0, TRACE],
    [Kind.SEND, -1, {"a": []}, wire.MAX_DESCRIPTORS, b"\xff" * 16],
    [Kind.CALL, 1, None, 0, TRACE],
    [Kind.CALL, -1, [[]], 3, 1, TRACE],
    [Kind.CALL, 1, b"", 0, wire.MAX_REMAINING, bytes(15) + b"\1"],
    [Kind.REPLY, 1, 2**64 - 1],
    [Kind.REPLY, 1, -(2**63), 2],
    [Kind.REPLY, -ID, None],
    [Kind.REJECT, -1, "", "", None],
    [Kind.REJECT, 1, "", "", None],
    [Kind.REJECT, 1, "x" * wire.MAX_TEXT, "y" * wire.MAX_TEXT, {"detail": [1]}],
    [Kind.ACK, ID, ID],
    [Kind.ACK, 1, 1 + wire.MAX_LIMIT],
    [Kind.ACK, -1, -1],
    [Kind.ACK, -3, -3 - wire.MAX_LIMIT],
    [Kind.PURGE, 1],
    [Kind.PURGE, -ID],
    [Kind.SEVER, "closed", "ü" * wire.MAX_TEXT],
    [Kind.STREAM],
    [Kind.DATA, b"x"],
    [Kind.DATA, b"x" * wire.MAX_CHUNK],
    [Kind.EOF],
    [Kind.CREDIT, 1],
    [Kind.CREDIT, wire.STREAM_WINDOW],
    [Kind.BULK, wire.MAX_PACKET + 1],
    [Kind.BULK, wire.MAX_MESSAGE],
    [Kind.SEEN, 0],
    [Kind.SEEN, ID],
    [Kind.QUIESCE],
    [Kind.QUIESCED],
    [Kind.RESUME],
]

BAD: list[Any] = [
    None,
    7,
    "text",
    {},
    [],
    [[]],
    [True],
    [1.0, 1, None],
    ["SEND", 1, None],
    [17],
    [-1],
    [255, 1],
    [Kind.HELLO],
    [Kind.HELLO, True, 1],
    [Kind.HELLO, "1", 1],
    [Kind.HELLO, float(wire.VERSION), 1, 1, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 0, 1, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, wire.MAX_LIMIT + 1, 1, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, True, 1, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, 0, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, ID + 1, 0, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, 1, -1, 0, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, -1, 0, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, None, 0, 0],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, -1, 0],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, 0, 2],
    [Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, 0, False],
    [Kind.SEND],
    [Kind.SEND, 1],
    [Kind.SEND, 0, None],
    [Kind.SEND, ID + 1, None],
    [Kind.SEND, -ID - 1, None],
    [Kind.SEND, True, None],
    [Kind.SEND, 1.0, None],
    [Kind.SEND, 1, None, wire.MAX_DESCRIPTORS + 1],
    [Kind.SEND, 1, None, True],
    [Kind.SEND, 1, None, -1],
    [Kind.SEND, 1, None, 1, 1],
    [Kind.SEND, 1, None, 0, bytes(16)],
    [Kind.SEND, 1, None, 0, TRACE[:15]],
    [Kind.SEND, 1, None, 0, TRACE + b"x"],
    [Kind.SEND, 1, None, 0, TRACE.hex()],
    [Kind.SEND, 1, None, 0, None],
    [Kind.SEND, 1, None, TRACE],
    [Kind.SEND, 1, None, 17, TRACE],
    [Kind.SEND, 1, None, 0, 1, TRACE],
    [Kind.SEND, 0, None, 0, TRACE],
    [Kind.CALL, 1, None, 0, bytes(16)],
    [Kind.CALL, 1, None, 0, TRACE * 2],
    [Kind.CALL, 1, None, TRACE],
    [Kind.CALL, 1, None, 0, TRACE, 1],
    [Kind.CALL, 1, None, 0, TRACE, TRACE],
    [Kind.CALL, 1, None, 0, 0, TRACE],
    [Kind.CALL, 1, None, 0, 1, bytes(16)],
    [Kind.CALL, 1, None, 0, 1, TRACE, TRACE],
    [Kind.CALL, 0, None, 0, 1, TRACE],
    [Kind.REPLY, 1, None, 0, TRACE],
    [Kind.CALL, None, None],
    [Kind.CALL, 1],
    [Kind.CALL, 0, None, 0, 1],
    [Kind.CALL, 1, None, 0, 0],
    [Kind.CALL, 1, None, 0, True],
    [Kind.CALL, 1, None, 0, None],
    [Kind.CALL, 1, None, None, 1],
    [Kind.CALL, 1, None, 0, wire.MAX_REMAINING + 1],
    [Kind.CALL, 1, None, 0, 1, 1],
    [Kind.REPLY, 1, None, 0, 1],
    [Kind.REPLY, 1],
    [Kind.REPLY, 1, None, "1"],
    [Kind.REJECT, 1, "code", "text"],
    [Kind.REJECT, 1, b"code", "text", None],
    [Kind.REJECT, 1, "code", None, None],
    [Kind.REJECT, 1, "x" * (wire.MAX_TEXT + 1), "", None],
    [Kind.REJECT, 1, "", "x" * (wire.MAX_TEXT + 1), None],
    [Kind.REJECT, 1, "code", "text", None, 1],
    [Kind.ACK],
    [Kind.ACK, 1],
    [Kind.ACK, 0, 0],
    [Kind.ACK, 0, 1],
    [Kind.ACK, 2, 1],
    [Kind.ACK, -2, -1],
    [Kind.ACK, -1, 1],
    [Kind.ACK, 1, 2 + wire.MAX_LIMIT],
    [Kind.ACK, -1, -2 - wire.MAX_LIMIT],
    [Kind.ACK, 1, True],
    [Kind.ACK, 1, 1, 1],
    [Kind.PURGE, 0],
    [Kind.PURGE, "1"],
    [Kind.SEVER],
    [Kind.SEVER, "closed"],
    [Kind.SEVER, "closed", 1],
    [Kind.SEVER, "x" * (wire.MAX_TEXT + 1), ""],
    [Kind.STREAM, 1],
    [Kind.DATA],
    [Kind.DATA, b""],
    [Kind.DATA, "text"],
    [Kind.DATA, b"x" * (wire.MAX_CHUNK + 1)],
    [Kind.EOF, None],
    [Kind.CREDIT, 0],
    [Kind.CREDIT, -1],
    [Kind.CREDIT, wire.STREAM_WINDOW + 1],
    [Kind.CREDIT, True],
    [Kind.BULK, wire.MAX_PACKET],
    [Kind.BULK, wire.MAX_MESSAGE + 1],
    [Kind.BULK, b"1"],
    [Kind.BULK, 2**17, 1],
    [Kind.SEEN],
    [Kind.SEEN, -1],
    [Kind.SEEN, ID + 1],
    [Kind.SEEN, True],
    [Kind.SEEN, 1, 1],
    [Kind.QUIESCE, 1],
    [Kind.QUIESCED, None],
    [Kind.RESUME, []],
]


def name_of(frame: Any) -> str:
    return ascii(frame)[:60]


@pytest.mark.parametrize("frame", GOOD, ids=name_of)
def test_every_shape_goes_there_and_back(frame: list[Any]) -> None:
    """What one end may say, the other takes, as it was."""
    assert Decoder().decode(wire.encode(frame)) == [frame]


def test_every_kind_has_a_shape_that_is_tested() -> None:
    """No kind of frame is missing from the table above."""
    assert {frame[0] for frame in GOOD} == set(Kind)


@pytest.mark.parametrize("frame", BAD, ids=name_of)
def test_every_other_shape_is_a_violation(frame: Any) -> None:
    """A frame that does not fit its row is refused with a rule that names it, and never looked at again."""
    with pytest.raises(ProtocolViolation):
        Decoder().decode(msgpack.packb(frame))


def test_many_frames_share_a_packet() -> None:
    """The frames of a packet come in their order, packet after packet from one decoder."""
    decoder = Decoder()
    for _ in range(3):
        assert decoder.decode(b"".join(map(wire.encode, GOOD[:5]))) == GOOD[:5]
    assert decoder.decode(b"") == []


@pytest.mark.parametrize("frame", [frame for frame in GOOD if len(wire.encode(frame)) < 200], ids=name_of)
def test_packet_that_ends_inside_a_frame_is_a_violation(frame: list[Any]) -> None:
    """Every proper beginning of a frame is refused, alone and after a whole frame."""
    whole = wire.encode(frame)
    for length in range(1, len(whole)):
        for before in (b"", wire.encode([Kind.EOF])):
            with pytest.raises(ProtocolViolation):
                Decoder().decode(before + whole[:length])


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"\x93\x01\x01\xc1",
        b"\x93\x01\x01\xa2\xff\xfe",  # a text that is no UTF-8
        b"\x93\x01\x01\x81\x01\x02",  # a key that is no text
        b"\x93\x01\x01\x81\x90\x02",  # a key that is an array
        b"\x93\x01\x01\xd4\x01\x00",  # an extension
        b"\x93\x01\x01\xc7\x00\x01",  # an extension of no bytes
        b"\x93\x01\x01\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x93\x01\x01\xdd\xff\xff\xff\xff",  # four thousand million items announced
        b"\x93\x01\x01\xdf\xff\xff\xff\xff",
        b"\x93\x01\x01\xc6\xff\xff\xff\xff",
        b"\x93\x01\x01" + b"\x91" * 60_000,  # deeper than any stack
        b"\x91" * 2000 + b"\x90",
        b"\x92" + b"\x91" * 1000 + b"\x90" + b"\x01",  # a deep thing where the kind should be
        b"\x91\xc4\xc8" + b"x" * 200,
    ],
    ids=name_of,
)
def test_garbage_is_a_violation(packet: bytes) -> None:
    """Nothing else comes out, whatever comes in."""
    with pytest.raises(ProtocolViolation):
        Decoder().decode(packet)


def test_packet_of_exactly_the_limit_is_taken() -> None:
    """Packet after packet."""
    head = len(wire.encode([Kind.SEND, 1, b"x" * wire.MAX_PACKET])) - wire.MAX_PACKET
    frame = [Kind.SEND, 1, b"x" * (wire.MAX_PACKET - head)]
    packet = wire.encode(frame)
    assert len(packet) == wire.MAX_PACKET
    decoder = Decoder()
    for _ in range(3):
        assert decoder.decode(packet) == [frame]


def test_packet_over_the_limit_is_a_violation() -> None:
    """The decoder refuses what the transport should have refused."""
    with pytest.raises(ProtocolViolation):
        Decoder().decode(wire.encode([Kind.SEND, 1, b"x" * (wire.MAX_PACKET - 4)]))


def test_message_over_the_limit_is_refused_where_it_is_made() -> None:
    """The sender learns of its own mistake, with the numbers."""
    with pytest.raises(LimitExceeded) as caught:
        wire.encode([Kind.SEND, 1, bytes(wire.MAX_MESSAGE)])
    assert caught.value.limit == wire.MAX_MESSAGE < caught.value.value


@pytest.mark.parametrize(
    "frame", [frame for frame in GOOD if frame[0] in (Kind.SEND, Kind.CALL, Kind.REPLY)], ids=name_of
)
def test_frame_tells_how_many_descriptors_it_takes(frame: list[Any]) -> None:
    """The fourth element, if there is one; BULK takes its memfd, nothing else takes any."""
    assert wire.descriptors_of(frame) == (frame[3] if len(frame) > 3 else 0)
    assert wire.descriptors_of([Kind.BULK, wire.MAX_PACKET + 1]) == 1
    assert wire.descriptors_of([Kind.ACK, 1, 3]) == wire.descriptors_of([Kind.REJECT, 1, "", "", 3]) == 0


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(object(), id="an object"),
        {1, 2},
        2**64,
        -(2**63) - 1,
        "\ud800",
        [{"k": "\ud800"}],
        {1: 2},
        {"a": [{None: 1}]},
        {(1, 2): 3},
        pytest.param(deep(2000), id="deep"),
        msgpack.ExtType(1, b""),
        msgpack.Timestamp(1),
        [msgpack.Timestamp(1)],
    ],
    ids=name_of,
)
def test_what_the_receiver_would_refuse_is_refused_where_it_is_made(body: Any) -> None:
    """A mistake in a body is a TypeError at its maker, not the end of the path at the other end."""
    with pytest.raises(TypeError):
        wire.encode([Kind.CALL, 1, body])
    with pytest.raises(TypeError):
        wire.encode([Kind.REJECT, 1, "code", "text", body])


@pytest.mark.parametrize("levels", [wire.MAX_DEPTH - 1, wire.MAX_DEPTH])
def test_depth_has_its_limit_at_both_ends(levels: int) -> None:
    """The frame's own level counts: it holds one less."""
    packet = b"\x93\x02\x01" + b"\x91" * levels + b"\xc0"
    if levels < wire.MAX_DEPTH:
        assert Decoder().decode(packet) == [[Kind.CALL, 1, deep(levels)]]
        assert wire.encode([Kind.CALL, 1, deep(levels)]) == packet
    else:
        with pytest.raises(TypeError):
            wire.encode([Kind.CALL, 1, deep(levels)])
        for decode in (Decoder().decode, Decoder().decode_bulk):
            with pytest.raises(ProtocolViolation):
                decode(packet)


@pytest.mark.parametrize("kind", [Kind.SEND, Kind.CALL, Kind.REPLY])
@pytest.mark.parametrize("ident", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("size", [4096, 4097, 65535, 65536])
def test_large_binary_is_packed_as_all_else(kind: Kind, ident: int, size: int) -> None:
    """It takes a way of its own through the codec, which nobody can see."""
    frame = [kind, ident, bytes(range(256)) * (size // 256) + b"x" * (size % 256)]
    packed = wire.encode(frame)
    assert packed == msgpack.packb(frame)
    for packet in (packed, memoryview(packed)):
        assert Decoder().decode(packet) == [frame]


@pytest.mark.parametrize(
    "packet",
    [
        b"\x93\x01\x00\xc5\x13\x88" + bytes(5000),
        b"\x93\x01\xcf" + b"\xff" * 8 + b"\xc5\x13\x88" + bytes(5000),
        b"\x93\x04\x01\xc5\x13\x88" + bytes(5000),
        b"\x93\x01\xe0\xc5\x13\x89" + bytes(5000),
        b"\x93\x01\x01\xc5\x13\x89" + bytes(5000),
        b"\x93\x01\x01\xc5\x13\x87" + bytes(5000),
        b"\x93\x01\x80\xc5\x13\x88" + bytes(5000),
    ],
    ids=["id 0", "id too large", "another kind", "negative and cut", "cut", "something after it", "a map for an id"],
)
def test_large_packet_that_is_almost_binary_is_a_violation(packet: bytes) -> None:
    """The short way takes nothing that the other would refuse."""
    with pytest.raises(ProtocolViolation):
        Decoder().decode(packet)


def test_priority_and_more_frames_take_the_other_way() -> None:
    """Large binary with a negative id, and behind or before another frame."""
    large = [Kind.SEND, -1, bytes(5000)]
    small = [Kind.ACK, 1, 1]
    packed = wire.encode(large)
    assert Decoder().decode(packed) == [large]
    assert Decoder().decode(packed + wire.encode(small)) == [large, small]
    assert Decoder().decode(wire.encode(small) + packed) == [small, large]


def test_too_many_items_are_refused_where_they_are_made() -> None:
    """The bound on items of one array, for which only a memfd has room."""
    assert wire.encode([Kind.SEND, 1, [None] * wire.MAX_ITEMS])
    with pytest.raises(TypeError, match="max_array_len"):
        wire.encode([Kind.SEND, 1, [None] * (wire.MAX_ITEMS + 1)])


def test_tuples_arrive_as_lists_and_views_as_bytes() -> None:
    """What Python has more than the wire is said in the wire's words."""
    packet = wire.encode([Kind.SEND, 1, [(1, 2), bytearray(b"x"), memoryview(b"y")]])
    assert Decoder().decode(packet) == [[Kind.SEND, 1, [[1, 2], b"x", b"y"]]]


# -- bulk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SEND, Kind.CALL, Kind.REPLY])
def test_large_messages_travel_in_bulk(kind: Kind) -> None:
    """One frame of a message, whatever its size."""
    frame = [kind, 1, b"x" * (wire.MAX_PACKET * 3)]
    assert Decoder().decode_bulk(wire.encode(frame)) == frame


@pytest.mark.parametrize(
    "data",
    [
        wire.encode([Kind.SEVER, "closed", ""]),
        wire.encode([Kind.HELLO, wire.VERSION, 1, 1, 0, 0, 0, 0, 0]),
        wire.encode([Kind.QUIESCE]),
        wire.encode([Kind.ACK, 1, 1]),
        wire.encode([Kind.BULK, wire.MAX_PACKET + 1]),
        wire.encode([Kind.SEND, 1, None]) * 2,
        wire.encode([Kind.SEND, 1, None])[:-1],
        b"",
        bytes(100),
        b"\xc1",
        msgpack.packb([Kind.SEND, 1, [None] * (wire.MAX_ITEMS + 1)]),
    ],
    ids=name_of,
)
def test_anything_else_in_bulk_is_a_violation(data: bytes) -> None:
    """Only one whole message or answer travels so."""
    with pytest.raises(ProtocolViolation):
        Decoder().decode_bulk(data)


# -- texts -----------------------------------------------------------------------------------------------------------


def test_long_reasons_are_cut_visibly() -> None:
    """A reason is never refused for its length."""
    assert wire.clip("short") == "short"
    assert wire.clip("x" * wire.MAX_TEXT) == "x" * wire.MAX_TEXT
    cut = wire.clip("x" * (wire.MAX_TEXT + 1))
    assert len(cut) == wire.MAX_TEXT
    assert cut.endswith("…")


def test_reasons_with_raw_bytes_of_a_file_name_can_be_said() -> None:
    """An OSError's text may hold what UTF-8 cannot say."""
    text = wire.clip("no such file: " + os.fsdecode(b"caf\xe9"))
    assert text == "no such file: caf\\udce9"
    assert Decoder().decode(wire.encode([Kind.SEVER, "x", text]))


# -- Hypothesis ------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ids = st.integers(1, ID) | st.integers(-ID, -1)
counts = st.integers(0, wire.MAX_DESCRIPTORS)
numbers = st.integers(0, ID)
texts = st.text(max_size=40)
messages = st.tuples(st.sampled_from([Kind.SEND, Kind.CALL, Kind.REPLY]), ids, values)
frames = st.one_of(
    messages.map(list),
    st.tuples(messages, counts).map(lambda both: [*both[0], both[1]]),
    st.tuples(st.just(Kind.CALL), ids, values, counts, st.integers(1, wire.MAX_REMAINING)).map(list),
    st.tuples(st.just(Kind.REJECT), ids, texts, texts, values).map(list),
    st.tuples(st.just(Kind.PURGE), ids).map(list),
    st.tuples(st.integers(1, ID - wire.MAX_LIMIT), st.integers(0, wire.MAX_LIMIT), st.sampled_from([1, -1])).map(
        lambda of: [Kind.ACK, of[2] * of[0], of[2] * (of[0] + of[1])]
    ),
    st.tuples(
        st.just(Kind.HELLO),
        st.just(wire.VERSION),
        st.integers(1, wire.MAX_LIMIT),
        st.integers(1, ID),
        numbers,
        numbers,
        numbers,
        numbers,
        st.integers(0, 1),
    ).map(list),
    st.tuples(st.just(Kind.SEEN), numbers).map(list),
    st.tuples(st.just(Kind.SEVER), texts, texts).map(list),
    st.binary(min_size=1, max_size=100).map(lambda data: [Kind.DATA, data]),
    st.sampled_from([[Kind.STREAM], [Kind.EOF], [Kind.QUIESCE], [Kind.QUIESCED], [Kind.RESUME]]),
    st.sampled_from([[Kind.CREDIT, 5], [Kind.BULK, 70_000]]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(frames, max_size=6))
def test_whatever_is_encoded_is_decoded(sent: list[list[Any]]) -> None:
    """Nothing that an end may say is changed or refused."""
    packet = b"".join(map(wire.encode, sent))
    if len(packet) <= wire.MAX_PACKET:
        assert Decoder().decode(packet) == sent


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_give_frames_or_a_violation(untrusted: bytes) -> None:
    """Nothing but ProtocolViolation comes out of a decoder."""
    for decode in (Decoder().decode, Decoder().decode_bulk):
        with contextlib.suppress(ProtocolViolation):
            decode(untrusted)


@settings(max_examples=300, deadline=None)
@given(st.lists(frames, min_size=1, max_size=3), st.data())
def test_mutated_packets_give_checked_frames_or_a_violation(sent: list[list[Any]], data: st.DataObject) -> None:
    """A packet with bytes changed, removed or added: what is still taken is what this end could say as well."""
    packet = bytearray(b"".join(map(wire.encode, sent)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packet)))
        packet[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        taken = Decoder().decode(bytes(packet))
    except ProtocolViolation:
        return
    for frame in taken:
        assert isinstance(frame[0], int)
        assert 0 <= wire.descriptors_of(frame) <= wire.MAX_DESCRIPTORS
        if b"NaN" not in repr(frame).encode("utf-8", "replace").replace(b"nan", b"NaN"):
            assert Decoder().decode(wire.encode(frame)) == [frame]
