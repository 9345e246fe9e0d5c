"""From a ``config`` table to the program's own ``Config`` class, strictly, with every mistake at once."""

import typing
from collections import abc
from collections.abc import Callable
from typing import Any, Final, Literal, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ForbiddenExtraKeysError, StructureHandlerNotFoundError
from cattrs.strategies import configure_union_passthrough
from cattrs.v import format_exception

from retinue.svm.errors import ConfigError, ConfigMistake


def _strict(expected: type, word: str) -> Any:
    # TOML has types: a "8080" where a number is meant is a mistake, not a number.
    def structure(value: Any, _: Any) -> Any:
        if expected is float and type(value) is int:
            return float(value)
        if type(value) is not expected:
            raise TypeError(f"expected {word}, got {_describe(value)}")
        return value

    return structure


def _describe(value: Any) -> str:
    names = {"str": "the text", "bool": "the truth value", "int": "the number", "float": "the number"}
    kind = type(value).__name__
    if kind in names:
        return f"{names[kind]} {value!r:.60}"
    return {"dict": "a table", "list": "a list"}.get(kind, kind)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for expected, word in ((int, "a whole number"), (float, "a number"), (bool, "true or false"), (str, "a text")):
        converter.register_structure_hook(expected, _strict(expected, word))
    configure_union_passthrough(str | bool | int | float | None, converter)
    converter.register_structure_hook_func(_is_literal, _one_of)
    plain = converter.copy()

    @converter.register_structure_hook_factory(_is_list)
    def _(kind: Any) -> Callable[[Any, Any], Any]:
        # cattrs takes whatever can be iterated, a text letter by letter. Its own hook does the work, without this one,
        # or it would find itself; the items come back here.
        inner = plain.copy()
        inner.register_structure_hook_func(lambda each: each != kind, converter.structure)
        hook = inner.get_structure_hook(kind)

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise TypeError(f"expected a list, got {_describe(value)}")
            return hook(value, kind)

        return structure

    return converter


# What a list of TOML may become.
_LISTS: Final = frozenset({list, tuple, set, frozenset, abc.Sequence, abc.Iterable, abc.Collection, abc.Set})


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in _LISTS


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _one_of(value: Any, kind: Any) -> Any:
    for each in get_args(kind):
        if type(value) is type(each) and value == each:
            return value
    raise ValueError(f"expected one of {', '.join(map(repr, get_args(kind)))}, got {_describe(value)}")


def structure(table: dict[str, Any], config_class: type | None, program: str) -> Any:
    """The program's configuration: an instance of its attrs class, or None for a program without one.

    Raises :exc:`~retinue.svm.errors.ConfigError` with every mistake in the table.
    """
    if config_class is None:
        if table:
            text = f"the program {program} takes no config (it has no class Config)"
            raise ConfigError(tuple(ConfigMistake((key,), text) for key in table))
        return None
    try:
        return _converter().structure(table, config_class)
    except Exception as exc:
        raise ConfigError(tuple(_mistakes(exc, (), config_class))) from exc


def _mistakes(error: BaseException, keys: tuple[str | int, ...], config_class: Any) -> list[ConfigMistake]:
    if isinstance(error, ConfigError):  # of a validator that looks deeper than its own field
        return [ConfigMistake((*keys, *mistake.keys), mistake.text) for mistake in error.mistakes]
    if isinstance(error, cattrs.IterableValidationError):
        noted, plain = error.group_exceptions()
        found = [each for exc, note in noted for each in _mistakes(exc, (*keys, note.index), None)]
        return found + [each for exc in plain for each in _mistakes(exc, keys, None)]
    if isinstance(error, cattrs.ClassValidationError):
        fields, others = error.group_exceptions()
        found = [each for exc, note in fields for each in _mistakes(exc, (*keys, note.name), note.type)]
        return found + [each for exc in others for each in _mistakes(exc, keys, error.cl)]
    if isinstance(error, ForbiddenExtraKeysError):
        known = sorted(field.name for field in attrs.fields(error.cl)) if attrs.has(error.cl) else []
        text = f"unknown key; {error.cl.__module__} knows {', '.join(known) or 'none'}"
        return [ConfigMistake((*keys, name), text) for name in sorted(error.extra_fields)]
    if isinstance(error, KeyError) and error.args:
        return [ConfigMistake(keys, f"the key {error.args[0]!r} is missing")]
    if isinstance(error, StructureHandlerNotFoundError):
        return [ConfigMistake(keys, f"the program's class has a type that no config can fill: {error.type_}")]
    if isinstance(error, TypeError | ValueError):
        # A validator of attrs names its field in the text only: 'name' in quotes.
        known = [field.name for field in attrs.fields(config_class)] if attrs.has(config_class) else []
        named = [name for name in known if f"'{name}'" in str(error)]
        return [ConfigMistake((*keys, *named[:1]), str(error))]
    return [ConfigMistake(keys, format_exception(error, typing.cast(Any, config_class)))]
