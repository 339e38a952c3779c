"""Files appear under their name once they are whole, so that an interrupted write leaves the older file as it was."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arnn_lightning.errors import UserError


@contextmanager
def atomic_path(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``; on success it is renamed to ``path``, otherwise removed.

    The folder is made where it is missing. Rename and temporary file share a file system, so the rename is atomic.

    Args:
        path: the file.
        shared: other processes may write ``path`` at the same time; the last one to end replaces it. Without, the
            temporary file that a killed process left is overwritten by the next one.

    Raises:
        UserError: no space, no permission and the like; names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the error is why
            temporary.unlink(missing_ok=True)
        _raise_write_error(error, temporary, path)
        raise


@contextmanager
def staging_directory(path: Path) -> Iterator[Path]:
    """Yields an empty, hidden folder next to ``path``, to be renamed once it is complete; removes it otherwise.

    What an earlier, killed process left there is removed first.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except Exception as error:  # polars and torch have errors of their own for what the system refuses
        _raise_write_error(error, temporary, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _raise_write_error(error: BaseException, temporary: Path, path: Path) -> None:
    """Raises UserError about ``path`` where the system refused to write ``temporary``; polars and torch wrap that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    in_rust = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(cause, OSError) and cause.errno is not None:
        if cause.filename is None or str(cause.filename).startswith(str(temporary)):
            raise UserError(f"{path}: cannot be written: {os.strerror(cause.errno)}") from error
    elif in_rust is not None:
        raise UserError(f"{path}: cannot be written: {os.strerror(int(in_rust[1]))}") from error


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def escape_markdown(text: str) -> str:
    """A cell of a Markdown table that cannot end itself or begin HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
