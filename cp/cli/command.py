"""The root of the command line: the table of commands, the options that all share, and what errors become.

A command's module is imported when the command is called, and what a command does not use (trio, rich, cattrs) is
imported inside it, so that ``retinue version`` costs little more than the start of the interpreter.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import click

from retinue.cp.cli import errors

# Command -> the module that holds it, by what one wants; in the order of the help.
SECTIONS: Final = {
    "Run": {"up": "up", "down": "down", "check": "topology", "doctor": "doctor"},
    "Look": {
        "ps": "listings",
        "top": "top",
        "logs": "logs",
        "events": "events",
        "why": "why",
        "explain": "explain",
        "graph": "topology",
        "tap": "tap",
        "replay": "replay",
    },
    "Change": {
        "plan": "changing",
        "apply": "changing",
        "replace": "steering",
        "start": "steering",
        "stop": "steering",
        "restart": "steering",
        "set": "steering",
        "upgrade": "steering",
    },
    "Try": {"campaign": "campaign"},
    "Other": {"version": "about", "completion": "about"},
}
COMMANDS: Final = {name: module for commands in SECTIONS.values() for name, module in commands.items()}
# Not in the help: names that operators of z/VM know, in whatever case they type them.
ALIASES: Final = dict.fromkeys(("query", "indicate", "xautolog", "force"), "aliases")

_EPILOG = """\
\b
Examples:
  retinue up shop.toml        start a system and show its log; Ctrl-C stops it
  retinue up -d shop.toml     start it, return when every machine is ready
  retinue logs SHOP -f        follow what the machine SHOP writes
  retinue why SHOP            how it came to its last end
  retinue apply shop.toml     change what runs to what the file says now

Several systems run side by side: choose one with --system NAME.
"""


class Selection:
    """Which system the command is about: the values of ``--system`` and ``--state``, None where not given."""

    def __init__(self) -> None:
        self.system: str | None = None
        self.state: str | None = None
        self.named = False  # --system stands on the command line, not only in the environment


def selection(context: click.Context) -> Selection:
    """The selection of this run of the command."""
    found = context.find_root().ensure_object(Selection)
    return found


class ReaderLeft(Exception):
    """Whoever read standard output (``| head``) has closed it."""


class Commands(click.Group):
    """A group whose commands are imported when they are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name if cmd_name in COMMANDS else _alias_of(cmd_name) or cmd_name
        module = COMMANDS.get(name) or ALIASES.get(name)
        if module is None:
            return None
        found = importlib.import_module(f"retinue.cp.cli.{module}")
        command = getattr(found, name, None) or getattr(found, f"{name}_")  # set is no name for a function
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, _summary(self.get_command(ctx, name))) for name in commands])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error  # click would make it exit code 1

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = name in COMMANDS or _alias_of(name) is not None
        if not known and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no such command: {name}{errors.did_you_mean(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def _alias_of(name: str) -> str | None:
    """The command of z/VM that this is, whatever its case, or an abbreviation that is nothing else."""
    meant = [alias for alias in ALIASES if alias.startswith(name.casefold())] if len(name) >= 2 or name in "qQ" else []
    return meant[0] if len(meant) == 1 and name not in COMMANDS else None


def _summary(command: click.Command | None) -> str:
    return "" if command is None else command.get_short_help_str(limit=80)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _select(field: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value:
            chosen = selection(ctx)
            setattr(chosen, field, value)
            source = ctx.get_parameter_source(param.name or "")
            if field == "system" and source is click.core.ParameterSource.COMMANDLINE:
                chosen.named = True

    return callback


def state_option(*, root: bool = False) -> Callable[[_Function], _Function]:
    """``--state DIR``, before the command's name (`root`, where the environment counts too) or after it."""
    return click.option(
        "--state",
        metavar="DIR",
        envvar="RETINUE_STATE" if root else None,
        expose_value=False,
        callback=_select("state"),
        type=click.Path(file_okay=False),
        help="Keep state in DIR and runtime files in DIR/run.  [env: RETINUE_STATE]",
    )


def system_option(*, root: bool = False) -> Callable[[_Function], _Function]:
    """``--system NAME``, before or after the command's name like ``--state``."""
    return click.option(
        "--system",
        metavar="NAME",
        envvar="RETINUE_SYSTEM" if root else None,
        expose_value=False,
        callback=_select("system"),
        shell_complete=complete_systems,
        help="Which running system, if several run.  [env: RETINUE_SYSTEM]",
    )


def json_option(what: str = "Print JSON, for programs.") -> Callable[[_Function], _Function]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=what)


def complete_systems(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The running systems, for the shell's completion. Never fails: a completion must not print errors."""
    from retinue.cp import runtime
    from retinue.cp.places import find_places

    try:
        running = runtime.running_systems(find_places(selection(ctx).state))
    except Exception:
        return []
    return [each.system for each in running if each.system.startswith(incomplete)]


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from retinue.cp.cli.about import print_version

        print_version(as_json=False)
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND ...",
)
@system_option(root=True)
@state_option(root=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, hidden=True)
@click.pass_context
def retinue(ctx: click.Context) -> None:
    """Run systems of small sealed machines that talk only through message pipes.

    A topology file declares the whole system: its machines, and which of them may talk to which.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Never raises but SystemExit (for the shell's completion)."""
    for stream in (sys.stdout, sys.stderr):
        # A name or message that the terminal's encoding lacks must not end the command.
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run(None if args is None else list(args))
        sys.stdout.flush()
        return code
    except (ReaderLeft, BrokenPipeError):
        _abandon(sys.stdout)
        return errors.BROKEN_PIPE


def _run(args: list[str] | None) -> int:
    from retinue.cp.cli.output import complain, tell

    try:
        result = retinue.main(args=args, prog_name="retinue", standalone_mode=False)
        return result if isinstance(result, int) else errors.OK
    except errors.CommandError as error:
        if isinstance(error, errors.TopologyWrong):
            for line in error.listing:
                tell(line)
        complain(error.problem, error.cure)
        return error.code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "retinue"
        complain(_uncapitalised(error.format_message()), f"see: {command} --help")
        return errors.USAGE
    except click.ClickException as error:
        complain(_uncapitalised(error.format_message()))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return errors.INTERRUPTED
    except (ReaderLeft, BrokenPipeError):
        raise
    except Exception as error:
        import traceback

        traceback.print_exc()
        complain(f"a bug in Retinue: {type(error).__name__}: {error}", "please report it with the lines above")
        return errors.BUG


def _uncapitalised(text: str) -> str:
    """A sentence of click in the style of ours, which go on after ``retinue:``."""
    text = text.removesuffix(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def _abandon(stream: Any) -> None:
    """Point the descriptor of a stream whose reader is gone at /dev/null, so that the last flush does not fail."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
