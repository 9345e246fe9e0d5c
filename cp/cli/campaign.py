"""``retinue campaign``: hurt a system of its own in every way, and see whether it recovers each time."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from retinue.cp.cli.command import json_option
from retinue.cp.cli.errors import FAILED, OK, CommandError, SystemFailed

if TYPE_CHECKING:
    import pathlib

    from retinue.cp.campaign.campaign import Report
    from retinue.cp.campaign.load import Load
    from retinue.cp.campaign.world import World
    from retinue.cp.directory import Directory

# Seconds in which the declared state must be reached again: the longest pause before a restart, and the restart.
PATIENCE: Final = 30.0
# Seconds without progress after which a machine counts as hung: a campaign is not to wait a minute for it.
WATCHDOG: Final = "1s"
CLIENTS: Final = 8
STOP_TIME: Final = 60.0


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="How long."
)
@click.option("--faults", type=click.IntRange(min=1), help="End after so many faults, if that is earlier.")
@click.option("--seed", type=int, help="Repeat the order of an earlier campaign.")
@click.option("--only", "kinds", multiple=True, help="Only faults of this kind; may be given again.")
@click.option("--url", help="Where to send requests meanwhile; by default to the first address that is listened at.")
@click.option("--rate", type=click.FloatRange(min=1), default=200.0, show_default=True, help="Requests a second.")
@click.option("--no-load", is_flag=True, help="Send no requests.")
@json_option("Print the report as one JSON object.")
@click.pass_context
def campaign(
    ctx: click.Context,
    file: str,
    minutes: float,
    faults: int | None,
    seed: int | None,
    kinds: tuple[str, ...],
    url: str | None,
    rate: float,
    no_load: bool,
    as_json: bool,
) -> int:
    """Hurt a system over and over, and see whether it recovers.

    Starts the system that FILE declares beside all others, with disks of its own, and removes it at the end. Machines
    are killed, stopped and hung, their paths cut, their disks filled and their descriptors used up; the control
    program is killed. After each fault every machine must be READY again, at the end nothing may be left over, and
    every request must have had an answer, unless the machine that had its connection was hurt.

    The exit code is 0 if all that is so, 1 if not.

    \b
    Examples:
      retinue campaign shop.toml --minutes 5
      retinue campaign shop.toml --seed 7 --faults 1000 --json
      retinue campaign shop.toml --only kill-cp --only kill
    """
    from retinue.cp.campaign.faults import FAULTS
    from retinue.cp.cli.errors import did_you_mean
    from retinue.cp.cli.topology import load_directory

    for kind in kinds:
        if kind not in FAULTS:
            known = f"{did_you_mean(kind, FAULTS)}: there are {', '.join(FAULTS)}"
            raise click.UsageError(f"no such kind of fault: {kind}{known}", ctx)
    directory = load_directory(file)
    load = None if no_load else _load(directory, url, rate)
    chosen = random.SystemRandom().randrange(2**31) if seed is None else seed
    with _running(directory) as (world, folder):
        network = frozenset(machine.name for machine in directory.machines if machine.network)
        report = _run(world, folder, chosen, minutes, faults, kinds or tuple(FAULTS), load, network)
    _show(report, as_json=as_json)
    return OK if report.passed else FAILED


def _load(directory: "Directory", url: str | None, rate: float) -> "Load | None":
    from retinue.cp.campaign.load import Load

    if url is None:
        addresses = [
            address for machine in directory.machines if machine.network for address in _listened(machine.config)
        ]
        if not addresses:
            return None
        url = f"http://{addresses[0]}/"
    try:
        return Load(url, CLIENTS, rate)
    except ValueError as error:
        raise CommandError(str(error), "write --url http://127.0.0.1:8080/") from error


def _listened(config: dict[str, object]) -> list[str]:
    listen = config.get("listen")
    return [address for address in listen if isinstance(address, str)] if isinstance(listen, dict) else []


@contextmanager
def _running(directory: "Directory") -> "Iterator[tuple[World, pathlib.Path]]":
    import json
    import pathlib
    import signal
    import subprocess
    import sys
    import tempfile

    from retinue.cp.campaign.world import World
    from retinue.cp.campaign.world import signal as send

    command = [sys.executable, "-P", "-c", "import sys; from retinue.cp.cli import main; sys.exit(main())"]
    with tempfile.TemporaryDirectory(prefix="retinue-campaign-") as name:
        folder = pathlib.Path(name)
        up = subprocess.run(
            [*command, "--state", name, "up", "-d", str(directory.path)], capture_output=True, text=True, check=False
        )
        if up.returncode:
            raise SystemFailed(directory.system.name, "did not start", up.stderr.strip(), up.returncode)
        nucleus = json.loads((folder / "run" / "system.json").read_text())["nucleus_pid"]
        try:
            yield World(folder / "run", nucleus, PATIENCE), folder
        finally:
            try:
                subprocess.run([*command, "--state", name, "down"], capture_output=True, check=True, timeout=STOP_TIME)
            except (subprocess.SubprocessError, KeyboardInterrupt):
                send(nucleus, signal.SIGKILL)  # every process of it dies with it


def _run(
    world: "World",
    folder: "pathlib.Path",
    seed: int,
    minutes: float,
    faults: int | None,
    kinds: tuple[str, ...],
    load: "Load | None",
    network: frozenset[str],
) -> "Report":
    import sys
    import time

    from retinue.cp.campaign import census
    from retinue.cp.campaign.campaign import Campaign
    from retinue.cp.cli.session import converse

    shown = time.monotonic()

    def tell(report: "Report") -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            print(f"\r{report.faults.total()} faults, all recovered ", end="", file=sys.stderr, flush=True)

    async def run() -> "Report":
        for machine in await world.machines():
            await world.ask("set", machine=machine, settings={"watchdog": WATCHDOG})
        return await Campaign(
            world, seed, minutes * 60, faults, kinds, load, network, partial(census.take, folders=[folder]), tell
        ).run()

    try:
        return converse(run)
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _show(report: "Report", *, as_json: bool) -> None:
    from retinue.cp.cli.output import say, table, to_json

    found = report.as_dict()
    if as_json:
        say(to_json(found))
        return
    say(f"{found['faults']['count']} faults in {found['seconds']:.0f} s (seed {report.seed})")
    for row in table(("FAULT", "TIMES"), [(kind, str(times)) for kind, times in report.faults.most_common()]):
        say("  " + "  ".join(row).rstrip())
    recovery = found["recovery"]
    if recovery["p50"] is not None:
        shown = ", ".join(f"{name} {recovery[name]:.3f} s" for name in ("p50", "p95", "longest"))
        say(f"recovered after {shown}")
        for seconds, text in recovery["slowest"]:
            say(f"  {seconds:.3f} s  {text}")
    if report.load is not None:
        load = report.load
        say(
            f"{load.answered} requests answered, {load.refused} with 500 or above, {load.unanswered} not at all"
            f" ({report.excused} may be, whose connections the machine with the network had);"
            f" {load.connections} connections, the slowest answer took {load.longest:.2f} s"
        )
    say(f"{report.redelivered} messages were given to a successor again, {report.dropped} were dropped")
    for what, count in report.left_over.items():
        say(f"left over: {count} {what}")
    if report.unseen:
        say(f"the descriptors of {report.unseen} processes could not be looked at (as root they can)")
    for text in report.not_recovered:
        say(f"not recovered: {text}")
    say("the system stood it" if report.passed else "the system did not stand it")
