"""What can be wrong with a topology file.

There is one fault here and it is the author's of the file, so there is one class: :class:`DirectoryError`, a mistake
with the place where it stands. A file is always checked to its end; :class:`DirectoryErrors` carries all mistakes.
"""

from collections.abc import Iterable


class DirectoryError(Exception):
    """One mistake in a topology file.

    ``file`` is the name as the caller gave it. ``line`` and ``column`` count from 1 and are None where there is no
    such place (a file that cannot be read has no lines; only a syntax error has a column). ``table`` is the TOML
    table the mistake is in, without its brackets, or empty. ``hint`` says what would cure it, or is empty.
    """

    def __init__(
        self,
        file: str,
        line: int | None,
        table: str,
        message: str,
        hint: str = "",
        *,
        column: int | None = None,
    ) -> None:
        self.file, self.line, self.column = file, line, column
        self.table, self.message, self.hint = table, message, hint
        place = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{place}: {f'[{table}] ' if table else ''}{message}{f' - {hint}' if hint else ''}")


class DirectoryErrors(Exception):
    """A topology file is wrong: ``errors`` is every mistake in it, in the order of the lines, and never empty.

    Its text is the texts of all of them, one on a line.
    """

    def __init__(self, errors: Iterable[DirectoryError]) -> None:
        # Mistakes without a line come first; those of one line stay in the order in which they were found.
        self.errors = sorted(errors, key=lambda error: (error.line or 0, error.column or 0))
        super().__init__("\n".join(str(error) for error in self.errors))
