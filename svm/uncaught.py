"""Exceptions that nobody has caught, each as one record of ``*LOG`` with its traceback.

What ends the program is told by the runtime. The others end a thread, or nothing at all: Python would write them to
standard error, line by line.
"""

import sys
import threading
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Final

from retinue.svm.log import CRITICAL, ERROR, LogWriter, plain

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

LOGGER: Final = "retinue.svm"


class Uncaught:
    """The hooks of the interpreter, which write records."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def install(self) -> None:
        """Take them all."""
        sys.excepthook = self.in_program
        sys.unraisablehook = self.unraisable
        threading.excepthook = self.in_thread

    def in_program(self, kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
        """:func:`sys.excepthook`."""
        self._tell(CRITICAL, "an exception was not caught", kind, exc, trace, {})

    def in_thread(self, args: threading.ExceptHookArgs) -> None:
        """:func:`threading.excepthook`: SystemExit ends a thread in silence."""
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread is not None else "(unknown)"
            self._tell(
                ERROR, f"the thread {name} failed", args.exc_type, args.exc_value, args.exc_traceback, {"thread": name}
            )

    def unraisable(self, args: "UnraisableHookArgs") -> None:
        """:func:`sys.unraisablehook`: of a ``__del__``, say, to which there is no caller."""
        # The object is only written down: kept, it would be alive again.
        text = f"{args.err_msg or 'Exception ignored in'}: {plain(args.object)}"
        self._tell(ERROR, text, args.exc_type, args.exc_value, args.exc_traceback, {})

    def _tell(
        self,
        severity: int,
        text: str,
        kind: type[BaseException],
        exc: BaseException | None,
        trace: TracebackType | None,
        fields: dict[str, str],
    ) -> None:
        try:
            story = "".join(traceback.format_exception(kind, exc, trace)).rstrip()
        except Exception as failure:
            story = f"{kind.__name__}, whose traceback raised {type(failure).__name__}"
        self._writer.write(severity, LOGGER, f"{text}\n{story}", fields)
