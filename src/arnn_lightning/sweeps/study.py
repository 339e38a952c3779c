"""Optuna's studies: what Hydra's sweeper needs to search a model's space, and to go on where a study stopped.

The sweeper (hydra-optuna-sweeper 1.3, Optuna 2.10) takes up an old study, but then starts ``n_trials`` anew, draws the
same first parameters again, and leaves a trial that was cut off running for ever. All three are mended here before it
starts.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from arnn_lightning.errors import UserError

# Looked into before the package's own configs; see cli.py. A folder of the package may not be written to.
OWN_CONFIGS = Path("arnn_conf")
SQLITE = "sqlite:///"
NO_MATTER = {"logger", "resume", "threads", "paths.data", "paths.studies"}  # settings that change no value
_held: list[FileLock] = []


class Best(NamedTuple):
    """A study's best trial.

    Attributes:
        data, model: what was chosen from these groups.
        value: validation MRR@20.
        trials: how many were completed.
        overrides: of the winning trial, all of them, key -> value.
    """

    data: str
    model: str
    value: float
    trials: int
    overrides: dict[str, Any]


def set_up(config: DictConfig) -> None:
    """Fills in ``config.hydra.sweeper`` (Optuna's): search space, storage, direction, trials that are still to be done.

    Args:
        config: Hydra's config of a multirun; what the command line says about its sweeper stays.

    Raises:
        UserError: nothing to search; a study that is in use, or that was made with other settings.
    """
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    sweeper, choices = config.hydra.sweeper, config.hydra.runtime.choices
    given = {override.partition("=")[0] for override in config.hydra.overrides.hydra}
    file = study_file(Path(config.paths.studies), choices.data, choices.model)
    settings = {
        "direction": "maximize",
        "storage": f"{SQLITE}{file}",
        "study_name": file.stem,
        "n_jobs": 1,
        "max_failure_rate": 1.0,  # a failed trial is told of at the end
    }
    fixed, searched = _parse(config)
    space = {**config.get("search", {}), **(sweeper.params or {})}
    sweeper.params = {key: value for key, value in space.items() if key not in fixed}
    for key, value in settings.items():
        if f"hydra.sweeper.{key}" not in given:
            sweeper[key] = value
    if not sweeper.params and not searched:
        raise UserError(
            f"nothing to search for model={choices.model}; give an interval, as in 'model.x=interval(0.1,0.9)'"
        )
    if sweeper.storage is None:
        return
    if str(sweeper.storage).startswith(SQLITE):
        _hold(Path(str(sweeper.storage).removeprefix(SQLITE)))
    found = optuna.create_study(
        study_name=sweeper.study_name, storage=sweeper.storage, direction="maximize", load_if_exists=True
    )
    for group in ("data", "model"):
        found.set_user_attr(group, choices[group])
    trials = found.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished() and "cut off" not in trial.system_attrs]
    for trial in ended[-1:]:
        before = {key: str(value) for key, value in trial.user_attrs.items()}
        for key in sorted((before.keys() | fixed.keys()) - NO_MATTER):
            if before.get(key) != fixed.get(key):
                raise UserError(
                    f"the study {found.study_name} in {sweeper.storage} was made with {key}={before.get(key)}, not "
                    f"{fixed.get(key)}: its values do not compare; give another hydra.sweeper.study_name"
                )
    for trial in trials:
        if trial.state == optuna.trial.TrialState.RUNNING:  # of a process that is no more
            found._storage.set_trial_system_attr(trial._trial_id, "cut off", True)
            found.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if trial.params:
                found.enqueue_trial(trial.params)
    sweeper.n_trials = max(0, int(sweeper.n_trials) - len(ended))
    if "hydra.sweeper.sampler.seed" not in given and "seed" in sweeper.sampler:
        sweeper.sampler.seed = int(config.seed) + len(trials)  # else the first draws would be drawn again


def study_file(folder: Path, data: str, model: str) -> Path:
    """Where a pair's study lies."""
    return folder / f"{data}_{model}.db"


def release() -> None:
    """Lets other processes go on with the studies held."""
    while _held:
        _held.pop().release()


def _parse(config: DictConfig) -> tuple[dict[str, str], list[str]]:
    """The command line's overrides that do not vary (as the sweeper notes them with a trial), and the keys that do."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    fixed = {
        one.get_key_element(): str(one.get_value_element_as_str()) for one in parsed if not one.is_sweep_override()
    }
    return fixed, [one.get_key_element() for one in parsed if one.is_sweep_override()]


def _hold(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{file} is in use by another process; wait, or give another hydra.sweeper.storage") from None
    _held.append(lock)


def best(file: Path, name: str | None) -> Best:
    """The best trial of a study in SQLite.

    Args:
        file: as in ``studies/synthetic_gru4rec.db``.
        name: of the study, where ``file`` holds several.

    Raises:
        UserError: no such file or study, Optuna is not installed, or no trial is complete.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("Optuna is not installed: pip install 'arnn-lightning[optuna]'") from None

    if not file.is_file():
        raise UserError(f"no study {file}; one is made by -m hydra/sweeper=optuna")
    storage = f"{SQLITE}{file}"
    try:
        names = [one.study_name for one in optuna.get_all_study_summaries(storage)]
    except Exception as error:  # SQLAlchemy's and Optuna's own, of many kinds
        raise UserError(f"{file}: not a database of Optuna's ({type(error).__name__})") from error
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise UserError(f"{file} holds the studies {', '.join(names)}; choose one with study_name=")
    study = optuna.load_study(study_name=name, storage=storage)
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise UserError(f"{file}: no trial of {name} is complete")
    trial = study.best_trial
    return Best(
        data=study.user_attrs["data"],
        model=study.user_attrs["model"],
        value=float(study.best_value),
        trials=len(complete),
        overrides={**trial.user_attrs, **trial.params},
    )
