"""What a query is, and which records it wants; what SQL finds of it is tested with SYSLOG."""

from typing import Any

import pytest

from retinue.cp.selection import MOST_RECORDS, FieldValue, selection
from retinue.pipes import Rejected

RUN = "0123456789abcdef"
NAMES = ["CP", "SHOP@1", "SHOP@2", "WEB"]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
RECORD: dict[str, Any] = {
    "seq": 5,
    "time": 100.0,
    "machine": "WEB",
    "generation": 1,
    "severity": 4,
    "logger": "shop.till",
    "message": "Ärger mit der Kasse",
    "fields": {"status": 500, "ok": False, "ratio": 1.5, "who": "tea", "none": None, "trace": TRACE},
}
GAP: dict[str, Any] = {**RECORD, "logger": "retinue.cp", "message": "-- 5 lost --", "fields": {"lost": 5}}


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ({}, True),
        ({"machine": None, "text": None, "fields": None}, True),
        ({"machine": "WEB"}, True),
        ({"machine": ["CP", "WEB"]}, True),
        ({"machine": "CP"}, False),
        ({"machine": []}, False),
        ({"severity": 4}, True),
        ({"severity": 3}, False),
        ({"since": 100}, True),
        ({"since": 100.5}, False),
        ({"until": 100.5}, True),
        ({"until": 100}, False),
        ({"text": "äRGER MIT"}, True),
        ({"text": "tea"}, False),
        ({"logger": "shop."}, True),
        ({"logger": "till"}, False),
        ({"fields": {"status": "500", "ok": "false", "ratio": "1.5", "none": "null", "who": "tea"}}, True),
        ({"fields": {"status": 500, "ok": False, "ratio": 1.5, "none": None}}, True),
        ({"fields": {"status": "501"}}, False),
        ({"fields": {"ok": "0"}}, False),
        ({"fields": {"who": "Tea"}}, False),
        ({"fields": {"missing": None}}, False),
        ({"trace": "4bf9"}, True),
        ({"trace": TRACE}, True),
        ({"trace": "f92f"}, False),
    ],
)
def test_query_takes_records(query: dict[str, Any], taken: bool) -> None:
    assert selection(query, RUN, NAMES).takes(RECORD) is taken


@pytest.mark.parametrize("query", [{"text": "tea"}, {"severity": 0}, {"fields": {"a": 1}}, {"logger": "shop"}])
def test_gap_is_taken_whatever_is_looked_for_if_asked_for(query: dict[str, Any]) -> None:
    """What is lost may have been that; not of other machines, and not at other times."""
    assert not selection(query, RUN, NAMES).takes(GAP)
    assert selection({**query, "gaps": True}, RUN, NAMES).takes(GAP)
    assert not selection({**query, "gaps": True, "machine": "CP"}, RUN, NAMES).takes(GAP)
    assert not selection({**query, "gaps": True, "since": 101}, RUN, NAMES).takes(GAP)
    assert not selection({**query, "gaps": True}, RUN, NAMES).takes({**GAP, "logger": "not retinue.cp"})


def test_common_name_of_instances_means_all_of_them() -> None:
    asked = selection({"machine": ["SHOP"]}, RUN, NAMES)
    assert asked.machines == frozenset({"SHOP", "SHOP@1", "SHOP@2"})
    assert selection({"machine": "SHOP@1"}, RUN, NAMES).machines == frozenset({"SHOP@1"})


def test_places_are_of_this_run_unless_they_say_another() -> None:
    asked = selection({"after": 5, "before": ["another", 7]}, RUN, NAMES)
    assert (asked.after, asked.before) == ((RUN, 5), ("another", 7))
    assert selection({"after": -5}, RUN, NAMES).after == (RUN, 0)


def test_more_than_fits_an_answer_is_as_much_as_fits() -> None:
    assert selection({"count": 2**62}, RUN, NAMES).count == MOST_RECORDS
    # The machine that keeps records takes no larger number.
    assert selection({"before": 2**64 - 1}, RUN, NAMES).before == (RUN, 2**62 - 1)
    assert selection({"count": -1}, RUN, NAMES).count == 0


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        ({"machin": "WEB"}, "bad-arguments", "unknown argument 'machin'; did you mean 'machine'?"),
        ({"xyzzy": 1}, "bad-arguments", "unknown argument 'xyzzy'"),
        ({5: 1}, "bad-arguments", "unknown argument '5'"),
        ({"machine": "WEP"}, "unknown-machine", "there is no machine 'WEP'; did you mean 'WEB'?"),
        ({"machine": ["WEB", "x" * 5_000]}, "unknown-machine", f"there is no machine '{'x' * 64}'"),
        ({"machine": ["WEB"] * 1_001}, "bad-arguments", "machine must be a name, or a list of at most 1000 names"),
        ({"machine": [["WEB"]]}, "bad-arguments", "machine must be"),
        ({"severity": 8}, "bad-arguments", "severity must be 0 (emergency) to 7 (debug), not 8"),
        ({"severity": True}, "bad-arguments", "severity must be int"),
        ({"since": "10m"}, "bad-arguments", "since must be a time in seconds since the epoch"),
        ({"until": float("nan")}, "bad-arguments", "until must be a time"),
        ({"since": True}, "bad-arguments", "since must be a time"),
        ({"text": "x" * 1_025}, "bad-arguments", "text must be 1024 characters at most"),
        ({"text": b"x"}, "bad-arguments", "text must be str"),
        ({"fields": ["a"]}, "bad-arguments", "fields must be a map of at most 16"),
        ({"fields": {"a": []}}, "bad-arguments", "fields must be a map of names to texts"),
        ({"fields": {1: "a"}}, "bad-arguments", "fields must be a map of names to texts"),
        ({"fields": {"a": "x" * 1_024}}, "bad-arguments", "a field must be 1024 characters at most"),
        ({"fields": dict.fromkeys(map(str, range(17)))}, "bad-arguments", "fields must be a map of at most 16"),
        ({"after": [RUN, "1"]}, "bad-arguments", "after must be the number of a record, or a place"),
        ({"before": [RUN, True]}, "bad-arguments", "before must be the number"),
        ({"before": ["x" * 65, 1]}, "bad-arguments", "before must be the number"),
        ({"after": True}, "bad-arguments", "after must be the number"),
        ({"gaps": 1}, "bad-arguments", "gaps must be bool"),
        ({"count": 1.0}, "bad-arguments", "count must be int"),
    ],
    ids=str,
)
def test_query_that_is_none_is_refused_with_what_was_meant(query: dict[Any, Any], code: str, text: str) -> None:
    with pytest.raises(Rejected) as caught:
        selection(query, RUN, NAMES)
    assert caught.value.code == code
    assert caught.value.text.startswith(text)


@pytest.mark.parametrize("text", ["", "-", "1e400", "nan", "9" * 30, "9" * 5_000, "0x5", "--5"])
def test_text_that_is_no_modest_number_is_a_text(text: str) -> None:
    assert FieldValue.of(text).number is None
    assert FieldValue.of(text).is_(text)
