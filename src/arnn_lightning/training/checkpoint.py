"""Checkpoints are data: plain tensors and values, read with ``weights_only`` and built from a config of known parts."""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arnn_lightning.config import check_targets, instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.models.base import LAYOUT, SessionModel


def build(config: Mapping[str, Any], trusted_modules: Sequence[str] | None = None) -> SessionModel:
    """Makes a model from its resolved config (the ``model`` group).

    Args:
        config: the model's config.
        trusted_modules: None for the user's own config, whose ``_target_``s are all trusted; for a checkpoint's, the
            modules that are trusted beside this package's.

    Raises:
        UserError: a ``_target_`` of a checkpoint that no trusted module defines.
    """
    if trusted_modules is not None:
        check_targets(config, trusted_modules)
    arguments = {key: value for key, value in config.items() if key not in STAGE_KEYS}
    for role in ("session", "context"):
        if role in arguments:
            arguments[role] = build(arguments[role])  # checked above
    model: SessionModel = instantiate(arguments, _convert_="all")
    return model


# Keys of a model's config that tell the training stage, not the model.
STAGE_KEYS = ("batch_size", "epochs", "patience", "n_sample", "sample_alpha", "negatives")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this project; never executes what it holds.

    Raises:
        UserError: no such file, not a checkpoint, one that carries code, or one that was not written by this project or
            by another version of it.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no checkpoint {file}; a run keeps its own under RUN/checkpoints/best.ckpt")
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file}: damaged, or no checkpoint at all")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: refused, it holds more than tensors and plain values and could run code") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: damaged, or no checkpoint at all") from error
    if not isinstance(checkpoint, dict) or "about" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{file}: not a checkpoint of arnn-lightning")
    layout = checkpoint.get("layout", 1)
    if layout != LAYOUT:
        raise UserError(
            f"{file}: a checkpoint of layout {layout}, this version of arnn-lightning reads layout {LAYOUT}; "
            "use the version that wrote it, or train again"
        )
    return checkpoint


def check_data(checkpoint: Mapping[str, Any], prepared: str | None, path: str | Path) -> None:
    """Raises UserError where the checkpoint's weights were learnt on another data set than ``prepared``."""
    trained_on = checkpoint["about"].get("prepared")
    if trained_on != prepared:
        raise UserError(f"{path} was trained on {trained_on}, this run is on {prepared}")


def load_weights(model: SessionModel, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Loads the checkpoint's weights into ``model``.

    Raises:
        UserError: they are another model's or another catalogue's.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: its weights do not fit this model: {detail[:300]}") from error
