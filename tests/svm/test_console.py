"""What a native program writes becomes lines, whatever it is."""

import os

import pytest
import trio

from retinue.svm import console
from retinue.svm.console import Lines


class Output:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


async def lines_of(*writes: bytes) -> list[str]:
    """What becomes of bytes that come in these pieces."""
    output = Output()
    reading, writing = os.pipe()
    lines = Lines(reading, output)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        for data in writes:
            os.write(writing, data)
            await trio.testing.wait_all_tasks_blocked()
        os.close(writing)
    lines.finish()
    assert output.text.endswith("\n") or not output.text
    return output.text.split("\n")[:-1]


@pytest.mark.parametrize(
    ("writes", "lines"),
    [
        ([], []),
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"one\n\n"], ["one", ""]),
        ([b"o", b"ne\r\ntw", b"o"], ["one", "two"]),
        ([b"\xc3", b"\xa9\n"], ["é"]),
        ([b"\xff\xfe\x00\x1b[2J\n"], ["\\xff\\xfe\x00\x1b[2J"]),
        ([b"\xe2\x82"], ["\\xe2\\x82"]),
    ],
)
async def test_console_lines(writes: list[bytes], lines: list[str]) -> None:
    """Whole, in order; a last one without its end; rubbish as what it is, controls untouched."""
    assert await lines_of(*writes) == lines


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_console_long_line_is_bounded(end: bytes) -> None:
    """It becomes several, and no character is cut in two."""
    text = "é" * 20_000
    lines = await lines_of(text.encode()[:30_000], text.encode()[30_000:] + end)
    assert "".join(lines) == text
    assert max(len(line.encode()) for line in lines) <= console.MAX_LINE
    assert len(lines) < 8
    rubbish = await lines_of(b"\x80" * 20_000 + end)
    assert "".join(rubbish) == "\\x80" * 20_000


async def test_console_pipe_that_others_hold_is_read_to_its_present_end() -> None:
    """And not for ever, although somebody goes on writing."""
    output = Output()
    reading, writing = os.pipe()
    os.write(writing, b"said\nlast wo")
    Lines(reading, output).finish()
    assert output.text == "said\nlast wo\n"
    os.close(writing)
