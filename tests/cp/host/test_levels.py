"""The levels of the seal, and systems that do not get the one they ask for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cp.host import rungs
from tests.systems import open_bench

from retinue.cp.host import levels
from retinue.cp.host.interface import SealLayer

ALWAYS = ("no-new-privs", "seccomp")
ALL = levels.LEVELS["full"]


@pytest.mark.parametrize(
    ("layers", "network", "root", "level"),
    [
        (ALL, False, True, "full"),
        (set(ALL) - {"own-uid"}, False, False, "full"),
        (set(ALL) - {"own-uid"}, False, True, "strong"),
        (set(ALL) - {"net-ns"}, False, False, "strong"),
        (set(ALL) - {"net-ns", "own-uid"}, True, False, "full"),
        (set(ALL) - {"net-ns", "user-ns"}, True, True, "full"),
        (set(ALL) - {"net-ns", "user-ns"}, True, False, "strong"),
        ((*ALWAYS, "landlock"), False, False, "strong"),
        (set(ALL) - {"landlock"}, False, True, "basic"),
        ((*ALWAYS, "mount-ns", "pid-ns"), False, False, "basic"),
        ((*ALWAYS, "mount-ns"), False, False, None),
        (ALWAYS, False, False, None),
        (("landlock", "seccomp"), False, False, None),
        ((), False, True, None),
    ],
)
def test_level_is_the_strongest_whose_layers_are_all_there(
    layers: tuple[str, ...], network: bool, root: bool, level: str | None
) -> None:
    assert levels.level_of(layers, network=network, root=root) == level


def test_a_level_reaches_itself_and_all_weaker_ones() -> None:
    order: list[levels.Level] = ["full", "strong", "basic"]
    for one, reached in enumerate(order):
        for other, least in enumerate(order):
            assert levels.reaches(reached, least) == (one <= other)
        assert not levels.reaches(None, reached)


def report(absent: dict[str, str], system: str = "sealed") -> list[SealLayer]:
    """What a host says that has everything else."""
    return [SealLayer(system, layer, layer not in absent, absent.get(layer, "")) for layer in (*ALL, "tasks")]


def test_nothing_is_refused_that_is_accepted() -> None:
    everything = report({}) + report({"net-ns": "it keeps the host's network"}, "network")
    assert levels.refusal("full", everything, root=False) == ""
    assert levels.refusal("strong", report({"user-ns": "off", "own-uid": "no"}), root=True) == ""


def test_refusal_names_each_layer_why_it_is_absent_what_cures_it_and_what_would_accept_less() -> None:
    off = dict.fromkeys(("user-ns", "net-ns"), "they are off")
    text = levels.refusal("full", report(off), root=False)
    assert text.splitlines()[:2] == [
        "the seal of sealed machines is strong, and full is the least that the topology accepts:",
        "  user-ns, net-ns: they are off",
    ]
    assert "    cure: allow user namespaces to the user that starts the system: sysctl user.max_user_namespaces" in text
    assert text.endswith('To accept less, write in the topology:  [system] seal = "strong"')


def test_each_saved_system_is_judged_by_itself_and_the_weakest_counts() -> None:
    both = report({}) + report({"landlock": "it is not built in", "net-ns": "it keeps the host's network"}, "network")
    text = levels.refusal("strong", both, root=False)
    assert text.startswith("the seal of the machine with the host's network is basic, and strong is the least")
    assert "sealed machines" not in text
    assert text.endswith('seal = "basic"')


def test_what_is_not_called_sealed_is_never_accepted() -> None:
    text = levels.refusal("basic", report({"landlock": "x", "pid-ns": "y"}), root=False)
    assert "the seal of sealed machines is none, and basic is the least" in text
    assert "seal =" not in text


def test_every_layer_of_a_level_has_a_cure() -> None:
    for layer in ALL:
        [lack] = levels.missing("full", report({layer: "why"}), system="sealed", root=True)
        assert (lack.layer, lack.why) == (layer, "why")
        assert lack.cure


# Whole systems.

PROGRAM = "async def main(vm):\n    await vm.ready()\n    await vm.stopping.wait()\n"


def up(folder: Path, monkeypatch: pytest.MonkeyPatch, least: str, *without: str) -> "subprocess.CompletedProcess[str]":
    """``retinue up -d`` of a system of one machine, on a host without something."""
    with open_bench(folder) as bench:
        bench.write(server=PROGRAM)
        bench.file.write_text(bench.file.read_text().replace("[system]\n", f'[system]\nseal = "{least}"\n', 1))
        monkeypatch.setattr(sys, "executable", rungs.interpreter(folder, *without))
        done = bench.run("up", "-d", str(bench.file))
        if done.returncode == 0:
            assert bench.run("down").returncode == 0
        bench.assert_gone()
    return done


@pytest.mark.parametrize(
    ("least", "without"),
    [("strong", "user-namespaces"), ("strong", "mounts"), ("basic", "landlock")],
)
def test_system_starts_where_the_host_gives_what_its_topology_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: str, without: str
) -> None:
    done = up(tmp_path, monkeypatch, least, without)
    assert done.returncode == 0, done.stderr
    assert "is READY: 1 machine" in done.stdout


@pytest.mark.parametrize(
    ("least", "without", "layer", "accepted"),
    [
        ("full", ("user-namespaces",), "user-ns", "strong"),
        ("strong", ("landlock",), "landlock", "basic"),
        # Root needs no namespace of users to make the others.
        ("strong", ("landlock", "user-namespaces"), "landlock", "basic" if os.geteuid() == 0 else None),
        ("strong", ("landlock", "user-namespaces", "mounts"), "landlock", None),
        ("basic", ("landlock", "mounts"), "mount-ns", None),
    ],
)
def test_system_does_not_start_where_the_host_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: str, without: tuple[str, ...], layer: str, accepted: str
) -> None:
    done = up(tmp_path, monkeypatch, least, *without)
    assert done.returncode == 1
    assert f"and {least} is the least that the topology accepts" in done.stderr
    assert layer in done.stderr
    assert "cure: " in done.stderr
    assert (f'seal = "{accepted}"' in done.stderr) == (accepted is not None)
