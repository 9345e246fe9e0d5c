"""What has to be done to make one running system another."""

import pathlib
from collections.abc import Iterable
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.changes import Change, changes
from retinue.cp.directory import (
    Budget,
    Directory,
    Disk,
    Edge,
    Group,
    LinkedDisk,
    MachineEntry,
    Pause,
    Secret,
    SocketEntry,
    System,
    load,
    start_order,
)
from retinue.cp.directory.model import LogPolicy, LogRate, PagingVolume
from retinue.cp.directory.positions import scan

GOOD = pathlib.Path(__file__).parents[1] / "topologies" / "good"
IT = System("IT")
PLAIN = MachineEntry("SHOP", "program", "shop")


def topology(*machines: MachineEntry, system: System = IT, groups: tuple[Group, ...] = ()) -> Directory:
    return Directory(pathlib.Path("/srv/it/it.toml"), system, machines, groups=groups)


def told(before: Directory, after: Directory) -> list[tuple[str, str, str]]:
    """The changes with their reasons as one text."""
    return [(change.kind, change.machine, "; ".join(change.why)) for change in changes(before, after)]


def user(name: str, *uses: str, **others: Any) -> MachineEntry:
    return MachineEntry(name, "program", "shop", uses=tuple(Edge(to.lower(), to) for to in uses), **others)


@pytest.mark.parametrize("path", sorted(GOOD.glob("*.toml")), ids=lambda path: path.stem)
def test_same_topology_changes_nothing_wherever_its_lines_are(path: pathlib.Path) -> None:
    before = load(path)
    after = evolve(load(path), machines=before.machines[::-1], positions=scan("\n\n"))
    assert changes(before, after) == ()
    assert changes(before.expanded(), after) == ()


Cases = dict[str, tuple[dict[str, Any], str]]

SET: Cases = {
    "share": ({"share": 200}, "share: 100 -> 200"),
    "cpu": ({"cpu": 0.3}, "cpu: none -> 30%"),
    "storage": ({"storage": 64 * 1024**2}, "storage: 128M -> 64M"),
    "restart": ({"restart": "never"}, "restart: always -> never"),
    "restarts": ({"restarts": Budget(5, 60.0)}, "restarts: none -> 5 within 1m"),
    "pause": ({"backoff": Pause(longest=0.5, factor=3.0)}, "pause.factor: 2 -> 3; pause.longest: 10s -> 500ms"),
    "essential": ({"essential": True}, "essential: false -> true"),
    "start": ({"start": "on-demand"}, "start: up -> on-demand"),
    "idle": ({"idle": 5.0}, "idle: 1m -> 5s"),
    "watchdog": ({"watchdog": 0.0}, "watchdog: 1m -> off"),
    "grace": ({"grace": 3600.0}, "grace: 10s -> 1h"),
    "replace": ({"replace": "stop-first"}, "replace: overlap -> stop-first"),
    "reserve": ({"reserve": 8 * 1024**2}, "reserve: none -> 8M"),
    "priority": ({"priority": 10}, "priority: 100 -> 10"),
    "idle_page_out": ({"idle_page_out": 0.0}, "idle_page_out: none -> off"),
    "log": (
        {"log": LogPolicy("drop", 64 * 1024, 2 * 1024**2, LogRate(30, 60.0))},
        "log.policy: spill -> drop; log.buffer: 1M -> 64K; log.spill: 64M -> 2M; log.rate: off -> 30/m",
    ),
}
REPLACE: Cases = {
    "program": ({"program": "store"}, "program: shop -> store"),
    "kind": ({"kind": "asgi", "program": "shop:app"}, "program: shop -> none; asgi: none -> shop:app"),
    "threads": ({"threads": 4}, "threads: 8 -> 4"),
    "segments": ({"segments": 1024**3}, "segments: none -> 1G"),
    "host_sockets": ({"host_sockets": ("/dev/log",)}, 'host_sockets: none -> ["/dev/log"]'),
    "uses": ({"uses": (Edge("data", "DATA"),)}, "uses.data: none -> DATA"),
    "sockets": ({"sockets": (SocketEntry("web", "listen"),)}, "sockets.web: none -> listen"),
    "disks": (
        {"disks": (Disk("scratch", 1024**2, temporary=True),)},
        "disks.scratch: none -> temporary of 1M",
    ),
    "links": ({"links": (LinkedDisk("data", "FILES", "data"),)}, "links.data: none -> FILES.data"),
    "secrets": ({"secrets": (Secret("key", file="key.txt"),)}, "secrets.key: none -> a secret"),
    "command": (
        {"kind": "exec", "program": "cat", "command": ("cat", "-")},
        'program: shop -> none; exec: none -> ["cat", "-"]',
    ),
}
RELOAD: Cases = {"config": ({"config": {"title": "Hi"}}, 'config.title: none -> "Hi"')}


@pytest.mark.parametrize(
    ("kind", "key"),
    [*(("set", key) for key in SET), *(("replace", key) for key in REPLACE), *(("reload", key) for key in RELOAD)],
)
def test_every_key_of_a_machine_has_its_kind_of_change(kind: str, key: str) -> None:
    fields, why = (SET | REPLACE | RELOAD)[key]
    before, after = topology(PLAIN), topology(evolve(PLAIN, **fields))
    assert told(before, after) == [(kind, "SHOP", why)]
    assert [kind for kind, _, _ in told(after, before)] == [kind]
    assert changes(after, after) == ()


def test_no_field_of_a_machine_is_forgotten() -> None:
    """The name and what is derived from it is what machines are found by; the network has rules of its own."""
    tried = {field for fields, _ in (SET | REPLACE | RELOAD).values() for field in fields}
    fields = {field.name for field in attrs.fields(MachineEntry)}
    assert fields - tried == {"name", "instances", "base", "network"}


@pytest.mark.parametrize(
    ("was", "now", "why"),
    [
        (
            {"uses": (Edge("data", "DATA"), Edge("old", "OLD"))},
            {"uses": (Edge("data", "FILES", 8, True, "reconnect", "sever"),)},
            "uses.data.to: DATA -> FILES; uses.data.limit: 64 -> 8; uses.data.lazy: false -> true; "
            "uses.data.on_restart: keep -> reconnect; uses.data.overflow: block -> sever; uses.old: OLD -> none",
        ),
        ({"disks": (Disk("a"),)}, {"disks": (Disk("a", 1024**3),)}, "disks.a.size: none -> 1G"),
        (
            {"links": (LinkedDisk("a", "FILES", "a"),)},
            {"links": (LinkedDisk("a", "FILES", "b", "rw"),), "replace": "overlap"},
            "links.a.disk: FILES.a -> FILES.b; links.a.mode: ro -> rw",
        ),
        (
            {"secrets": (Secret("key", file="a key"),)},
            {"secrets": (Secret("key", variable="KEY"),)},
            'secrets.key.file: "a key" -> none; secrets.key.variable: none -> "KEY"',
        ),
        (
            {"kind": "exec", "command": ("cat", "-")},
            {"kind": "exec", "command": ("cat", "x" * 100)},
            f'exec: ["cat", "-"] -> ["cat", "{"x" * 48}...',
        ),
    ],
)
def test_reasons_name_the_key_that_differs(was: dict[str, Any], now: dict[str, Any], why: str) -> None:
    assert told(topology(evolve(PLAIN, **was)), topology(evolve(PLAIN, **now))) == [("replace", "SHOP", why)]


def test_config_and_settings_together_are_taken_by_the_running_machine() -> None:
    after = evolve(PLAIN, config={"a": 1}, share=5)
    assert told(topology(PLAIN), topology(after)) == [("reload", "SHOP", "share: 100 -> 5; config.a: none -> 1")]
    both = evolve(after, threads=3)
    assert [kind for kind, _, _ in told(topology(PLAIN), topology(both))] == ["replace"]


@pytest.mark.parametrize(
    ("was", "now", "why"),
    [
        ({"a": 1}, {"a": True}, "config.a: 1 -> true"),
        ({"a": 1}, {"a": 1.0}, "config.a: 1 -> 1.0"),
        ({"a": {}}, {"a": {"b/c": [1]}}, 'config.a."b/c": none -> [1]'),
        ({"a": [1, 2]}, {"a": [1, 3]}, "config.a: [1, 2] -> [1, 3]"),
        ({"a": {"b": 1}}, {"a": 1}, 'config.a: {"b": 1} -> 1'),
        ({"linked_by": 1}, {"linked_by": 2}, "config.linked_by: 1 -> 2"),
        ({"a": "é"}, {"a": "\x1b[2J"}, 'config.a: "é" -> "\\u001b[2J"'),
    ],
)
def test_reload_tells_what_differs_in_the_config(was: dict[str, Any], now: dict[str, Any], why: str) -> None:
    assert told(topology(evolve(PLAIN, config=was)), topology(evolve(PLAIN, config=now))) == [("reload", "SHOP", why)]


def test_number_that_is_none_equals_itself_and_the_order_of_keys_does_not_count() -> None:
    was = {"a": float("nan"), "b": {"x": 1, "y": [{"p": 1, "q": 2}]}}
    now = {"b": {"y": [{"q": 2, "p": 1}], "x": 1}, "a": float("nan")}
    assert changes(topology(evolve(PLAIN, config=was)), topology(evolve(PLAIN, config=now))) == ()


def test_secret_values_are_shown_nowhere() -> None:
    """Of the keys that either topology calls secret, at any depth and in lists."""
    was = {"password": "hunter2", "users": [{"name": "ann", "Token": "tok-1"}], "db": {"password": "x1"}, "t": "tok-0"}
    now = {"password": "hunter3", "users": [{"name": "ann", "Token": "tok-2"}], "db": {"token": {"x": "tok-3"}}}
    before = topology(evolve(PLAIN, config=was), system=System("IT", secret=("password",)))
    after = topology(evolve(PLAIN, config=now), system=System("IT", secret=("token",)))
    system, change = changes(before, after)
    assert system.why == ('secret: ["password"] -> ["token"]',)
    assert change.why == (
        "config.password: changed",
        "config.users: changed",
        "config.db.password: [redacted] -> none",
        "config.db.token: none -> [redacted]",
        'config.t: "tok-0" -> none',
    )


def test_right_to_link_to_a_disk_is_nothing_to_its_owner() -> None:
    was = user("FILES", disks=(Disk("data"),))
    now = user("FILES", disks=(Disk("data", linked_by=(("SHOP", "ro"),)),))
    assert told(topology(was, PLAIN), topology(now, evolve(PLAIN, links=(LinkedDisk("d", "FILES", "data"),)))) == [
        ("set", "FILES", "disks.data.linked_by.SHOP: none -> ro"),
        ("replace", "SHOP", "links.d: none -> FILES.data"),
    ]


def test_machines_are_added_and_replaced_servers_first_and_removed_users_first() -> None:
    before = topology(user("A", "B"), user("B", "OLD"), user("OLD", "OLDER"), user("OLDER"), user("SAME"))
    after = topology(user("A", "B", "C"), user("B", "NEW"), user("NEW", "C"), user("C"), user("SAME"))
    assert told(before, after) == [
        ("add", "C", "machines.C: none -> shop"),
        ("add", "NEW", "machines.NEW: none -> shop"),
        ("replace", "B", "uses.old: OLD -> none; uses.new: none -> NEW"),
        ("replace", "A", "uses.c: none -> C"),
        ("remove", "OLD", "machines.OLD: shop -> none"),
        ("remove", "OLDER", "machines.OLDER: shop -> none"),
    ]


def test_instances_are_added_and_removed_one_by_one() -> None:
    one, three, four = (topology(user("A", "B"), user("B", instances=number)) for number in (1, 3, 4))
    assert told(three, four) == [("add", "B@4", "instances: 3 -> 4")]
    assert told(four, three) == [("remove", "B@4", "instances: 4 -> 3")]
    assert told(one, three) == [
        *(("add", f"B@{number}", "instances: 1 -> 3") for number in (1, 2, 3)),
        ("remove", "B", "instances: 1 -> 3"),
    ]
    assert told(three, one) == [
        ("add", "B", "instances: 3 -> 1"),
        *(("remove", f"B@{number}", "instances: 3 -> 1") for number in (3, 2, 1)),
    ]
    changed = topology(user("A", "B"), user("B", instances=2, threads=2))
    assert told(three, changed) == [
        ("replace", "B@1", "threads: 8 -> 2"),
        ("replace", "B@2", "threads: 8 -> 2"),
        ("remove", "B@3", "instances: 3 -> 2"),
    ]


def test_what_the_processes_are_made_with_is_impossible() -> None:
    before = topology(PLAIN)
    after = topology(PLAIN, system=System("SO", preload=("math",), seal="full", storage=1024**3, syslog="SHOP"))
    assert told(before, after) == [
        *(("impossible", "", why) for why in (
            "name: IT -> SO; the folders, the lock and the users of the running system have its name",
            'preload: [] -> ["math"]; modules are imported once, before any machine starts',
            "seal: strong -> full; the seal is tried once, before any machine starts",
        )),
        ("system", "", "syslog: none -> SHOP"),
        ("system", "", "storage: none -> 1G"),
    ]  # fmt: skip


def test_paging_volume_of_a_running_system_stays() -> None:
    """Added, moved, resized or removed: the plan says that it takes another start."""
    why = "the paging volume is opened once, before any machine starts"
    small, large, other = (PagingVolume(*each) for each in (("a.img", 2**30), ("a.img", 2**31), ("b.img", 2**30)))
    for before, after, text in (
        (None, small, "paging: none -> a.img of 1G"),
        (small, large, "paging.size: 1G -> 2G"),
        (small, other, "paging.volume: a.img -> b.img"),
        (small, None, "paging: a.img of 1G -> none"),
    ):
        found = told(*(topology(PLAIN, system=System("IT", paging=each)) for each in (before, after)))
        assert [each[0] for each in found] == ["impossible"] * len(found)
        assert text in found[0][2]
        assert found[0][2].endswith(why)


def test_first_machine_with_the_network_is_impossible() -> None:
    why = "no machine had the network when the system started, and such machines are prepared for then"
    after = topology(evolve(PLAIN, network=True, replace="overlap"))
    assert told(topology(PLAIN), after) == [("impossible", "SHOP", f"network: false -> true; {why}")]
    added = topology(PLAIN, user("TCPIP", network=True))
    assert told(topology(PLAIN), added) == [("impossible", "TCPIP", f"machines.TCPIP: none -> shop; {why}")]


def test_system_that_does_not_run_has_no_machines_and_everything_is_added() -> None:
    whole = load(GOOD / "every-key.toml")
    found = changes(evolve(whole, machines=(), groups=()), whole)
    assert {change.kind for change in found} == {"system", "add"}
    started = [change.machine for change in found if change.kind == "add"]
    assert started == [machine.name for wave in start_order(whole.expanded()) for machine in wave]


def test_network_is_let_go_of_before_another_machine_takes_it() -> None:
    """Whatever the start order is, for which HTTP would come first."""
    before = topology(user("HTTP"), user("TCP", "HTTP", network=True))
    after = topology(user("HTTP", network=True), user("TCP", "NEW"), user("NEW"), user("TOP", "HTTP"))
    assert [(change.kind, change.machine) for change in changes(before, after)] == [
        ("add", "NEW"),
        ("replace", "TCP"),
        ("replace", "HTTP"),
        ("add", "TOP"),
    ]
    gone = topology(user("HTTP", network=True), user("NEW"))
    assert [(change.kind, change.machine) for change in changes(before, gone)] == [
        ("remove", "TCP"),
        ("add", "NEW"),
        ("replace", "HTTP"),
    ]
    through = topology(user("HTTP", network=True), user("MID", "HTTP", instances=2), user("TCP", "MID"))
    assert changes(before, through)[0].kind == "impossible"
    circle = topology(user("HTTP", network=True), user("TCP", "HTTP"))
    (first, second) = changes(before, circle)
    assert (first.kind, first.machine, second.kind, second.machine) == ("impossible", "HTTP", "replace", "TCP")
    assert first.why[-1] == "TCP has the network until it is replaced, and its successor waits for HTTP"


def test_groups_change_without_their_machines() -> None:
    machines = (user("A"), user("B"))
    before = topology(*machines, groups=(Group("G", ("A",)), Group("OLD", ("B",))))
    after = topology(*machines, groups=(Group("G", ("A", "B"), "one_for_all", Budget(1, 10.0)), Group("NEW", ("G",))))
    assert told(before, after) == [
        (
            "system",
            "",
            'groups.G.members: ["A"] -> ["A", "B"]; groups.G.strategy: one_for_one -> one_for_all; '
            "groups.G.restarts.most: 3 -> 1",
        ),
        ("system", "", "groups.OLD: one_for_one of B -> none"),
        ("system", "", "groups.NEW: none -> one_for_one of G"),
    ]


def test_changes_have_the_lines_of_the_topology_that_is_to_be(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shop.py").write_text("async def main(vm): ...\n")
    system = '[system]\nname = "IT"\n'
    a, b, shop = (f'[machines.{name}]\nprogram = "shop"\n' for name in ("A", "B", "SHOP"))
    (tmp_path / "before.toml").write_text(f"{system}{a}{b}{shop}")
    (tmp_path / "after.toml").write_text(
        f'{system}storage = "1G"\n{shop}share = 5\nconfig.a = 1\n{b}instances = 2\n[groups.G]\nmembers = ["SHOP"]\n'
    )
    found = changes(load(tmp_path / "before.toml"), load(tmp_path / "after.toml"))
    assert [(change.kind, change.machine, change.line) for change in found] == [
        ("system", "", 3),
        ("system", "", 11),
        ("reload", "SHOP", 6),
        ("add", "B@1", 10),
        ("add", "B@2", 10),
        ("remove", "B", 10),
        ("remove", "A", 3),
    ]
    assert found[2].as_dict() == {
        "kind": "reload",
        "machine": "SHOP",
        "why": ["share: 100 -> 5", "config.a: none -> 1"],
        "line": 6,
    }
    assert found[0].as_dict()["machine"] is None


def test_topology_in_another_folder_replaces_what_lies_in_it(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "shop.py").write_text("async def main(vm): ...\n")
        (folder / "run").touch(mode=0o755)
        (folder / "key").write_text("open-sesame")
        (folder / "it.toml").write_text(
            '[system]\nname = "IT"\n[machines.OWN]\nprogram = "shop"\n[machines.NATIVE]\nexec = ["./run"]\n'
            '[machines.INSIDE]\nprogram = "retinue.services.syslog"\n[machines.CAT]\nexec = ["cat"]\n'
            '[machines.KEY]\nexec = ["cat"]\nsecrets.key = { file = "key" }\n'
        )
    found = changes(load(tmp_path / "a" / "it.toml"), load(tmp_path / "b" / "it.toml"))
    assert [(change.kind, change.machine) for change in found] == [
        *(("replace", name) for name in ("OWN", "NATIVE", "KEY")),
    ]
    assert found[0].why == (f"folder: {tmp_path / 'a'} -> {tmp_path / 'b'}",)


NAMES = "ABCDE"
configs = st.dictionaries(
    st.sampled_from(["a", "b", "password"]), st.integers(0, 2) | st.dictionaries(st.just("c"), st.booleans())
)


@st.composite
def topologies(draw: st.DrawFn) -> Directory:
    """A topology of some of five machines, each of which uses later ones."""
    names = sorted(draw(st.sets(st.sampled_from(NAMES), min_size=1)))
    network = draw(st.sampled_from([*names, ""]))
    machines = []
    for at, name in enumerate(names):
        uses = draw(st.sets(st.sampled_from(names[at + 1 :]))) if at + 1 < len(names) else ()
        machines.append(
            user(
                name,
                *sorted(uses),
                network=name == network,
                instances=draw(st.sampled_from([1, 1, 2, 3])) if name != network else 1,
                share=draw(st.sampled_from([100, 200])),
                threads=draw(st.sampled_from([1, 1, 2])),
                start=draw(st.sampled_from(["up", "up", "on-demand"])),
                config=draw(configs),
            )
        )
    members = tuple(draw(st.lists(st.sampled_from(names), unique=True)))
    system = System("IT", storage=draw(st.none() | st.just(1024**3)), secret=draw(st.sampled_from([(), ("password",)])))
    return topology(*draw(st.permutations(machines)), system=system, groups=(Group("G", members),) if members else ())


def entries(directory: Directory) -> dict[str, MachineEntry]:
    """Every machine that runs, by its name; of how many there are behind it its own process knows nothing."""
    return {machine.name: evolve(machine, instances=1) for machine in directory.expanded().machines}


def done(before: Directory, after: Directory, todo: Iterable[Change]) -> Directory:
    """``before`` with these changes made, one after another."""
    machines, wanted = entries(before), entries(after)
    system, groups = before.system, before.groups
    for change in todo:
        if not change.machine:
            system, groups = after.system, after.groups
        elif change.kind == "remove":
            del machines[change.machine]
        else:
            assert change.kind == "impossible" or (change.machine in machines) == (change.kind != "add")
            machines[change.machine] = wanted[change.machine]
    return evolve(before, system=system, groups=groups, machines=tuple(machines.values()))


@given(topologies(), topologies())
def test_changes_make_the_one_the_other(before: Directory, after: Directory) -> None:
    todo = changes(before, after)
    reached = done(before, after, todo)
    assert (reached.system, reached.groups, entries(reached)) == (after.system, after.groups, entries(after))
    assert changes(reached, after) == ()
    assert changes(before, before) == ()


@given(topologies(), topologies())
def test_changed_machines_appear_once_and_unchanged_ones_never(before: Directory, after: Directory) -> None:
    named = [change.machine for change in changes(before, after) if change.machine]
    was, now = entries(before), entries(after)
    assert sorted(named) == sorted(name for name in was | now if was.get(name) != now.get(name))


@given(topologies(), topologies())
def test_changes_are_in_an_order_in_which_they_can_be_done(before: Directory, after: Directory) -> None:
    todo = changes(before, after)
    first = ("impossible", "system", "set")
    early = [change.kind for change in todo if change.kind in first]
    assert [change.kind for change in todo[: len(early)]] == sorted(early, key=first.index)
    if "impossible" in early:
        return
    running, wanted = entries(done(before, after, todo[: len(early)])), entries(after)
    waits = {machine.declared for machine in after.machines if machine.start == "up"}
    for at, change in enumerate(todo[len(early) :], len(early)):
        later = {other.machine for other in todo[at + 1 :] if other.kind in ("add", "replace", "reload")}
        if change.kind == "remove":
            del running[change.machine]
            assert change.machine not in wanted
        else:
            machine = running[change.machine] = wanted[change.machine]
            servers = {server for edge in machine.uses if edge.to in waits for server in after.instances(edge.to)}
            assert servers <= running.keys()
            assert not servers & later
        assert sum(machine.network for machine in running.values()) <= 1
    assert running == entries(done(before, after, todo))


@given(configs, configs)
def test_no_reason_has_the_value_of_a_secret_key(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Whatever else is in the config."""

    def marked(config: dict[str, Any]) -> dict[str, Any]:
        return {key: f"mark {value}" if key == "password" else value for key, value in config.items()}

    secretive = System("IT", secret=("password",))
    before = topology(evolve(PLAIN, config=marked(was)), system=secretive)
    found = changes(before, topology(evolve(PLAIN, config=marked(now)), system=secretive))
    assert "mark" not in repr(found)
    assert bool(found) == (marked(was) != marked(now))
