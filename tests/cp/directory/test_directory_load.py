"""What load() makes of a correct file, and what it says of a file that cannot be read."""

import os
import pathlib
from typing import Any

import attrs
import pytest

from retinue.cp.directory import (
    Budget,
    Directory,
    DirectoryErrors,
    Disk,
    Edge,
    Group,
    LinkedDisk,
    MachineEntry,
    PagingVolume,
    Pause,
    Secret,
    SocketEntry,
    System,
    executable,
    load,
)
from retinue.cp.directory.model import LogPolicy, LogRate

GOOD = pathlib.Path(__file__).parents[2] / "topologies" / "good"
SMALLEST = '[system]\nname = "A"\n[machines.A]\nprogram = "worker"\n'


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working directory, with the program that SMALLEST names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker.py").write_text("async def main(vm): ...\n")
    return tmp_path


def mistakes(path: str) -> str:
    with pytest.raises(DirectoryErrors) as caught:
        load(path)
    return str(caught.value)


def test_load_returns_what_the_file_says() -> None:
    directory = load(GOOD / "every-key.toml")
    expected = Directory(
        path=(GOOD / "every-key.toml").resolve(),
        system=System(
            "BANK2",
            syslog="RECORDS",
            preload=("sqlite3", "email.message", "math"),
            secret=("password", "card number"),
            seal="full",
            storage=4 * 1024**3,
            idle_page_out=120.0,
            paging=PagingVolume("other.img", 2 * 1024**3),
            log=(log := LogPolicy("drop", 2 * 1024**2, 1024**3, LogRate(600, 60.0))),
        ),
        machines=(
            MachineEntry(
                "DOOR",
                "program",
                "desk",
                network=True,
                host_sockets=("/dev/log", "@audit"),
                log=LogPolicy("block", 2 * 1024**2, 1024**3),
                uses=(Edge("window", "WINDOW"),),
            ),
            MachineEntry(
                "WINDOW",
                "asgi",
                "window:application",
                storage=1024**3,
                restart="on-failure",
                backoff=Pause(longest=0.5),
                restarts=Budget(5, 120.0),
                essential=True,
                instances=3,
                grace=0.0,
                uses=(
                    Edge("desk", "DESK", 65_535, on_restart="restart", overflow="drop-oldest"),
                    Edge("log", "*LOG"),
                    Edge("cp", "*CP", 1),
                ),
                config={
                    "title": "Good morning",
                    "hours": [9, 17.5],
                    "open": {"monday": True, "rates": {"eur": 1}},
                },
                share=200,
                secrets=(Secret("key", file="key.txt"), Secret("card", variable="BANK2_CARD")),
            ),
            MachineEntry(
                "DESK",
                "program",
                "desk",
                storage=32 * 1024**2,
                segments=256 * 1024**2,
                restart="never",
                uses=(
                    Edge("again", "WINDOW", lazy=True, on_restart="reconnect", overflow="sever"),
                    Edge("vault", "VAULT"),
                ),
                disks=(Disk("ledger", linked_by=(("AUDIT", "ro"), ("VAULT", "rw"))), Disk("drafts_2")),
            ),
            MachineEntry(
                "AUDIT",
                "wsgi",
                "window:application",
                threads=2,
                cpu=1.5,
                start="on-demand",
                idle=300.0,
                watchdog=0.0,
                backoff=Pause(first=0.05, factor=1.5, longest=60.0, jitter=1.0, reset=7200.0),
                links=(LinkedDisk("books", "DESK", "ledger"),),
                disks=(Disk("scratch", 16 * 1024**2, temporary=True),),
            ),
            MachineEntry(
                "VAULT",
                "exec",
                "./vault.sh",
                command=(
                    *("./vault.sh", "--at={sockets.door}", "{links.ledger}", "{disks.gold}", "{secrets.code}"),
                    "{{}}",
                ),
                uses=(Edge("audit", "AUDIT"),),
                sockets=(SocketEntry("door", "listen"), SocketEntry("audit", "connect")),
                disks=(Disk("gold", 1024**3),),
                links=(LinkedDisk("ledger", "DESK", "ledger", "rw"),),
                secrets=(Secret("code", file="key.txt"),),
                replace="overlap",
                watchdog=120.0,
            ),
            MachineEntry(
                "RECORDS", "program", "desk", reserve=8 * 1024**2, priority=200, idle_page_out=0.0, disks=(Disk("a"),)
            ),
        ),
        groups=(
            Group("FRONT", ("WINDOW", "BACK"), "rest_for_one", Budget(0, 3600.0)),
            Group("BACK", ("VAULT", "AUDIT"), "one_for_one", Budget(3, 10.0)),
        ),
    )
    machines = (attrs.evolve(each, log=log) if each.log == LogPolicy() else each for each in expected.machines)
    expected = attrs.evolve(expected, machines=tuple(machines))
    assert directory == expected
    assert directory.line("machines", "DESK", "storage") == 41
    assert directory.line("machines", "DESK", "network") == 39
    assert directory.machine("RECORDS").disks == (Disk("a"),)
    assert executable(directory, directory.machine("VAULT")) == str(GOOD.resolve() / "vault.sh")
    with pytest.raises(KeyError):
        directory.machine("DSK")


def test_load_uses_the_defaults_for_what_the_file_does_not_say() -> None:
    directory = load(GOOD / "smallest.toml")
    assert directory.system == System("A", syslog=None, preload=())
    assert directory.machines == (
        MachineEntry(
            name="A",
            kind="program",
            program="desk",
            network=False,
            storage=134_217_728,
            restart="always",
            uses=(),
            disks=(),
            config={},
            essential=False,
            instances=1,
            start="up",
            idle=60.0,
            watchdog=60.0,
            grace=10.0,
            restarts=None,
            backoff=Pause(first=0.1, factor=2.0, longest=10.0, jitter=0.2, reset=60.0),
            replace="overlap",
        ),
    )
    assert directory.machines[0].pause == 10.0
    assert (directory.system.storage, directory.groups) == (None, ())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "overlap"),
        ({"network": True}, "stop-first"),
        ({"disks": (Disk("a"),)}, "stop-first"),
        ({"disks": (Disk("a", 1024**2, temporary=True),)}, "overlap"),
        ({"links": (LinkedDisk("a", "FILES", "a"),)}, "overlap"),
        ({"links": (LinkedDisk("a", "FILES", "a", "rw"),)}, "stop-first"),
        ({"disks": (Disk("a"),), "replace": "overlap"}, "overlap"),
    ],
)
def test_machine_is_replaced_without_overlap_if_two_would_be_in_each_others_way(
    fields: dict[str, Any], expected: str
) -> None:
    assert MachineEntry("A", "program", "a", **fields).replace == expected


def test_expanded_directory_has_an_entry_for_each_instance() -> None:
    """Edges and groups go on naming the machine."""
    directory = load(GOOD / "every-key.toml")
    window = directory.machine("WINDOW")
    expanded = directory.expanded()
    names = ["DOOR", "WINDOW@1", "WINDOW@2", "WINDOW@3", "DESK", "AUDIT", "VAULT", "RECORDS"]
    assert [machine.name for machine in expanded.machines] == names
    assert attrs.evolve(expanded.machine("WINDOW@2"), name="WINDOW", base="") == window
    assert [(expanded.machine(name).base, expanded.machine(name).declared) for name in ("WINDOW@1", "DESK")] == [
        ("WINDOW", "WINDOW"),
        ("", "DESK"),
    ]
    assert (expanded.groups, expanded.system, expanded.positions) == (
        *(directory.groups, directory.system, directory.positions),
    )
    assert expanded.expanded() == expanded
    for either in (directory, expanded):
        assert either.instances("WINDOW") == ("WINDOW@1", "WINDOW@2", "WINDOW@3")
        assert either.instances("DESK") == ("DESK",)
        with pytest.raises(KeyError):
            either.instances("WINDOW@1")


def test_load_does_not_mind_how_tables_are_written() -> None:
    directory = load(GOOD / "sub-tables.toml")
    desk, window = directory.machines
    assert (desk.name, desk.module, desk.attribute) == ("DESK", "desk", "main")
    assert desk.uses == (Edge("window", "WINDOW", lazy=True),)
    assert (desk.disks, desk.config) == ((Disk("ledger"),), {"depth": 3})
    assert (window.module, window.attribute) == ("window", "application")
    assert window.uses == (Edge("desk", "DESK"), Edge("other", "DESK"))


def test_text_that_was_read_before_is_enough(folder: pathlib.Path) -> None:
    """Neither the file nor a program or secret that it names has to be there any more."""
    (folder / "key").write_text("open-sesame")
    (folder / "shop.toml").write_text(f'{SMALLEST}secrets.key = {{ file = "key" }}\n')
    before = load("shop.toml")
    for name in ("shop.toml", "worker.py", "key"):
        (folder / name).unlink()
    assert load(before.path, text=before.text) == before
    assert before.text not in repr(before)


def test_settings_take_the_place_of_what_the_file_says(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_text(f"{SMALLEST}share = 5\n")
    settings = {"A": {"share": 7, "pause": {"longest": "1m"}}}
    machine = load("shop.toml", settings=settings).machine("A")
    assert (machine.share, machine.pause) == (7, 60.0)
    assert load("shop.toml").machine("A").share == 5
    with pytest.raises(DirectoryErrors) as caught:
        load("shop.toml", settings={"A": {"share": 0, "shar": 1, "grace": b"1s"}})
    assert str(caught.value).splitlines() == [
        "shop.toml:3: [machines.A] unknown key 'shar' - did you mean 'share'?",
        'shop.toml:3: [machines.A] grace is no value that a file can have, expected a time such as "10s"',
        "shop.toml:5: [machines.A] share is the integer 0, expected a number from 1 to 10000",
    ]


def test_directory_cannot_be_changed_and_machines_can_be_keys() -> None:
    directory = load(GOOD / "every-key.toml")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        directory.system.name = "OTHER"  # type: ignore[misc]
    assert len(set(directory.machines)) == 6


def test_path_of_a_directory_is_absolute_with_the_links_of_its_folder_resolved(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_text(SMALLEST)
    os.symlink(folder, folder / "link")
    assert load("link/shop.toml").path == folder.resolve() / "shop.toml"
    assert load("shop.toml").folder == folder.resolve()


def test_topology_that_is_a_link_belongs_to_the_folder_of_the_link(folder: pathlib.Path) -> None:
    (folder / "there").mkdir()
    (folder / "there" / "real.toml").write_text(SMALLEST)
    os.symlink("there/real.toml", folder / "shop.toml")
    assert load("shop.toml").folder == folder.resolve()
    assert "no module 'worker'" in mistakes("there/real.toml")


def test_missing_file_is_told_with_the_nearest_name(folder: pathlib.Path) -> None:
    assert mistakes("shop.toml") == "shop.toml: there is no such file"
    (folder / "store.toml").write_text("")
    assert mistakes("stor.toml") == "stor.toml: there is no such file - did you mean 'store.toml'?"
    assert mistakes("x/y.toml") == "x/y.toml: there is no such file - there is no folder x"
    assert mistakes("") == ": there is no such file - there is store.toml"
    assert mistakes("store.toml/x").startswith("store.toml/x: it cannot be read: Not a directory")


def test_what_is_no_file_is_told_to_be_none(folder: pathlib.Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "store.toml").write_text("")
    os.mkfifo("fifo.toml")
    assert mistakes("inner") == ("inner: it is a folder, not a topology file - name a file in it, such as store.toml")
    assert mistakes("fifo.toml") == "fifo.toml: it is not a regular file"
    assert mistakes("/dev/null") == "/dev/null: it is not a regular file"
    assert mistakes("a\0b") == "a\0b: that is not the name of a file"
    os.symlink("loop.toml", "loop.toml")
    assert mistakes("loop.toml") == "loop.toml: it cannot be read: Too many levels of symbolic links"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_told(folder: pathlib.Path) -> None:
    (folder / "shop.toml").touch(mode=0o000)
    assert mistakes("shop.toml") == "shop.toml: it cannot be read: Permission denied"


def test_file_that_is_not_utf_8_is_told_with_the_line(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_bytes(b'[system]\nname = "CAF\xc9"\n')
    assert mistakes("shop.toml") == "shop.toml:2: this line is not UTF-8 - save the file as UTF-8"
    (folder / "shop.toml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert mistakes("shop.toml") == ("shop.toml:1: it begins with a byte order mark - save it as UTF-8 without one")


def test_file_that_is_too_much_for_its_readers_is_refused(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_text(SMALLEST + "#" * 1024**2)
    assert mistakes("shop.toml") == "shop.toml: it is larger than 1048576 bytes"
    for nested in ("[" * 5000 + "]" * 5000, "[" * 200 + "]" * 200):
        (folder / "shop.toml").write_text(f"{SMALLEST}config.a = {nested}\n")
        assert mistakes("shop.toml") == "shop.toml: its tables and arrays are nested more than 100 deep"
    (folder / "shop.toml").write_text(f"{SMALLEST}config.a = {'9' * 5000}\n")
    assert mistakes("shop.toml") == "shop.toml: there is a number with too many digits in it"
    (folder / "shop.toml").write_text(f"{SMALLEST}config.a = 0x{'f' * 5000}\n")
    assert "[machines.A.config] a is the integer 0xfff" in mistakes("shop.toml")


def test_empty_file_lacks_everything(folder: pathlib.Path) -> None:
    (folder / "shop.toml").touch()
    assert mistakes("shop.toml").splitlines() == [
        'shop.toml:1: there is no table [system] - begin with [system] and name = "SHOP"',
        'shop.toml:1: there is no machine - declare one: [machines.SHOP] asgi = "shop:app"',
    ]


def test_syntax_error_has_line_and_column_also_at_the_end_of_the_file(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_text('[system]\nname = "A')
    with pytest.raises(DirectoryErrors) as caught:
        load("shop.toml")
    (error,) = caught.value.errors
    assert (error.file, error.line, error.column, error.table) == ("shop.toml", 2, 10, "")
    assert str(error) == "shop.toml:2:10: not valid TOML: unterminated string"


def test_errors_quote_what_would_be_unclear_or_would_command_a_terminal(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_text(SMALLEST + '"x\\u001b[2J" = 1\nrestart = "\\u001b[2J"\n"it\'s" = 1\n')
    told = mistakes("shop.toml")
    assert "\x1b" not in told
    assert 'unknown key "x\\u001b[2J"' in told
    assert 'restart is "\\u001b[2J"' in told
    assert 'unknown key "it\'s"' in told
    (folder / "shop.toml").write_text('[system]\nname = "A"\n[machines."A.\\u001b"]\nx = 1\n')
    assert '[machines."A.\\u001b"] unknown key' in mistakes("shop.toml")
