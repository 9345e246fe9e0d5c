"""The note of where the records are: what is believed of it, and what it does not forget."""

import json
import os
import pathlib
import re
from typing import Any

import attrs
import pytest

from retinue.cp.archive import DATABASE, NAME, STOCK, Archive, Store, read_archive
from retinue.cp.directory import names

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

OLD = Archive("SHOP", 1.0, ("SYSLOG", "TILL@2"), "SYSLOG", STOCK, ("SYSLOG", "a"), "/run/user/7/retinue/SHOP")
STORE = Store("SYSLOG", STOCK, ("SYSLOG", "a"))


def store(state: pathlib.Path, disk: tuple[str, str]) -> None:
    folder = state.joinpath("disks", *disk)
    folder.mkdir(parents=True)
    (folder / DATABASE).touch()


def test_what_is_written_is_read(tmp_path: pathlib.Path) -> None:
    for archive in (
        OLD,
        attrs.evolve(OLD, earlier=Store("LOGS", "site.logs", None)),
        Archive("SHOP", 2.5, ("SHOP",), earlier=STORE),
    ):
        archive.write(tmp_path)
        assert read_archive(tmp_path) == archive
        assert [each.name for each in tmp_path.iterdir()] == [NAME]
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "change",
    [
        {"system": "shop"},
        {"system": "../SHOP"},
        {"system": "SHOP\n"},
        {"time": float("nan")},
        {"time": float("inf")},
        {"time": "1"},
        {"machines": ["SHOP", 7]},
        {"machines": ["TILL@"]},
        {"machines": ["x\x1b[2J"]},
        {"machine": ".."},
        {"disk": ["..", ".."]},
        {"disk": ["SYSLOG", ".."]},
        {"disk": ["SYSLOG", "/etc"]},
        {"disk": ["SYSLOG", "a/../b"]},
        {"disk": ["/etc", "a"]},
        {"disk": ["SYSLOG", "a", "b"]},
        {"disk": "ab"},
        {"runtime": "run"},
        {"runtime": "/run\0"},
        {"runtime": None},
        {"earlier": {"machine": "SYSLOG", "program": STOCK, "disk": ["..", ".."]}},
        {"earlier": {"machine": "SYSLOG"}},
        {"earlier": ["SYSLOG", STOCK, ["SYSLOG", "a"]]},
        {"earlier": 7},
    ],
)
def test_note_with_something_wrong_is_none(tmp_path: pathlib.Path, change: dict[str, Any]) -> None:
    note = attrs.asdict(OLD)
    assert change.keys() <= note.keys()
    (tmp_path / NAME).write_text(json.dumps(note | change))
    assert read_archive(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[", "[" * 500_000, "{}", "[]", "7", '"\\ud800"', "\xff"])
def test_text_that_is_no_note_is_none(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / NAME).write_text(text, "latin-1")
    assert read_archive(tmp_path) is None


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "file of everybody", "folder of everybody", "stranger's"])
def test_note_that_somebody_else_may_have_made_is_none(tmp_path: pathlib.Path, kind: str) -> None:
    """Nobody waits for a FIFO, either."""
    state = tmp_path / "state"
    state.mkdir()
    OLD.write(state)
    note = state / NAME
    assert read_archive(state) == OLD
    match kind:
        case "fifo":
            note.unlink()
            os.mkfifo(note)
        case "link":
            note.rename(tmp_path / NAME)
            note.symlink_to(tmp_path / NAME)
        case "folder":
            note.unlink()
            note.mkdir()
        case "file of everybody":
            note.chmod(0o666)
        case "folder of everybody":
            state.chmod(0o777)
        case _:
            if os.geteuid() != 0:
                pytest.skip("only root can give a file away")
            os.chown(note, 1_879_048_199, -1)
            assert read_archive(state) is None
            os.chown(note, 0, -1)
            os.chown(state, 1_879_048_199, -1)
    assert read_archive(state) is None


def test_names_are_those_of_a_topology(tmp_path: pathlib.Path) -> None:
    assert names.is_local_name("a" * 32)
    for machine, disk in (("A" * 8, "a" * 32), ("A1", "a_1"), ("A" * 9, "a"), ("A", "a" * 33), ("1A", "a"), ("A", "1")):
        told = re.fullmatch(names._NAME, machine) is not None and names.is_local_name(disk)
        attrs.evolve(OLD, machine=machine, disk=(machine, disk)).write(tmp_path)
        assert (read_archive(tmp_path) is not None) == told


def test_failed_write_leaves_the_note_and_nothing_else(tmp_path: pathlib.Path) -> None:
    OLD.write(tmp_path)
    (tmp_path / f"{NAME}.new").mkdir()
    with pytest.raises(OSError, match=re.escape(f"{NAME}.new")):
        attrs.evolve(OLD, time=2.0).write(tmp_path)
    assert read_archive(tmp_path) == OLD
    (tmp_path / f"{NAME}.new").rmdir()
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match=NAME):
        OLD.write(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [NAME]


def test_unfinished_note_of_before_is_in_nobodys_way(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / f"{NAME}.new")
    OLD.write(tmp_path)
    assert read_archive(tmp_path) == OLD


# -- what was before ---------------------------------------------------------------------------------------------------


def test_records_are_not_forgotten_by_a_run_that_keeps_none(tmp_path: pathlib.Path) -> None:
    """However many such runs there are."""
    store(tmp_path, ("SYSLOG", "a"))
    none = Archive("SHOP", 2.0, ("SHOP",)).after(OLD, tmp_path)
    assert none.machine is None
    for again in (none, attrs.evolve(none, time=3.0, earlier=None).after(none, tmp_path)):
        assert again.earlier == STORE
        assert again.readable(tmp_path).store == STORE
    assert attrs.evolve(OLD, time=4.0).after(none, tmp_path).earlier is None


def test_new_place_counts_once_there_is_something_in_it(tmp_path: pathlib.Path) -> None:
    store(tmp_path, ("SYSLOG", "a"))
    moved = Archive("SHOP", 2.0, ("LOGS",), "LOGS", STOCK, ("FILES", "logs")).after(OLD, tmp_path)
    assert moved.readable(tmp_path).store == STORE
    store(tmp_path, ("FILES", "logs"))
    assert moved.readable(tmp_path) == moved
    own = Archive("SHOP", 3.0, ("LOGS",), "LOGS", "site.logs", ("LOGS", "a")).after(OLD, tmp_path)
    assert own.earlier == STORE
    assert own.readable(tmp_path) == own  # nobody but site.logs knows whether it has stored any


def test_place_with_nothing_in_it_is_forgotten(tmp_path: pathlib.Path) -> None:
    none = Archive("SHOP", 2.0, ("SHOP",))
    assert none.after(OLD, tmp_path) == none
    assert none.after(None, tmp_path) == none
    gone = attrs.evolve(none, earlier=STORE)
    assert gone.readable(tmp_path) == gone
