"""Records of a program's loggers, most of which are written without that one of the library is made."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType, MethodType
from typing import Any

import pytest
from tests.svm.log_reader import Reader
from tests.svm.test_log import IDENT

from retinue.svm import log
from retinue.svm.log import LogWriter


@contextmanager
def installed(writer: LogWriter) -> Iterator[logging.Logger]:
    """A logger of a process whose root has the handler of a machine and no other."""
    root, streams, filters = logging.getLogger(), (sys.stdout, sys.stderr), warnings.filters[:]
    handlers, level = root.handlers[:], root.level
    try:
        log.install(writer)
        yield logging.getLogger("shop.till")
    finally:
        logging.captureWarnings(False)
        logging.getLogger("py.warnings").handlers.clear()
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.stdout, sys.stderr = streams
        warnings.filters[:] = filters  # type: ignore[index]  # it is a list


class Odd:
    """An object that is logged."""

    def __str__(self) -> str:
        return "%s is odd"


class Broken:
    """One that cannot be."""

    def __str__(self) -> str:
        raise ZeroDivisionError("never")

    def __repr__(self) -> str:
        return "broken"


def fail(logger: logging.Logger) -> None:
    try:
        raise ValueError("too big")
    except ValueError:
        logger.exception("it failed: %s", "twice", extra={"size": 43})


CALLS: dict[str, Callable[[logging.Logger], None]] = {
    "plain": lambda logger: logger.info("a word"),
    "percent": lambda logger: logger.info("100 %"),
    "one": lambda logger: logger.warning("%d left", 3),
    "text": lambda logger: logger.error("%s left", "none"),
    "several": lambda logger: logger.critical("%d left of %s", 3, "shoes"),
    "mapping": lambda logger: logger.info("%(size)d left", {"size": 43}),
    "empty-mapping": lambda logger: logger.info("%s left", {}),
    "list": lambda logger: logger.info("%s left", [1, 2]),
    "object": lambda logger: logger.info(Odd(), 7),
    "no-text": lambda logger: logger.info(42),
    "level": lambda logger: logger.log(25, "between"),
    "quiet": lambda logger: logger.debug("not this"),
    "extra": lambda logger: logger.info("%s", "x", extra={"size": 43, "left": [1, None]}),
    "extra-trace": lambda logger: logger.info("x", extra={"trace": IDENT}),
    "extra-empty": lambda logger: logger.info("x", extra={}),
    "extra-mapping": lambda logger: logger.info("x", extra=MappingProxyType({"size": 43})),
    "extra-taken": lambda logger: logger.info("x", extra={"filename": "mine"}),
    "extra-message": lambda logger: logger.info("x", extra={"message": "mine"}),
    "bad-format": lambda logger: logger.info("%d shoes", "many"),
    "too-many": lambda logger: logger.info("shoes", 1, 2),
    "broken": lambda logger: logger.info("%s", Broken()),
    "broken-message": lambda logger: logger.info(Broken()),
    "exception": fail,
    "adapter": lambda logger: logging.LoggerAdapter(logger, {"size": 43}).info("%s", "x"),
    "root": lambda _: logging.getLogger().warning("%s", "x"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_records_that_are_not_made_say_the_same(
    call: Callable[[logging.Logger], None], writer: LogWriter, reader: Reader
) -> None:
    """As those that are made because somebody has a record factory: the same text, fields and exceptions."""

    def said() -> tuple[list[list[Any]], str]:
        try:
            call(logger)
        except Exception as exc:
            return reader.records(), repr(exc)
        return reader.records(), ""

    made: list[str] = []

    def factory(*args: Any, **others: Any) -> logging.LogRecord:
        made.append(args[0])
        return logging.LogRecord(*args, **others)

    with installed(writer) as logger:
        short = said()
        logging.setLogRecordFactory(factory)
        try:
            long = said()
        finally:
            logging.setLogRecordFactory(logging.LogRecord)
    assert short == long
    assert bool(made) == (call is not CALLS["quiet"])


def test_no_record_of_the_library_is_made_for_the_writer_alone(
    writer: LogWriter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its making costs more than all the rest."""
    made: list[object] = []
    before = logging.LogRecord.__init__

    def make(self: logging.LogRecord, *args: Any) -> None:
        made.append(args)
        before(self, *args)

    monkeypatch.setattr(logging.LogRecord, "__init__", make)
    with installed(writer) as logger:
        logger.info("%s", "x", extra={"size": 43})
        assert made == []
        logger.info("x", stack_info=True)
        assert len(made) == 1
    assert len(reader.records()) == 2


def test_handler_needs_no_lock_of_the_library(
    writer: LogWriter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes one for granted since Python 3.13; since 3.12 a filter may put another record in the place of one."""

    def handle(self: logging.Handler, record: logging.LogRecord) -> bool:
        with self.lock:  # type: ignore[union-attr]
            self.emit(record)
        return True

    def other(record: logging.LogRecord) -> Any:
        return logging.makeLogRecord({**record.__dict__, "msg": "another word"})

    monkeypatch.setattr(logging.Handler, "handle", handle)
    with installed(writer) as logger:
        logger.info("a word", exc_info=ValueError("too big"))
        (handler,) = logging.getLogger().handlers
        handler.addFilter(other)
        logger.info("a word")
    first, second = (record[2] for record in reader.records())
    assert first.splitlines()[-1] == "ValueError: too big"
    assert second == ("another word" if sys.version_info >= (3, 12) else "a word")


@pytest.mark.parametrize("exc_info", [None, ValueError("too big")], ids=["short", "long"])
def test_message_that_nobody_can_say_harms_no_program(
    exc_info: Exception | None, writer: LogWriter, reader: Reader
) -> None:
    """Neither as a text nor by its repr: what is said of it says so."""

    class Unsayable(Exception):
        def __str__(self) -> str:
            raise Unsayable

        def __repr__(self) -> str:
            raise ZeroDivisionError("never")

    with installed(writer) as logger:
        logger.info(Unsayable(), exc_info=exc_info)
    ((_, _, text, _),) = reader.records()
    unsayable = "<Unsayable whose repr raised ZeroDivisionError>"
    assert text == f"a log call failed: {unsayable}: {unsayable}"


class Seen(logging.Handler):
    """A handler of the program's own."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("name", ["", "shop", "shop.till"])
def test_handler_of_somebody_else_gets_whole_records(name: str, writer: LogWriter, reader: Reader) -> None:
    """Wherever it hangs; and what it got until it was taken away."""
    seen = Seen()
    with installed(writer) as logger:
        logging.getLogger(name).addHandler(seen)
        try:
            logger.info("%d left", 3, extra={"size": 43})
        finally:
            logging.getLogger(name).removeHandler(seen)
        logger.info("unseen")
    (record,) = seen.records
    text = logging.Formatter("%(levelname)s %(name)s %(message)s %(size)d %(module)s").format(record)
    assert text.startswith("INFO shop.till 3 left 43 ")
    assert [each[2] for each in reader.records()] == ["3 left", "unseen"]


def test_filters_and_levels_of_somebody_else_hold(writer: LogWriter, reader: Reader) -> None:
    """On the logger and on the handler; and a logger that keeps to itself says nothing."""

    def louder(record: logging.LogRecord) -> bool:
        record.msg = f"{record.msg}!"
        return "secret" not in record.msg

    with installed(writer) as logger:
        (handler,) = logging.getLogger().handlers
        for filterer in (logger, handler):
            filterer.addFilter(louder)
            try:
                logger.info("a secret")
                logger.info("a word")
            finally:
                filterer.removeFilter(louder)
        handler.setLevel(logging.ERROR)
        logger.info("below it")
        handler.setLevel(logging.NOTSET)
        logger.propagate = False
        logger.info("to nobody")
        logger.propagate = logger.disabled = True
        logger.info("disabled")
        logger.disabled = False
        logger.info("again")
    assert [each[2] for each in reader.records()] == ["a word!", "a word!", "again"]


@pytest.mark.parametrize("step", ["makeRecord", "handle", "callHandlers"])
@pytest.mark.parametrize("on", ["class", "logger"])
def test_steps_that_somebody_has_replaced_are_taken(
    on: str, step: str, writer: LogWriter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that watch a program put themselves there."""
    taken: list[str] = []
    before = getattr(logging.Logger, step)

    def replaced(self: logging.Logger, *args: Any) -> Any:
        taken.append(step)
        return before(self, *args)

    with installed(writer) as logger:
        if on == "class":
            monkeypatch.setattr(logging.Logger, step, replaced)
        else:
            monkeypatch.setattr(logger, step, MethodType(replaced, logger))
        logger.info("a word")
    assert taken == [step]
    assert [each[2] for each in reader.records()] == ["a word"]


def test_logger_of_a_class_of_its_own_is_asked(writer: LogWriter, reader: Reader) -> None:
    """As those of a program that called setLoggerClass()."""

    class Shouting(logging.Logger):
        def makeRecord(self, *args: Any, **others: Any) -> logging.LogRecord:
            made = super().makeRecord(*args, **others)
            made.msg = str(made.msg).upper()
            return made

    with installed(writer):
        made = Shouting("shop.door")
        made.parent = logging.getLogger()
        made.info("a word")
    assert reader.records() == [[log.INFO, "shop.door", "A WORD", {}]]


def test_stack_ends_where_the_logger_was_called(writer: LogWriter, reader: Reader) -> None:
    """Nothing of what stands in between is in it; ``stacklevel`` counts from there."""

    def helper(level: int) -> None:
        logger.info("x", stack_info=True, stacklevel=level)

    with installed(writer) as logger:
        helper(1)
        helper(2)
    first, second = (record[2].splitlines() for record in reader.records())
    assert first[-2].endswith("in helper")
    assert second[-2].endswith("in test_stack_ends_where_the_logger_was_called")


def test_fields_are_those_of_the_call(writer: LogWriter, reader: Reader) -> None:
    """Also of a record that has to wait until another one is made: the program may change what it passed."""
    fields = {"size": 43}

    class Chatty:
        def __repr__(self) -> str:
            logger.info("within", extra=fields)
            fields["size"] = 44
            return "chatty"

    with installed(writer) as logger:
        logger.info("outer", extra={"value": Chatty()})
    assert [each[2:] for each in reader.records()] == [["outer", {"value": "chatty"}], ["within", {"size": 43}]]
