"""task=tuned: the best parameters of a study as a ``tuned/<data>_<model>.yaml`` that the next run picks up."""

from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.sweeps.study import OWN_CONFIGS, Best, best

MISSING = object()


def run(config: DictConfig) -> None:
    """Writes the file into the user's own configs, in place of an older one."""
    found = best(Path(config.study), config.study_name)
    values = OmegaConf.to_yaml(OmegaConf.create(tuned(found)))
    choices = " ".join(_choices(found))
    lines = [f"# The best of {found.trials} trials of {config.study}: validation MRR@20 {found.value:.4f}."]
    if choices:
        lines.append(f"# Found with {choices}, which is no part of this file: give it on the command line.")
    file = OWN_CONFIGS / "tuned" / f"{found.data}_{found.model}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text("\n".join([*lines, values]))
    unfinished.replace(file)
    console = Console()
    console.print(values.rstrip())
    command = f"python -m arnn_lightning model={found.model} data={found.data} {choices}".rstrip()
    console.print(f"wrote {file}; used by {command}", soft_wrap=True)


def tuned(found: Best) -> dict[str, Any]:
    """Every value in which the winning model differs from its own defaults, by an older tuned file's too."""
    groups = [f"data={found.data}", f"model={found.model}", *_choices(found)]
    values = [f"{key}={value}" for key, value in found.overrides.items() if key.startswith("model.")]
    ours, plain = (
        OmegaConf.to_container(compose("config", overrides=[*groups, *more]).model, resolve=False)
        for more in (values, ["~tuned@model"])
    )
    return _differences(ours, plain)


def _choices(found: Best) -> list[str]:
    """Choices from other groups that the winning trial was made with: a loss, an optimizer, an experiment."""
    return [f"{key}={value}" for key, value in found.overrides.items() if "/" in key or key == "experiment"]


def _differences(ours: Any, plain: Any) -> dict[str, Any]:
    changed = {}
    for key, value in ours.items():
        before = plain.get(key, MISSING)
        if isinstance(value, dict) and isinstance(before, dict):
            value = _differences(value, before)
            if not value:
                continue
        elif value == before:
            continue
        changed[key] = value
    return changed
