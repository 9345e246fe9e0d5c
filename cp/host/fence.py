"""What a process may do that reads for a command what a machine has written: a command starts it as :func:`main`.

It has no root of its own, so the fence is that of a machine as far as it needs none.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from retinue.cp.host.errors import SealFailed
from retinue.cp.host.process import resolve
from retinue.cp.host.seal import hygiene, landlock
from retinue.cp.host.seal.policy import policy

# In its working directory: SQLite makes files beside a database, and removes them.
_RIGHTS: Final = landlock.CODE | landlock.WRITE_FILE | landlock.TRUNCATE | landlock.MAKE_REG | landlock.REMOVE_FILE


def main(arguments: Mapping[str, Any]) -> int:
    """Call what ``reader`` names with :func:`put_up`; what it returns is the exit status of the process."""
    status: int = resolve(arguments["reader"])(put_up)
    return status


def put_up() -> None:
    """From now on: no capability, no file outside of the working directory, and no system call that a machine has not.

    A kernel without Landlock or without seccomp leaves out what it does not have. SealFailed when capabilities stay.
    """
    hygiene.drop_privileges()
    with suppress(SealFailed):
        landlock.restrict([(".", _RIGHTS)], network=False)
    with suppress(SealFailed):
        policy("program", rooted=False).load(os.getpid())
