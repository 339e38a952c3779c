"""Files are replaced as a whole or not at all, and an error of the system names the file that was to be written."""

import errno
import json
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from arnn_lightning.errors import UserError, one_line
from arnn_lightning.io import atomic_path, staging_directory, write_json, write_text
from arnn_lightning.training.callbacks import AtomicCheckpointIO

LIMIT = 100_000


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process can be larger than LIMIT bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_checkpoint(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(torch.randn(LIMIT), file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("a" * 2 * LIMIT),
    "parquet": lambda path: pl.DataFrame({"x": torch.randn(LIMIT).numpy()}).write_parquet(path),
    "checkpoint": save_checkpoint,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_line_that_names_the_target(kind: str, tmp_path: Path, full_disk: None) -> None:
    target = tmp_path / "file"
    write_text(target, "before")
    with pytest.raises(UserError) as raised, atomic_path(target) as temporary:
        WRITERS[kind](temporary)
    assert str(raised.value) == f"{target}: cannot be written: File too large"
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_names_the_folder_that_was_staged(kind: str, tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(UserError) as raised, staging_directory(tmp_path / "folder") as temporary:
        WRITERS[kind](temporary / "part")
    assert str(raised.value) == f"{tmp_path / 'folder'}: cannot be written: File too large"
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_written_on_its_disk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk of temporary files ends no training, nor does an error name a file there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_error_about_another_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_path(tmp_path / "target"):
        (tmp_path / "source").read_bytes()
    assert one_line(raised.value) == f"{tmp_path / 'source'}: No such file or directory"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(code, "refused", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match=f"^{tmp_path}/metrics.json: cannot be written: "):
        write_json(tmp_path / "metrics.json", json.loads("{}"))


def test_what_a_killed_process_staged_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".data.tmp").mkdir()
    (tmp_path / ".data.tmp" / "half").touch()
    with staging_directory(tmp_path / "data") as folder:
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_processes_that_write_the_same_file_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "log.csv"
    with atomic_path(target, shared=True) as slow, slow.open("w") as file:
        file.write("slow, first half\n")
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            with atomic_path(target, shared=True) as fast:
                fast.write_text("fast\n")
        assert target.read_text() == "fast\n"
        file.write("slow, second half\n")
    assert target.read_text() == "slow, first half\nslow, second half\n"
    assert list(tmp_path.iterdir()) == [target]
