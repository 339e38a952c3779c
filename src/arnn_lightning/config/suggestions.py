"""The error for a key that does not exist, with the key that was meant."""

import difflib
from collections.abc import Iterable
from importlib import resources

from omegaconf import DictConfig, OmegaConf

from arnn_lightning.config.schema import COLUMNS, ENCODERS, OPEN_SECTIONS, RENAMED, RULES, canonical
from arnn_lightning.errors import UserError


def no_key(key: str, config: DictConfig, known: Iterable[str] = ()) -> UserError:
    """The error for a key that ``config`` does not have, with what it is called now or the most similar key.

    >>> config = OmegaConf.create({"model": {"dropout": 0, "session": {"optimizer": {"lr": 1}}}})
    >>> print(no_key("model.dropuot", config))
    no key model.dropuot; did you mean model.dropout?
    >>> print(no_key("model.optimizer.lr", config))
    no key model.optimizer.lr; did you mean model.session.optimizer.lr?
    >>> print(no_key("model.session.lr", config))
    no key model.session.lr; did you mean model.session.optimizer.lr?
    >>> print(no_key("model.size", OmegaConf.create({"model": {"sizes": 1, "encoder": {"size": 2}}})))
    no key model.size; did you mean model.encoder.size?
    >>> print(no_key("model.session.lanes", config))
    no key model.session.lanes; it is now model.session.batch_size

    Args:
        key: the key.
        config: the whole config.
        known: names that its section may have in addition to those in the config.
    """
    section, _, rest = canonical(key).partition(".")

    def in_section(rule: str) -> str:
        return key[: len(key) - len(rest)] + rule.partition(".")[2]

    new = RENAMED.get(canonical(key))
    if new is not None:
        return UserError(f"no key {key}; it is now {in_section(new) if new.startswith(f'{section}.') else new}")
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    siblings = {str(sibling) for sibling in (*(node or ()), *known) if sibling != name}
    if "/" in name:  # a group within a group, such as model/loss
        groups = [group for group in resources.files("arnn_lightning.conf").iterdir() if group.is_dir()]
        siblings |= {f"{group.name}/{part.name}" for group in groups for part in group.iterdir() if part.is_dir()}
    suggestions = _deeper(config, parent, name)
    if not suggestions:
        matches = difflib.get_close_matches(name, sorted(siblings), n=1)
        suggestions = [f"{parent}.{match}".lstrip(".") for match in matches]
    if not suggestions:  # the right name at another depth
        depths = {rule.rpartition(".")[2]: in_section(rule) for rule in RULES if rule.startswith(f"{section}.")}
        similar = [depths[match] for match in difflib.get_close_matches(name, depths, n=1)]
        similar += [f"{section}.{role}.{rest}" for role in ENCODERS]  # of the part, not of the whole
        suggestions = [other for other in similar if OmegaConf.select(config, other) is not None][:1]
    hint = "".join(f"; did you mean {suggestion}?" for suggestion in suggestions if suggestion != key)
    tasks = [] if parent else (resources.files("arnn_lightning.conf") / "task").iterdir()
    for task in tasks:
        if task.name.endswith(".yaml") and key in set(OmegaConf.create(task.read_text())):
            hint = f"; it belongs to task={task.name.removesuffix('.yaml')}"
    if section == "data" and config.data.get(rest.partition(".")[0]) is None:
        tabular = OmegaConf.create((resources.files("arnn_lightning.conf") / "data" / "tabular.yaml").read_text())
        if rest.partition(".")[0] in [*tabular]:
            hint = "; it belongs to data=tabular"
    if canonical(parent) in COLUMNS:  # Hydra merges mappings, and adds keys only with a +
        hint += f"; +{key}=... adds it" + "".join(f", ~{parent}.{other!s} removes {other!s}" for other in node or ())
    elif parent in OPEN_SECTIONS and not hint:
        hint = f"; +{key}=... adds it"
    return UserError(f"no key {key}{hint}")


def _deeper(config: DictConfig, parent: str, name: str) -> list[str]:
    """The nearest other key with this name below ``parent``, or below the nearest section above it that exists."""
    wanted = f"{parent}.{name}"
    while parent and not OmegaConf.is_dict(OmegaConf.select(config, parent)):
        parent = parent.rpartition(".")[0]
    level = [parent] if parent else []
    while level:
        keys = [f"{section}.{key}" for section in level for key in OmegaConf.select(config, section)]
        if found := [key for key in keys if key.rpartition(".")[2] == name and key != wanted]:
            return found[:1]
        level = [key for key in keys if OmegaConf.is_dict(OmegaConf.select(config, key))]
    return []
