"""Every example comes up, does what its README says, and leaves nothing behind."""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from tests.systems import Bench, open_bench, read_until, wait_for

from retinue.svm.command import FOLDERS

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def install(bench: Bench, example: str) -> None:
    """Copy an example onto the bench, under the bench's name and on a port of its own."""
    folder = bench.folder / example
    shutil.copytree(EXAMPLES / example, folder)
    bench.file = folder / f"{example}.toml"
    text = bench.file.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}")
    bench.file.write_text(text.replace(f'name = "{example.upper()}"', f'name = "{bench.name}"'))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Web:
    """The running web example."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        text = bench.file.read_text()
        self.port = int(text.partition("127.0.0.1:")[2].partition('"')[0])

    def get(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
        """One request on a connection of its own: status and body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body=body)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def machine(self, name: str) -> dict[str, Any]:
        return self.bench.machine(name)


@contextmanager
def running(folder: pathlib.Path, example: str) -> Iterator[Web]:
    """An example that answers requests, which is up; it can go down and leaves nothing behind."""
    with open_bench(folder) as bench:
        install(bench, example)
        bench.up()
        yield Web(bench)
        down = bench.run("down")
        assert down.returncode == 0, down.stderr
        bench.assert_gone()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One system for all tests of the example: each leaves it READY, and counts from what it finds."""
    with running(tmp_path_factory.mktemp("web"), "web") as site:
        yield site


def test_hello_greets(bench: Bench) -> None:
    """Two machines and one edge: the answer to a call is in the log."""
    install(bench, "hello")
    bench.up()
    assert "CALLER  | Hello, world!" in bench.run("logs").stdout
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_web_answers_and_keeps_records(web: Web) -> None:
    """Both routes answer, every machine is listed, the requests stand in the log that SYSLOG keeps."""
    status, body = web.get("/")
    assert status == 200
    assert "three sealed machines" in body
    status, body = web.get("/count")
    assert status == 200
    assert web.get("/count") == (200, f"visit {int(body.removeprefix('visit ')) + 1}\n")
    assert web.get("/nowhere")[0] == 404
    assert web.get("/guests", "POST", b"Ada") == (201, "thank you\n")

    listing = json.loads(web.bench.run("ps", "--json").stdout)
    assert {machine["name"] for machine in listing["machines"]} == {"TCPIP", "HTTPD", "SHOP", "COUNT", "SYSLOG"}
    for machine in listing["machines"]:
        assert machine["state"] == "READY"
        assert machine["generation"] == 1 or machine["name"] == "SHOP"  # which another test kills
        assert machine["pid"] > 0
        assert 0 < machine["storage"]["resident"] < machine["storage"]["limit"]
        assert machine["uptime"] > 0

    assert '"GET /count HTTP/1.1" 200' in web.bench.run("logs", "HTTPD").stdout


def test_web_keeps_its_disk_over_a_restart_of_the_system(web: Web) -> None:
    """A machine's disk outlives the machine and the system."""
    web.get("/guests", "POST", b"Ada")
    guests = web.get("/guests")
    assert guests[1].endswith("Ada\n")
    told = web.bench.run("logs", "HTTPD", "-n", "all").stdout.count('"POST /guests')
    assert told > 0
    assert web.bench.run("down").returncode == 0
    web.bench.up()
    assert web.get("/guests") == guests
    # So does what SYSLOG keeps: records of the run before are still there.
    assert web.bench.run("logs", "HTTPD", "-n", "all").stdout.count('"POST /guests') == told


def test_application_cannot_break_out(web: Web) -> None:
    """Told to open a TCP socket, to read a file of the host and to signal another machine, it is refused all three."""
    status, body = web.get("/escape")
    assert status == 200
    results = json.loads(body)
    assert set(results) == {"open a TCP socket", "read /etc/passwd", "signal another machine"}
    assert all(result.startswith("refused: ") for result in results.values()), results


def test_death_of_the_application_harms_no_other_route(web: Web) -> None:
    """Killed again and again under requests: the other route never fails, this one comes back, the log tells it."""
    stop = threading.Event()
    seen: dict[str, Counter[int]] = {"/": Counter(), "/count": Counter()}
    errors: list[str] = []

    def ask(path: str) -> None:
        while not stop.is_set():
            try:
                seen[path][web.get(path)[0]] += 1
            except OSError as exc:
                errors.append(f"{path}: {exc!r}")

    threads = [threading.Thread(target=ask, args=(path,)) for path in seen]
    for thread in threads:
        thread.start()
    try:
        follow = web.bench.start("logs", "CP", "-f", "-n", "all")
        read_until(follow.stdout, lambda line: "SHOP is READY" in line)
        first = web.machine("SHOP")["generation"]
        for generation in range(first, first + 3):
            machine = web.machine("SHOP")
            assert machine["generation"] == generation
            os.kill(machine["pid"], signal.SIGKILL)
            read_until(follow.stdout, lambda line: "SHOP is ABEND: killed by SIGKILL" in line)
            read_until(follow.stdout, lambda line: "SHOP is READY" in line)
        follow.kill()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert set(seen["/count"]) == {200}
    assert set(seen["/"]) <= {200, 502, 503}
    assert web.get("/")[0] == 200
    assert web.machine("SHOP")["cause"] == "killed by SIGKILL"
    assert "SHOP died: killed by SIGKILL" in web.bench.run("logs", "SHOP", "-n", "all").stdout


def test_every_example_has_a_readme() -> None:
    """An example that nobody explains is a riddle."""
    for folder in EXAMPLES.iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert (folder / "README.md").is_file(), folder
            assert list(folder.glob("*.toml")), folder


needs_redis = pytest.mark.skipif(
    not any(os.access(f"{folder}/redis-server", os.X_OK) for folder in FOLDERS),
    reason="the example daemon runs the redis-server of the distribution, and it is not installed",
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One system for the tests of the example, which count from what they find."""
    with running(tmp_path_factory.mktemp("daemon"), "daemon") as site:
        yield site


def visits(daemon: Web) -> int:
    """What Redis has counted, with this visit."""
    status, body = daemon.get("/")
    assert status == 200
    assert body.startswith("visit ")
    return int(body.removeprefix("visit "))


def redis_pid(daemon: Web) -> int:
    """The process of redis-server: the one child of its machine's own."""
    pid = daemon.machine("REDIS")["pid"]
    (child,) = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@needs_redis
def test_daemon_counts_visits_over_every_restart(daemon: Web) -> None:
    """What Redis has on its disk outlives its process, and the system; its own words are in the log."""
    before = visits(daemon)
    assert visits(daemon) == before + 1
    assert "Server initialized" in daemon.bench.run("logs", "REDIS", "-n", "all").stdout
    generation = daemon.machine("REDIS")["generation"]
    os.kill(redis_pid(daemon), signal.SIGKILL)
    wait_for(lambda: (now := daemon.machine("REDIS"))["generation"] == generation + 1 and now["state"] == "READY")
    assert daemon.machine("REDIS")["cause"].startswith("exit status 137: redis-server was killed by SIGKILL")
    while (answer := daemon.get("/"))[0] == 503:  # its client learns of the death by its next visit
        pass
    assert answer == (200, f"visit {before + 2}\n")
    assert daemon.bench.run("down").returncode == 0
    daemon.bench.up()
    assert visits(daemon) == before + 3


@needs_redis
def test_daemon_is_sealed(daemon: Web) -> None:
    """A native program has lost as much as a Python one: it is seen from outside, in what the kernel says of it."""
    pid = redis_pid(daemon)
    status = dict(
        line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Name"] == "redis-server"
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert {status[f"Cap{each}"].strip("0") for each in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {""}
    layers = daemon.machine("REDIS")["seal"]
    assert {"no-new-privs", "seccomp"} <= set(layers)
    for layer, namespace in (("net-ns", "net"), ("pid-ns", "pid"), ("mount-ns", "mnt")):
        if layer in layers:
            assert os.readlink(f"/proc/{pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
    assert visits(daemon) > 0
