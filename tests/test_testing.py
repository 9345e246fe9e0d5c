"""What users test their topologies with: retinue.testing, and the fixture that pytest finds by itself."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import trio
import trio.testing
from tests.systems import Bench

from retinue.cp.directory import DirectoryErrors
from retinue.pipes import Message, Rejected
from retinue.svm import Machine
from retinue.testing import SystemFailed, open_system

ROOT = pathlib.Path(__file__).parents[1]
HELLO = ROOT / "examples" / "hello" / "hello.toml"

PAIR = """\
[system]
name = "PAIR"
[machines.SERVER]
program = "server"
[machines.USER]
program = "user"
uses.server = "SERVER"
"""


async def user(vm: Machine[None]) -> None:
    """Hands on what it is asked, along its only edge."""
    path = await vm.connect("server")

    async def ask(message: Message) -> Any:
        return await path.call(message.body)

    await vm.serve(ask)


async def test_example_runs_simulated(autojump_clock: trio.testing.MockClock) -> None:
    """The real programs of an example: states, what is printed, the call along the edge, the answer to an operator."""
    async with open_system(HELLO) as system:
        assert system.states == {"GREETER": "READY", "CALLER": "READY"}
        assert system.printed("CALLER") == ["Hello, world!"]
        (call,) = system.calls("CALLER.greeter")
        assert (call.body, call.reply, call.answered) == ("world", "Hello, world!", True)
        assert await system["GREETER"].call("Ada") == "Hello, Ada!"
        end = await system.stop()
    assert (end.how, end.exit_code) == ("down", 0)


def test_example_says_the_same_simulated_and_real(bench: Bench) -> None:
    """One example on both hosts: the same machines become READY and print the same, in the same order."""
    folder = bench.folder / "hello"
    shutil.copytree(HELLO.parent, folder)
    bench.file = folder / "hello.toml"
    bench.file.write_text(bench.file.read_text().replace('name = "HELLO"', f'name = "{bench.name}"'))
    bench.up()
    real = bench.run("logs", "-n", "all").stdout.splitlines()
    bench.run("down")

    async def simulated() -> list[str]:
        async with open_system(bench.file) as system:
            return [f"{record['machine']} | {record['message']}" for record in system.records()]

    found = trio.run(simulated, clock=trio.testing.MockClock(autojump_threshold=0))

    def essence(text: list[str]) -> list[str]:
        words = ("GREETER is READY", "CALLER is READY", "Hello, world!")
        return [word for line in text for word in words if line.endswith(word)]

    assert essence(real) == essence(found)
    assert sorted(essence(found)) == ["CALLER is READY", "GREETER is READY", "Hello, world!"]


async def test_fakes_take_the_places_of_machines(autojump_clock: trio.testing.MockClock) -> None:
    """A table of replies, functions and refusals among them; a program of one's own; neither needs a file."""

    async def later(body: Any) -> Any:
        await trio.sleep(3600)
        return ["later", body]

    table = {
        "one": 1,
        ("two", 2): lambda body: body * 2,
        "no": Rejected("no-such-thing", "there is none"),
        "later": later,
        ...: "something else",
    }
    async with open_system(PAIR, fakes={"SERVER": table, "USER": user}) as system:
        ask = system["USER"].call
        assert await ask("one") == 1
        assert await ask(["two", 2]) == ["two", 2, "two", 2]
        assert await ask({"any": "thing"}) == "something else"
        assert await ask("later") == ["later", "later"]
        with pytest.raises(Rejected):
            await ask("no")
        assert [(call.body, call.refused) for call in system.calls("USER.server")][-1] == ("no", "no-such-thing")
    with pytest.raises(Rejected, match="no reply"):
        async with open_system(PAIR, fakes={"SERVER": {}, "USER": user}) as system:
            await system["SERVER"].call("anything")


@pytest.mark.parametrize("kind", ['asgi = "app:app"', 'wsgi = "app:app"', 'program = "retinue.services.httpd"'])
async def test_fake_takes_the_place_of_any_kind(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    """Applications and stock services as well; what they are configured with, a fake has too."""

    async def main(vm: Machine[Any]) -> None:
        print("config", getattr(vm.config, "routes", None))
        await vm.serve(answer)

    async def answer(message: Message) -> Any:
        return message.body

    config = 'config.routes = { "/" = "app" }' if "httpd" in kind else ""
    text = f'[system]\nname = "KIND"\n[machines.APP]\n{kind}\n{config}\n'
    async with open_system(text, fakes={"APP": main}) as system:
        assert await system["APP"].call([1]) == [1]
        assert system.printed("APP") == [f"config { ({'/': 'app'} if config else None) }"]


async def test_killed_machine_comes_back_and_nothing_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """A call that waits while its target dies is answered by the next one, and recorded as delivered twice."""
    first = True

    async def server(vm: Machine[None]) -> None:
        async def answer(message: Message) -> Any:
            nonlocal first
            if first:
                first = False
                await trio.sleep_forever()
            return "at last"

        await vm.serve(answer)

    async with open_system(PAIR, fakes={"SERVER": server, "USER": user}) as system:
        async with trio.open_nursery() as nursery:
            answers: list[Any] = []

            async def ask() -> None:
                answers.append(await system["USER"].call("x"))

            nursery.start_soon(ask)
            await system.jump(1)
            system["SERVER"].kill()
        assert answers == ["at last"]
        assert system["SERVER"].generation == 2
        (call,) = system.calls("USER.server")
        assert (call.reply, call.deliveries) == ("at last", 2)


async def test_flaws_of_the_next_start(autojump_clock: trio.testing.MockClock) -> None:
    """Slow, deaf and dying starts are what the control program says they are, and take the time they take."""
    async with open_system(PAIR, fakes={"SERVER": {}, "USER": user}, record=False) as system:
        server = system["SERVER"]
        for flaws, cause in (
            ({"unborn": 12}, "Cannot allocate memory"),
            ({"dies_before_ready": True}, "SIGKILL"),
            ({"lost_ready": True}, "not ready within 60 s"),
            ({"hung": True}, "not ready within 60 s"),
        ):
            server.next_start(**flaws)
            generation = server.generation
            server.kill()
            await server.wait_ready(generation=generation + 2)
            assert cause in str(server.cause), flaws
        server.next_start(slow=20)
        before = trio.current_time()
        server.kill()
        await server.wait_ready(generation=server.generation + 1)
        assert trio.current_time() - before >= 20
        server.kill_for_storage()
        await server.wait_ready(generation=server.generation + 1)
        assert "out of storage" in str(server.cause)


async def test_operators_verbs(autojump_clock: trio.testing.MockClock) -> None:
    """Stop, start, restart and replace, as the command has them."""
    async with open_system(PAIR, fakes={"SERVER": {...: "yes"}, "USER": user}) as system:
        server = system["SERVER"]
        await server.restart()
        await server.replace()
        assert (server.state, server.generation) == ("READY", 3)
        assert await system["USER"].call("still?") == "yes"
        await server.stop()
        assert server.state == "STOPPED"
        await server.start()
        assert (server.state, server.generation) == ("READY", 4)


async def test_mistakes_are_told(autojump_clock: trio.testing.MockClock) -> None:
    """A topology with mistakes, a fake of nobody, an unknown machine or edge, a system that does not come up."""
    with pytest.raises(DirectoryErrors):
        async with open_system('[system]\nnam = "X"\n'):
            pass
    with pytest.raises(ValueError, match="there is no machine 'SERVR'"):
        async with open_system(PAIR, fakes={"SERVR": {}, "SERVER": {}, "USER": user}):
            pass

    async def broken(vm: Machine[None]) -> None:
        raise RuntimeError("it cannot work")

    with pytest.raises(SystemFailed, match="it cannot work") as caught:
        async with open_system(PAIR, fakes={"SERVER": broken, "USER": user}):
            pass
    assert caught.value.end.exit_code == 1
    async with open_system(PAIR, fakes={"SERVER": {}, "USER": user}) as system:
        with pytest.raises(KeyError, match="there are SERVER, USER"):
            system["NOBODY"]
        with pytest.raises(KeyError, match="there are"):
            system.calls("USER.nothing")
    with pytest.raises(ZeroDivisionError):  # as it is, and not in a group
        async with open_system(PAIR, fakes={"SERVER": {}, "USER": user}):
            _ = 1 / 0


async def test_real_clock_works_as_well() -> None:
    """Nothing needs a virtual clock but to jump."""
    async with open_system(PAIR, fakes={"SERVER": {...: 1}, "USER": user}) as system:
        assert await system["USER"].call("x") == 1
        with pytest.raises(RuntimeError, match="autojump_clock"):
            await system.jump(1)


async def test_two_systems_in_one_run(autojump_clock: trio.testing.MockClock) -> None:
    """Neither sees anything of the other."""
    async with open_system(PAIR, fakes={"SERVER": {...: 1}, "USER": user}) as one, open_system(HELLO) as other:
        assert await one["USER"].call("x") == 1
        assert other.printed("CALLER") == ["Hello, world!"]
        assert "GREETER" not in one.states
        await other.stop()
        assert await one["USER"].call("x") == 1


def test_the_same_seed_makes_the_same_run() -> None:
    """Every record in the same order, with the same figures."""

    async def run(seed: int) -> list[tuple[str, str]]:
        text = PAIR.replace('"server"', '"server"\npause = { first = "1s", jitter = 0 }', 1)
        async with open_system(text, fakes={"SERVER": {...: 1}, "USER": user}, seed=seed) as system:
            for _ in range(5):
                system["SERVER"].kill()
                await system.jump(1)
            return [(record["machine"], record["message"]) for record in system.records()][1:]

    runs = [trio.run(run, seed, clock=trio.testing.MockClock(autojump_threshold=0)) for seed in (5, 5)]
    assert runs[0] == runs[1]
    assert any("WAITING: starting again in" in text for _, text in runs[0])


def newcomers_test() -> str:
    """The first test of the how-to page, as it stands there."""
    page = (ROOT / "docs" / "how-to" / "test-a-topology.md").read_text()
    return page.split("```python\n", 1)[1].split("```", 1)[0]


def plugged() -> list[str]:
    """The arguments with which pytest has the plugin, also where Retinue was installed before it had one."""
    entries = importlib.metadata.entry_points(group="pytest11")
    return [] if any(entry.name == "retinue" for entry in entries) else ["-p", "retinue.pytest_plugin"]


def test_fixture_works_for_a_newcomer(tmp_path: pathlib.Path) -> None:
    """A test file beside a topology, and plain pytest with pytest-trio: nothing to configure but trio_mode."""
    shutil.copytree(HELLO.parent, tmp_path / "hello")
    (tmp_path / "hello" / "test_hello.py").write_text(newcomers_test())
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-o", "trio_mode=true", "-p", "no:cacheprovider"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [*command, *plugged()], cwd=tmp_path / "hello", env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_retinue_needs_no_pytest() -> None:
    """Neither the package nor retinue.testing does: they work where there is none."""
    code = "import sys; sys.modules['pytest'] = sys.modules['_pytest'] = None; import retinue.testing"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


async def test_apply_keeps_fakes(autojump_clock: trio.testing.MockClock) -> None:
    """Another topology is applied to the running system: what it declares anew is there, what was is not touched."""
    more = PAIR + '[machines.CALLER]\nprogram = "caller"\nuses.greeter = "SERVER"\n'
    async with open_system(PAIR, fakes={"SERVER": {...: "hi"}, "USER": user}) as system:
        shutil.copy(HELLO.parent / "caller.py", system.topology.folder)
        done = await system.apply(more)
        assert [(change["kind"], change["machine"]) for change in done["changed"]] == [("add", "CALLER")]
        await system["CALLER"].wait_ready()
        assert system.printed("CALLER") == ["hi"]
        assert (system["SERVER"].generation, system["USER"].generation) == (1, 1)


async def test_control_program_dies_and_nobody_notices(autojump_clock: trio.testing.MockClock) -> None:
    """Machines and their paths go on; the next control program knows them, and every record there was."""
    async with open_system(PAIR, fakes={"SERVER": {...: "yes"}, "USER": user}) as system:
        assert await system["USER"].call("x") == "yes"
        for _ in range(3):
            system.kill_control_program()
            await system.wait_ready()
            await system.jump(1)
            assert await system["USER"].call("x") == "yes"
        assert system.states == {"SERVER": "READY", "USER": "READY"}
        assert (system["SERVER"].generation, system["USER"].generation) == (1, 1)
        assert len([record for record in system.records("CP") if "taken over" in record["message"]]) == 3
