"""Checks a composed config, before torch is imported: a mistake costs a second and one line."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arnn_lightning.config.rules import Rule
from arnn_lightning.config.schema import (
    COLUMNS,
    ENCODERS,
    FREE,
    INSTANTIATED,
    RULES,
    SECTIONS,
    TRAINING_RULES,
    canonical,
)
from arnn_lightning.config.suggestions import no_key
from arnn_lightning.config.targets import OWN
from arnn_lightning.errors import UserError

WITHOUT = {  # how to do without a required setting
    "logger": "; logger=none logs nothing",
    "baselines": "; to leave out baselines, remove each, as in ~baselines.pop",
}
REQUIRED = (
    "seed",
    "paths",
    "performance",
    "evaluation",
    "pretrained",
    "data",
    "model",
    "baselines",
    "trainer",
    "logger",
    "task",
)
# Arguments of Lightning's Trainer that the project sets itself, and where to set them instead.
RESERVED = {
    "callbacks": "add callbacks, as in '+callbacks.stop={_target_: mymodule.Stop}'",
    "logger": "choose one with logger=csv, or add one, as in '+logger.x={_target_: mymodule.Logger}'",
    "default_root_dir": "set hydra.run.dir",
    "enable_checkpointing": "checkpoints are always saved",
    "enable_progress_bar": "the bar is shown on terminals only",
    "gradient_clip_val": "set model.clip_norm",
    "accumulate_grad_batches": "set model.batch_size",
    "limit_val_batches": "metrics need every prediction; validate less often with +trainer.check_val_every_n_epoch=2",
    "limit_test_batches": "metrics need every prediction",
    "fast_dev_run": "set trainer.max_epochs=1 and +trainer.limit_train_batches=1",
    "overfit_batches": "set +trainer.limit_train_batches=1",
    "barebones": "a run must log its metrics",
    "plugins": "the package has its own; trainer.precision sets the precision",
    "gradient_clip_algorithm": "model.clip_norm clips by the norm",
    "sync_batchnorm": "batch norms already use the statistics of all devices",
    "limit_predict_batches": "recommendations are made by task=recommend",
}


def check_settings(config: DictConfig, overrides: Sequence[str], groups: Iterable[str]) -> None:
    """Checks every setting of a composed config.

    Args:
        config: the whole config of a run, with or without its ``hydra`` part.
        overrides: the command line's, without those of Hydra.
        groups: the config groups that were chosen from, such as ``model/loss``.

    Raises:
        UserError: a key that nothing reads, or a value of the wrong kind or out of range; names what is allowed.
    """
    for name in REQUIRED:
        if OmegaConf.select(config, name) is None:
            raise UserError(f"{name} is required{WITHOUT.get(name, '')}")
    _check_overrides(config, overrides, set(groups))
    # A value before those that refer to it: the error names what was set.
    for _, key, value, owner in sorted(_settings(config), key=itemgetter(0)):
        _check_value(config, key, value, owner)
    for key, node in _instantiated(config):
        _check_target(key, node)
    _check_combinations(config)


def _check_value(config: DictConfig, key: str, value: Any, owner: str) -> None:
    """``owner``: the ``_target_`` that the setting is an argument of."""
    name = canonical(key)
    if name.startswith("trainer.") and name not in RULES:
        _check_trainer_key(key, config)
    rule = _rule_of(name)
    if rule is None:
        if _is_own(owner) or name in FREE:
            raise _not_a_setting(config, key, name, value)
    elif name not in TRAINING_RULES and _is_foreign(owner) and name.startswith(("model.", "schema.")):
        pass  # an argument of somebody else's class, whose meaning is theirs
    elif not rule.accepts(value):
        raise _not_a_setting(config, key, name, value) if name in FREE else _wrong_value(key, value, rule)


def _rule_of(name: str) -> Rule | None:
    """The rule of a canonical key: its own, or that of all keys of its mapping."""
    mapping = next((columns for columns in COLUMNS if name.startswith(f"{columns}.")), name.rpartition(".")[0])
    return RULES.get(name) or RULES.get(f"{mapping}.*")


def _check_target(key: str, node: Any) -> None:
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{key}: needs a _target_, a class or function as in mypackage.MyClass")
    if re.fullmatch(r"model|baselines\.[^.]+", key) and "dims" not in node:
        raise UserError(f"{key}: needs dims, the sizes of the data; start its YAML with defaults: [_base, _self_]")
    if key.endswith(".scheduler") and not node.get("_partial_"):
        raise UserError(f"{key}: needs _partial_: true, since the optimizer is added to its arguments")


def _check_combinations(config: DictConfig) -> None:
    """Settings that exclude each other."""
    for key, model in [("model", config.model), *((f"model.{role}", config.model.get(role)) for role in ENCODERS)]:
        by_step = model is not None and model.get("scheduler_interval") == "step"
        if by_step and str(OmegaConf.select(model, "scheduler._target_")).endswith(".ReduceLROnPlateau"):
            raise UserError(f"{key}.scheduler_interval=step: ReduceLROnPlateau needs an epoch's loss; set it to epoch")
    if str(config.task._target_).startswith(f"{OWN}tasks.train.") and isinstance(config.checkpoint, str):
        raise UserError(
            f"checkpoint={config.checkpoint}: task=train reads none; for a trained encoder set pretrained.session"
        )
    data: Any = OmegaConf.to_container(config.data, resolve=False)
    for path in (data.get(table) for table in ("events", "users", "titles")):
        if isinstance(path, str) and "{.raw_dir}" in path and config.data.get("raw_dir") is None:
            raise UserError(f"data.raw_dir=null: must be the folder of {Path(path).name}, {config.data.source}")
    devices = config.trainer.get("devices")
    if config.trainer.get("accelerator") == "cpu" and OmegaConf.is_list(devices):
        raise UserError(
            f"trainer.devices=[{','.join(map(str, devices))}]: on a CPU, set a number of processes, such as 1"
        )
    for role, path in config.pretrained.items():
        if path is not None and role not in config.model:
            raise UserError(f"pretrained.{role}={path}: model {config.model.get('name')} has no {role} encoder")


def check_values(section: str, values: Mapping[str, Any]) -> None:
    """Checks plain values of one section, such as ``data``, which a library caller made without a command line.

    Raises:
        UserError: a value of the wrong kind or out of range.
    """
    for name, value in values.items():
        key = f"{section}.{name}"
        if canonical(key) in FREE or name.startswith("_"):
            continue
        if isinstance(value, Mapping):
            check_values(key, value)
        elif (rule := _rule_of(canonical(key))) is not None and not rule.accepts(value):
            raise _wrong_value(key, value, rule)


def _instantiated(node: DictConfig, key: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that must have a ``_target_``: key, value."""
    for name, value in node.items_ex(resolve=False):
        path = f"{key}.{name!s}".lstrip(".")
        is_entry = key in ("baselines", "callbacks", "logger")
        if is_entry or (canonical(path) in INSTANTIATED and value is not None and not value._is_none()):
            yield path, value
        if isinstance(value, DictConfig) and path != "hydra" and not value._is_none() and not value._is_interpolation():
            yield from _instantiated(value, path)


def _settings(node: DictConfig, key: str = "", owner: str = OWN) -> Iterator[tuple[bool, str, Any, str]]:
    """(whether it is a reference, key, plain value, ``_target_`` that owns it) of all but the free mappings."""
    owner = _owner(node, key, owner)
    for name in node:
        path = f"{key}.{name!s}".lstrip(".")
        if path == "hydra" or str(name).startswith("_") or OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
        except OmegaConfBaseException:  # an interpolation of a value that is still to be set
            continue
        if isinstance(value, DictConfig) and key not in COLUMNS:
            if canonical(path) not in FREE:
                yield from _settings(value, path, owner)
        else:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            yield OmegaConf.is_interpolation(node, str(name)), path, plain, owner


def _owner(node: DictConfig, key: str, inherited: str) -> str:
    if key == "data":  # a data set's keys are read by its reader
        return str(OmegaConf.select(node, "reader._target_", default=OWN))
    if not key:  # a task's keys are at the top level
        return str(OmegaConf.select(node, "task._target_", default=OWN))
    return str(node.get("_target_", OWN if key in SECTIONS else inherited))


def _is_own(target: str) -> bool:
    return target.startswith(OWN)


def _is_foreign(target: str) -> bool:
    return not target.startswith((OWN, "torch.", "pytorch_lightning."))


def _wrong_value(key: str, value: Any, rule: Rule) -> UserError:
    whole = isinstance(value, float) and value.is_integer() and rule.accepts(int(value))
    hint = f" (write {int(value)})" if whole else ""
    if isinstance(value, dict):  # Hydra splits a key at its dots
        hint = "; a name with a dot is set in braces, as in {visitor.age: 5}"
    return UserError(f"{key}={_show(value)}: must be {rule.allowed}{hint}")


def _not_a_setting(config: DictConfig, key: str, name: str, value: Any) -> UserError:
    if any(rule.startswith(f"{name}.") for rule in (*RULES, *FREE)) or name in FREE:
        choose = (
            f"choose a config with {key.replace('.', '/')}={value}" if name in ("model.optimizer", "model.loss") else ""
        )
        return UserError(f"{key}={_show(value)}: must be a mapping; {choose or f'set its keys, as in {key}.KEY=VALUE'}")
    return no_key(key, config)


def _check_overrides(config: DictConfig, overrides: Sequence[str], groups: set[str]) -> None:
    """``+key`` where nothing reads it; ``~key`` where the package reads it; ``key={}``, which has no effect."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        if key in groups or override.key_or_group in groups:
            continue
        name, owner = canonical(key), _owner_of(config, key)
        node = OmegaConf.select(config, key)
        # Hydra merges mappings. The settings of a resumed run are not changed.
        if override.value() == {} and isinstance(node, DictConfig) and node and not config.get("resume"):
            parts = " ".join(f"~{key}.{part!s}" for part in node)
            raise UserError(f"{key}={{}}: changes nothing; remove what you do not want, as in {parts}")
        if override.is_delete() and _is_own(owner if not key.startswith("trainer.") else OWN):
            is_section = any(rule.startswith(f"{name}.") for rule in RULES)
            if name in RULES or (is_section and name not in FREE and not re.fullmatch(r"baselines\.[^.]+", key)):
                raise UserError(f"~{key}: is required; set it to another value")
        if override.is_add() or override.is_force_add():
            free = name in COLUMNS or any(name.startswith(f"{mapping}.") for mapping in (*FREE, *COLUMNS))
            if not free and _is_own(owner):
                is_set = name in FREE or (override.is_force_add() and name in RULES)  # "+" is Hydra's error
                raise UserError(f"+{key}: leave out the +") if is_set else no_key(key, config)


def _owner_of(config: DictConfig, key: str) -> str:
    """The ``_target_`` that the mapping of ``key`` belongs to."""
    owner, node = OWN, config
    for depth, part in enumerate(("", *key.split(".")[:-1])):
        node = node.get(part) if part and isinstance(node, DictConfig) else node
        if isinstance(node, DictConfig):
            owner = _owner(node, ".".join(key.split(".")[:depth]), owner)
    return owner


def _check_trainer_key(key: str, config: DictConfig) -> None:
    name = key.split(".")[1]
    if name in RESERVED:
        raise UserError(f"{key}: cannot be set; {RESERVED[name]}")
    if key == "trainer.profiler" and isinstance(value := config.trainer.profiler, str):
        advice = (
            "'+trainer.profiler={_target_: pytorch_lightning.profilers.SimpleProfiler, dirpath: ., filename: profile}'"
        )
        raise UserError(f"{key}={value}: its report would be in no file; name one, as in {advice}")
    if config.trainer.get("_target_") == "pytorch_lightning.Trainer":
        # Read, not imported: a mistake costs no import of torch.
        (package,) = getattr(find_spec("pytorch_lightning"), "submodule_search_locations", None) or ("",)
        tree = ast.parse((Path(package) / "trainer" / "trainer.py").read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer"]
        known = [
            argument.arg
            for node in classes[0].body
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
            for argument in (*node.args.args[1:], *node.args.kwonlyargs)
        ]
        if name not in known:
            raise no_key(f"trainer.{name}", config, known)


def _show(value: Any) -> str:
    """A value as the command line has it.

    >>> _show(None), _show(True), _show([1, "a"])
    ('null', 'true', '[1,a]')
    """
    if isinstance(value, list):
        return f"[{','.join(map(_show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
