"""``retinue up``: choose folders, start a nucleus, attend to what it starts, clean up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING

import click

from retinue.cp import runtime
from retinue.cp.cli.command import selection, state_option
from retinue.cp.cli.errors import BeingStarted, CannotCreate, RunsAlready
from retinue.cp.places import FolderError, Folders, find_places

if TYPE_CHECKING:
    from retinue.cp.cli.session import NucleusProcess
    from retinue.cp.directory import Directory


@click.command()
@click.argument("file", type=click.Path())
@click.option("-d", "--detach", is_flag=True, help="Return when every machine is READY, and leave it running.")
@state_option()
@click.pass_context
def up(ctx: click.Context, file: str, detach: bool) -> int:
    """Start the system that FILE declares.

    In the foreground its log is shown; Ctrl-C stops it in order, a second Ctrl-C by force.
    """
    from retinue.cp.cli.output import tell
    from retinue.cp.cli.topology import load_directory

    directory = load_directory(file)
    name, chosen = directory.system.name, selection(ctx)
    if chosen.named and chosen.system != name:
        raise click.UsageError(f"{file} declares the system {name}, not {chosen.system}", ctx)
    variables = secret_variables(file, directory)
    places = find_places(chosen.state)
    if places.notice:
        tell(f"retinue: {places.notice}")
    try:
        return _up(directory, places.folders(name), variables, detach=detach)
    except FolderError as error:
        raise CannotCreate(str(error), error.cure) from error
    except runtime.SystemRuns as error:
        state = places.state if places.single else None
        raise RunsAlready(str(error), error.running.system, state) from error
    except runtime.PlaceBusy as error:
        raise BeingStarted(str(error)) from error


def secret_variables(file: str, directory: "Directory") -> dict[str, bytes]:
    """The variables of the environment that hold secrets. Raises TopologyWrong if a secret is missing anywhere."""
    from retinue.cp.cli.topology import told
    from retinue.cp.directory import DirectoryErrors
    from retinue.cp.directory.secrets import named_variables, read_values

    names = sorted(named_variables(directory))
    variables = {name: os.environb[name.encode()] for name in names if name in os.environ}
    try:
        read_values(directory, variables, file)
    except DirectoryErrors as wrong:
        raise told(file, wrong) from wrong
    return variables


def _up(directory: "Directory", folders: Folders, variables: dict[str, bytes], *, detach: bool) -> int:
    from retinue.cp.cli.attendance import Attendance
    from retinue.cp.cli.session import NucleusProcess, converse
    from retinue.cp.host.launch import launch
    from retinue.pipes import socket_pair

    with runtime.starting(folders) as window:
        ours, theirs = socket_pair()
        try:
            with _open_log(folders) as log, theirs, _handed_over(variables) as secrets:
                process = launch(
                    system=folders.system,
                    network=any(machine.network for machine in directory.machines),
                    preload=directory.system.preload,
                    topology=str(directory.path),
                    runtime=str(folders.runtime),
                    state=str(folders.state),
                    console=theirs,
                    secrets=secrets,
                    volume=_volume(directory, folders),
                    leave_out=variables,
                    stderr_file=log,
                )
        except BaseException:
            ours.close()
            window.close()
            runtime.clean(folders)
            raise
        nucleus = NucleusProcess(process.pid)
        attendance = Attendance(directory, folders, window, process, nucleus, detach=detach)
        try:
            code = converse(partial(attendance.run, ours))
        finally:
            window.close()
            if attendance.detached:
                # It lives on without us: tell the Popen object, which would warn that nobody waited for it.
                process.returncode = 0
            else:
                ours.close()  # the control program's lifeline: without it, it stops the system in order
                _wait_or_kill(process, nucleus)
                runtime.clean(folders)
            nucleus.close()
        return code


def _volume(directory: "Directory", folders: Folders) -> str:
    """The paging volume that is to be taken back whatever happens; only root can have one that is swap."""
    paging = directory.system.paging
    return "" if paging is None or os.geteuid() != 0 else os.path.join(folders.state, paging.volume)


@contextmanager
def _handed_over(variables: dict[str, bytes]) -> Iterator[int]:
    """A descriptor with the variables, closed at the end; -1 if there are none."""
    from retinue.cp.secrets import hand_over

    descriptor = hand_over(variables) if variables else -1
    try:
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open_log(folders: Folders) -> IO[bytes]:
    path = folders.state / runtime.NUCLEUS_LOG
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreate(
            f"cannot create {path}: {error.strerror}", "choose another place with --state DIR"
        ) from error
    return os.fdopen(descriptor, "wb")


def _wait_or_kill(process: "subprocess.Popen[bytes]", nucleus: "NucleusProcess") -> None:
    from retinue.cp.cli.session import STOP_PATIENCE

    try:
        process.wait(STOP_PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        nucleus.kill()
        process.wait()
