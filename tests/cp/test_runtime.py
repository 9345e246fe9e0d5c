"""Folders of systems, and which of them run."""

import fcntl
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from retinue.cp import runtime
from retinue.cp.places import FolderError, Folders, Places, find_places, make_private_folder, make_state_folder

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def places(tmp_path: pathlib.Path) -> Places:
    return Places(tmp_path / "run" / "retinue", tmp_path / "state" / "retinue")


@pytest.fixture(autouse=True)
def _parents(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)


@contextmanager
def nucleus(folders: Folders) -> Iterator[None]:
    """What a living nucleus does to the runtime folder: hold its lock, and say who it is."""
    note = {"system": folders.system, "nucleus_pid": os.getpid(), "topology": "/t.toml", "started": 5.0}
    (folders.runtime / runtime.SYSTEM_JSON).write_text(json.dumps({**note, "state": str(folders.state)}))
    with (folders.runtime / runtime.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def effective_user(uid: int) -> Iterator[None]:
    before = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)


# -- where ------------------------------------------------------------------------------------------------------


def test_xdg_variables_choose_the_places(tmp_path: pathlib.Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_STATE_HOME": str(tmp_path / "s"), "HOME": "/"}
    folders = find_places(None, environ).folders("SHOP")
    assert folders.runtime == tmp_path / "run" / "retinue" / "SHOP"
    assert folders.state == tmp_path / "s" / "retinue" / "SHOP"


def test_without_runtime_dir_a_private_folder_in_tmp_is_chosen(tmp_path: pathlib.Path) -> None:
    found = find_places(None, {"HOME": str(tmp_path)})
    assert found.runtime == pathlib.Path(f"/tmp/retinue-{os.geteuid()}")
    assert found.state == tmp_path / ".local/state/retinue"
    assert found.notice is None


@pytest.mark.parametrize("value", ["", "relative/folder", "/nonexistent/folder", "/proc/self/status"])
def test_a_useless_runtime_dir_is_ignored(value: str, tmp_path: pathlib.Path) -> None:
    found = find_places(None, {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": value})
    assert found.runtime == pathlib.Path(f"/tmp/retinue-{os.geteuid()}")


@needs_root
def test_the_runtime_dir_of_another_user_is_ignored(tmp_path: pathlib.Path) -> None:
    """`su` and `setpriv` leave the variable of the user who called them."""
    tmp_path.chmod(0o755)
    with effective_user(NOBODY):
        found = find_places(None, {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": "/"})
    assert found.runtime == pathlib.Path(f"/tmp/retinue-{NOBODY}")


def test_a_missing_home_moves_the_state_and_says_so() -> None:
    found = find_places(None, {"HOME": "/nonexistent"})
    assert found.state == pathlib.Path(f"/var/tmp/retinue-{os.geteuid()}")
    assert "no home directory" in (found.notice or "")


@needs_root
def test_an_unwritable_home_moves_the_state_and_says_so(tmp_path: pathlib.Path) -> None:
    with effective_user(NOBODY):
        found = find_places(None, {"HOME": "/root"})
    assert found.state == pathlib.Path(f"/var/tmp/retinue-{NOBODY}")
    assert "/root is not writable" in (found.notice or "")


def test_state_option_moves_both_folders(tmp_path: pathlib.Path) -> None:
    folders = find_places(tmp_path / "here", {"XDG_RUNTIME_DIR": "/run"}).folders("SHOP")
    assert (folders.state, folders.runtime) == (tmp_path / "here", tmp_path / "here" / "run")


@pytest.mark.parametrize("name", ["", ".", "..", "A/B", "/etc", "A\0"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, places: Places) -> None:
    with pytest.raises(ValueError, match="not the name of a system"):
        places.folders(name)


# -- creating ---------------------------------------------------------------------------------------------------


def test_starting_makes_private_folders(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders):
        for folder in (folders.base, folders.runtime, folders.state):
            assert folder.stat().st_mode & 0o7777 == 0o700


def test_starting_twice_is_refused_with_the_pid(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        with (
            pytest.raises(runtime.SystemRuns, match=f"already running .nucleus pid {os.getpid()}"),
            runtime.starting(folders),
        ):
            pytest.fail("the folders were handed out twice")
        assert folders.runtime.is_dir()


def test_another_system_starts_beside(places: Places) -> None:
    one, other = places.folders("ONE"), places.folders("OTHER")
    with runtime.starting(one) as first, nucleus(one):
        first.close()
        with runtime.starting(other) as second, nucleus(other):
            second.close()
            assert [each.system for each in runtime.running_systems(places)] == ["ONE", "OTHER"]


def test_starting_waits_while_another_is_starting(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "START_WAIT", 0.05)
    with (
        runtime.starting(places.folders("ONE")),
        pytest.raises(runtime.PlaceBusy),
        runtime.starting(places.folders("OTHER")),
    ):
        pytest.fail("two were in the window")


def test_starting_removes_what_a_killed_run_left(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders), nucleus(folders):
        (folders.runtime / "operator.sock").touch()
    (folders.state / runtime.END_JSON).write_text("{}")
    with runtime.starting(folders):
        assert list(folders.runtime.iterdir()) == []
        assert not (folders.state / runtime.END_JSON).exists()


def test_starting_survives_the_removal_of_the_base(places: Places) -> None:
    """Whoever ends the last system removes the empty base; somebody may be waiting for the lock on it just then."""
    places.runtime.mkdir(mode=0o700)
    hold = os.open(places.runtime, os.O_RDONLY)
    fcntl.flock(hold, fcntl.LOCK_EX)
    started: list[bool] = []

    def start() -> None:
        with runtime.starting(places.folders("SHOP")):
            started.append(places.folders("SHOP").runtime.is_dir())

    thread = threading.Thread(target=start)
    thread.start()
    places.runtime.rmdir()
    os.close(hold)
    thread.join(10)
    assert started == [True]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: folder.symlink_to("/root"), "symbolic link"),
        (lambda folder: folder.symlink_to("/nonexistent"), "symbolic link"),
        (lambda folder: folder.touch(), "not a directory"),
        (lambda folder: (folder.mkdir(), folder.chmod(0o755)), "others may enter it .mode 0755"),
    ],
)
def test_a_runtime_base_that_is_not_safely_ours_is_refused(make: object, problem: str, places: Places) -> None:
    assert callable(make)
    make(places.runtime)
    with pytest.raises(FolderError, match=problem) as caught, runtime.starting(places.folders("SHOP")):
        pytest.fail("the base was trusted")
    assert caught.value.folder == places.runtime
    assert caught.value.cure


@needs_root
def test_a_runtime_base_of_another_user_is_refused(places: Places) -> None:
    places.runtime.mkdir(mode=0o700)
    os.chown(places.runtime, NOBODY, NOBODY)
    with pytest.raises(FolderError, match=f"belongs to the user with id {NOBODY}"):
        make_private_folder(places.runtime)


def test_a_folder_that_cannot_be_created_is_named() -> None:
    with pytest.raises(FolderError, match="/proc/retinue: it cannot be created"):
        make_state_folder(pathlib.Path("/proc/retinue"))


def test_a_state_folder_that_everybody_writes_is_refused(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(FolderError, match="everybody may write"):
        make_state_folder(tmp_path)
    tmp_path.chmod(0o700)


# -- discovering ------------------------------------------------------------------------------------------------


def test_nothing_runs_where_nothing_is(places: Places) -> None:
    assert runtime.running_systems(places) == ()
    assert not places.runtime.exists()


def test_a_running_system_is_found_with_what_its_nucleus_wrote(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        (found,) = runtime.running_systems(places)
        assert found == runtime.Running("SHOP", folders.runtime, os.getpid(), "/t.toml", folders.state, started=5.0)
        assert runtime.still_runs(found)
    assert not runtime.still_runs(found)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"nucleus_pid": "7", "system": 3}',
        b"[" * 500_000,
        b'{"system": "S; reboot", "state": "/x\\u0000", "started": 1' + b"0" * 400 + b"}",
        b'{"system": "\\u001b[2J", "state": "/\\ud800", "started": NaN, "nucleus_pid": 5000000000}',
    ],
)
def test_a_running_system_is_found_though_its_note_is_unreadable(note: bytes, places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        (folders.runtime / runtime.SYSTEM_JSON).write_bytes(note)
        assert runtime.running_systems(places) == (runtime.Running("SHOP", folders.runtime),)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_a_note_that_is_no_file_is_not_waited_for(kind: str, places: Places, tmp_path: pathlib.Path) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        note = folders.runtime / runtime.SYSTEM_JSON
        note.rename(tmp_path / "note")
        match kind:
            case "fifo":
                os.mkfifo(note)
            case "link":
                note.symlink_to(tmp_path / "note")
            case _:
                note.mkdir()
        nothing = runtime.Running("SHOP", folders.runtime)
        assert (runtime.running_systems(places), runtime.running_in(folders.runtime)) == ((nothing,), nothing)


def test_a_system_is_found_in_its_folder(places: Places) -> None:
    folders = places.folders("SHOP")
    assert runtime.running_in(folders.runtime) is None
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        assert runtime.running_in(folders.runtime) == runtime.running_systems(places)[0]
    assert runtime.running_in(folders.runtime) is None
    assert folders.runtime.exists()


def _open(folder: pathlib.Path) -> None:
    folder.chmod(0o777)


def _give_away(folder: pathlib.Path) -> None:
    os.chown(folder, NOBODY, NOBODY)


def _link(folder: pathlib.Path) -> None:
    folder.symlink_to(folder.rename(folder.with_name("REAL")))


@pytest.mark.parametrize("which", ["the folder", "its base"])
@pytest.mark.parametrize("spoil", [_open, _link, pytest.param(_give_away, marks=needs_root)])
def test_a_folder_that_somebody_else_may_have_made_has_no_system(
    spoil: Callable[[pathlib.Path], None], which: str, places: Places
) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        assert runtime.running_in(folders.runtime) is not None
        spoil(folders.runtime if which == "the folder" else folders.base)
        assert runtime.running_in(folders.runtime) is None


def test_a_stale_folder_is_removed_on_sight_with_its_base(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders), nucleus(folders):
        pass
    assert folders.runtime.is_dir()
    assert runtime.running_systems(places) == ()
    assert not places.runtime.exists()
    end = runtime.last_end(places)
    assert end is not None
    assert (end.system, end.how) == ("SHOP", "nucleus-died")
    assert str(os.getpid()) in end.text


def test_a_stale_folder_does_not_hide_how_the_run_ended(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders), nucleus(folders):
        pass
    (folders.state / runtime.END_JSON).write_text('{"time": 7, "how": "cp-died", "text": "t"}')
    assert runtime.running_systems(places) == ()
    assert runtime.last_end(places, "SHOP") == runtime.End("SHOP", 7.0, "cp-died", "t")


def test_a_link_in_the_base_is_not_followed(places: Places, tmp_path: pathlib.Path) -> None:
    (tmp_path / "precious").mkdir()
    places.runtime.mkdir(mode=0o700)
    (places.runtime / "SHOP").symlink_to(tmp_path / "precious")
    assert runtime.running_systems(places) == ()
    with runtime.starting(places.folders("SHOP")):
        assert not (places.runtime / "SHOP").is_symlink()
    assert (tmp_path / "precious").is_dir()


def test_a_folder_that_is_being_filled_is_left_alone(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "LOOK_WAIT", 0.05)
    folders = places.folders("SHOP")
    with runtime.starting(folders):
        assert runtime.running_systems(places) == ()
        assert folders.runtime.is_dir()


def test_with_state_option_the_system_there_is_found_and_cleaned(tmp_path: pathlib.Path) -> None:
    places = find_places(tmp_path / "here")
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        assert [each.system for each in runtime.running_systems(places)] == ["SHOP"]
        with (
            pytest.raises(runtime.SystemRuns, match="the system SHOP is already running"),
            runtime.starting(places.folders("OTHER")),
        ):
            pytest.fail("two systems in one state folder")
    runtime.clean(folders)
    assert sorted(each.name for each in folders.state.iterdir()) == ["end.json"]


def test_clean_does_nothing_to_a_running_system(places: Places) -> None:
    folders = places.folders("SHOP")
    with runtime.starting(folders) as window, nucleus(folders):
        window.close()
        runtime.clean(folders)
        assert folders.runtime.is_dir()
    runtime.clean(folders)
    assert not folders.base.exists()


def test_clean_leaves_the_base_while_another_system_is_in_it(places: Places) -> None:
    one, other = places.folders("ONE"), places.folders("OTHER")
    with runtime.starting(other) as window, nucleus(other):
        window.close()
        with runtime.starting(one):
            pass
        runtime.clean(one)
        assert [each.name for each in places.runtime.iterdir()] == ["OTHER"]


def test_the_latest_end_is_told(places: Places) -> None:
    for name, when in (("OLD", 1), ("NEW", 2), ("TORN", None)):
        state = places.folders(name).state
        state.mkdir(parents=True)
        text = "{" if when is None else json.dumps({"time": when, "how": "down", "text": ""})
        (state / runtime.END_JSON).write_text(text)
    assert runtime.last_end(places) == runtime.End("NEW", 2.0, "down", "")
    assert runtime.last_end(places, "OLD") == runtime.End("OLD", 1.0, "down", "")
    assert runtime.last_end(places, "TORN") is None
