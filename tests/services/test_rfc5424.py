"""Records as messages of RFC 5424: read back by its grammar, whatever a machine has put into them."""

import json
import re
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.services.rfc5424_reader import Frames, read

from retinue.services.syslog.rfc5424 import FACILITIES, SHORTEST, Formatter, count_octets

LONGEST = 8192


@attrs.frozen(kw_only=True)
class Record:
    run: str = "1f2e3d"
    seq: int = 8
    time: float = 1795255012.6609466
    machine: str = "PRICES"
    generation: int = 2
    severity: int = 6
    logger: str = "prices"
    message: str = "tea costs 1000 EUR"
    fields: dict[str, Any] = attrs.field(factory=dict)


def formatter(longest: int = LONGEST) -> Formatter:
    return Formatter(facility=FACILITIES["daemon"], hostname="SHOP", enterprise=32473, longest=longest)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.builds(
    Record,
    run=st.text(),
    seq=st.integers(0, 2**63),
    time=st.floats() | st.floats(0, 4e9),
    machine=st.text(),
    generation=st.integers(0, 2**63),
    severity=st.integers(-1, 9),
    logger=st.text(st.characters(), max_size=300) | st.text('\\"]', max_size=300),
    message=st.text(st.characters()) | st.text(max_size=3).map(lambda text: text * 1500),
    fields=st.dictionaries(
        st.text(st.characters()),
        VALUES | st.text('\\"]', max_size=2000) | st.text(max_size=3).map(lambda text: text * 1500),
        max_size=5,
    ),
)


def escaped(text: str) -> str:
    """As control characters are written, by another way than the code's."""
    text = text.encode("utf-8", "replace").decode()
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: "".join(f"#{each:03o}" for each in c[0].encode()), text)


def test_a_plain_record() -> None:
    """The whole message, as a collector gets it."""
    message = formatter().format(Record(fields={"article": "tea", "price": 1000, "trace": "ab" * 16}))
    assert message == (
        b"<30>1 2026-11-21T09:56:52.660947Z SHOP PRICES 2 - "
        b'[retinue@32473 run="1f2e3d" seq="8" logger="prices" trace="abababababababababababababababab"]'
        b'[fields@32473 article="tea" price="1000"] tea costs 1000 EUR'
    )


@given(RECORDS, st.integers(SHORTEST, LONGEST))
def test_every_record_is_a_message_of_the_grammar(record: Record, longest: int) -> None:
    """Short enough, one line, no control character; who wrote it can be told."""
    message = formatter(longest).format(record)
    assert len(message) <= longest
    assert not re.search(rb"[\x00-\x1f\x7f]", message)
    found = read(message)
    assert found.facility == 3
    assert found.severity == min(max(record.severity, 0), 7)
    assert found.host == "SHOP"
    assert found.proc == str(record.generation)
    assert found.about["seq"] == str(record.seq)
    assert set(found.data) <= {"retinue@32473", "fields@32473"}


@given(RECORDS, st.integers(SHORTEST, LONGEST))
def test_what_is_not_cut_is_whole(record: Record, longest: int) -> None:
    """The text and every field come back, unless the message says that they are cut; a cut text is its beginning."""
    found = read(formatter(longest).format(record))
    cut = found.about.get("cut", "").split()
    if "message" in cut:
        assert escaped(record.message).startswith(found.text)
    else:
        assert found.text == escaped(record.message)
    values = [value for name, value in record.fields.items() if name != "trace"]
    told = [value for _, value in found.data.get("fields@32473", ())]
    if "fields" not in cut:
        assert len(told) == len(values)
    for value, seen in list(zip(values, told, strict=False))[: -1 if "fields" in cut else None]:
        text = value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)
        assert seen.replace(" ", "") == escaped(text).replace(" ", "")


@given(RECORDS)
def test_short_records_are_not_cut(record: Record) -> None:
    """Only what finds no room."""
    longest = LONGEST * 100
    assert "cut" not in read(formatter(longest).format(record)).about


def test_a_long_text_leaves_room_for_fields_and_they_for_it() -> None:
    """Each has a half at least, and what the other does not need."""
    big = "x" * LONGEST
    both = read(formatter().format(Record(message=big, fields={"a": big})))
    assert both.about["cut"] == "fields message"
    assert len(both.text) > LONGEST // 3
    assert len(both.data["fields@32473"][0][1]) > LONGEST // 3
    text = read(formatter().format(Record(message=big, fields={"a": "small"})))
    assert text.about["cut"] == "message"
    assert len(text.text) > LONGEST - 200
    assert text.data["fields@32473"] == [("a", "small")]
    fields = read(formatter().format(Record(message="small", fields={"a": big, "b": 1})))
    assert fields.about["cut"] == "fields"
    assert fields.text == "small"
    assert len(fields.data["fields@32473"][0][1]) > LONGEST - 250


@pytest.mark.parametrize(
    ("name", "told"), [('a="]b', "a___b"), ("", "_"), ("ü", "_"), ("x" * 40, "x" * 32), ("a b", "a_b")]
)
def test_name_of_a_field_that_the_grammar_does_not_take(name: str, told: str) -> None:
    """It keeps its value under the nearest name."""
    assert read(formatter().format(Record(fields={name: "v"}))).data["fields@32473"] == [(told, "v")]


def test_a_line_feed_forges_no_second_record() -> None:
    """A collector that writes lines writes one."""
    message = formatter().format(Record(message="one\n<0>1 - - - - - - forged\x1b[2J"))
    assert message.endswith(b"one#012<0>1 - - - - - - forged#033[2J")


@given(st.lists(RECORDS, max_size=5), st.integers(1, 100))
def test_messages_in_a_stream_come_out_as_they_went_in(records: list[Record], step: int) -> None:
    """Octet counting, in pieces of any size."""
    messages = [formatter().format(each) for each in records]
    stream = b"".join(map(count_octets, messages))
    frames = Frames()
    found = [one for start in range(0, len(stream), step) for one in frames.feed(stream[start : start + step])]
    assert found == messages
    assert frames.rest == b""
