"""Checks and notices of task=train before anything is trained."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.config import USER_CONFIG_DIR, applied_files
from arnn_lightning.errors import UserError
from arnn_lightning.models.base import Recommender
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset

FEW_SESSIONS = 100  # of a split; with fewer, the standard error of a recall of one half is .05 or more
STRONG = ("arnn", "gru4rec")  # presets with a variant <name>_strong


def check_evaluation(config: DictConfig, prepared: PreparedDataset) -> None:
    """Raises UserError where a K is not smaller than the catalogue (every item is a hit), or a group is unknown."""
    for name in config.evaluation.groups:
        try:
            prepared.attribute(name)
        except UserError as error:
            raise UserError(f"evaluation.groups: {error}") from error
    n_items = int(prepared.dims["n_items"])
    for k in config.evaluation.cutoffs:
        if k >= n_items:
            raise UserError(
                f"evaluation.cutoffs: {k} is not smaller than the catalogue of {n_items} items; "
                "set evaluation.cutoffs, as in [1,5]"
            )


def start_lines(config: DictConfig, prepared: PreparedDataset, job: Any) -> list[str]:
    """Notices that are printed before a run trains; ``job`` is the ``hydra`` part of its config."""
    model, lines = config.model, list(prepared.manifest.get("notes", ()))
    files = applied_files(config, job.runtime)
    if files:
        tuned = ", ".join(f"{package} ({Path(file).stem})" for package, file in files.items())
        lines.append(
            f"tuned values used: {tuned}; to leave them out, add {' '.join(f'~tuned@{package}' for package in files)}"
        )
    lines += _misnamed_tuned_files()
    is_own_log = str(config.data.reader._target_).endswith(".TabularReader") and config.data.source is None
    if is_own_log:
        lines += _few_sessions(prepared.manifest["splits"])
    if "optimizer" not in model:
        return lines
    if not prepared.manifest["splits"]["val"]["events"]:
        lines.append("no validation split (data.split): the last epoch of each stage is kept, not the best")
    given = {str(text).partition("=")[0].lstrip("+") for text in job.overrides.task}
    for role in (role for role in ("session", "context") if role in model and config.pretrained[role] is None):
        encoder = model[role]
        shared = sorted(
            key
            for key in model
            if f"model.{key}" in given and key in encoder and key != "dims"
            if not OmegaConf.is_interpolation(encoder, key)  # of the model's value
        )
        if shared:
            values = ", ".join(f"model.{role}.{key}={model[role][key]}" for key in shared)
            stage = "the merging stage" if "context" in model else model.name
            lines.append(
                f"{', '.join(f'model.{key}' for key in shared)}: for {stage} only; the {role} encoder has {values}"
            )
    if "fusion" in model and model.loss != model.session.loss:
        lines.append(f"{model.name}: model.loss differs from model.session.loss, the loss of its control")
    if "session" in model and not (model.dims.single_sizes or model.dims.n_binary):
        lines.append(
            f"{model.name}: no contexts (data.contexts); model={model.session.name} is equivalent without them"
        )
    if config.data["items"].cold == "keep" and model.item_contexts == "none":
        lines.append(
            f"{model.name}: does not distinguish items without training events (data.items.cold=keep); "
            "set model.item_contexts=add"
        )
    if is_own_log and model.name in STRONG and str(model.loss._target_).endswith(".TOP1"):
        lines.append(f"{model.name} uses the paper's loss; on your own log, start with model={model.name}_strong")
    return lines


def _misnamed_tuned_files() -> list[str]:
    """A line for each tuned file of the user whose name no choice of data set, model, loss and optimizer has."""
    files = sorted((USER_CONFIG_DIR / "tuned").glob("*.yaml"))
    if not files:
        return []
    options = GlobalHydra.instance().config_loader().get_group_options
    names = {f"{data}_{model}" for data in options("data") for model in options("model")}
    names |= {
        f"{name}_{loss}_{opt}" for name in names for loss in options("model/loss") for opt in options("model/optimizer")
    }
    rule = "the name must be DATA_MODEL_LOSS_OPTIMIZER.yaml, as task=tune writes it"
    return [f"{file} is not used: {rule}" for file in files if file.stem not in names]


def _few_sessions(splits: Mapping[str, Any]) -> list[str]:
    """A line where the metrics of validation or test are of a handful of sessions."""
    sessions = {"validation": splits["val"]["sessions"], "test": splits["test"]["sessions"]}
    few = [
        f"{number} {name} session{'s' * (number > 1)}" for name, number in sessions.items() if 0 < number < FEW_SESSIONS
    ]
    return (
        [f"only {' and '.join(few)}: their metrics are uncertain (data.split sets the days or shares)"] if few else []
    )


def check_tuned(config: DictConfig, runtime: Any, prepared: PreparedDataset) -> None:
    """Raises UserError where a tuned file of the user was written for another log."""
    files = {
        package: file
        for package, file in applied_files(config, runtime).items()
        if OmegaConf.select(config, f"{package}.tuned_on", default=prepared.raw_sha256) != prepared.raw_sha256
    }
    if files:
        names = ", ".join(sorted({os.path.relpath(file) for file in files.values()}))
        raise UserError(
            f"{names} was tuned on another log; leave it out with "
            f"{' '.join(f'~tuned@{package}' for package in files)}, delete it to tune again, or delete its line "
            "tuned_on to use it on every log"
        )


def check_item_contexts(settings: DictConfig, model: Recommender) -> None:
    """Raises UserError where items' attributes are to be fields of a model, or of one of its stages, that has none."""
    if not isinstance(model, SessionRecommender):
        return
    parts = {"model": (settings, model)}
    if settings.item_contexts != "fields":  # else that of the stages too, whether they have fields or not
        parts |= {f"model.{role}": (settings[role], stage) for role, stage in model.stages.items()}
    for path, (part, recommender) in parts.items():
        if part.item_contexts == "fields" and not recommender.has_item_fields:
            raise UserError(
                f"{path}.item_contexts=fields: {part.name} does not encode fields, as PNN and Concat do; set "
                f"{path}.item_contexts=add"
            )
