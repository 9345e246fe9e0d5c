"""May one machine reach another? The answer names the line, and the line that is missing works when it is added."""

import pathlib

import pytest

from retinue.cp import directory
from retinue.cp.explanation import Explanation, MachineState, Missing, explain, with_base

SHOP = """\
[system]
name = "SHOP"

[machines.WEB]
program = "any"
uses.app = "APP"

[machines.APP]
program = "any"
disks.a = { linked_by = { WEB = "ro" } }

[machines.APP.uses]
prices = { to = "PRICES", limit = 8 }

[machines.PRICES]
program = "any"

[machines.LONER]
program = "any"
uses = { web = "WEB" }

[machines.NATIVE]
exec = ["/bin/sh"]
"""


def load(folder: pathlib.Path, text: str = SHOP) -> directory.Directory:
    (folder / "any.py").write_text("async def main(vm): ...\n")
    (folder / "shop.toml").write_text(text)
    return directory.load(folder / "shop.toml")


def test_an_edge_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    """Its file, its line and the words there; which of them is usable is not known without a system."""
    found = explain(load(tmp_path), "WEB", "APP")
    assert found.allowed
    assert found.usable is None
    assert found.missing is None
    assert found.file == str(tmp_path / "shop.toml")
    (step,) = found.direct
    assert (step.machine, step.edge, step.to, step.line, step.text) == ("WEB", "app", "APP", 6, 'uses.app = "APP"')
    (step,) = explain(load(tmp_path), "APP", "PRICES").direct
    assert (step.line, step.text) == (13, 'prices = { to = "PRICES", limit = 8 }')


def test_the_other_direction_and_ways_through_others_are_told(tmp_path: pathlib.Path) -> None:
    """Whoever is reached may answer; the shortest ways, edge by edge; no way back where there is none."""
    topology = load(tmp_path)
    back = explain(topology, "APP", "WEB")
    assert not back.allowed
    assert [step.machine for step in back.back] == ["WEB"]
    assert back.through == ()
    (way,) = explain(topology, "LONER", "PRICES").through
    assert [(step.machine, step.to) for step in way] == [("LONER", "WEB"), ("WEB", "APP"), ("APP", "PRICES")]
    assert explain(topology, "PRICES", "LONER").through == ()


def test_the_shortest_of_many_ways_are_told(tmp_path: pathlib.Path) -> None:
    """Not every one of very many."""
    text = '[system]\nname = "WIDE"\n[machines.END]\nprogram = "any"\n[machines.START]\nprogram = "any"\n'
    text += "".join(f'uses.m{number} = "M{number}"\n' for number in range(20))
    for number in range(20):
        text += f'[machines.M{number}]\nprogram = "any"\nuses.end = "END"\n'
    text = text.replace('uses.m19 = "M19"', 'uses.long = "LONG"') + '[machines.LONG]\nprogram = "any"\nuses.m = "M19"\n'
    ways = explain(load(tmp_path, text), "START", "END").through
    assert [len(way) for way in ways] == [2] * 5


def test_disks_are_a_way_without_a_path(tmp_path: pathlib.Path) -> None:
    text = SHOP.replace('uses.app = "APP"', 'uses.app = "APP"\nlinks.theirs = "APP.a"')
    assert explain(load(tmp_path, text), "WEB", "APP").disks == ("WEB may read the disk APP.a",)


@pytest.mark.parametrize(
    ("state", "usable", "says"),
    [
        (MachineState("READY"), True, ""),
        (MachineState("DORMANT"), True, ""),
        (
            MachineState("BROKEN", "exit status 1"),
            False,
            "start APP (it last ended: exit status 1; retinue why",
        ),
        (MachineState("WAITING", "killed by SIGKILL"), False, "started again after a pause"),
        (MachineState("STOPPED"), False, "retinue start APP"),
        (MachineState("STARTING"), False, "not ready yet"),
        (MachineState("STRANGE"), False, "it is STRANGE"),
    ],
)
def test_an_edge_that_leads_to_nobody_now_is_told_with_the_reason(
    tmp_path: pathlib.Path, state: MachineState, usable: bool, says: str
) -> None:
    found = explain(load(tmp_path), "WEB", "APP", {"WEB": MachineState("READY"), "APP": state})
    assert found.usable is usable
    assert says in found.direct[0].why_not
    assert found.as_dict()["usable"] is usable


def test_one_instance_that_answers_is_enough(tmp_path: pathlib.Path) -> None:
    """Instances are meant by their common name, whichever of them is named."""
    states = {"WEB": MachineState("READY"), "APP@1": MachineState("BROKEN"), "APP@2": MachineState("READY")}
    topology = load(tmp_path, SHOP.replace('disks.a = { linked_by = { WEB = "ro" } }', "instances = 2"))
    for named in (topology, topology.expanded()):
        assert explain(named, "WEB", "APP", states).usable
        assert explain(named, "WEB", "APP@1", states).target == "APP"
    states["APP@2"] = MachineState("BROKEN")
    assert "APP@1: it is BROKEN" in explain(topology, "WEB", "APP", states).direct[0].why_not
    assert with_base(states) == ["WEB", "APP", "APP@1", "APP@2"]


def add(folder: pathlib.Path, missing: Missing | None) -> directory.Directory:
    """Do what the explanation says, to the letter."""
    assert missing is not None
    assert missing.text is not None
    lines = (folder / "shop.toml").read_text().split("\n")
    if missing.instead is not None:
        lines[missing.instead - 1] = missing.text
    else:
        assert missing.after is not None
        lines.insert(missing.after, missing.text)
    return load(folder, "\n".join(lines))


FORMS = {
    "a table": '[machines.WEB]\nprogram = "any"\n[machines.APP]\nprogram = "any"\n',
    "dotted keys": '[machines.WEB]\nprogram = "any"\nuses.x = "X"\n[machines.APP]\nprogram = "any"\n',
    "a table of edges": (
        '[machines.WEB.uses]\nx = "X"\n[machines.WEB]\nprogram = "any"\n[machines.APP]\nprogram = "any"\n'
    ),
    "an inline table": '[machines.WEB]\nuses = { x = "X" }\nprogram = "any"\n[machines.APP]\nprogram = "any"\n',
    "an empty inline table": '[machines.WEB]\nuses = {}\nprogram = "any"\n[machines.APP]\nprogram = "any"\n',
    "one table of machines": '[machines]\nWEB.program = "any"\nAPP.program = "any"\n',
    "tables of edges elsewhere": (
        '[machines.APP]\nprogram = "any"\n[machines.WEB]\nprogram = "any"\n[machines.WEB.uses.x]\nto = "X"\n'
    ),
    "the name is taken": '[machines.WEB]\nprogram = "any"\nuses.app = "X"\n[machines.APP]\nprogram = "any"\n',
    "a circle": '[machines.WEB]\nprogram = "any"\n[machines.APP]\nprogram = "any"\nuses.web = "WEB"\n',
    "a quoted name": '[machines."WEB"]\nprogram = "any"\n[machines.APP]\nprogram = "any"\n',
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["APP", "*LOG"])
def test_what_is_missing_works_when_it_is_added(tmp_path: pathlib.Path, form: str, target: str) -> None:
    """Whatever way the file is written in: with the text in that place it is a topology, and the edge is there."""
    text = f'[system]\nname = "SHOP"\n[machines.X]\nprogram = "any"\n{FORMS[form]}'
    if form == "one table of machines":
        text = text.replace('[machines.X]\nprogram = "any"\n', "")
    found = explain(load(tmp_path, text), "WEB", target)
    assert not found.allowed
    after = explain(add(tmp_path, found.missing), "WEB", target)
    assert after.allowed
    assert after.direct[0].lazy is (form == "a circle" and target == "APP")


def test_the_syslog_machine_waits_for_nobody(tmp_path: pathlib.Path) -> None:
    topology = load(tmp_path, SHOP.replace('name = "SHOP"', 'name = "SHOP"\nsyslog = "PRICES"'))
    assert explain(add(tmp_path, explain(topology, "PRICES", "LONER").missing), "PRICES", "LONER").direct[0].lazy


@pytest.mark.parametrize(
    ("origin", "target", "why"),
    [
        ("WEB", "WEB", "no edge to itself"),
        ("WEB", "NATIVE", "without a socket"),
        ("NATIVE", "*CP", "byte streams"),
    ],
)
def test_what_no_line_would_allow_is_told(tmp_path: pathlib.Path, origin: str, target: str, why: str) -> None:
    missing = explain(load(tmp_path), origin, target).missing
    assert missing is not None
    assert missing.text is None
    assert why in missing.why


def test_a_native_program_needs_a_socket_for_its_edge(tmp_path: pathlib.Path) -> None:
    missing = explain(load(tmp_path), "NATIVE", "APP").missing
    assert missing is not None
    assert 'sockets.app = "connect"' in missing.why


def test_a_file_that_has_changed_since_is_told(tmp_path: pathlib.Path) -> None:
    """What counts, and is quoted, is what was read."""
    topology = load(tmp_path)
    assert not explain(topology, "WEB", "APP").stale
    (tmp_path / "shop.toml").write_text("# nothing\n" * 30)
    found: Explanation = explain(topology, "WEB", "APP")
    assert found.stale
    assert found.direct[0].text == 'uses.app = "APP"'
    (tmp_path / "shop.toml").unlink()
    assert explain(topology, "WEB", "APP").stale


@pytest.mark.parametrize(("origin", "target", "name"), [("WEBB", "APP", "WEBB"), ("WEB", "*X", "*X")])
def test_a_machine_that_is_not_there(tmp_path: pathlib.Path, origin: str, target: str, name: str) -> None:
    with pytest.raises(KeyError) as caught:
        explain(load(tmp_path), origin, target)
    assert caught.value.args[0] == name
    assert "APP" in caught.value.args[1]
