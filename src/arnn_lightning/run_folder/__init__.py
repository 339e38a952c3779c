"""Run folders: a lock gives each to one process, which records its settings; a resumed run takes the recorded ones.

The record has Hydra's names: ``.hydra/config.yaml``, ``hydra.yaml``, ``overrides.yaml``.
"""

from arnn_lightning.run_folder.compare import flatten, require_equal_config, require_same_settings
from arnn_lightning.run_folder.files import BEST, BEST_OF_RUN, CHECKPOINTS, METRICS_FILE, checkpoint_file
from arnn_lightning.run_folder.lock import locked, note_new_folders
from arnn_lightning.run_folder.multirun import multirun_folder, own_multirun
from arnn_lightning.run_folder.overrides import as_override, quoted
from arnn_lightning.run_folder.record import (
    DAMAGED,
    RECORD,
    has_record,
    require_same_task,
    stored_config,
    task_folder,
    write_record,
)
from arnn_lightning.run_folder.resume import add_stored_overrides, require_new, require_new_or_resumed, resumed_config

__all__ = [
    "BEST",
    "BEST_OF_RUN",
    "CHECKPOINTS",
    "DAMAGED",
    "METRICS_FILE",
    "RECORD",
    "add_stored_overrides",
    "as_override",
    "checkpoint_file",
    "flatten",
    "has_record",
    "locked",
    "multirun_folder",
    "note_new_folders",
    "own_multirun",
    "quoted",
    "require_equal_config",
    "require_new",
    "require_new_or_resumed",
    "require_same_settings",
    "require_same_task",
    "resumed_config",
    "stored_config",
    "task_folder",
    "write_record",
]
