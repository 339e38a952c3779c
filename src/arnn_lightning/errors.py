"""The one exception that is shown to users without a traceback."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, MissingMandatoryValue


class UserError(Exception):
    """Input or configuration that the user can fix: one line that states what is wrong and what to do.

    Only the command line catches it, prints the line and exits with code 2.
    """


class MissingColumnError(UserError):
    """A column that a file lacks.

    Args:
        file: as it is named in the message.
        column: the one that is missing.
        columns: those of the file.
        hint: what follows the column in the message; None: the nearest of ``columns``.
    """

    def __init__(self, file: object, column: str, columns: Iterable[str], hint: str | None = None) -> None:
        self.column, self.columns = column, [*columns]
        hint = nearest(column, self.columns) if hint is None else hint
        super().__init__(f"{file}: no column {column!r}{hint}; its columns: {', '.join(self.columns)}")


def one_line(error: Exception) -> str | None:
    r"""The message of an error that a user can fix, in one line; None for any other.

    Control characters, as in the columns of a file that is no text, are written as escapes.

    >>> one_line(UserError("no item; give one")), one_line(ValueError("a defect"))
    ('no item; give one', None)
    >>> print(one_line(UserError(f"its columns: {chr(27)}[2J")))
    its columns: \x1b[2J
    """
    if isinstance(error, UserError):
        return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(error))
    if isinstance(error, OSError) and error.filename is not None:  # no permission, no space, no such folder
        hint = "; must be a folder" if isinstance(error, FileExistsError | NotADirectoryError) else ""
        return f"{error.filename}: {error.strerror}{hint}"
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        key = str(error.full_key).replace(".reader.", ".")
        return f"{key} is required; set it on the command line"
    if isinstance(error, InterpolationResolutionError):  # ${...} of a key or of an environment variable that is not set
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, whatever its case.

    >>> nearest("usr_id", ["user_id", "item_id"])
    ' (did you mean "user_id"?)'
    >>> nearest("user", ["USER", "ITEM"]), nearest("xyz", ["user_id"])
    (' (did you mean "USER"?)', '')
    """
    by_lower_case = {str(candidate).lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f' (did you mean "{by_lower_case[matches[0]]}"?)' if matches else ""


def nearest_file(path: Path) -> str:
    """A hint for a file that is missing: the file of its folder with the nearest name."""
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, sorted(file.name for file in path.parent.iterdir() if file.is_file()))
