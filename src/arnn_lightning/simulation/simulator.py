"""Raw files of worlds whose truth is known, in the schemas of real data sets.

``xing_world.py`` and ``tmall_world.py`` each tell the truth that they plant. Here is what they share: how a world is
written, where generated files are kept, and what attributes are drawn from.
"""

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import polars as pl
from filelock import FileLock

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError

WORLD = 1  # raised whenever the same settings would write other bytes


class World(ABC):
    """Something that can be written as raw files; equal settings write equal bytes.

    Attributes:
        events: rows of ``log``.
        log: name of the file of events.
        separator: of the fields of every file.
    """

    events: int
    log: ClassVar[str]
    separator: ClassVar[str]

    @abstractmethod
    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        """File name -> the rows that come next in it, some thousands of users at a time."""

    def write(self, folder: Path, progress: Callable[[str], None] = lambda _: None) -> list[Path]:
        """Writes the files into ``folder``, made if need be, and returns their paths.

        They appear when all are whole, in place of files of the same names; until then those stay as they are. After
        an error or Ctrl-C nothing of the new ones is left. Memory does not grow with ``events`` (the items' tables do).
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[str, BinaryIO] = {}
        written = 0
        try:
            with ExitStack() as stack:
                for chunk in self.chunks():
                    for name, rows in chunk.items():
                        new = name not in parts
                        if new:
                            parts[name] = stack.enter_context((folder / f".{name}").open("wb"))
                        rows.write_csv(parts[name], separator=self.separator, include_header=new, quote_style="never")
                    written += chunk[self.log].height if self.log in chunk else 0
                    progress(f"{written:,} of {self.events:,} rows")
            for name in parts:
                (folder / f".{name}").replace(folder / name)
        finally:
            for name in parts:
                (folder / f".{name}").unlink(missing_ok=True)
        return [folder / name for name in sorted(parts)]


def check_settings(world: World, *rules: tuple[str, bool, str]) -> None:
    """Raises UserError for a setting that should be whole and is not (5e6), or breaks one of ``rules``.

    Args:
        world: a dataclass of settings.
        rules: setting, whether it is as wanted, what is wanted.
    """
    for name, kind in type(world).__annotations__.items():
        if kind is int and not isinstance(getattr(world, name), int):
            raise UserError(f"{name}={getattr(world, name)}: must be a whole number, in digits alone")
    for name, holds, wanted in rules:
        if not holds:
            raise UserError(f"{name}={getattr(world, name)}: {wanted}")


def read_marginals(name: str) -> dict[str, Any]:
    """Published aggregate counts of users: ``marginals/<name>.json``."""
    text = files("arnn_lightning.simulation").joinpath(f"marginals/{name}.json").read_text(encoding="utf-8")
    marginals: dict[str, Any] = json.loads(text)
    return marginals


def draw_kinds(rng: np.random.Generator, kinds: int, count: int, skew: float) -> np.ndarray:
    """Kinds in [0, ``kinds``) of ``count`` items: each at least once, beyond that the k-th by weight k^-``skew``."""
    weight = np.arange(1, kinds + 1) ** -skew
    more = rng.choice(kinds, count - kinds, p=weight / weight.sum())
    return np.concatenate([np.arange(kinds), more])


def ensure_generated(generator: Any, name: str, raw: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The folder ``raw``/<name>-<hash of the settings> with the generator's files, written if they are not there."""
    key = hashlib.sha256(json.dumps([WORLD, generator], sort_keys=True).encode()).hexdigest()[:10]
    folder = raw / f"{name}-{key}"
    if folder.is_dir():
        return folder
    world: World = instantiate(generator)
    raw.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unfinished = raw / f".{folder.name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            world.write(unfinished, progress)
            unfinished.replace(folder)
    return folder
