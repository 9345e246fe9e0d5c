"""The topology files of tests/topologies: each has one mistake, and beside it stands the message for it."""

import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.cp.directory import DirectoryErrors, graph, load, start_order

FOLDER = pathlib.Path(__file__).parents[2] / "topologies"
MISTAKES = sorted(FOLDER.glob("*.toml"))
GOOD = sorted((FOLDER / "good").glob("*.toml"))


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_topology_with_one_mistake_gets_its_one_message(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message shows the file as it was named; ``FOLDER`` stands for where it lies."""
    monkeypatch.chdir(FOLDER)
    with pytest.raises(DirectoryErrors) as caught:
        load(path.name)
    assert len(caught.value.errors) == 1
    message = str(caught.value).replace(str(FOLDER.resolve()), "FOLDER")
    assert f"{message}\n" == path.with_suffix(".expected").read_text()


def test_topologies_and_expected_messages_come_in_pairs() -> None:
    assert len(MISTAKES) >= 30
    assert {path.stem for path in MISTAKES} == {path.stem for path in FOLDER.glob("*.expected")}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_correct_topology_loads_and_can_be_ordered_and_drawn(path: pathlib.Path) -> None:
    directory = load(path)
    names = sorted(machine.name for machine in directory.machines)
    assert sorted(machine.name for wave in start_order(directory) for machine in wave) == names
    for picture in (graph.text(directory), graph.mermaid(directory), graph.dot(directory)):
        assert picture.endswith("\n")
        assert all(name in picture for name in names)


def test_all_mistakes_of_a_file_are_reported_at_once_in_the_order_of_its_lines(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shop.py").write_text("async def main(vm): ...\n")
    path = tmp_path / "shop.toml"
    path.write_text(
        """\
[system]
nam = "SHOP"
syslog = "SYSLGO"
[machines.TCPIP]
program = "shop"
network = true
uses.web = "HTTPS"
[machines.HTTPD]
program = "shop"
network = true
storge = "64M"
uses.a = "A"
[machines.A]
program = "shopp"
storage = 64
uses = { b = { to = "B", limit = 0 }, A = "A" }
[machines.B]
restart = "sometimes"
uses.a = "A"
config.at = 07:32:00
[machine.C]
program = "shop"
"""
    )
    with pytest.raises(DirectoryErrors) as caught:
        load(path)
    lines = str(caught.value).replace(f"{tmp_path}/", "").replace(str(tmp_path), "FOLDER").splitlines()
    assert lines == [
        "shop.toml:2: [system] unknown key 'nam' - did you mean 'name'?",
        "shop.toml:3: [system] syslog: there is no machine 'SYSLGO' - there are TCPIP, HTTPD, A and B",
        "shop.toml:7: [machines.TCPIP.uses] web: there is no machine 'HTTPS' - did you mean 'HTTPD'?",
        "shop.toml:10: [machines.HTTPD] HTTPD and TCPIP (shop.toml:6) both have the network, and only one machine "
        "can - let one of them use the other by an edge",
        "shop.toml:11: [machines.HTTPD] unknown key 'storge' - did you mean 'storage'?",
        "shop.toml:14: [machines.A] no module 'shopp': looked for shopp.py and shopp/__init__.py in FOLDER, then "
        "among the installed modules - did you mean 'shop'?",
        'shop.toml:15: [machines.A] storage is the integer 64, expected a size such as "64M"',
        "shop.toml:16: [machines.A.uses.b] limit is the integer 0, expected a number from 1 to 65535",
        "shop.toml:16: [machines.A.uses] 'A' is no name of an edge: it has 1 to 32 characters, a lower-case letter "
        "and then lower-case letters, digits and _ - did you mean 'a'?",
        "shop.toml:16: [machines.A.uses] A: a machine cannot use itself - remove this edge",
        "shop.toml:16: [machines.A.uses] the start order has a cycle: A uses B as b (shop.toml:16), B uses A as a "
        '(shop.toml:19) - make one of them lazy, as in uses.a = { to = "A", lazy = true }',
        'shop.toml:17: [machines.B] there is none of program, asgi, wsgi and exec - write program = "module", asgi or '
        'wsgi = "module:attribute", or exec = ["./server"]',
        'shop.toml:18: [machines.B] restart is "sometimes", expected "always", "on-failure" or "never"',
        "shop.toml:20: [machines.B.config] at is a date or time, which cannot be sent to a machine - write it as a "
        "string",
        "shop.toml:21: unknown key 'machine' - did you mean 'machines'?",
    ]
    assert [error.line for error in caught.value.errors] == [
        *(2, 3, 7, 10, 11, 14, 15, 16, 16, 16, 16, 17, 18, 20, 21),
    ]


VALUES = st.sampled_from(
    [
        *(
            "1",
            "-1",
            "0",
            "1.5",
            "nan",
            "true",
            "1979-05-27",
            "[]",
            "{}",
            '""',
            '"A"',
            '"B"',
            '"*CP"',
            '"*"',
            '"x:y"',
            '"."',
        ),
        *(
            '["A"]',
            '["B", "F", "G"]',
            '{ most = 2, within = "5s" }',
            '{ first = "5s", longest = "1s" }',
            '"5s"',
            '"1000h"',
            '"on-demand"',
            '"overlap"',
            '"one_for_all"',
            '"off"',
            '"A@1"',
            "100000",
            '["cat", "{disks.a}{"]',
            '"A.a"',
            '"B.b"',
            '"rw"',
            '"listen"',
            '"connect"',
            '"30%"',
            '{ linked_by = { B = "rw" } }',
            "[1]",
            "[[]]",
            '{ to = "B" }',
            '{ to = 1, limit = "x", lazy = "y" }',
            '"64M"',
            '"0M"',
            '"-"',
            '"\\u0000"',
        ),
    ]
)
KEYS = st.sampled_from(
    [
        *("name", "syslog", "preload", "program", "asgi", "network", "storage", "restart", "uses", "disks", "config"),
        *("wsgi", "exec", "threads", "share", "cpu", "seal", "sockets", "links", "secrets", "sockets.a", "links.b"),
        *("links.a.disk", "links.a.mode", "secrets.a", "secrets.a.file", "secrets.b.variable", "disks.a.size"),
        *("disks.b.temporary", "disks.b.linked_by", "disks.b.linked_by.A"),
        *("pause", "pause.first", "pause.factor", "pause.longest", "pause.jitter", "pause.reset", "essential"),
        *("restarts", "restarts.most", "restarts.within", "instances", "start", "idle", "watchdog", "grace"),
        *("replace", "members", "strategy", "groups", "groups.A.members"),
        *("uses.a", "uses.b.to", "disks.a", "config.a", "to", '""', '"\\u0000"', "machines", "system", "naem"),
    ]
)
HEADERS = st.sampled_from(
    [
        "",
        "[system]",
        "[machines]",
        "[machines.A]",
        "[machines.B]",
        "[[machines]]",
        "[[machines.C]]",
        '[machines.""]',
        "[groups]",
        "[groups.F]",
        "[groups.G]",
        "[x]",
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.dictionaries(HEADERS, st.dictionaries(KEYS, VALUES, max_size=6), max_size=5))
def test_whatever_a_file_says_it_is_loaded_or_its_mistakes_are_told(
    tmp_path: pathlib.Path, sections: dict[str, dict[str, str]]
) -> None:
    text = "\n".join(
        "\n".join([header, *(f"{key} = {value}" for key, value in pairs.items())])
        for header, pairs in sorted(sections.items())
    )
    path = tmp_path / "shop.toml"
    path.write_text(text)
    (tmp_path / "A.py").write_text("async def main(vm): ...\n")
    wrong: DirectoryErrors | None = None
    try:
        directory = load(path)
    except DirectoryErrors as error:
        wrong = error
    if wrong is None:
        assert start_order(directory.expanded())
        assert directory.expanded().expanded() == directory.expanded()
    else:
        assert wrong.errors
        assert all(error.line is not None and error.line <= text.count("\n") + 1 for error in wrong.errors)
        assert len(str(wrong).splitlines()) == len(wrong.errors)
