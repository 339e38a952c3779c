"""The one exception that is shown to users without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Input or configuration that the user can mend: one line that says what is wrong and what to do.

    Only the command line's ``main`` catches it, prints the line and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name.

    >>> nearest("usr_id", ["user_id", "item_id"])
    ' (did you mean "user_id"?)'
    >>> nearest("xyz", ["user_id"])
    ''
    """
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{matches[0]}"?)' if matches else ""
