"""The inside of a machine without a program: sealed, then it calls what the test names over the control socket."""

import fcntl
import importlib
import json
import os
import socket
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from retinue.cp.host.seal import Seal

CONTROL, LOG = 3, 4


def boot(birth: Mapping[str, Any], seal: Seal, control: int, log: int) -> NoReturn:
    """Every step of the seal, then the orders."""
    seal.session()
    control, log = (fcntl.fcntl(each, fcntl.F_DUPFD, 16) for each in (control, log))
    for source, target in ((control, CONTROL), (log, LOG), (log, 1), (log, 2)):
        os.dup2(source, target)
    seal.descriptors((CONTROL, LOG))
    seal.root()
    seal.limits()
    seal.privileges()
    seal.parent()
    seal.files()
    seal.calls()
    _serve(CONTROL)


def boot_unsealed(birth: Mapping[str, Any], seal: Seal, control: int, log: int) -> NoReturn:
    """No step of the seal: shows that an attempt would succeed without it."""
    _serve(control)


def boot_raises(birth: Mapping[str, Any], seal: Seal, control: int, log: int) -> NoReturn:
    """A boot that fails."""
    raise RuntimeError("no machine today")


def _serve(control: int) -> NoReturn:
    orders = socket.socket(fileno=control)
    while order := orders.recv(65536):
        try:
            name, arguments = json.loads(order)
            module, _, function = name.partition(":")
            answer = {"value": getattr(importlib.import_module(module), function)(*arguments)}
        except OSError as error:
            answer = {"errno": error.errno, "text": str(error)}
        except Exception:
            answer = {"raised": traceback.format_exc()}
        orders.send(json.dumps(answer).encode())
    os._exit(0)
