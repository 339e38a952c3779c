"""The checkpoints that a training starts from: encoders of ``pretrained``, and weights of ``init_from``."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from arnn_lightning.config import to_container
from arnn_lightning.errors import UserError
from arnn_lightning.io import write_json
from arnn_lightning.models import Recommender, SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import CHECKPOINTS, DAMAGED, RECORD, checkpoint_file
from arnn_lightning.serving.vocabulary import Vocabulary
from arnn_lightning.training.checkpoint import load_weights, read_checkpoint, require_same_dataset
from arnn_lightning.training.initial import InitialWeights, TableRows, require_same_scores
from arnn_lightning.training.stage import LAST, is_extended

log = logging.getLogger(__name__)


class Sources:
    """The checkpoints that a run takes weights from, by setting and role. Its record has their hashes.

    Args:
        folder: of the run.

    Raises:
        UserError: its record of them is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / RECORD / "weights.json"
        self._stored: dict[str, dict[str, str]] = {}
        if self._file.is_file():
            try:
                self._stored |= json.loads(self._file.read_bytes())
            except (ValueError, TypeError) as error:
                raise UserError(f"{self._file}: {DAMAGED}") from error
        self._read: dict[str, dict[str, str]] = {}

    def read(self, key: str, path: Path) -> dict[str, Any]:
        """A checkpoint; raises UserError for one that is not the one that the run was started with."""
        checkpoint = read_checkpoint(path)
        with checkpoint_file(path).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if self._stored.get(key, {}).get("sha256", digest) != digest:
            raise UserError(f"{key}: {path} has changed since this run was started with it; start a new run")
        self._read[key] = {"checkpoint": str(path), "sha256": digest}
        return checkpoint

    def write(self) -> None:
        if self._read.keys() - self._stored.keys():
            write_json(self._file, self._stored | self._read)

    def of(self, setting: str) -> dict[str, dict[str, str]]:
        """Those of a setting by role, those of a run that is resumed included."""
        sources = self._stored | self._read
        return {
            key.removeprefix(f"{setting}."): value for key, value in sources.items() if key.startswith(f"{setting}.")
        }


def load_pretrained(model: Recommender, prepared: PreparedDataset, config: DictConfig, sources: Sources) -> None:
    """Loads the encoders of ``pretrained``, all of them before the first hour of training.

    Raises:
        UserError: no checkpoint, one of another model, other sizes or another data set, or not that of the resumed run.
    """
    for role, stage in model.stages.items():
        path = config.pretrained[role]
        if path is not None:
            checkpoint, source = sources.read(f"pretrained.{role}", Path(path)), f"pretrained.{role}: {path}"
            trained, expected = checkpoint["metadata"]["model"], config.model[role]
            if trained["_target_"] != expected._target_:
                raise UserError(
                    f"{source} is a checkpoint of {trained['name']}, but the {role} encoder is {expected.name}"
                )
            require_same_dataset(checkpoint, prepared.folder.name, source)
            load_weights(stage, checkpoint, source)
            require_same_scores(trained, to_container(expected), source, f"model.{role}")


def read_initial_weights(
    model: Recommender, config: DictConfig, vocabulary: Mapping[str, Tensor], folder: Path, sources: Sources
) -> dict[str, InitialWeights]:
    """By role ("" for the model itself), the weights of ``init_from``; empty without it. Logs what is known and new.

    A stage that is resumed has its own checkpoint in ``folder`` and needs none: that of ``init_from`` may be gone.

    Raises:
        UserError: a model that is not trained, or checkpoints that do not fit.
    """
    if config.get("init_from") is None:
        return {}
    if not isinstance(model, SessionRecommender):
        raise UserError(f"init_from: {config.model.name} is a non-neural model and has no initial weights")
    resolved, file = to_container(config.model), None
    initial: dict[str, InitialWeights] = {}
    for role, stage in {"": model, **model.stages}.items():  # the model first: its errors name the file that was given
        if role and config.pretrained[role] is not None:
            continue
        if config.resume and not _starts_anew(model, config, folder / CHECKPOINTS, role):
            continue
        file = file or checkpoint_file(config.init_from)
        path = file.parent / role / file.name if role else file
        if role and not path.is_file():
            raise UserError(
                f"init_from: {path} does not exist, since {file} took its {role} encoder from another run; set "
                f"pretrained.{role}"
            )
        checkpoint = sources.read(f"init_from.{role or 'model'}", path)
        ids, earlier = (
            TableRows(
                stored.items["id"],
                stored.single,
                stored.contexts,
                TableRows(stored.items["id"], stored.item_single, stored.item_contexts),
            )
            for stored in (Vocabulary(vocabulary, "this run"), Vocabulary(checkpoint.get("vocabulary", {}), path))
        )
        part = resolved[role] if role else resolved
        encoders = None if role else nn.ModuleList(trained.encoder for trained in model.stages.values())
        initial[role] = InitialWeights(stage, part, ids, checkpoint, earlier, path, encoders)
    if "" in initial:
        log.info(f"init_from {file}: {initial[''].summary}")
    return initial


def _starts_anew(model: Recommender, config: DictConfig, checkpoints: Path, role: str) -> bool:
    """Whether a stage of a resumed run has no checkpoint, or one that an encoder with more epochs makes useless."""
    if not (checkpoints / role / LAST).is_file():
        return True
    encoders = model.stages if not role and model.needs_stages else {}
    return any(is_extended(config, to_container(config.model[name]), checkpoints / name) for name in encoders)
