"""The board of a starting or stopping system, and its picture."""

import io
from typing import Any

import pytest
from rich.console import Console

from retinue.cp.cli.board import LAST_LINES, Board
from retinue.cp.cli.live import picture


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board("SHOP", ["WEB", "DB"], clock)


def event(machine: str | None, state: str, cause: str | None = None, **more: Any) -> dict[str, Any]:
    return {"machine": machine, "state": state, "previous": "?", "cause": cause, **more}


def test_events_become_lines(board: Board, clock: Clock) -> None:
    assert board.apply(event("DB", "STARTING")) == "DB is STARTING"
    clock.now += 0.25
    assert board.apply(event("DB", "READY")) == "DB is READY after 0.25 s"
    assert board.apply(event("DB", "READY")) is None
    assert board.apply(event("WEB", "ABEND", "signal \x1b9")) == r"WEB is ABEND: signal \x1b9"
    assert board.apply(event(None, "READY")) == "SHOP is READY"
    assert board.apply(event(None, "READY")) is None
    assert board.state == "READY"


def test_failure_keeps_reason_and_exit_code(board: Board) -> None:
    board.apply(event("WEB", "BROKEN", "it died five times"))
    assert board.apply(event(None, "FAILED", "WEB is broken", exit_code=78)) == "SHOP is FAILED: WEB is broken"
    assert (board.failure, board.exit_code) == ("WEB is broken", 78)
    board.apply(event("DB", "STOPPED", "asked to stop"))
    board.apply(event("WEB", "STOPPED", "asked to stop"))
    assert [(status.name, status.trouble) for status in board.troubled()] == [("WEB", "it died five times")]


def test_the_cause_of_death_outlives_what_follows(board: Board) -> None:
    board.apply(event("WEB", "ABEND", "signal 9"))
    board.apply(event("WEB", "WAITING", "starting again in 1.0 s"))
    board.apply(event("WEB", "BROKEN", "its restart policy is never"))
    assert [status.trouble for status in board.troubled()] == ["signal 9"]


@pytest.mark.parametrize("code", [None, 0, -1, 256, "78"])
def test_a_senseless_exit_code_is_ignored(code: object, board: Board) -> None:
    board.apply(event(None, "FAILED", None, exit_code=code))
    assert board.failure == "the control program gives no reason"
    assert board.exit_code is None


def test_a_listing_never_overrides_what_an_event_told(board: Board) -> None:
    board.apply(event("WEB", "READY"))
    board.apply(event(None, "STOPPING"))
    board.prime(
        {
            "state": "STARTING",
            "machines": [
                {"name": "WEB", "state": "STARTING"},
                {"name": "DB", "state": "ABEND", "cause": "signal 9"},
                {"name": "NEW", "state": "DEFINED"},
            ],
        }
    )
    assert {name: status.state for name, status in board.machines.items()} == {
        "WEB": "READY",
        "DB": "ABEND",
        "NEW": "DEFINED",
    }
    assert board.state == "STOPPING"


def test_a_later_listing_tells_what_no_event_has_told(board: Board) -> None:
    """That a machine which is READY ended once is not told again."""
    board.apply(event("SHOP", "READY"))
    listing = {
        "machines": [
            {"name": "SHOP", "state": "READY", "cause": "replaced"},
            {"name": "WEB", "state": "STOPPED", "cause": "asked to stop"},
        ]
    }
    assert board.catch_up(listing) == ["WEB is STOPPED: asked to stop"]
    assert board.catch_up(listing) == []


def test_last_lines_are_few(board: Board) -> None:
    for number in range(100):
        board.keep_line("WEB", [f"line {number}"])
    assert board.last_lines("WEB") == [f"line {number}" for number in range(100 - LAST_LINES, 100)]
    assert board.last_lines("DB") == []


def test_picture_shows_every_machine_in_order_and_fits(board: Board, clock: Clock) -> None:
    board.apply(event("DB", "READY"))
    board.apply(event("WEB", "ABEND", "[bold]killed[/bold] by\x1b]0;signal 9 and more than fits on the line"))
    out = io.StringIO()
    Console(file=out, width=40, highlight=False).print(picture(board, 40))
    first, second = out.getvalue().splitlines()
    assert first == "✗ WEB  ABEND     [bold]killed[/bold] by…"
    assert second.rstrip() == "● DB   READY"
