"""The example of a machine that goes outside, against a server on this host."""

import http.server
import re
import threading
from collections.abc import Iterator

import pytest
from tests.examples.test_examples import install
from tests.systems import Bench


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the test's standard error."""


@pytest.fixture
def server() -> Iterator[int]:
    """The port of an HTTP server on 127.0.0.1."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def serve_at(bench: Bench, port: int) -> None:
    """Have the example visit this port of 127.0.0.1."""
    text = bench.file.read_text()
    chosen = re.search(r"127\.0\.0\.1:\d+", text)
    assert chosen is not None
    bench.file.write_text(text.replace(chosen[0], f"127.0.0.1:{port}"))


def test_visitor_reaches_what_it_may_and_is_told_what_is_missing(bench: Bench, server: int) -> None:
    """The allowed server answers, the other is refused with the line to add, a record of TCPIP tells it as well."""
    install(bench, "outside")
    serve_at(bench, server)
    bench.up()
    log = bench.run("logs", "-n", "all").stdout
    assert f"VISITOR | 127.0.0.1:{server}: HTTP/1.0 204 No Content" in log
    refusal = (
        "VISITOR may not reach example.org:80: no rule in TCPIP's config.allow lets it; to allow it, put  "
        f'config.allow.VISITOR = ["127.0.0.1:{server}", "example.org:80"]  under [machines.TCPIP]'
    )
    assert f"VISITOR | example.org:80: AccessDenied: denied: {refusal}" in log
    assert f"refused: {refusal}" in log
    assert "127.1:8080: BadDestination: '127.1' is no host" in log
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_refusal_tells_the_line_that_is_missing(bench: Bench, server: int) -> None:
    """Without its line of rules the example is refused, and told that line: that it is obeyed is the test above."""
    install(bench, "outside")
    serve_at(bench, server)
    whole = bench.file.read_text()
    (allow,) = [line for line in whole.splitlines() if line.startswith("config.allow")]
    bench.file.write_text(whole.replace(allow, ""))
    bench.up()
    log = bench.run("logs", "-n", "all").stdout
    found = re.search(rf"VISITOR may not reach 127.0.0.1:{server}: .*put  (.*)  under \[machines.TCPIP\]", log)
    assert found is not None
    assert found[1] == allow
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_mistake_in_a_rule_is_told_with_its_line(bench: Bench) -> None:
    """Nothing starts with a rule that is none; file, line and key stand in the error."""
    install(bench, "outside")
    bench.file.write_text(bench.file.read_text().replace("VISITOR = [", 'VISITOR = ["example.org:https", '))
    done = bench.run("up", "-d", str(bench.file))
    assert done.returncode != 0
    number = next(at for at, line in enumerate(bench.file.read_text().splitlines(), 1) if "allow" in line)
    assert f"outside.toml:{number}" in done.stderr
    assert "'https' is no port" in done.stderr
    bench.assert_gone()
