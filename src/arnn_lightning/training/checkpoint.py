"""Checkpoints are data: plain tensors and values, read with ``weights_only`` and built from a config of known parts."""

import copy
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from arnn_lightning.config import instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.io import atomic_path
from arnn_lightning.models.base import CHECKPOINT_VERSION, Recommender, RunSettings
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.run_folder import checkpoint_file

Metadata = Callable[[Mapping[str, Any]], dict[str, Any]]

# Keys of a model's config that configure its training, not the model.
TRAINING_KEYS = (
    *("batch_size", "epochs", "patience", "n_sample", "sample_alpha", "negatives", "attribute_dropout", "tuned_on"),
)
FIRST_ITEMS = "first_items"
ROLES = ("session", "context")


def build_model(config: Mapping[str, Any], settings: RunSettings, metadata: Metadata | None = None) -> Recommender:
    """Makes a model from its resolved config (the ``model`` group), its encoders' models first.

    Args:
        config: the model's config.
        settings: of the run; the models of ARNN's encoders get their role as the prefix of logged names.
        metadata: makes the checkpoint metadata from a model's config.
    """
    settings = copy.copy(settings)
    settings.metadata = metadata(config) if metadata is not None else settings.metadata
    arguments = {key: value for key, value in config.items() if key not in TRAINING_KEYS}
    if "optimizer" not in config:  # a model that counts; ARNN gives the key to the model of each role
        arguments.pop("item_contexts", None)
    stages = {}
    for role in ROLES:
        if role in arguments:
            stage_settings = copy.copy(settings)
            stage_settings.log_prefix = f"{role}/"
            stage = build_model(arguments.pop(role), stage_settings, metadata)
            if not isinstance(stage, SessionRecommender) or (stage.stages and stage.needs_stages):
                raise UserError(
                    f"model.{role}: {stage.name} is not trained in one stage; choose a model that is, by "
                    f"model@model.{role}=NAME"
                )
            stages[role] = stage
    make = instantiate(arguments, _partial_=True, _convert_="all")
    model: Recommender = make(settings=settings, **stages)
    return model


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this project, or the best one of a run folder; executes nothing that it contains.

    Raises:
        UserError: no such file, one that cannot be read, not a checkpoint, one that contains code, or one of another
            program or format version.
    """
    file = checkpoint_file(path)
    try:
        with file.open("rb") as content:  # is_zipfile of a path hides why it cannot be opened
            is_zip = zipfile.is_zipfile(content)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if not is_zip:
        raise UserError(f"{file}: damaged or not a checkpoint")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: refused: contains pickled objects other than tensors and plain values, which could execute code"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: damaged or not a checkpoint") from error
    if not isinstance(checkpoint, dict) or "metadata" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{file}: not a checkpoint of arnn-lightning")
    version = checkpoint.get("version", 1)
    if version != CHECKPOINT_VERSION:
        raise UserError(
            f"{file}: checkpoint format version {version}; this release reads version {CHECKPOINT_VERSION}; use the "
            "release that wrote it, or train again"
        )
    return checkpoint


def save_model(model: Recommender, path: Path) -> None:
    """Writes the checkpoint of a model that no Trainer trained."""
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, path)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically.

    Raises:
        UserError: no space, no permission and the like; names ``path``.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # by name, torch hides the system's error
        torch.save(checkpoint, file)


def require_same_dataset(checkpoint: Mapping[str, Any], prepared: str | None, path: str | Path) -> None:
    """Raises UserError where the checkpoint's weights were trained on another data set than ``prepared``."""
    trained_on = checkpoint["metadata"].get("prepared")
    if trained_on != prepared:
        raise UserError(f"{path} was trained on {trained_on}, but this run uses {prepared}")


def load_weights(model: Recommender, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Loads the checkpoint's weights into ``model``, and what it lists before the first click.

    Raises:
        UserError: they are another model's or another catalogue's.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
        stored = dict(checkpoint.get(FIRST_ITEMS, {}))
        scorer = stored.pop("scorer", None)
        if scorer is not None and isinstance(model, SessionRecommender):
            model.profile_model.scorer.load_state_dict(scorer)
        model.first_items = stored or None
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: the weights do not fit this model: {detail[:300]}") from error
