"""The program of an exec machine that makes the attempts it is told to; its orders come to a UNIX socket. No trio here.

``python3 native.py SOCKET``: each line is an order as JSON, each answer a line. ``python3 native.py`` takes the
orders from standard input: that is how attempts are shown to succeed without a seal.
"""

import json
import os
import pathlib
import socket
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

from tests.escapes.inside import bombs, channels, files, kernel, processes, sockets
from tests.escapes.inside.attempt import perform

__all__ = ["files", "kernel", "processes", "sockets"]


def obey(order: Any) -> Any:
    """Do what an order says; see the program of the other machines."""
    match order:
        case ["perform", str(name), dict(world)]:
            return perform(name, world)
        case ["perform-all", list(names), dict(world)]:  # each in a process of its own: nothing it does to itself lasts
            return {name: in_child(["perform", name, world]) for name in names}
        case ["send", str(name), dict(world), int(bit)]:
            return channels.send(name, world, bit)
        case ["receive", str(name), dict(world)]:
            return channels.receive(name, world)
        case ["bomb", str(name), dict(world)]:
            return bombs.explode(name, world)
        case ["release"]:
            bombs.release()
            return None
        case ["descriptors"]:
            return {str(number): kind for number, kind in sockets.open_descriptors().items()}
        case ["echo", body]:
            return body
    raise ValueError(order)


def serve(path: str) -> None:
    """One connection after another."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as lines:
                for line in lines:
                    order = json.loads(line)
                    answer = in_child(order) if order[0] == "perform" else obey(order)
                    lines.write(json.dumps(answer) + "\n")
                    lines.flush()


def in_child(order: Any) -> Any:
    """Obey in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            with open(write, "w") as answer:
                json.dump(obey(order), answer)
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as answer:
        text = answer.read()
    status = os.waitpid(pid, 0)[1]
    return json.loads(text) if text else {"raised": f"wait status {status}"}


def serve_unsealed(*, in_children: bool) -> None:
    """Orders from standard input."""
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(in_child(order) if in_children and order[0] == "perform" else obey(order)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--one-process"]):
        serve_unsealed(in_children=not sys.argv[1:])
    else:
        serve(sys.argv[1])
