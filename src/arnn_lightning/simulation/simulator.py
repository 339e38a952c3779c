"""Synthetic raw files with a known ground truth, in the schemas of real data sets.

What `XingSimulator` and `TmallSimulator` share: how files are written, where simulated files are kept, and the
published counts that attributes are sampled from.
"""

import hashlib
import json
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
from arnn_lightning.io import atomic_path, staging_directory

SIMULATOR_VERSION = 2  # raised whenever equal settings would write other bytes


class Simulator(ABC):
    """Writes raw files; equal settings write equal bytes.

    Attributes:
        events: number of rows of ``log``.
        log: name of the file of events.
        separator: field separator of every file.
    """

    events: int
    log: ClassVar[str]
    separator: ClassVar[str]

    @abstractmethod
    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        """File name -> its next rows, for some thousands of users at a time."""

    def write(self, folder: Path, progress: Callable[[str], None] = lambda _: None) -> list[Path]:
        """Writes the files into ``folder`` (created if missing) and returns their paths.

        Files of the same names are replaced once all new ones are complete, and stay as they are after an error or
        Ctrl-C. Memory does not grow with ``events``, except for the table of items.
        """
        written: dict[str, BinaryIO] = {}
        n_rows = 0
        with ExitStack() as renamed_on_success, ExitStack() as open_files:
            for chunk in self.chunks():
                for name, rows in chunk.items():
                    is_new = name not in written
                    if is_new:
                        temporary = renamed_on_success.enter_context(atomic_path(folder / name, shared=True))
                        written[name] = open_files.enter_context(temporary.open("wb"))
                    rows.write_csv(written[name], separator=self.separator, include_header=is_new, quote_style="never")
                n_rows += chunk[self.log].height if self.log in chunk else 0
                progress(f"{n_rows:,} of {self.events:,} rows")
        return [folder / name for name in sorted(written)]


def validate_settings(simulator: Simulator, *rules: tuple[str, bool, str]) -> None:
    """Raises UserError for a setting that must be an integer and is not (5e6), or violates one of ``rules``.

    Args:
        simulator: a dataclass of settings.
        rules: setting, whether it is valid, and what it must be.
    """
    for name, kind in type(simulator).__annotations__.items():
        if kind is int and not isinstance(getattr(simulator, name), int):
            raise UserError(f"{name}={getattr(simulator, name)}: must be an integer (write 5000000, not 5e6)")
    for name, is_valid, requirement in rules:
        if not is_valid:
            raise UserError(f"{name}={getattr(simulator, name)}: must be {requirement}")


def read_marginals(name: str) -> dict[str, Any]:
    """Published aggregate counts of users: ``marginals/<name>.json``."""
    text = files("arnn_lightning.simulation").joinpath(f"marginals/{name}.json").read_text(encoding="utf-8")
    marginals: dict[str, Any] = json.loads(text)
    return marginals


def sample_zipf_classes(rng: np.random.Generator, n_classes: int, size: int, skew: float) -> np.ndarray:
    """(size,) classes in [0, ``n_classes``): each at least once, further ones with weight (k + 1)^-``skew``."""
    weight = np.arange(1, n_classes + 1) ** -skew
    extra = rng.choice(n_classes, size - n_classes, p=weight / weight.sum())
    return np.concatenate([np.arange(n_classes), extra])


def ensure_simulated(settings: Any, name: str, raw_dir: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The folder ``raw_dir``/<name>-<hash of the simulator's settings>, written if it does not exist."""
    key = hashlib.sha256(json.dumps([SIMULATOR_VERSION, settings], sort_keys=True).encode()).hexdigest()[:10]
    folder = raw_dir / f"{name}-{key}"
    if folder.is_dir():
        return folder
    simulator: Simulator = instantiate(settings)
    raw_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            with staging_directory(folder) as temporary:
                simulator.write(temporary, progress)
                temporary.replace(folder)
    return folder
