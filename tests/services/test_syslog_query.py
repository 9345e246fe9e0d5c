"""Queries of stored records: what SQL finds is what the control program's own predicate takes."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.cp.checking import checked_found
from retinue.cp.selection import selection
from retinue.pipes import Rejected
from retinue.services.syslog import query as module
from retinue.services.syslog.query import Reader
from retinue.services.syslog.retention import Retention
from retinue.services.syslog.store import Store

RUN = "0123456789abcdef"
MACHINES = ["CP", "SHOP", "SHOP@2", "WEB"]
TRACES = ["4bf92f3577b34da6a3ce929d0e0e4736", "4bf90000000000000000000000000000"]
EVERYTHING = Retention(1_000_000_000)


def record(seq: int, machine: str = "SHOP", message: str = "m", **more: Any) -> dict[str, Any]:
    found = {"seq": seq, "time": float(seq), "machine": machine, "generation": 1, "severity": 6, "logger": "x"}
    return {**found, "message": message, "fields": {}, **more}


def add(store: Store, records: list[dict[str, Any]], run: str = RUN) -> None:
    chunks = []
    for each in records:
        body = [each["time"], each["severity"], each["logger"], each["message"], each["fields"]]
        chunks.append((each["machine"], each["generation"], each["seq"], msgpack.packb([body])))
    store.add(run, chunks)


class Bench:
    def __init__(self, path: pathlib.Path) -> None:
        self.store = Store(str(path), EVERYTHING)
        self.reader = Reader(str(path))

    def close(self) -> None:
        self.reader.close()
        self.store.close()

    def pages(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        """Everything that a query wants, page by page; the answers are what the control program believes."""
        found: list[dict[str, Any]] = []
        while True:
            records, more = checked_found(self.reader.select(query))
            found = found + records if query.get("oldest") else records + found
            if more is None:
                return found
            key = "after" if query.get("oldest") else "before"
            assert query.get(key) != list(more), "no progress"
            query = {**query, key: list(more)}

    def numbers(self, **query: Any) -> list[int]:
        return [each["seq"] for each in self.reader.select(query)["records"]]


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "records.sqlite3")
    yield made
    made.close()


texts = st.sampled_from(["", "tea", "Tea costs 5", "ÄRGER", "ärger\nTEA", "50%", "a_b", "x\0tea", "'\"--"])
values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from([1.5, 5.0, "5", "true", "null", "", "tea"])
)
fields = st.dictionaries(st.sampled_from(["a", "b.c", 'd"', "", "lost"]), values, max_size=3)
contents = st.fixed_dictionaries(
    {
        "machine": st.sampled_from(MACHINES),
        "time": st.integers(0, 20).map(float),
        "severity": st.integers(0, 7),
        "logger": st.sampled_from(["", "shop", "shop.till", "retinue.cp", "Shop"]),
        "message": texts,
        "fields": st.builds(
            lambda own, trace: {**own, **trace}, fields, st.sampled_from([{}, *({"trace": t} for t in TRACES)])
        ),
    }
)
queries = st.fixed_dictionaries(
    {},
    optional={
        "machine": st.one_of(st.sampled_from([*MACHINES, "SHOP"]), st.lists(st.sampled_from(MACHINES), max_size=3)),
        "severity": st.integers(0, 7),
        "since": st.integers(0, 20),
        "until": st.floats(0, 20),
        "text": st.sampled_from(["tea", "TEA", "är", "ÄR", "%", "_", "'", "\0"]),
        "logger": st.sampled_from(["shop", "shop.", "retinue", "S"]),
        "fields": fields,
        "trace": st.sampled_from(["4bf9", TRACES[0], "00"]),
        "gaps": st.booleans(),
        "count": st.integers(1, 7),
        "oldest": st.booleans(),
    },
)


@given(
    records=st.lists(contents, max_size=30),
    asked=queries,
    after=st.one_of(st.none(), st.integers(0, 35)),
    before=st.one_of(st.none(), st.integers(0, 35)),
    width=st.sampled_from([1, 3, 4096]),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stored_records_are_found_as_those_in_memory(
    records: list[dict[str, Any]],
    asked: dict[str, Any],
    after: int | None,
    before: int | None,
    width: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In pages of any size, over two runs, in both directions."""
    bench = Bench(tmp_path_factory.mktemp("query") / "records.sqlite3")
    earlier, former = module.FIRST_RANGE, "former run"
    module.FIRST_RANGE = width  # type: ignore[misc]
    try:
        whole = [{"generation": 1, "seq": seq, **each} for seq, each in enumerate(records, 1)]
        add(bench.store, whole[: len(whole) // 2], former)
        add(bench.store, whole[len(whole) // 2 :])
        checked = selection({**asked, "after": after, "before": before}, RUN, MACHINES)
        wanted = [
            each
            for index, each in enumerate(whole)
            if checked.takes(each)
            # All of the former run is before every place of this one.
            and (after is None or (index >= len(whole) // 2 and each["seq"] > after))
            and (before is None or index < len(whole) // 2 or each["seq"] < before)
        ]
        if len(whole) < 2:  # no record of the former run; of neither, a place of this run is none that is known
            wanted = wanted if len(whole) or before is None else []
        assert bench.pages(checked.as_query()) == wanted
    finally:
        module.FIRST_RANGE = earlier  # type: ignore[misc]
        bench.close()


def test_the_newest_or_the_oldest_of_those_that_match(bench: Bench) -> None:
    add(bench.store, [record(seq, severity=3 if seq % 2 else 6) for seq in range(1, 101)])
    assert bench.numbers(count=3) == [98, 99, 100]
    assert bench.numbers(count=3, severity=3) == [95, 97, 99]
    assert bench.numbers(count=3, severity=3, oldest=True) == [1, 3, 5]
    assert bench.numbers(count=3, severity=3, oldest=True, after=[RUN, 5]) == [7, 9, 11]
    assert bench.numbers(count=3, severity=3, before=[RUN, 7]) == [1, 3, 5]
    assert bench.reader.select({"count": 3, "before": [RUN, 4]})["more"] is None
    assert bench.reader.select({"count": 3})["more"] == [RUN, 98]


def test_place_of_a_run_that_is_not_stored_yet_is_after_all_others(bench: Bench) -> None:
    """A control program that has just started asks before anything of it is stored."""
    add(bench.store, [record(1), record(2)])
    assert bench.numbers(before=["the next", 1]) == [1, 2]
    assert bench.numbers(after=["the next", 0]) == []


def test_gap_is_found_whatever_is_asked_for_but_of_its_machine(bench: Bench) -> None:
    lost = {"lost": 5, "cause": "rate"}
    add(
        bench.store,
        [
            record(1),
            record(2, severity=4, logger="retinue.cp", fields=lost),
            record(3, "WEB", severity=4, logger="retinue.cp", fields=lost),
            record(4, fields=lost),  # anybody may write such a field
            record(5, message="found"),
        ],
    )
    assert bench.numbers(text="found", gaps=True, machine=["SHOP"]) == [2, 5]
    assert bench.numbers(text="found") == [5]


def test_field_is_the_value_that_a_text_spells(bench: Bench) -> None:
    given = [1.5, 5, 5.0, "5", True, None, "true", {"a": 5}, [5], float("nan")]
    add(bench.store, [record(seq, fields={"a": value}) for seq, value in enumerate(given, 1)])
    assert bench.numbers(fields={"a": "1.5"}) == [1]
    assert bench.numbers(fields={"a": "5"}) == [2, 3, 4]
    assert bench.numbers(fields={"a": "5.0"}) == [2, 3]
    assert bench.numbers(fields={"a": "true"}) == [5, 7]
    assert bench.numbers(fields={"a": "null"}) == [6]
    add(bench.store, [record(101, fields={"a": [1]}), record(102, fields={"a": {"b": 1}})])
    assert bench.numbers(fields={"a": "array"}) == bench.numbers(fields={"a": "object"}) == []


def test_answer_is_bounded_in_bytes_and_its_next_page_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_ROOM", 10_000)
    add(bench.store, [record(seq, message="x" * 4_000) for seq in range(1, 21)])
    assert len(bench.reader.select({"count": 100})["records"]) == 2
    assert [each["seq"] for each in bench.pages({"count": 100})] == [*range(1, 21)]


def test_answer_comes_in_time_though_nothing_matches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how far it has come, and whoever asks goes on from there to the end."""
    monkeypatch.setattr(module, "TIME_LIMIT", 0.0)
    add(bench.store, [record(1, message="needle"), *(record(seq) for seq in range(2, 10_001))])
    first = bench.reader.select({"text": "needle"})
    assert first["records"] == []
    assert first["more"] is not None
    assert [each["seq"] for each in bench.pages({"text": "needle"})] == [1]


def test_statement_that_takes_too_long_is_ended(bench: Bench) -> None:
    """With what was found until then, or refused when that is nothing at all."""
    add(bench.store, [record(seq) for seq in range(1, 5_001)])
    now = [0.0]

    def clock() -> float:
        now[0] += 10.0
        return now[0]

    bench.reader._clock = clock
    with pytest.raises(Rejected, match="more than 5 s") as caught:
        bench.reader.select({"text": "nothing", "fields": {"a": "b"}})
    assert caught.value.code == "too-long"
    bench.reader._clock = time.monotonic
    assert bench.numbers(count=1) == [5_000]


HOSTILE: list[dict[Any, Any]] = [
    {"machin": "SHOP"},
    {"machine": "SHOP"},
    {"machine": [5]},
    {"count": "5"},
    {"count": -1},
    {"severity": None},
    {"since": "now"},
    {"text": b"x"},
    {"fields": {"a": 5}},
    {"fields": []},
    {"after": 5},
    {"before": [RUN, -1]},
    {"before": [RUN, 2**63]},
    {"gaps": 1},
    {5: 5},
]


@pytest.mark.parametrize("untrusted", HOSTILE, ids=str)
def test_query_that_is_none_is_refused(bench: Bench, untrusted: dict[Any, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        bench.reader.select(untrusted)
    assert caught.value.code == "bad-arguments"


def test_reader_writes_nothing(bench: Bench) -> None:
    add(bench.store, [record(1)])
    with pytest.raises(Exception, match="readonly"):
        bench.reader._database.execute("DELETE FROM entries")
