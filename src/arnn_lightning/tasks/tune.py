"""task=tune: an Optuna study for each of several models, whose best trials become tuned files."""

import logging
import shlex
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from arnn_lightning.config import USER_CONFIG_DIR, choices_name, config_dir_option, instantiate
from arnn_lightning.errors import UserError, nearest
from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import atomic_path
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import as_override, flatten, task_folder
from arnn_lightning.tasks import train
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.start import check_tuned

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
TASK_KEYS = ("task", "models", "trials", "workers", "space", "sampler", "pruner")
ENCODERS = ("model.session.", "model.context.")
# What a value depends on.
SETTINGS = (
    *("seed", "model", "data.contexts", "data.item_contexts", "evaluation.ties", "evaluation.monitor", "trainer"),
    *("pretrained", "performance.threads", "performance.compile"),
)


def run(config: DictConfig) -> None:
    """Tunes ``config.models`` one after the other, each with the tuned files of the earlier ones."""
    if find_spec("optuna") is None:
        raise UserError("Optuna is not installed: pip install 'arnn-lightning[tune]'")
    for model in config.models:
        _compose(_fixed(model))  # a mistake in the last is shown before the first is tuned
    with task_folder(config) as folder:
        _run(config, folder)


def _run(config: DictConfig, folder: Path) -> None:
    command = [sys.executable, "-m", "arnn_lightning", *sys.argv[1:], "workers=1"]
    workers = [
        subprocess.Popen(
            [*command, as_override("hydra.run.dir", folder / f"worker_{worker}")],
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
        for worker in range(1, config.workers)
    ]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the workers, too
    try:
        for model in config.models:
            tune(config, model)
    except BaseException as error:
        for process in workers:
            process.send_signal(signal.SIGINT)
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.write("Interrupted. The same command resumes the studies.\n")
        raise
    finally:
        codes = [process.wait() for process in workers]
        signal.signal(signal.SIGTERM, before)
    for worker, code in enumerate(codes, start=1):
        if code:
            log.warning(f"worker {worker} ended with exit code {code}; other workers run its trials")


def tune(config: DictConfig, model: str) -> None:
    """Runs the trials of one model that are left, and writes its tuned file.

    Raises:
        UserError: no validation split, nothing to search, or a study whose trials have other settings or another log.
    """
    from arnn_lightning.sweeps.study import PruningCallback, distribution, open_study, optimize

    fixed = _fixed(model)
    base = _compose(fixed)
    if base.trainer.get("strategy") is not None:
        raise UserError("task=tune is not supported with trainer=ddp: a trial is one process; set workers=N")
    base.paths.data = config.paths.data  # absolute
    data = base.hydra.runtime.choices["data"]
    spaces = {key: space for key, space in base.get("search", {}).items() if key not in map(_key, fixed)}
    for space in config.space:
        if "=" not in space:
            raise UserError(f"space={space}: must be KEY=SPACE, as in 'model.dropout=interval(0,0.5)'")
    spaces |= dict(space.split("=", 1) for space in config.space)
    if not spaces:
        raise UserError(f"no search space for model={model}; set one, as in 'model.x=interval(0.1,0.9)'")
    keys = {*_flat(base), *base.hydra.runtime.choices}
    for key in spaces.keys() - keys:
        raise UserError(f"model={model} has no key {key} to search{nearest(key, keys)}")
    prepared = prepare_data(base)
    if not prepared.manifest["splits"]["val"]["events"]:
        raise UserError(f"data={data} has no validation split to tune on: set data.split.val_days")
    settings = {key: value for part in SETTINGS for key, value in _flat(base, part).items()}
    settings = {key: value for key, value in settings.items() if not key.endswith(".tuned_on")}
    settings |= {"the prepared data set": prepared.folder.name} | spaces
    file = Path(config.paths.studies) / f"{data}_{model}.db"
    study = open_study(file, settings, instantiate(config.pruner or {"_target_": "optuna.pruners.NopPruner"}))
    base.baselines = {}  # not what is tuned
    check_tuned(base, base.hydra.runtime, prepared)
    folder = Path(HydraConfig.get().runtime.output_dir) / file.stem

    def objective(trial: "optuna.Trial") -> float | None:
        job = _compose([*fixed, *(f"{key}={value}" for key, value in trial.params.items())])
        with open_dict(job):
            job.paths.data = config.paths.data
            job.hydra.mode = RunMode.MULTIRUN  # a trial is a job: loggers group them
            job.hydra.sweep.dir, job.hydra.sweep.subdir = str(folder), str(trial.number)
        return train.train_as_job(job, [PruningCallback(trial, f"val/{config.evaluation.monitor}")], test=False)

    space = {key: distribution(key, space) for key, space in spaces.items()}
    sampler = lambda number: instantiate(config.sampler, seed=config.seed + number)  # noqa: E731
    optimize(study, file, config.trials, space, sampler, objective)
    _write_tuned(study, file, model, prepared)


def _write_tuned(study: "optuna.Study", file: Path, model: str, prepared: PreparedDataset) -> None:
    """Writes every value in which the best model differs from its defaults, those of an older tuned file included.

    Values of ARNN's encoders are not among them: encoders have tuned files of their own.
    """
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    if not states["complete"]:
        raise UserError(f"{file}: no trial has completed; set a larger number of trials, earlier ones included")
    best = [*_fixed(model), *(f"{key}={value}" for key, value in study.best_params.items())]
    config = _compose(best)
    choices = config.hydra.runtime.choices
    apart = [text for text in best if _key(text) in choices or _key(text).startswith(ENCODERS)]
    apart = [text for text in apart if _key(text) not in ("trainer", "logger")]
    groups = [text for text in apart if _key(text) in choices]
    default = _flat(_compose([*groups, "~tuned@model"]).model)
    values = OmegaConf.create({"tuned_on": prepared.raw_sha256})
    for key, value in _flat(config.model).items():
        if not f"model.{key}".startswith(ENCODERS) and (key not in default or default[key] != value):
            OmegaConf.update(values, key, value)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    metric = metric_label(config.evaluation.monitor)
    header = f"# Best trial of {file} ({counts}): validation {metric} {study.best_value:.4f}.\n"
    header += (
        f"# Data set: {prepared.folder.name}. Runs on raw files other than those of tuned_on stop with an error.\n"
    )
    text = header + OmegaConf.to_yaml(values)
    tuned = USER_CONFIG_DIR / "tuned" / f"{choices_name('model', 'loss', 'optimizer', _root_=choices)}.yaml"
    with atomic_path(tuned, shared=True) as file:  # by all workers, as the study ends
        file.write_text(text, encoding="utf-8")
    needed = [text for text in best if text in apart or _key(text).startswith(("data.", "evaluation.", "paths.data"))]
    options = config_dir_option(config.hydra.runtime)
    command = f"python -m arnn_lightning {shlex.join([*options, *needed])}"
    Console(markup=False).print(f"{text}wrote {tuned}, used by {command}", soft_wrap=True)


def _key(override: str) -> str:
    """The key of an override without its prefix."""
    key: str = OverridesParser.create().parse_override(override).get_key_element()
    return key.lstrip("+~")


def _fixed(model: str) -> list[str]:
    """The overrides that all trials of a model have in common."""
    given = [text for text in HydraConfig.get().overrides.task if _key(text).split(".")[0] not in TASK_KEYS]
    return [f"model={model}", *(text for text in given if _key(text) != "model")]


def _compose(overrides: list[str]) -> DictConfig:
    return compose("config", overrides=overrides, return_hydra_config=True)


def _flat(config: DictConfig, part: str = "") -> dict[str, Any]:
    """The values of a config, or of a part of it, by dotted key, interpolations unresolved."""
    node = OmegaConf.select(config, part) if part else config
    return flatten(OmegaConf.to_container(node) if OmegaConf.is_config(node) else node, part)
