"""Names for the shell's completion, from the running system. Nothing here ever fails: it must not print errors."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from retinue.cp.cli.command import selection
from retinue.cp.cli.errors import NoSystem
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    from retinue.cp.runtime import Running

Completer = Callable[[click.Context, click.Parameter, str], list[str]]

# What may be set while a machine runs.
SETTINGS: Final = (
    *("share", "cpu", "storage", "restart", "restarts", "pause", "watchdog", "grace", "idle", "essential"),
    *("reserve", "priority", "idle_page_out", "log", "log.policy", "log.buffer", "log.spill", "log.rate"),
)


def _machines(system: "Running") -> list[dict[str, Any]]:
    from retinue.cp.cli.session import converse, request

    found: list[dict[str, Any]] = converse(partial(request, system, "ps", within=2.0))["machines"]
    return found


def complete_machines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The machines."""
    try:
        names = [str(machine["name"]) for machine in _machines(find_system(selection(ctx)))]
    except Exception:
        return []
    return [name for name in names if name.startswith(incomplete.upper())]


def complete_dead(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The machines, and those that have certificates; of a system that has ended these alone."""
    found = complete_machines(ctx, param, incomplete)
    try:
        from retinue.cp.certificates import kept_names
        from retinue.cp.cli.why import state_folder

        kept = kept_names(state_folder(selection(ctx)))
    except Exception:
        kept = []
    return [*found, *(name for name in kept if name not in found and name.startswith(incomplete.upper()))]


def complete_logged(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The machines, also those of a system that is not running and whose records can be read."""
    chosen = selection(ctx)
    try:
        try:
            system = find_system(chosen)
        except NoSystem as error:
            from retinue.cp.cli.left import find_left

            names = [*find_left(chosen, error).archive.machines]
        else:
            names = [str(machine["name"]) for machine in _machines(system)]
    except Exception:
        return []
    return [name for name in names if name.startswith(incomplete.upper())]


def complete_targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The machines and the star services."""
    stars = [name for name in ("*CP", "*LOG") if name.startswith(incomplete.upper())]
    return [*complete_machines(ctx, param, incomplete), *stars]


def complete_edges(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The edges that can be tapped."""
    try:
        machines = _machines(find_system(selection(ctx)))
        names = [f"{each['name']}.{edge['name']}" for each in machines for edge in each["uses"] if edge["to"][0] != "*"]
    except Exception:
        return []
    return [name for name in names if name.casefold().startswith(incomplete.casefold())]


def complete_settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What may be set, each up to its ``=``."""
    return [f"{key}=" for key in SETTINGS if key.startswith(incomplete)]
