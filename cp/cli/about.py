"""``retinue version`` and ``retinue completion``."""

import click

from retinue.cp.cli.command import json_option
from retinue.cp.cli.output import say


@click.command()
@json_option()
def version(as_json: bool) -> None:
    """Print the version."""
    print_version(as_json=as_json)


def print_version(*, as_json: bool) -> None:
    """The version of Retinue; with `as_json` also those of the interpreter and the kernel."""
    from retinue import __version__

    if not as_json:
        say(f"retinue {__version__}")
        return
    import os
    import sys

    from retinue.cp.cli.output import to_json

    kernel = os.uname()
    python = ".".join(str(part) for part in sys.version_info[:3])
    say(to_json({"retinue": __version__, "python": python, "kernel": f"{kernel.sysname} {kernel.release}"}))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  eval "$(retinue completion bash)"                     in ~/.bashrc
    zsh:   eval "$(retinue completion zsh)"                      in ~/.zshrc
    fish:  retinue completion fish > ~/.config/fish/completions/retinue.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}", ctx)
    say(found(ctx.find_root().command, {}, "retinue", "_RETINUE_COMPLETE").source().rstrip("\n"))
