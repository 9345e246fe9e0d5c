"""The command in the process of the tests: it says and does the same as in one of its own, whose start it saves."""

import io
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType

from retinue.cp.cli import main


def run_here(args: tuple[str, ...], environ: Mapping[str, str], limit: int) -> "subprocess.CompletedProcess[str]":
    """Its exit code and all that it wrote, when it has ended; the main thread's, where no trio runs."""
    texts = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(each, "utf-8", newline="\n", write_through=True) for each in texts)
    with redirect_stdout(out), redirect_stderr(err), _environment(environ), limited(limit):
        try:
            code = main(list(args))
        except SystemExit as end:  # the shell's completion ends so
            code = int(end.code or 0)
    return subprocess.CompletedProcess(args, code, *(text.getvalue().decode() for text in texts))


@contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(environ)
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """What takes longer ends with an error, wherever it waits; the main thread's alone, for signals are."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it has not ended within {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
