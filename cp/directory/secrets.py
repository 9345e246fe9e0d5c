"""The secrets of a machine: its table ``secrets``, and what may be the value of one."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from retinue.cp.directory.errors import DirectoryErrors
from retinue.cp.directory.model import SECRET_MAXIMUM, SECRET_MINIMUM, SECRETS_LIMIT, Directory, MachineEntry, Secret
from retinue.cp.directory.names import check_local_name
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.programs import Problem
from retinue.cp.directory.table import Mistakes, Table, shown

SECRET_KEYS: Final = ("file", "variable")

_EXPECTED: Final = 'a file or a variable, as in secrets.key = { file = "key.txt" }'
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def read_secrets(table: Table) -> tuple[Secret, ...]:
    """The secrets of a machine, but for those that come from nowhere."""
    secrets = table.table("secrets", None, f"a table of secrets, each {_EXPECTED}")
    if secrets is None:
        return ()
    if len(secrets.values) > SECRETS_LIMIT:
        table.wrong("secrets", f"the machine has {len(secrets.values)} secrets, and the most is {SECRETS_LIMIT}")
    read = (_secret(secrets, name) for name in secrets.values)
    return tuple(secret for secret in read if secret is not None)


def _secret(secrets: Table, name: str) -> Secret | None:
    check_local_name(secrets, name, "a secret")
    if isinstance(secrets.values[name], str):
        # The value itself, or so it may be: it is not repeated.
        hint = f'write secrets.{name} = {{ file = "FILE" }} or {{ variable = "VARIABLE" }}'
        secrets.wrong(name, f"{name} is a string, and no secret stands in a topology file", hint)
        return None
    table = secrets.table(name, SECRET_KEYS, _EXPECTED)
    if table is None:
        return None
    file = table.value("file", str, 'the name of a file such as "key.txt"')
    variable = table.value("variable", str, 'the name of a variable such as "SHOP_KEY"')
    if table.given("file") and table.given("variable"):
        secrets.wrong(name, f"{name} has both a file and a variable", "remove one of the two")
    elif not table.given("file") and not table.given("variable"):
        secrets.wrong(name, f"{name} has neither a file nor a variable", f"expected {_EXPECTED}")
    elif file is not None:
        if file and "\0" not in file:
            return Secret(name, file=file)
        table.wrong("file", f"file is {shown(file)}, which is the name of no file")
    elif variable is not None:
        if _VARIABLE.fullmatch(variable):
            return Secret(name, variable=variable)
        message = f"variable is {shown(variable)}, and a variable's name has letters, digits and _"
        table.wrong("variable", message, "write its name, without a $")
    return None


def check_files(mistakes: Mistakes, machines: Sequence[MachineEntry], folder: pathlib.Path) -> None:
    """Every secret that comes from a file can be read now."""
    for machine in machines:
        for secret in machine.secrets:
            if secret.file is not None and isinstance(problem := read_file(secret.file, folder), Problem):
                path: KeyPath = ("machines", machine.name, "secrets", secret.name, "file")
                mistakes.add(path, path[:-2], f"{secret.name}: {problem.message}", problem.hint)


def read_file(file: str, folder: pathlib.Path) -> bytes | Problem:
    """The secret in a file, whose path is relative to ``folder``. One newline at its end is not part of it."""
    path = folder / file
    try:
        if not path.is_file():
            reason = "is not a regular file" if os.path.lexists(path) else "does not exist"
            return Problem(f"the file {path} {reason}")
        with path.open("rb") as stream:
            value = stream.read(SECRET_MAXIMUM + 2)
    except OSError as error:
        return Problem(f"the file {path} cannot be read: {error.strerror}")
    value = value.removesuffix(b"\n")
    return _judge(value, f"the file {path}") or value


def _judge(value: bytes, what: str) -> Problem | None:
    """Why this cannot be the value of a secret; ``what`` says where it comes from."""
    if len(value) > SECRET_MAXIMUM:
        return Problem(f"{what} is larger than {SECRET_MAXIMUM} bytes")
    if len(value) < SECRET_MINIMUM:
        message = f"{what} has {len(value)} bytes, and a secret has at least {SECRET_MINIMUM}"
        return Problem(message, "what is shorter can be guessed, and cannot be kept out of records")
    return None


def named_variables(directory: Directory) -> frozenset[str]:
    """The variables of the starting environment that hold a secret."""
    secrets = (secret for machine in directory.machines for secret in machine.secrets)
    return frozenset(secret.variable for secret in secrets if secret.variable is not None)


def read_values(directory: Directory, variables: Mapping[str, bytes], file: str) -> dict[str, dict[str, bytes]]:
    """The value of every secret, by machine and name; ``variables`` has those that are in variables.

    Raises DirectoryErrors with every one that cannot be had; ``file`` is the topology's name as the user gave it.
    """
    mistakes = Mistakes(file, directory.positions)
    values: dict[str, dict[str, bytes]] = {machine.name: {} for machine in directory.machines}
    first: dict[str, str] = {}
    for machine in directory.machines:
        if (sibling := first.setdefault(machine.declared, machine.name)) != machine.name:
            # Instances are told the same, and their mistake is one.
            values[machine.name] = dict(values[sibling])
            continue
        for secret in machine.secrets:
            if secret.file is not None:
                key, value = "file", read_file(secret.file, directory.folder)
            else:
                key, value = "variable", _read_variable(secret.variable or "", variables)
            if isinstance(value, Problem):
                path: KeyPath = ("machines", machine.declared, "secrets", secret.name, key)
                mistakes.add(path, path[:-2], f"{secret.name}: {value.message}", value.hint)
            else:
                values[machine.name][secret.name] = value
    if mistakes.found:
        raise DirectoryErrors(mistakes.found)
    return values


def _read_variable(name: str, variables: Mapping[str, bytes]) -> bytes | Problem:
    value = variables.get(name)
    if value is None:
        return Problem(f"there is no variable {name} in the environment", "set it for this command")
    return _judge(value, f"the variable {name}") or value
