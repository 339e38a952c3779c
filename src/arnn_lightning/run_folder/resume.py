"""Resuming: a run takes the settings that its folder records, and the command line may change few of them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.run_folder.compare import MAY_DIFFER, MAY_GROW, require_equal, require_growth, value_at
from arnn_lightning.run_folder.files import METRICS_FILE
from arnn_lightning.run_folder.multirun import MULTIRUN, stored_multirun
from arnn_lightning.run_folder.overrides import as_override, by_key
from arnn_lightning.run_folder.record import has_record, stored_config

START_HINT = "; leave out resume=true to start one there"


def require_new(folder: Path) -> None:
    """Raises UserError where ``folder`` contains a training run."""
    if (folder / METRICS_FILE).is_file():
        raise UserError(
            f"{folder} already contains a finished run; pass resume=true to show its results, or use another "
            "hydra.run.dir"
        )
    if has_record(folder):
        raise UserError(
            f"{folder} contains an interrupted run; pass resume=true to resume it, or use another hydra.run.dir"
        )


def require_new_or_resumed(config: DictConfig, folder: Path) -> None:
    """Raises UserError where a new run would write into the folder of another, or there is no run to resume."""
    if config.resume:
        if not has_record(folder) and HydraConfig.get().mode is not RunMode.MULTIRUN:  # a job may not have started
            raise UserError(f"resume=true: {folder} contains no run{START_HINT}")
        return
    require_new(folder)


def add_stored_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line of ``resume=true`` with the overrides that the run was started with.

    Those given again replace the stored ones in their places: their order is that of the jobs of a multirun.

    Raises:
        UserError: no folder is given, or it contains no run.
    """
    overrides = get_args_parser().parse_args(list(arguments)).overrides
    given = by_key(overrides)
    resume = given.get("resume")
    if resume is None or resume.value() is not True:
        return list(arguments)
    if "task" in given and given["task"].value() != "train":
        raise UserError(f"resume=true resumes a training run; task={given['task'].value()} has nothing to resume")
    is_multirun = bool({"-m", "--multirun"} & {*arguments}) or "hydra.sweep.dir" in given
    options = list(arguments[: len(arguments) - len(overrides)])  # Hydra accepts overrides in one block only
    options += ["-m"] if is_multirun else []  # the folder of a multirun implies it
    key = "hydra.sweep.dir" if is_multirun else "hydra.run.dir"
    if key not in given or not isinstance(given[key].value(), str | int | float):
        raise UserError(f"resume=true needs the folder to resume: add {key}=FOLDER")
    folder = Path(str(given[key].value()))
    if is_multirun:
        if not (folder / MULTIRUN).is_file():
            raise UserError(f"resume=true: {folder} contains no multirun")
        stored = stored_multirun(folder, given)
    else:
        if not has_record(folder):
            instead = shlex.quote(as_override("hydra.sweep.dir", folder))
            hint = f" but a multirun: add {instead} instead" if (folder / MULTIRUN).is_file() else START_HINT
            raise UserError(f"resume=true: {folder} contains no run{hint}")
        stored = list(stored_config(folder, "overrides"))
        choices = stored_config(folder, "hydra").hydra.runtime.choices
        for key in given.keys() & choices.keys():  # another data set or model may not even compose with the rest
            require_equal(key, choices[key], given[key].value(), folder)
    return [*options, *(str(override.input_line) for override in (by_key(stored) | given).values())]


def resumed_config(config: DictConfig, folder: Path) -> tuple[DictConfig, bool]:
    """The stored settings, with what a resumed run may change as in ``config``.

    Returns:
        the config, and whether its limits of epochs differ from the stored ones.

    Raises:
        UserError: a setting of the command line differs from the stored one.
    """
    stored, now = stored_config(folder), OmegaConf.masked_copy(config, list(config))
    choices = {
        "stored": dict(stored_config(folder, "hydra").hydra.runtime.choices),
        "now": dict(HydraConfig.get().runtime.choices),
    }
    OmegaConf.set_struct(now, False)
    given = by_key(sorted({*HydraConfig.get().overrides.task} - {*stored_config(folder, "overrides")}))
    for key in MAY_DIFFER:
        node = OmegaConf.select(now, key, throw_on_missing=False)
        if node is not None or key in given:
            OmegaConf.update(stored, key, node, merge=False, force_add=True)
    grown = False
    for key in given:
        if any(key in names for names in choices.values()):
            before, after = (names.get(key) for names in choices.values())
        else:
            before, after = value_at(stored, key), value_at(now, key)
        if not MAY_GROW.fullmatch(key):
            require_equal(key, before, after, folder)
        elif before != after:
            require_growth(key, before, after, folder)
            OmegaConf.update(stored, key, after, force_add=True)
            grown = True
    merged = OmegaConf.merge(now, stored)  # a setting that is newer than the record keeps its default
    assert isinstance(merged, DictConfig)
    OmegaConf.set_struct(merged, True)
    return merged, grown
