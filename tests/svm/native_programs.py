"""A native program for tests: run as a script, it does what its first argument says. It knows nothing of Retinue."""

import contextlib
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Iterator


def say(*_: str) -> None:
    print("to standard output", flush=True)
    print("to standard error", file=sys.stderr, flush=True)


def fail(*_: str) -> None:
    sys.stderr.write("no such luck\n")
    sys.exit(3)


def crash(number: str) -> None:
    os.write(1, b"".join(b"line %d\n" % each for each in range(5000)) + b"the last word")
    os.kill(os.getpid(), int(number))


def show(*words: str) -> None:
    """Everything it was given, one a line."""
    for word in words:
        print("word", word)
        if word.startswith("/proc/self/fd/"):
            print("file", pathlib.Path(word).read_text())
    for name, value in sorted(os.environ.items()):
        print("variable", name, value)
    print("folder", os.getcwd())
    print("descriptors", *(each for each in range(100) if os.path.exists(f"/proc/self/fd/{each}")))
    for name, value in os.environ.items():
        if name.startswith("RETINUE_SECRET_"):
            print("secret", os.read(int(value), 100).decode())
            with contextlib.suppress(OSError):
                os.pwrite(int(value), b"x", 0)
                print("it could be changed")


def orphans(*_: str) -> None:
    """Twenty processes whose parent ends before them."""
    for _each in range(20):
        if (middle := os.fork()) == 0:
            if os.fork() == 0:
                time.sleep(0.05)
            os._exit(0)
        os.waitpid(middle, 0)
    print("left", flush=True)
    time.sleep(60)


def holder(*_: str) -> None:
    """A process that outlives its parent has standard output, too."""
    print("before", flush=True)
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)


def wait(*_: str) -> None:
    print("waiting", flush=True)
    time.sleep(60)


def heed(*_: str) -> None:
    def end(*_: object) -> None:
        print("good bye", flush=True)
        sys.exit(5)

    signal.signal(signal.SIGTERM, end)
    wait()


def _connections(path: str, backlog: int = 16) -> Iterator[socket.socket]:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        listener.listen(backlog)
        while True:
            yield listener.accept()[0]


def echo(path: str, delay: str = "0") -> None:
    time.sleep(float(delay))
    for connection in _connections(path):
        if os.fork() == 0:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            os._exit(0)
        connection.close()


def greet(path: str, ending: str) -> None:
    """Says something first, and then one of several ends."""
    _greet(_connections(path), ending)


def _greet(connections: Iterator[socket.socket], ending: str) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * 100_000 if ending == "die" else b"hello")
        match ending:
            case "close":
                connection.close()
            case "half":
                with contextlib.suppress(OSError):  # the one by which it is found ready
                    connection.shutdown(socket.SHUT_WR)
                    print("heard", connection.recv(100), flush=True)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "leave":
                sys.exit(0)


def greet_second(path: str, ending: str) -> None:
    """Like greet, but the first connection, by which it is found ready, is let go."""
    connections = _connections(path)
    next(connections).close()
    _greet(connections, ending)


def once(path: str) -> None:
    """Takes one connection, that by which it is found ready, and none any more."""
    connection = next(_connections(path))
    connection.close()
    wait()


def lazybones(path: str) -> None:
    """Listens and accepts nothing until it is told to."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    print("pid", os.getpid(), flush=True)
    signal.pause()
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(BrokenPipeError):  # the one by which it is found ready
            connection.sendall(b"at last")
        connection.close()


def ask(path: str, count: str = "1") -> None:
    """Connects, says something and tells what came back."""
    for number in range(int(count)):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(path)
            try:
                connection.sendall(b"question %d" % number)
                connection.shutdown(socket.SHUT_WR)
                print("answer", b"".join(iter(lambda: connection.recv(100), b"")), flush=True)
            except ConnectionError:
                print("no answer", flush=True)
    print("mode", oct(os.stat(path).st_mode), flush=True)


def talk(edge: str, first: str = "question") -> None:
    with socket.socket(fileno=int(os.environ[f"RETINUE_EDGE_{edge}"])) as connection:
        if first:
            connection.sendall(first.encode())
        print("answer", connection.recv(100), flush=True)
        connection.shutdown(socket.SHUT_WR)
        print("rest", connection.recv(100), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
