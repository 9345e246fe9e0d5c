"""Clients that want no more than one answer: real machines, one connection for each request."""

import socket

from tests.systems import Bench

APP = """\
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def test_every_connection_that_is_closed_after_its_answer_has_the_answer(bench: Bench) -> None:
    """The answer and the end that follows it come in one packet; the end must not be first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (bench.folder / "app.py").write_text(APP)
    bench.file.write_text(
        f'[system]\nname = "{bench.name}"\n'
        '[machines.TCPIP]\nprogram = "retinue.services.tcpip"\nnetwork = true\nuses.web = "HTTPD"\n'
        f'config.listen = {{ "127.0.0.1:{port}" = "web" }}\n'
        '[machines.HTTPD]\nprogram = "retinue.services.httpd"\nuses.app = "APP"\nconfig.routes = { "/" = "app" }\n'
        '[machines.APP]\nasgi = "app:app"\n'
    )
    bench.up()
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            whole = b"".join(iter(lambda client=client: client.recv(65536), b""))  # type: ignore[misc]
        assert whole.endswith(b"\r\n\r\nok")
