"""From a table to the program's class, strictly."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import pytest

from retinue.svm.config import structure
from retinue.svm.errors import MOST_TOLD, ConfigError, mistakes_to_wire


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Port:
    host: str
    port: int = attrs.field(default=80, validator=attrs.validators.ge(1))


@attrs.frozen
class Config:
    routes: dict[str, str]
    count: int = 5
    pause: float = 1.0
    loud: bool = False
    limit: int | None = None
    either: int | str = 3
    mode: Literal["a", "b", 1] = "a"
    colour: Colour = Colour.RED
    names: list[str] = attrs.Factory(list)
    table: list[list[int]] = attrs.Factory(list)
    ports: tuple[Port, ...] = ()
    pair: tuple[int, str] = (1, "x")
    tags: frozenset[str] = frozenset()
    order: Sequence[int] = ()
    by_name: Mapping[str, Port] = attrs.Factory(dict)
    keep: int = attrs.field(default=3, validator=attrs.validators.gt(0))
    anything: Any = None


def mistakes(table: dict[str, Any], config_class: type | None = Config) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(ConfigError) as caught:
        structure(table, config_class, "shop")
    return [(mistake.keys, mistake.text) for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("key", "value", "became"),
    [
        ("count", 7, 7),
        ("pause", 0.5, 0.5),
        ("pause", 2, 2.0),
        ("loud", True, True),
        ("limit", 7, 7),
        ("either", 7, 7),
        ("either", "x", "x"),
        ("mode", "b", "b"),
        ("mode", 1, 1),
        ("colour", "red", Colour.RED),
        ("names", ["x", "y"], ["x", "y"]),
        ("names", [], []),
        ("table", [[1], []], [[1], []]),
        ("ports", [{"host": "h"}, {"host": "i", "port": 1}], (Port("h"), Port("i", 1))),
        ("pair", [5, "y"], (5, "y")),
        ("tags", ["x", "x"], frozenset({"x"})),
        ("order", [3, 1], (3, 1)),
        ("by_name", {"x": {"host": "h"}}, {"x": Port("h")}),
        ("anything", [1, {"x": "y"}], [1, {"x": "y"}]),
    ],
)
def test_value_that_fits(key: str, value: Any, became: Any) -> None:
    """TOML's values arrive as the class declares them; the type is exact."""
    got = getattr(structure({"routes": {}, key: value}, Config, "shop"), key)
    assert (list(got) if key == "order" else got) == (list(became) if key == "order" else became)
    assert type(got) is type(became) or key == "order"


@pytest.mark.parametrize(
    ("key", "value", "keys", "text"),
    [
        ("routes", [1], ("routes",), "expected a mapping"),
        ("routes", {"/": 5}, ("routes", "/"), "expected a text, got the number 5"),
        ("count", "5", ("count",), "expected a whole number, got the text '5'"),
        ("count", 5.0, ("count",), "expected a whole number, got the number 5.0"),
        ("count", True, ("count",), "expected a whole number, got the truth value True"),
        ("count", {"x": 1}, ("count",), "expected a whole number, got a table"),
        ("count", [1], ("count",), "expected a whole number, got a list"),
        ("pause", "1", ("pause",), "expected a number, got the text '1'"),
        ("pause", True, ("pause",), "expected a number, got the truth value True"),
        ("loud", 1, ("loud",), "expected true or false, got the number 1"),
        ("loud", "yes", ("loud",), "expected true or false, got the text 'yes'"),
        ("limit", "7", ("limit",), "expected a whole number, got the text '7'"),
        ("either", 1.5, ("either",), "not part of int | str"),
        ("mode", "c", ("mode",), "expected one of 'a', 'b', 1, got the text 'c'"),
        ("mode", True, ("mode",), "expected one of 'a', 'b', 1, got the truth value True"),
        ("colour", "blue", ("colour",), "'blue' is not a valid Colour"),
        ("names", "xyz", ("names",), "expected a list, got the text 'xyz'"),
        ("names", {"x": "y"}, ("names",), "expected a list, got a table"),
        ("names", ["x", 2], ("names", 1), "expected a text, got the number 2"),
        ("table", [[1], "23"], ("table", 1), "expected a list, got the text '23'"),
        ("table", [[1], [2, "3"]], ("table", 1, 1), "expected a whole number, got the text '3'"),
        ("ports", 5, ("ports",), "expected a list, got the number 5"),
        ("ports", [{"host": "h"}, {}], ("ports", 1, "host"), "the key 'host' is missing"),
        ("ports", [{"host": "h", "port": "x"}], ("ports", 0, "port"), "expected a whole number, got the text 'x'"),
        ("ports", [{"host": "h", "prot": 1}], ("ports", 0, "prot"), "unknown key; tests.svm.test_config knows"),
        ("ports", [{"host": "h", "port": 0}], ("ports", 0, "port"), "'port' must be >= 1: 0"),
        ("pair", [1, 2], ("pair", 1), "expected a text, got the number 2"),
        ("tags", "xy", ("tags",), "expected a list, got the text 'xy'"),
        ("order", "12", ("order",), "expected a list, got the text '12'"),
        ("by_name", {"x": {"host": 1}}, ("by_name", "x", "host"), "expected a text, got the number 1"),
        ("by_name", {"x": 1}, ("by_name", "x"), ""),
        ("keep", 0, ("keep",), "'keep' must be > 0: 0"),
        ("limits", 1, ("limits",), "unknown key; tests.svm.test_config knows anything, by_name, colour"),
    ],
)
def test_value_that_does_not_fit(key: str, value: Any, keys: tuple[str | int, ...], text: str) -> None:
    """One mistake, with the keys that lead to it and what was expected."""
    ((found_keys, found_text),) = mistakes({"routes": {}, key: value})
    assert found_keys == keys
    assert text.replace("tests.svm.test_config", Config.__module__) in found_text


def test_missing_key() -> None:
    """A key without a default must be there."""
    assert mistakes({}) == [(("routes",), "the key 'routes' is missing")]


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody starts a system five times to find five mistakes."""
    found = mistakes(
        {"count": "x", "pause": "y", "names": [1, 2], "ports": [{"prot": 1}], "one": 1, "two": 2, "loud": True}
    )
    assert {keys for keys, _ in found} == {
        ("routes",),
        ("count",),
        ("pause",),
        ("names", 0),
        ("names", 1),
        ("ports", 0, "host"),
        ("ports", 0, "prot"),
        ("one",),
        ("two",),
    }


def test_error_text_names_every_key_path() -> None:
    """What a person reads, without any further work."""
    with pytest.raises(ConfigError, match=r"config\.names\.1: expected a text.*; config\.nmaes: unknown key"):
        structure({"routes": {}, "names": ["x", 1], "nmaes": []}, Config, "shop")


def test_program_without_config() -> None:
    """It takes an empty table and no other."""
    assert structure({}, None, "shop") is None
    assert mistakes({"a": 1, "b": 2}, None) == [
        (("a",), "the program shop takes no config (it has no class Config)"),
        (("b",), "the program shop takes no config (it has no class Config)"),
    ]


@attrs.frozen
class Refuses:
    x: int = 1

    def __attrs_post_init__(self) -> None:
        if self.x == 2:
            raise ValueError("two is not a good number")
        if self.x == 3:
            raise KeyError
        if self.x == 4:
            raise RuntimeError("four")


@pytest.mark.parametrize(("x", "text"), [(2, "two is not a good number"), (3, ""), (4, "four")])
def test_class_that_refuses_by_itself(x: int, text: str) -> None:
    """Whatever it raises is a mistake in the config."""
    ((_, found),) = mistakes({"x": x}, Refuses)
    assert text in found


def test_type_that_no_config_can_fill() -> None:
    """Told as what it is: the program's class cannot be filled from a file."""

    @attrs.frozen
    class Odd:
        callback: type[int]

    ((_, text),) = mistakes({"callback": 1}, Odd)
    assert "a type that no config can fill" in text


def test_mistakes_for_the_wire_are_bounded() -> None:
    """The first hundred, cut: they must fit the control path."""
    with pytest.raises(ConfigError) as caught:
        structure({"routes": {}, "names": [7] * 500, "loud": "x" * 100_000}, Config, "shop")
    told = mistakes_to_wire(caught.value)
    assert len(told) == MOST_TOLD
    assert told[0].keys() == {"keys", "text"}
    assert all(len(mistake["text"]) <= 1000 for mistake in told)
