"""Composing a config: the resolvers of ``conf/``, and the optional files that a run's config contains."""

from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Configs of the user: searched before those of the package, whose folder may not be writable.
USER_CONFIG_DIR = Path("arnn_conf")
CONFIG_DIR_PROVIDER = "option"  # the name under which Hydra lists the folder of --config-dir


def choices_name(package: str, *parts: str, _root_: DictConfig) -> str:
    """The data set, the model at ``package`` and the choices of its ``parts``, such as synthetic_gru4rec_top1_adagrad.

    The resolver ``choices`` of the defaults list in ``conf/config.yaml``: the name of a model's tuned file. A value
    that was tuned with one loss and optimizer has no meaning with another.

    Args:
        package: where the model is in the config, as in ``model.session``.
        parts: ``loss``, ``optimizer``; models without them are named without them.
        _root_: the choices so far, by group and package.
    """
    if package == "model":
        groups = ["data", "model", *(f"model/{part}" for part in parts)]
    else:
        groups = ["data", f"model@{package}", *(f"model/{part}@{package}.{part}" for part in parts)]
    return "_".join(str(_root_[group]) for group in groups if group in _root_)


OmegaConf.register_new_resolver("choices", choices_name)
# A model's default for a setting of the data: its value, or, where that is null, the model's.
OmegaConf.register_new_resolver("first", lambda *values: next((value for value in values if value is not None), None))


def config_dir_option(runtime: Any) -> list[str]:
    """``--config-dir`` and its folder where the command line has them, for commands that are printed."""
    folders = [source.path for source in runtime.config_sources if source.provider == CONFIG_DIR_PROVIDER]
    return [part for folder in folders for part in ("--config-dir", folder)]


def applied_files(config: DictConfig, runtime: Any, group: str = "tuned") -> dict[str, str]:
    """The files of ``group`` that a run's config contains, by package; ``runtime`` is ``hydra.runtime``.

    Hydra's choices name optional files also where there are none, and packages that the command line deletes.
    """
    files = {}
    for choice, name in runtime.choices.items():
        package = choice.partition("@")[2]
        if choice.startswith(f"{group}@") and OmegaConf.select(config, package) is not None:
            for source in runtime.config_sources:
                root = {"file": Path, "pkg": resources.files}.get(source.schema)
                if root is not None and source.path and root(source.path).joinpath(group, f"{name}.yaml").is_file():
                    files[package] = f"{source.path}/{group}/{name}.yaml"
                    break
    return files
