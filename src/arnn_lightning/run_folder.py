"""Run folders: a lock gives each to one process; settings are recorded once, and a resumed run takes the recorded ones.

Hydra's own record (``hydra.output_subdir``) is turned off, since Hydra writes it before a task can refuse a folder.
"""

import math
import os
import platform
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from arnn_lightning.errors import UserError, nearest_file
from arnn_lightning.io import write_text

RECORD = ".hydra"  # Hydra's name for it, and its files: config.yaml, hydra.yaml, overrides.yaml
LOCK = ".lock"
# Without these keys a file of the record is damaged.
STORED_KEYS = {"config": ("task._target_",), "hydra": ("hydra.runtime.choices",), "overrides": ()}
MULTIRUN = "multirun.yaml"  # Hydra's record of a multirun
# Keys that are read, and the last of the file: without it, Hydra was interrupted while it wrote.
MULTIRUN_KEYS = ("hydra.overrides.task", "hydra.overrides.hydra", "hydra.sweep", "hydra.job.config", "hydra.verbose")
DAMAGED = "missing or damaged; start a new run in another folder"
BEST_OF_RUN = Path("checkpoints", "best.ckpt")
METRICS_FILE = "metrics.json"  # written last: where it exists, the run is finished
# What cannot change a result (E27): speed, output, and where files are. Not threads and compile, with which sums are
# rounded otherwise, nor steps_per_execution: a checkpoint's position in the epoch is counted in chunks.
MAY_DIFFER = (
    *("resume", "logger", "paths", "published", "search", "trusted_modules", "checkpoint.every_n_minutes"),
    *("performance.cache_mb", "evaluation.batch_size", "evaluation.bootstrap"),
    *("trainer.log_every_n_steps", "trainer.enable_model_summary"),
    *(f"data.{key}" for key in ("raw_dir", "events", "users", "titles")),
    *(f"data.reader.{key}" for key in ("raw_dir", "events", "users", "titles")),
)
HINTS = {"checkpoint.users": "; to share the model without users, export it (task=export)"}  # where a setting differs
START_HINT = "; leave out resume=true to start one there"
MAY_GROW = re.compile(r"model(\.\w+)*\.epochs|trainer\.max_epochs")
_multirun_lock: FileLock | None = None  # of this process, until it ends
_new_folders: list[Path] = []  # that did not exist when this process started, the innermost first


def note_new_folders(folder: Path) -> None:
    """Notes which folders Hydra is going to make for ``folder``: a command that is refused leaves none of them."""
    _new_folders[:] = [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Owns ``folder`` inside the context; one that got nothing but a log file is removed at its end.

    Raises:
        UserError: another process owns it.
    """
    lock = _acquire(folder, "hydra.run.dir")
    _write_owner(lock)
    try:
        yield
    finally:
        files = list(folder.iterdir()) if folder.is_dir() else []
        if all(file.name == LOCK or file.suffix == ".log" for file in files):
            _remove(folder, files)
        else:
            _write_owner(lock, "")
        lock.release()


def _remove(folder: Path, files: Sequence[Path]) -> None:
    """Removes a folder with its files (lock and log, whose lines are on the console), and folders made for it alone."""
    with suppress(OSError):  # not empty
        for file in files:
            file.unlink()
        folder.rmdir()
        for parent in _new_folders:
            if parent in folder.absolute().parents:
                parent.rmdir()


def _acquire(folder: Path, key: str) -> FileLock:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = Path(lock.lock_file).read_text(errors="replace") or "another process"
        raise UserError(f"{folder} is in use by {owner}; use another {key}") from error
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error
    return lock


def _write_owner(lock: FileLock, owner: str | None = None) -> None:
    """Names the owner (default: this process) in the lock file, for errors of other processes.

    In place: a new file would not have the lock.
    """
    with suppress(OSError):  # a disk that is full; Windows
        Path(lock.lock_file).write_text(f"process {os.getpid()} on {platform.node()}" if owner is None else owner)


@contextmanager
def task_folder(config: DictConfig) -> Iterator[Path]:
    """The run folder of a task, owned inside the context; its settings are recorded where the task succeeds.

    Raises:
        UserError: another process owns the folder, or it contains a run of another task.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    with locked(folder):
        require_same_task(config, folder)
        yield folder
        write_record(config, folder)


def require_same_task(config: DictConfig, folder: Path) -> None:
    """Raises UserError where ``folder`` contains a run of another task."""
    if has_record(folder) and (task := stored_config(folder).task._target_) != config.task._target_:
        raise UserError(f"{folder} contains a run of task={task.split('.')[-2]}; use another hydra.run.dir")


def has_record(folder: Path) -> bool:
    """Whether ``folder`` is a run's."""
    return (folder / RECORD / "config.yaml").is_file()


def write_record(config: DictConfig, folder: Path) -> None:
    """Writes the settings of a run: its command line, Hydra's settings and, last, its config."""
    hydra = HydraConfig.get()
    overrides = [override.input_line for key, override in _by_key(hydra.overrides.task).items() if key != "resume"]
    write_text(folder / RECORD / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
    write_text(folder / RECORD / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    write_text(folder / RECORD / "config.yaml", OmegaConf.to_yaml(config))


def stored_config(folder: Path, name: str = "config") -> Any:
    """A file of the record.

    Raises:
        UserError: it is missing or damaged.
    """
    return _load(folder / RECORD / f"{name}.yaml", *STORED_KEYS[name])


def _load(file: Path, *keys: str) -> Any:
    """A YAML file with ``keys``, or with a list where there are none; an empty file is an empty mapping."""
    try:
        content = OmegaConf.load(file)
        is_whole = all(OmegaConf.select(content, key) is not None for key in keys)
    except (OSError, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {DAMAGED}") from error
    if not is_whole or (not keys and not OmegaConf.is_list(content)):
        raise UserError(f"{file}: {DAMAGED}")
    return content


def add_stored_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line of ``resume=true`` with the overrides that the run was started with.

    Those given again replace the stored ones in their places: their order is that of the jobs of a multirun.

    Raises:
        UserError: no folder is given, or it contains no run.
    """
    overrides = get_args_parser().parse_args(list(arguments)).overrides
    given = _by_key(overrides)
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
        stored = _stored_multirun(_load(folder / MULTIRUN, *MULTIRUN_KEYS).hydra, given)
    else:
        if not has_record(folder):
            instead = shlex.quote(as_override("hydra.sweep.dir", folder))
            hint = f" but a multirun: add {instead} instead" if (folder / MULTIRUN).is_file() else START_HINT
            raise UserError(f"resume=true: {folder} contains no run{hint}")
        stored = list(stored_config(folder, "overrides"))
        choices = stored_config(folder, "hydra").hydra.runtime.choices
        for key in given.keys() & choices.keys():  # another data set or model may not even compose with the rest
            _require_equal(key, choices[key], given[key].value(), folder)
    return [*options, *(str(override.input_line) for override in (_by_key(stored) | given).values())]


def _stored_multirun(hydra: DictConfig, given: Mapping[str, Override]) -> list[str]:
    """The overrides of a multirun, those of Hydra included: launcher, sweeper and the names of the jobs' folders."""
    overrides = _as_written(hydra.overrides)
    stored = [*overrides["task"], *(text for text in overrides["hydra"] if not text.startswith("hydra.mode="))]
    if "override_dirname" in str(_as_written(hydra.sweep)["subdir"]):  # without what is new
        names = hydra.job.config.override_dirname.exclude_keys
        new = [key for key in given if not key.startswith("hydra") and key not in _by_key(stored)]
        keys = ",".join(dict.fromkeys([*names, "resume", *new]))
        stored.append(f"hydra.job.config.override_dirname.exclude_keys=[{keys}]")
    return stored


def _as_written(node: Any) -> Any:
    """Plain values, interpolations unresolved: most are of a job."""
    return OmegaConf.to_container(node)


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
    given = _by_key(sorted({*HydraConfig.get().overrides.task} - {*stored_config(folder, "overrides")}))
    for key in MAY_DIFFER:
        node = OmegaConf.select(now, key, throw_on_missing=False)
        if node is not None or key in given:
            OmegaConf.update(stored, key, node, merge=False, force_add=True)
    grown = False
    for key in given:
        if any(key in names for names in choices.values()):
            before, after = (names.get(key) for names in choices.values())
        else:
            before, after = _value(stored, key), _value(now, key)
        if not MAY_GROW.fullmatch(key):
            _require_equal(key, before, after, folder)
        elif before != after:
            _require_growth(key, before, after, folder)
            OmegaConf.update(stored, key, after, force_add=True)
            grown = True
    merged = OmegaConf.merge(now, stored)  # a setting that is newer than the record keeps its default
    assert isinstance(merged, DictConfig)
    OmegaConf.set_struct(merged, True)
    return merged, grown


def require_same_settings(config: DictConfig, folder: Path, may_differ: Sequence[str]) -> None:
    """Raises UserError where a setting of the command line, of now or of then, differs from the stored one.

    Args:
        config: of the task.
        folder: of the task, with a record.
        may_differ: keys that may differ, in addition to ``MAY_DIFFER``.
    """
    stored = stored_config(folder)
    hydra = HydraConfig.get()
    then, now = dict(stored_config(folder, "hydra").hydra.runtime.choices), dict(hydra.runtime.choices)
    for key in _by_key([*stored_config(folder, "overrides"), *hydra.overrides.task]):
        if key in may_differ:
            continue
        if key in then or key in now:
            _require_equal(key, then.get(key), now.get(key), folder)
        else:
            _require_equal(key, _value(stored, key), _value(config, key), folder)


def require_equal_config(config: DictConfig, folder: Path, unset: Sequence[str] = ()) -> None:
    """Raises UserError where any setting differs from the stored one, also one of a tuned file or of your own YAML.

    Args:
        config: of a run that is compared with that of ``folder``.
        folder: of a run.
        unset: keys that are set later, and are not compared.
    """
    before, after = (dict(_flat(container)) for container in (stored_config(folder), config))
    for key in after:
        is_compared = key in before and not any(f"{key}.".startswith(f"{other}.") for other in unset)
        if is_compared and before[key] != after[key] and not _may_differ(key):
            new = shlex.quote(as_override("hydra.run.dir", f"{os.path.relpath(folder.parent)}-2"))
            raise UserError(
                f"{key}: {folder} was trained with {_show(before[key])}, and a file of tuned values or of arnn_conf "
                f"now sets {_show(after[key])}; use a new folder, such as {new}"
            )


def _flat(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Keys with their values, which are not resolved."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, node

    return walk(OmegaConf.to_container(config, resolve=False), "")


def own_multirun(config: DictConfig) -> None:
    """Owns the folder of a multirun until the process ends, before Hydra writes into it.

    Raises:
        UserError: another process owns it; it contains a multirun and ``resume`` is false, or settings differ.
    """
    global _multirun_lock
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(folder, "hydra.sweep.dir")
    try:
        _require_new_or_resumed_multirun(config, folder)
    except UserError:
        lock.release()
        raise
    _write_owner(lock)
    _multirun_lock = lock


def _require_new_or_resumed_multirun(config: DictConfig, folder: Path) -> None:
    record = folder / MULTIRUN
    if not record.is_file():
        return
    if not config.resume:
        raise UserError(f"{folder} contains a multirun: pass resume=true to resume it, or use another folder")
    hydra = _load(record, *MULTIRUN_KEYS).hydra
    before, after = (_as_written(node.sweep)["subdir"] for node in (hydra, config.hydra))
    _require_equal("hydra.sweep.subdir", before, after, folder)
    stored, given = (_by_key(_as_written(node.overrides)["task"]) for node in (hydra, config.hydra))
    for key, override in given.items():
        before = _text(stored[key]) if key in stored else "its default"
        after = _text(override)
        if not MAY_GROW.fullmatch(key):
            _require_equal(key, before, after, folder)
        elif key in stored:
            _require_growth(key, stored[key].value(), override.value(), folder)


def as_override(key: str, value: str | Path) -> str:
    """KEY=VALUE, quoted where Hydra would not read the same text; for a shell, add ``shlex.quote``.

    >>> print(as_override("hydra.run.dir", "runs/1"), as_override("hydra.run.dir", "my runs/a,b"))
    hydra.run.dir=runs/1 hydra.run.dir="my runs/a,b"
    >>> print(as_override("hydra.run.dir", "20261129_103200"))
    hydra.run.dir="20261129_103200"
    """
    text = str(value)
    plain = f"{key}={text}"
    parsed = _by_key([plain]).get(key) if re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII) else None
    if parsed is not None and parsed.value() == text:
        return plain
    # In quotes, backslashes are doubled before a quote and at the end only.
    return f'{key}="' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text) + '"'


def multirun_folder() -> Path:
    """The folder of this process's multirun."""
    assert _multirun_lock is not None
    return Path(_multirun_lock.lock_file).parent


def require_new_or_resumed(config: DictConfig, folder: Path) -> None:
    """Raises UserError where a new run would write into the folder of another, or there is no run to resume."""
    if config.resume:
        if not has_record(folder) and HydraConfig.get().mode is not RunMode.MULTIRUN:  # a job may not have started
            raise UserError(f"resume=true: {folder} contains no run{START_HINT}")
        return
    require_new(folder)


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


def _by_key(overrides: Sequence[str]) -> dict[str, Override]:
    """Overrides by key, the last of each; empty where one cannot be parsed, which is Hydra's to report."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException:
        return {}
    return {override.get_key_element().lstrip("+~"): override for override in parsed}


def _text(override: Override) -> str:
    """The value as it was written: a sweep has no other text."""
    return str(override.input_line).partition("=")[2]


def _may_differ(key: str) -> bool:
    return any(f"{key}.".startswith(f"{other}.") for other in MAY_DIFFER)


def _require_equal(key: str, before: Any, after: Any, folder: Path) -> None:
    if before != after and not _may_differ(key):
        raise UserError(
            f"{key}={_show(after)}: {folder} was started with {_show(before)}; resume it with that value, or use "
            f"another folder{HINTS.get(key, '')}"
        )


def _require_growth(key: str, before: Any, after: Any, folder: Path) -> None:
    if all(epochs is None or isinstance(epochs, int) for epochs in (before, after)):
        limits = [math.inf if epochs is None else epochs for epochs in (before, after)]
        if limits[1] < limits[0]:
            raise UserError(
                f"{key}={_show(after)}: {folder} has {_show(before)}; a resumed run may train longer, not shorter"
            )


def _value(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key, throw_on_missing=False)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def checkpoint_file(path: str | Path) -> Path:
    """A checkpoint itself, or the best one of a run folder or of its folder of checkpoints.

    Raises:
        UserError: there is none; names the newest run folders below ``path``, as of a multirun or a verdict.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}{nearest_file(path)} (runs save theirs to RUN/{BEST_OF_RUN})")
    for best in (path / BEST_OF_RUN, path / BEST_OF_RUN.name):
        if best.is_file():
            return best
    below = [file for depth in range(1, 6) for file in path.glob("*/" * depth + str(BEST_OF_RUN))]
    below.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    if not below:
        raise UserError(f"no checkpoint at {path / BEST_OF_RUN} (runs save theirs to RUN/{BEST_OF_RUN})")
    runs = [str(file.parents[1]) for file in below[:5]] + ["..."] * (len(below) > 5)
    count = "1 run" if len(below) == 1 else f"{len(below)} runs"
    raise UserError(f"{path} is a folder of {count}, not a run or a checkpoint; choose one: {', '.join(runs)}")
