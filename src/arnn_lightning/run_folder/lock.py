"""The lock that gives a run folder to one process."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from arnn_lightning.errors import UserError

LOCK = ".lock"
_new_folders: list[Path] = []  # that did not exist when this process started, the innermost first


def note_new_folders(folder: Path) -> None:
    """Notes which folders Hydra is going to make for ``folder``: a command that is refused leaves none of them."""
    _new_folders[:] = [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Owns ``folder`` inside the context; one that got nothing but a log file is removed at its end.

    Raises:
        UserError: another process owns it.
    """
    lock = acquire(folder, "hydra.run.dir")
    write_owner(lock)
    try:
        yield
    finally:
        files = list(folder.iterdir()) if folder.is_dir() else []
        if all(file.name == LOCK or file.suffix == ".log" for file in files):
            _remove(folder, files)
        else:
            write_owner(lock, "")
        lock.release()


def _remove(folder: Path, files: Sequence[Path]) -> None:
    """Removes a folder with its files (lock and log, whose lines are on the console), and folders made for it alone."""
    with suppress(OSError):  # not empty
        for file in files:
            file.unlink()
        folder.rmdir()
        for parent in _new_folders:
            if parent in folder.absolute().parents:
                parent.rmdir()


def acquire(folder: Path, key: str) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = Path(lock.lock_file).read_text(errors="replace") or "another process"
        raise UserError(f"{folder} is in use by {owner}; use another {key}") from error
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error
    return lock


def write_owner(lock: FileLock, owner: str | None = None) -> None:
    """Names the owner (default: this process) in the lock file, for errors of other processes.

    In place: a new file would not have the lock.
    """
    with suppress(OSError):  # a disk that is full; Windows
        Path(lock.lock_file).write_text(f"process {os.getpid()} on {platform.node()}" if owner is None else owner)
