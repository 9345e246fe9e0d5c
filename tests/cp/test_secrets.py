"""Secrets: to one machine, and nowhere else."""

import json
import os
import pathlib
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.systems import LIMIT, Bench, wait_for

from retinue.cp.redaction import Redaction
from retinue.cp.secrets import NO_SECRETS, Secrets, hand_over, take_over
from retinue.cp.syslog import NOTICE, Syslog

KEY = "k3y-of-the-shop/+='\""
TOKEN = "tok\N{EURO SIGN}n of the day"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END KEY-----"
SECRETS = Secrets({"SHOP": {"key": KEY.encode(), "raw": b"\xff\xfe\x00-binary"}, "TILL": {"pem": PEM.encode()}})


# -- in memory ---------------------------------------------------------------------------------------------------------


NAMES = st.from_regex("[A-Za-z_][A-Za-z0-9_]*", fullmatch=True).filter(str.isascii)
VALUES = st.binary().map(lambda data: data.replace(b"\0", b"x"))


@given(st.dictionaries(NAMES, VALUES))
def test_what_is_handed_over_is_taken_over_as_often_as_needed(variables: dict[str, bytes]) -> None:
    descriptor = hand_over(variables)
    try:
        for _ in range(2):
            assert take_over(os.dup(descriptor)) == variables
        with pytest.raises(OSError, match="not permitted"):
            os.write(descriptor, b"X=y\0")
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_each_machine_has_its_own() -> None:
    assert SECRETS.of("TILL") == {"pem": PEM.encode()}
    assert SECRETS.of("OTHER") == {}
    assert "key" not in repr(SECRETS)


def test_every_occurrence_in_a_text_is_hidden() -> None:
    assert SECRETS.hide(f"<{KEY}{KEY}>") == "<[secret key][secret key]>"
    assert SECRETS.hide(f"it is {PEM}.") == "it is [secret pem]."
    assert SECRETS.hide("nothing") == "nothing"
    assert NO_SECRETS.hide(KEY) == KEY


def test_a_secret_of_several_lines_is_hidden_line_by_line_too() -> None:
    assert SECRETS.hide(repr(PEM)).count("[secret pem]") == 3


def test_a_secret_that_is_no_utf_8_is_hidden_as_the_log_writes_it() -> None:
    assert SECRETS.hide(r"got \xff\xfe" + "\0-binary!") == "got [secret raw]!"


def test_the_longer_of_two_secrets_is_hidden_first() -> None:
    both = Secrets({"A": {"short": b"12345678", "long": b"123456789"}})
    assert both.hide("12345678 123456789") == "[secret short] [secret long]"


def test_values_and_keys_of_a_body_are_hidden_at_any_depth() -> None:
    body = {"a": [KEY, 1, {"b": f"x{KEY}".encode()}], KEY: None, b"\xff\xfe\x00-binary": 2.5, "n": "none"}
    found = Redaction(["secret"], SECRETS).apply(body)
    assert found.value == {
        "a": ["[secret key]", 1, {"b": b"x[secret key]"}],
        "[secret key]": None,
        b"[secret raw]": 2.5,
        "n": "none",
    }
    assert found.count == 4
    assert Redaction(secrets=SECRETS).apply(KEY).value == "[secret key]"


def test_records_are_hidden_before_anybody_has_them() -> None:
    log = Syslog(SECRETS)
    record = log.write(NOTICE, f"the key is {KEY}", fields={"with": {"the": [PEM]}})
    assert record["message"] == "the key is [secret key]"
    assert record["fields"] == {"with": {"the": ["[secret pem]"]}}


# -- a real system -----------------------------------------------------------------------------------------------------

# Tells its secrets to everybody who hears it.
CALLER = """\
import logging
import trio
from retinue.pipes import Rejected
from retinue.svm import Machine, NoSuchSecret

async def main(vm: Machine) -> None:
    key, token = vm.secret("key"), vm.secret("token")
    if (vm.secret_bytes("key"), token) != (@KEY@.encode(), @TOKEN@):
        raise ValueError("these are not my secrets")
    try:
        vm.secret("kye")
    except NoSuchSecret as error:
        logging.info("as it should be: %s", error)
    logging.warning("the key is %s", key, extra={"token": token})
    print("and the token is", token)
    path = await vm.connect("server")
    await vm.ready()
    while not vm.stopping.is_set():
        await path.call({"key": key, "raw": [key.encode(), 1], token: None})
        try:
            await path.call(["refuse", token])
        except Rejected as refusal:
            assert token in refusal.text
        await path.send("x" * 100_000 + key)
        await trio.sleep(0.02)
"""

SERVER = """\
from retinue.pipes import Rejected
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        if type(message.body) is list:
            raise Rejected("refused", f"I do not want {message.body[1]}")
        return message.body
    await vm.serve(answer)
"""

LOUD = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    raise RuntimeError(f"it ends with {vm.secret('key')}")
"""

TOPOLOGY = """\
[system]
name = "@NAME@"
syslog = "SYSLOG"
[machines.SYSLOG]
program = "retinue.services.syslog"
disks.a = {}
[machines.SERVER]
program = "server"
[machines.CALLER]
program = "caller"
uses.server = "SERVER"
secrets.key = { file = "key.txt" }
secrets.token = { variable = "SHOP_TOKEN" }
[machines.LOUD]
program = "loud"
restart = "never"
secrets.key = { file = "key.txt" }
"""


@pytest.fixture
def telling(bench: Bench) -> Bench:
    """A system whose machines tell their secrets."""
    bench.file.write_text(TOPOLOGY.replace("@NAME@", bench.name))
    caller = CALLER.replace("@KEY@", ascii(KEY)).replace("@TOKEN@", ascii(TOKEN))
    for name, text in {"caller": caller, "server": SERVER, "loud": LOUD}.items():
        (bench.folder / f"{name}.py").write_text(text)
    (bench.folder / "key.txt").write_text(KEY + "\n")
    bench.environ["SHOP_TOKEN"] = TOKEN
    return bench


def files_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != "key.txt" and path.suffix != ".py")


def test_values_reach_their_machine_and_are_nowhere_else(telling: Bench) -> None:
    """Nowhere: environments and arguments of all processes, records as shown and as kept, taps and recordings,
    listings, and everything in the runtime and state folders, before and after the end."""
    telling.up()
    wait_for(lambda: "BROKEN" in telling.run("ps").stdout or "STOPPED" in telling.run("ps").stdout)
    recording = telling.folder / "it.tap"
    tap = telling.start("tap", "CALLER.server", "--record", str(recording), "--json", "-n", "40")
    tapped = tap.communicate(timeout=LIMIT)[0].splitlines()
    assert tap.returncode == 0
    told = {
        "tap": "\n".join(tapped),
        "logs": telling.run("logs").stdout,
        "logs --json": telling.run("logs", "--json").stdout,
        "ps": telling.run("ps", "--json").stdout,
        "status": telling.run("status", "--json").stdout,
        "graph": telling.run("graph", "--json", str(telling.file)).stdout,
    }
    # That they are not found because nobody told them would prove nothing.
    assert "it ends with [secret key]" in told["logs"]
    assert "the key is [secret key]" in told["logs"]
    assert "and the token is [secret token]" in told["logs"]
    assert "it ends with [secret key]" in told["ps"]
    bodies = [item.get("body") for item in map(json.loads, tapped)]
    assert any(isinstance(body, dict) and body.get("key") == "[secret key]" for body in bodies)
    assert any(isinstance(body, str) and body.endswith("x[secret key]") for body in bodies)
    assert any(item.get("text") == "I do not want [secret token]" for item in map(json.loads, tapped))
    found = {name: text.encode() for name, text in told.items()}
    processes = telling.processes()
    assert len(processes) >= 5
    for pid, title in processes.items():
        for name in ("environ", "cmdline"):
            try:
                found[f"{name} of {title}"] = pathlib.Path("/proc", str(pid), name).read_bytes()
            except PermissionError:
                assert os.geteuid() != 0  # only root sees the environment of those that hide from their own user
    found |= {str(path): path.read_bytes() for path in files_below(telling.folder)}
    assert telling.run("down").returncode == 0
    found |= {f"{path} afterwards": path.read_bytes() for path in files_below(telling.folder)}
    assert any("nucleus.log" in name for name in found)
    assert any("records.sqlite3" in name for name in found)
    needles = [KEY.encode(), TOKEN.encode(), json.dumps(KEY)[1:-1].encode(), json.dumps(TOKEN)[1:-1].encode()]
    leaks = [name for name, content in found.items() if any(needle in content for needle in needles)]
    assert leaks == []
    assert not any(b"SHOP_TOKEN" in content for name, content in found.items() if name.startswith("environ"))


def test_a_secret_that_is_missing_is_told_with_its_place_before_anything_starts(telling: Bench) -> None:
    del telling.environ["SHOP_TOKEN"]
    (telling.folder / "key.txt").unlink()
    assert telling.run("up", str(telling.file)).stderr.splitlines() == [
        f"{telling.file}:12: [machines.CALLER.secrets] key: the file {telling.folder}/key.txt does not exist",
        f"{telling.file}:17: [machines.LOUD.secrets] key: the file {telling.folder}/key.txt does not exist",
        f"retinue: 2 mistakes in {telling.file}",
    ]
    (telling.folder / "key.txt").write_text(KEY)
    assert telling.run("check", str(telling.file)).returncode == 0
    done = telling.run("up", str(telling.file))
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        f"{telling.file}:13: [machines.CALLER.secrets] token: there is no variable SHOP_TOKEN in the environment",
        "  set it for this command",
        f"retinue: 1 mistake in {telling.file}",
    ]
    telling.environ["SHOP_TOKEN"] = "1234"
    assert "has 4 bytes, and a secret has at least 8" in telling.run("up", str(telling.file)).stderr
    telling.assert_gone()


def test_a_system_that_does_not_start_tells_no_secret_in_its_certificate(telling: Bench) -> None:
    (telling.folder / "loud.py").write_text(LOUD.replace("await vm.ready()", "print(vm.secret('key'))"))
    done = telling.run("up", str(telling.file))
    assert done.returncode == 1
    certificate = (telling.folder / "state" / "retinue" / telling.name / "end.json").read_text()
    for told in (done.stdout + done.stderr, certificate):
        assert "it ends with [secret key]" in told
        assert KEY not in told


def test_the_process_that_starts_a_system_may_end_and_the_variables_stay(telling: Bench) -> None:
    """A machine that is started again long after ``up`` has ended gets them again."""
    assert telling.run_apart("up", "-d", str(telling.file)).returncode == 0
    pid = telling.pid_of("CALLER")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: telling.run("logs", "CALLER").stdout.count("the key is [secret key]") == 2)
    assert "not my secrets" not in telling.run("logs").stdout
