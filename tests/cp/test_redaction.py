"""What is taken out of messages before anybody sees them."""

from typing import Any

import pytest

from retinue.cp.redaction import REDACTED, Redaction


@pytest.mark.parametrize(
    ("body", "clean", "count"),
    [
        (None, None, 0),
        ("password", "password", 0),
        ({"password": "x"}, {"password": REDACTED}, 1),
        ({"PassWord": {"a": "x"}, "b": 1}, {"PassWord": REDACTED, "b": 1}, 1),
        ({b"PASSWORD": b"x"}, {b"PASSWORD": REDACTED}, 1),
        ({"passwords": "x"}, {"passwords": "x"}, 0),
        (["login", {"a": [{"b": {"password": 1}}]}], ["login", {"a": [{"b": {"password": REDACTED}}]}], 1),
        (["password", "x"], ["password", REDACTED], 1),
        ([b"Password", [1, 2]], [b"Password", REDACTED], 1),
        (["password", "x", "y"], ["password", "x", "y"], 0),
        (["password"], ["password"], 0),
        ([[b"authorization", b"Basic eA=="], [b"accept", b"*"]], [[b"authorization", REDACTED], [b"accept", b"*"]], 1),
        (
            {"headers": {"Cookie": "x", "set-cookie": ["y"]}},
            {"headers": {"Cookie": REDACTED, "set-cookie": REDACTED}},
            2,
        ),
        ([["a", ["password", "x"]], "x"], [["a", ["password", REDACTED]], "x"], 1),
        (
            {"straße": "x", "\udcff".encode("utf-8", "surrogatepass"): "y"},
            {"straße": REDACTED, b"\xed\xb3\xbf": "y"},
            1,
        ),
    ],
)
def test_values_of_secret_keys_go(body: Any, clean: Any, count: int) -> None:
    """At any depth, whatever the case, as str and as bytes, in maps and in pairs; and nothing else."""
    found = Redaction(["password", "STRASSE"]).apply(body)
    assert (found.value, found.count) == (clean, count)


@pytest.mark.parametrize(("body", "depth"), [(1, 0), ([], 1), ({"a": 1}, 1), ([[], {"a": [1]}], 3)])
def test_depth_is_told(body: Any, depth: int) -> None:
    assert Redaction().apply(body).depth == depth


def test_no_depth_is_too_much_for_it() -> None:
    """No recursion: as deep as a hostile machine likes."""
    deep: Any = {"password": "x"}
    for _ in range(100_000):
        deep = [deep, 0, 0]
    found = Redaction(["password"]).apply(deep)
    assert (found.count, found.depth) == (1, 100_001)
    while isinstance(deep, list):  # taken apart by hand: its own end would be deep as well
        deep = deep[0]
    assert deep == {"password": REDACTED}
