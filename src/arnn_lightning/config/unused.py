"""Settings of the command line that a run would not use."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.config.schema import RULES, canonical
from arnn_lightning.config.targets import OWN

# Where a task does not read every setting: the sections that it reads, and why the others have no effect.
READ_BY_TASK = {
    "prepare": (("data", "paths", "id_tables"), "task=prepare reads data, paths and id_tables only"),
    "generate": (("schema", "events", "output"), "task=generate reads schema, events and output only"),
    "report": (
        ("runs", "report", "evaluation", "seed", "paths", "published"),
        "task=report reads the runs' own settings",
    ),
    "verdict": (
        (
            *("budget", "max_seeds", "smallest_gain", "non_neural", "data", "evaluation", "performance", "trainer"),
            *("paths", "seed", "logger", "published"),
        ),
        "task=verdict trains its models with their own settings",
    ),
    "evaluate": (
        (
            *("checkpoint", "trusted_modules", "evaluation", "performance", "trainer", "paths"),
            *("data", "data.contexts.assignment", "data.raw_dir", "data.events", "data.users", "data.titles"),
        ),
        "task=evaluate takes model and data from the checkpoint",
    ),
    "lists": (
        ("lists", "name", "data", "evaluation", "performance", "trainer", "paths", "seed", "logger"),
        "task=evaluate lists= has no model",
    ),
}


class Unused(NamedTuple):
    """Settings that have no effect while a condition holds.

    Attributes:
        keys: a regular expression on canonical keys.
        condition: of the whole config and of the model that has the key.
        reason: completes "has no effect: ...".
    """

    keys: str
    condition: Callable[[DictConfig, DictConfig], bool]
    reason: str


def where(path: str, *values: Any) -> Callable[[DictConfig, DictConfig], bool]:
    """Whether ``path`` of the config, or of the model where it starts with a dot, exists and has one of ``values``."""

    def condition(config: DictConfig, model: DictConfig) -> bool:
        node, key = (model, path[1:]) if path.startswith(".") else (config, path)
        return OmegaConf.select(node, key, default="???") in values

    return condition


def _is_pretrained(config: DictConfig, model: DictConfig) -> bool:
    return any(path is not None and config.model.get(role) is model for role, path in config.pretrained.items())


def _has_no_validation(config: DictConfig, model: DictConfig) -> bool:
    return not config.data.split.val_days and not config.data.split.val_share


def _has_no_optimizer(config: DictConfig, model: DictConfig) -> bool:
    return "optimizer" not in config.model and str(config.model._target_).startswith(OWN)


UNUSED = (
    Unused(r"model\.dims\..*", lambda *_: True, "it is derived from the data"),
    Unused(r"model\.sample_alpha", where(".n_sample", 0), "n_sample is 0"),
    Unused(
        r"model\.(n_sample|sample_alpha|negatives|loss\.accidental_hits)",
        where(".loss.candidates", "all"),
        "the loss scores all items (loss.candidates=all)",
    ),
    Unused(r"model\.negatives", where("trainer.strategy", None, "???"), "there is one device; see trainer=ddp"),
    Unused(r"model\.loss\.elu_alpha", where(".loss.activation", "softmax", "tanh", "linear"), "activation is not elu"),
    Unused(
        r"model\.patience|evaluation\.monitor",
        _has_no_validation,
        "there is no validation split (data.split), the last epoch is kept",
    ),
    Unused(r"model\.scheduler_interval", where(".scheduler", None), "there is no scheduler"),
    Unused(r"model\.finetune_context_batchnorm", where(".freeze_encoders", False), "no encoder is frozen"),
    Unused(r"model\.product_method", where(".products", False), "products is false"),
    Unused(r"model\.carry_dropout", where(".dropout_hidden", 0), "dropout_hidden is 0"),
    Unused(r"model\.dropout_embedding", where(".embedding", "onehot"), "embedding=onehot has no embedding"),
    Unused(
        r"model\.(patience|clip_norm|scheduler|scheduler_interval|optimizer\..*|loss\..*)",
        _is_pretrained,
        "this encoder is pretrained, not trained in this run",
    ),
    Unused(  # a fusion is trained with those of its session encoder, unless it has others
        r"model\.(batch_size|epochs)",
        lambda config, model: _is_pretrained(config, model) and "fusion" not in config.model,
        "this encoder is pretrained, not trained in this run",
    ),
    Unused(r"performance\.cache_mb", where("model.freeze_encoders", False, "???"), "no encoder is frozen"),
    Unused(
        r"checkpoint\..*|performance\.compile|trainer\.(precision|max_steps)",
        _has_no_optimizer,
        "the model has no optimizer",
    ),
    Unused(r"data\.gap", where("data.session", "day", "given"), "data.session is not gap"),
    Unused(r"data\.columns\.session", where("data.session", "day", "gap"), "data.session is not given"),
    Unused(r"data\.columns\.user_in_users", where("data.users", None), "there is no table data.users"),
    Unused(r"data\.columns\.(item_in_titles|title)", where("data.titles", None), "there is no table data.titles"),
    Unused(
        r"data\.items\.popularity_scope",
        lambda config, _: (
            (items := config.data["items"]).popularity_coverage == 1.0
            and items.min_events == 1
            and items.most_popular is None
        ),
        "all items are kept",
    ),
    Unused(
        r"data\.contexts\.dropout", where("model.attribute_dropout", "???"), "the model reads no attributes of users"
    ),
    Unused(
        r"data\.contexts\.dropout",
        lambda config, _: config.data.contexts.dropout not in (None, config.model.attribute_dropout),
        "model.attribute_dropout (command line or tuned file) takes precedence",
    ),
    Unused(
        r"data\.contexts\.coverage",
        where("data.contexts.multi", []),
        "there is no multi-valued attribute (data.contexts.multi)",
    ),
    Unused(
        r"data\.item_contexts\.coverage",
        where("data.item_contexts.multi", []),
        "there is no multi-valued attribute (data.item_contexts.multi)",
    ),
    Unused(
        r"data\.list_separator",
        lambda config, _: not config.data.contexts.multi and not config.data.item_contexts.multi,
        "there is no multi-valued attribute (data.contexts.multi, data.item_contexts.multi)",
    ),
    Unused(
        r"schema\..*|data\.context_strength",
        lambda config, _: config.data.get("raw_dir") is not None,
        "data.raw_dir is read, nothing is simulated",
    ),
)


def unused_settings(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """A line for each setting of the command line that has no effect in this run.

    Values that switch something off (null, false, 0) are not among them, nor is what a foreign task reads.

    Args:
        config: the config of a run, checked.
        overrides: the command line's, without those of Hydra.
    """
    task = str(config.task._target_)
    if not task.startswith(f"{OWN}tasks."):
        return []
    task = task.removeprefix(f"{OWN}tasks.").partition(".")[0]
    if task == "evaluate" and config.lists is not None:
        task = "lists"
    lines = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        section = re.split(r"[./@]", key)[0]
        read, reason = READ_BY_TASK.get(task, ((section,), ""))
        if key not in read and not (section in read and f"{section}.raw_dir" not in read):
            if section not in ("task", "experiment"):
                hint = f"; did you mean schema.{key}?" if task == "generate" and f"schema.{key}" in RULES else ""
                lines.append(f"{key} has no effect: {reason}{hint}")
        elif task in ("train", "tune") and not override.is_delete() and override.value() not in (None, False, 0, 0.0):
            path = re.match(r"(model(\.(session|context))*|baselines\.[^.]+|)", key)
            model = OmegaConf.select(config, path[0]) if path and path[0] else config
            for rule in UNUSED:
                if re.fullmatch(rule.keys, canonical(key)) and rule.condition(config, model):
                    lines.append(f"{key} has no effect: {rule.reason}")
                    break
    return lines
