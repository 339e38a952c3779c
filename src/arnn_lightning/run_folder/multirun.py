"""The folder of a multirun, which Hydra writes and one process owns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.run_folder.compare import MAY_GROW, require_equal, require_growth
from arnn_lightning.run_folder.lock import acquire, write_owner
from arnn_lightning.run_folder.overrides import by_key, text_of
from arnn_lightning.run_folder.record import load

MULTIRUN = "multirun.yaml"  # Hydra's record of a multirun
# Keys that are read, and the last of the file: without it, Hydra was interrupted while it wrote.
MULTIRUN_KEYS = ("hydra.overrides.task", "hydra.overrides.hydra", "hydra.sweep", "hydra.job.config", "hydra.verbose")
_multirun_lock: FileLock | None = None  # of this process, until it ends


def own_multirun(config: DictConfig) -> None:
    """Owns the folder of a multirun until the process ends, before Hydra writes into it.

    Raises:
        UserError: another process owns it; it contains a multirun and ``resume`` is false, or settings differ.
    """
    global _multirun_lock
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = acquire(folder, "hydra.sweep.dir")
    try:
        _require_new_or_resumed_multirun(config, folder)
    except UserError:
        lock.release()
        raise
    write_owner(lock)
    _multirun_lock = lock


def _require_new_or_resumed_multirun(config: DictConfig, folder: Path) -> None:
    record = folder / MULTIRUN
    if not record.is_file():
        return
    if not config.resume:
        raise UserError(f"{folder} contains a multirun: pass resume=true to resume it, or use another folder")
    hydra = load(record, *MULTIRUN_KEYS).hydra
    before, after = (_as_written(node.sweep)["subdir"] for node in (hydra, config.hydra))
    require_equal("hydra.sweep.subdir", before, after, folder)
    stored, given = (by_key(_as_written(node.overrides)["task"]) for node in (hydra, config.hydra))
    for key, override in given.items():
        before = text_of(stored[key]) if key in stored else "its default"
        after = text_of(override)
        if not MAY_GROW.fullmatch(key):
            require_equal(key, before, after, folder)
        elif key in stored:
            require_growth(key, stored[key].value(), override.value(), folder)


def multirun_folder() -> Path:
    """The folder of this process's multirun."""
    assert _multirun_lock is not None
    return Path(_multirun_lock.lock_file).parent


def stored_multirun(folder: Path, given: Mapping[str, Override]) -> list[str]:
    """The overrides of the multirun in ``folder``, those of Hydra included.

    These choose the launcher, the sweeper and the names of the jobs' folders; ``given``: the overrides given again.
    """
    hydra = load(folder / MULTIRUN, *MULTIRUN_KEYS).hydra
    overrides = _as_written(hydra.overrides)
    stored = [*overrides["task"], *(text for text in overrides["hydra"] if not text.startswith("hydra.mode="))]
    if "override_dirname" in str(_as_written(hydra.sweep)["subdir"]):  # without what is new
        names = hydra.job.config.override_dirname.exclude_keys
        new = [key for key in given if not key.startswith("hydra") and key not in by_key(stored)]
        keys = ",".join(dict.fromkeys([*names, "resume", *new]))
        stored.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
    return stored


def _as_written(node: Any) -> Any:
    """Plain values, interpolations unresolved: most are of a job."""
    return OmegaConf.to_container(node)
