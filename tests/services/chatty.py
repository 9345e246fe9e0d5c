"""A system with a machine that counts into its log, the records of which are sent on, and what has come of them."""

import queue
import re
import socket
from typing import Final

from tests.services.rfc5424_reader import Frames, Read, read
from tests.systems import LIMIT

TOPOLOGY: Final = """\
[system]
name = "{name}"
syslog = "SYSLOG"
[machines.SYSLOG]
program = "retinue.services.syslog"
disks.a = {{}}
uses.out = {{ to = "TCPIP", lazy = true }}
config.forward = {{ to = "{to}" }}
[machines.TCPIP]
program = "retinue.services.tcpip"
network = true
config.allow.SYSLOG = ["{rule}"]
[machines.CHATTY]
program = "chatty"
"""

CHATTY: Final = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    for number in range(500):
        logging.info("number %d", number, extra={"number": number})
    await vm.stopping.wait()
    for number in range(500, 1000):
        logging.info("number %d", number, extra={"number": number})
"""


def numbers(texts: list[str]) -> list[int]:
    """What CHATTY has counted, in the order in which each number was first seen."""
    found = (re.search(r"number (\d+)$", text) for text in texts)
    return list(dict.fromkeys(int(each[1]) for each in found if each))


class Came:
    """The messages that a collector on threads has got."""

    def __init__(self) -> None:
        self._messages: queue.Queue[Read] = queue.Queue()

    def put(self, message: bytes) -> None:
        self._messages.put(read(message))

    def take(self, connection: socket.socket) -> None:
        """All that comes by a stream, until its end."""
        frames = Frames()
        while data := connection.recv(65536):
            for message in frames.feed(data):
                self.put(message)

    def until(self, number: int) -> list[Read]:
        """Every message up to CHATTY's with that number."""
        found = [self._messages.get(timeout=LIMIT)]
        while f"number {number}" != found[-1].text:
            found.append(self._messages.get(timeout=LIMIT))
        return found


def check_rsyslog(lines: list[str], host: str, scheme: str) -> None:
    """It was away for a while, and has every record in order, each with its fields; and was told of that twice."""
    assert numbers(lines) == list(range(1000)), numbers(lines)
    one = next(line for line in lines if line.endswith("number 7"))
    _, name, facility, severity, app, data, text = one.split("|")
    assert (name, facility, severity, app, text) == (host, "daemon", "info", "CHATTY", "number 7"), one
    assert re.fullmatch(
        r'\[retinue@32473 run="[0-9a-f]{32}" seq="\d+" logger="root"\]\[fields@32473 number="7"\]', data
    ), data
    told = [
        re.sub(rf".*\|{scheme}://[^ ]+ takes (\w+ \w+).*", r"\1", line)
        for line in dict.fromkeys(lines)
        if "takes" in line
    ]
    assert told == ["no records", "records again"], told
