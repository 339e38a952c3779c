"""Whether settings differ from those that a run folder records."""

import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.run_folder.overrides import as_override, by_key, show
from arnn_lightning.run_folder.record import stored_config

# What cannot change a result (E27): speed, output, and where files are. Not threads and compile, with which sums are
# rounded otherwise, nor steps_per_execution: a checkpoint's position in the epoch is counted in chunks.
MAY_DIFFER = (
    *("resume", "logger", "paths", "published", "search", "trusted_modules", "checkpoint.every_n_minutes"),
    *("performance.cache_mb", "evaluation.batch_size", "evaluation.bootstrap"),
    *("trainer.log_every_n_steps", "trainer.enable_model_summary"),
    *(f"data.{key}" for key in ("raw_dir", "events", "users", "titles")),
    *(f"data.reader.{key}" for key in ("raw_dir", "events", "users", "titles")),
)
HINTS = {"checkpoint.users": "; to share the model without users, export it (task=export)"}  # where a setting differs
MAY_GROW = re.compile(r"model(\.\w+)*\.epochs|trainer\.max_epochs")


def require_same_settings(config: DictConfig, folder: Path, may_differ: Sequence[str]) -> None:
    """Raises UserError where a setting of the command line, of now or of then, differs from the stored one.

    Args:
        config: of the task.
        folder: of the task, with a record.
        may_differ: keys that may differ, in addition to ``MAY_DIFFER``.
    """
    stored = stored_config(folder)
    hydra = HydraConfig.get()
    then, now = dict(stored_config(folder, "hydra").hydra.runtime.choices), dict(hydra.runtime.choices)
    for key in by_key([*stored_config(folder, "overrides"), *hydra.overrides.task]):
        if key in may_differ:
            continue
        if key in then or key in now:
            require_equal(key, then.get(key), now.get(key), folder)
        else:
            require_equal(key, value_at(stored, key), value_at(config, key), folder)


def require_equal_config(config: DictConfig, folder: Path, unset: Sequence[str] = ()) -> None:
    """Raises UserError where any setting differs from the stored one, also one of a tuned file or of your own YAML.

    Args:
        config: of a run that is compared with that of ``folder``.
        folder: of a run.
        unset: keys that are set later, and are not compared.
    """
    before, after = (flatten(OmegaConf.to_container(node)) for node in (stored_config(folder), config))
    for key in after:
        is_compared = key in before and not any(f"{key}.".startswith(f"{other}.") for other in unset)
        if is_compared and before[key] != after[key] and not _may_differ(key):
            new = shlex.quote(as_override("hydra.run.dir", f"{os.path.relpath(folder.parent)}-2"))
            raise UserError(
                f"{key}: {folder} was trained with {show(before[key])}, and a file of tuned values or of arnn_conf "
                f"now sets {show(after[key])}; use a new folder, such as {new}"
            )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    >>> flatten({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2]}
    """
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _may_differ(key: str) -> bool:
    return any(f"{key}.".startswith(f"{other}.") for other in MAY_DIFFER)


def require_equal(key: str, before: Any, after: Any, folder: Path) -> None:
    if before != after and not _may_differ(key):
        raise UserError(
            f"{key}={show(after)}: {folder} was started with {show(before)}; resume it with that value, or use "
            f"another folder{HINTS.get(key, '')}"
        )


def require_growth(key: str, before: Any, after: Any, folder: Path) -> None:
    if all(epochs is None or isinstance(epochs, int) for epochs in (before, after)):
        limits = [math.inf if epochs is None else epochs for epochs in (before, after)]
        if limits[1] < limits[0]:
            raise UserError(
                f"{key}={show(after)}: {folder} has {show(before)}; a resumed run may train longer, not shorter"
            )


def value_at(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key, throw_on_missing=False)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
