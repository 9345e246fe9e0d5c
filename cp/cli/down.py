"""``retinue down``: stop a running system and wait until it is really gone."""

from functools import partial

import click

from retinue.cp import runtime
from retinue.cp.cli.command import selection, state_option, system_option
from retinue.cp.cli.errors import OK
from retinue.cp.cli.systems import find_system
from retinue.cp.places import find_places


@click.command()
@click.option("--force", is_flag=True, help="Do not wait for the machines; kill what does not end.")
@system_option()
@state_option()
@click.pass_context
def down(ctx: click.Context, force: bool) -> int:
    """Stop a running system in order, and wait until it is gone."""
    from retinue.cp.cli.output import neutralise, tell
    from retinue.cp.losses import untold_in

    system = find_system(selection(ctx))
    from retinue.cp.cli.session import converse
    from retinue.cp.cli.stopping import stop

    converse(partial(stop, system, force))
    places = find_places(selection(ctx).state)
    runtime.clean(places.folders(system.system))
    tell(f"{system.system} has stopped")
    end = runtime.read_end(places.folders(system.system))
    if end is not None and (untold := untold_in(end.text)):
        tell(neutralise(untold))
    return OK
