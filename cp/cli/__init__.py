"""The ``retinue`` command. It speaks to a running control program over a path to ``*CP``, like anybody else.

:func:`main` is its entry. One module holds one group of commands and is imported when one of them is called.
"""

from retinue.cp.cli.command import main as main

__all__ = ["main"]
