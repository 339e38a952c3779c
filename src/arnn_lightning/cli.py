"""The command line: compose the config, check it, run the task; a user's error is one line and exit code 2."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from arnn_lightning import __version__
from arnn_lightning.config import (
    CONFIG_DIR_PROVIDER,
    USER_CONFIG_DIR,
    WITHOUT,
    check_settings,
    install_hint,
    no_key,
    unused_settings,
)
from arnn_lightning.errors import UserError, nearest, one_line
from arnn_lightning.evaluation.metrics import METRICS, is_of_lists, metric_names, parse_metric
from arnn_lightning.run_folder import (
    add_stored_overrides,
    as_override,
    multirun_folder,
    note_new_folders,
    own_multirun,
)
from arnn_lightning.sweeps.jobs import print_jobs
from arnn_lightning.sweeps.space import quote_spaces

log = logging.getLogger(__name__)
HYDRA_ERRORS = ("Only one of --", "The --resolve flag", "No completion plugin", "Invalid defaults list")  # ValueErrors
HELP = """\
arnn: does knowing who a visitor is improve the next recommendation of a session?

Trains ARNN and the models it is compared with (GRU4REC, PNN, POP, ItemKNN, SR, VSKNN) and reports Recall, MRR and their
confidence intervals. Everything is a setting: KEY=VALUE for a value, GROUP=NAME for a config of a group.

  arnn                                      train ARNN and its baselines on simulated data
  arnn model=gru4rec data=movielens_1m data.raw_dir=ml-1m
  arnn model=gru4rec model.hidden_size=200 model/optimizer=adam seed=2
  arnn -m model=gru4rec,arnn seed=1,2,3     run every combination
  arnn task=verdict data=movielens_1m       find out whether profiles help: yes, no or unclear
  arnn task=report runs=multirun            make a table and a page of many runs
  arnn data=tabular --cfg job               print every setting and its value; run nothing

Tasks (task=NAME, train if none is given) and their keys; arnn task=NAME --help describes them:

{tasks}

Groups and their configs (GROUP=NAME):

{groups}

Options: --cfg job (print the settings), -m (multirun), --version, --hydra-help (all options).
Completion of keys and values: eval "$(arnn -sc install=bash)", or zsh or fish.
YAML files in ./arnn_conf/GROUP are configs, too; modules in the current folder may be named by _target_.
"""


@hydra.main(version_base="1.3", config_path="pkg://arnn_lightning.conf", config_name="config")
def main_job(config: DictConfig) -> float | None:
    try:
        return run_task(config)
    except Exception as error:  # a defect is raised again
        if HydraConfig.get().mode is not RunMode.MULTIRUN:  # sweeps/jobs.py reports failed jobs
            _exit_on_user_error(error)
        raise


def run_task(config: DictConfig) -> float | None:
    """Checks the settings of one job, imports its task and calls it."""
    for line in check(config, HydraConfig.get()):
        log.warning(line)
    config.paths.data = str(Path(config.paths.data).expanduser().absolute())
    try:
        task = get_method(config.task._target_)
    except (ImportError, ValueError) as error:
        raise UserError(f"task._target_={config.task._target_}: {' '.join(str(error).split())}") from error
    objective: float | None = task(config)
    return objective


def check(config: DictConfig, job: Any) -> list[str]:
    """Checks the settings of one job; ``job`` is its ``hydra`` part.

    Returns:
        a line for every setting without an effect. A job of a multirun may have some, which other jobs use, and
        task=prepare, which may be added to a training command.

    Raises:
        UserError: a setting that is wrong; elsewhere, the first that has no effect.
    """
    _check_hydra(job)
    check_settings(config, job.overrides.task, job.runtime.choices)
    has_many_runs = job.mode is RunMode.MULTIRUN or job.runtime.choices["task"] in ("tune", "verdict")
    loggers = [str(logger.get("_target_")) for logger in config.logger.values()]
    if "WANDB_RUN_ID" in os.environ and has_many_runs and any(target.endswith("WandbLogger") for target in loggers):
        raise UserError("WANDB_RUN_ID: would merge all runs into one; unset it, or choose logger=csv")
    for key in config:
        is_replaced = key == "checkpoint" and config.get("lists") is not None  # of task=evaluate
        if OmegaConf.is_missing(config, key) and not is_replaced:
            raise UserError(f"{key!s} is required; set it on the command line")
    evaluation = config.evaluation
    reported = (config.get("report") or {}).get("metrics") or ()
    metric_names(evaluation.metrics, evaluation.cutoffs)
    if all(map(is_of_lists, evaluation.metrics)):
        raise UserError(
            f"evaluation.metrics=[{','.join(evaluation.metrics)}]: must contain one of {', '.join(METRICS)}"
        )
    for metric in (evaluation.monitor, *reported):
        parse_metric(metric)
    unused = unused_settings(config, job.overrides.task)
    if unused and job.mode is not RunMode.MULTIRUN and job.runtime.choices["task"] != "prepare":
        raise UserError(unused[0])
    return unused


def _check_hydra(job: Any) -> None:
    """Raises UserError for settings of Hydra with which the package cannot work."""
    if job.output_subdir is not None:
        raise UserError(
            f"hydra.output_subdir={job.output_subdir}: cannot be set; a run's settings must be in its .hydra"
        )
    if job.job.chdir:
        raise UserError("hydra.job.chdir=true: cannot be set; relative paths refer to the folder of the command")
    log_file = OmegaConf.select(job, "job_logging.handlers.file")
    if log_file is not None and "class" not in log_file:  # it has only the keys that config.yaml adds
        raise UserError(
            f"hydra/job_logging={job.runtime.choices['hydra/job_logging']}: has no log file; choose default "
            "(to log to the console only, add hydra.job_logging.root.handlers=[console])"
        )


class CheckSettings(Callback):
    """Checks the settings before Hydra makes the run's folder, or writes into one that exists."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check(config, config.hydra)
            if config.hydra.mode is RunMode.MULTIRUN:
                own_multirun(config)
            else:
                HydraConfig.instance().set_config(config)  # as Hydra does next: the folder's name refers to it
                note_new_folders(Path(config.hydra.run.dir).absolute())
        except Exception as error:  # Hydra turns a callback's exceptions into warnings
            _exit_on_user_error(error)
            raise

    on_multirun_start = on_run_start


class UserConfigSearchPath(SearchPathPlugin):
    """``--config-dir``, and ``arnn_conf`` where a run starts, take precedence over the package's configs, file by file.

    Registered by hand: Hydra does not find plugins of packages that are installed in place.
    """

    config_dir: Path | None = None  # of --config-dir, which Hydra itself puts behind the package's configs

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Also where it is missing: task=tune creates it.
        search_path.prepend("user", f"file://{USER_CONFIG_DIR.absolute()}", anchor="main")
        if self.config_dir is not None:
            search_path.prepend(CONFIG_DIR_PROVIDER, f"file://{self.config_dir.absolute()}", anchor="user")


def main() -> None:
    """Entry point of ``python -m arnn_lightning`` and ``arnn``."""
    for name, stream in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # closed, as by >&-: the next file opened would get its number, and its output
            null = os.open(os.devnull, os.O_RDWR)
            if null != stream:
                os.dup2(null, stream)
            setattr(sys, name, os.fdopen(stream, "r" if stream == 0 else "w", encoding="utf-8"))
    try:
        try:
            _main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        try:
            sys.stdout.write("\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has what it wanted, as in "arnn --help | head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        raise  # of another pipe or socket


def _main(arguments: Sequence[str]) -> None:
    if "--version" in arguments:
        sys.stdout.write(f"arnn-lightning {__version__}\n")
        return
    if Path(sys.argv[0]).name == "__main__.py":
        sys.argv[0] = "arnn"  # the name in usage and help
    if not {"", str(Path.cwd())} & set(sys.path):  # a console script starts without the current folder
        sys.path.append(str(Path.cwd()))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them, over several lines
    Plugins.instance().register(UserConfigSearchPath)
    try:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(help_page(arguments))
            return
        sys.argv[1:] = add_stored_overrides(quote_spaces(_options_first([*map(_expand_home, arguments)])))
        main_job()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenExecutor:  # of a parallel launcher, which ends all its processes then, and calls no callback
        print_jobs(multirun_folder())
        sys.stderr.write(
            "error: a process of this multirun was killed, possibly out of memory; resume with the same command plus "
            f"resume=true {shlex.quote(as_override('hydra.sweep.dir', multirun_folder()))}\n"
        )
        sys.exit(1)
    except Exception as error:  # a defect is raised again
        _exit_on_user_error(error)
        raise


def _expand_home(argument: str) -> str:
    """Replaces ~ at the start of every path of an override, as a shell does not: ``data.events=[~/a.csv,~/b.csv]``."""
    return re.sub(r"""(?<=[=,\[\s"'])~(?=/)""", lambda _: str(Path.home()), argument) if "=" in argument else argument


def _options_first(arguments: Sequence[str]) -> list[str]:
    """Options, then overrides: Hydra accepts overrides in one block only, as in ``model=pop -m seed=1,2``."""
    parsed = get_args_parser().parse_intermixed_args(list(arguments))
    if parsed.experimental_rerun is not None:
        raise UserError("--experimental-rerun: is not supported; add resume=true hydra.run.dir=FOLDER instead")
    UserConfigSearchPath.config_dir = Path(parsed.config_dir) if parsed.config_dir is not None else None
    options = list(arguments)
    for override in parsed.overrides:
        options.remove(override)
    return [*options, *parsed.overrides]


def help_page(arguments: Sequence[str]) -> str:
    """The text of ``--help``: of one task where ``arguments`` have it, with the comments of its YAML."""
    groups: dict[str, dict[str, str]] = {}
    for root in (resources.files("arnn_lightning.conf"), USER_CONFIG_DIR):
        for file in sorted(Path(str(root)).rglob("*.yaml")):
            group = file.parent.relative_to(str(root)).as_posix()
            if not file.name.startswith("_") and group not in (".", "paper", "published", "search", "tuned"):
                groups.setdefault(group, {})[file.stem] = file.read_text(encoding="utf-8", errors="replace")
    tasks = {name: _task_lines(text) for name, text in groups.pop("task").items()}
    chosen = [argument.removeprefix("task=") for argument in arguments if argument.startswith("task=")]
    if chosen and chosen[-1] not in tasks:
        raise UserError(f"no task {chosen[-1]}{nearest(chosen[-1], tasks)}; arnn --help lists all")
    if chosen:
        lines = tasks[chosen[-1]]
        more = f"arnn task={chosen[-1]} --cfg job prints every setting, arnn --help lists all tasks."
        return "\n".join([f"arnn task={chosen[-1]}", "", *lines, "", more, ""])
    keys = {name: [line.partition(":")[0] for line in lines if line[:1].isalpha()] for name, lines in tasks.items()}
    return HELP.replace("{tasks}", "\n".join(f"  {name}: {', '.join(keys[name]) or '-'}" for name in tasks)).replace(
        "{groups}", "\n".join(f"  {group}: {', '.join(sorted(names))}" for group, names in sorted(groups.items()))
    )


def _unusable_yaml(kind: type[Exception]) -> Path | None:
    """The first YAML of the user that cannot be read: UnicodeDecodeError, or that is a plain value: OSError."""
    folders = filter(None, (UserConfigSearchPath.config_dir, USER_CONFIG_DIR))
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        try:
            OmegaConf.load(file)
        except kind:
            return file
        except (OSError, UnicodeDecodeError, YAMLError):
            continue
    return None


def _task_lines(text: str) -> list[str]:
    """The lines of a task's YAML but its _target_ and what it sets of Hydra."""
    lines, skip = [], False
    for line in text.splitlines():
        skip = line.startswith(("task:", "hydra:", "defaults:", "# @package")) or (skip and line[:1] in (" ", "-"))
        if not skip:
            lines.append(line)
    return lines


def _exit_on_user_error(error: Exception) -> None:
    """Prints a user's error in one line and exits; returns where ``error`` is a defect."""
    message = one_line(error) or composition_error(error)
    if message is not None:
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)


def composition_error(error: Exception) -> str | None:
    """Hydra's error about the command line or a YAML in one line; None for any other error."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options or [] if not option.startswith("_")]
        if not group:  # of --config-name or --config-path
            return f"no config {name}.yaml; to add configs, put them into GROUP folders of --config-dir"
        hint = (
            install_hint(name)
            or nearest(name, options)
            or (
                f"; choose one of {', '.join(options)}, or add {USER_CONFIG_DIR}/{group}/{name}.yaml" if options else ""
            )
        )
        return f"no {group} {name}{hint}"
    if isinstance(error, OverrideParseException):
        if re.search(r"=\s*choice\(.*\bnull\b", override := str(error.override)):
            return f"{override}: choice takes no null; list the values, as in {override.partition('=')[0]}=null,1"
        reason = "must be KEY=VALUE or GROUP=NAME" if "=" not in error.override else "the value cannot be parsed"
        return f"{error.override}: {reason}; quote special characters, as in 'key=\"a=b, c\"'"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}: line {mark.line + 1} is not valid YAML: {error.problem}"
    if isinstance(error, UnicodeDecodeError) and (file := _unusable_yaml(UnicodeDecodeError)) is not None:
        return f"{file}: not UTF-8 text; save it in this encoding"
    if str(error).startswith("Invalid loaded object type") and (file := _unusable_yaml(OSError)) is not None:
        return f"{file}: must be a mapping"
    cause = error.__cause__
    if isinstance(error, CompactHydraException) and isinstance(cause, OmegaConfBaseException):
        if "not in struct" in str(cause) and isinstance(cause.parent_node, DictConfig):
            root: Any = cause.parent_node._get_root()
            return str(no_key(str(cause.full_key), root))
        if "Cannot merge DictConfig with" in str(cause):
            override = str(error).removeprefix("Error merging override ").rstrip(".")
            key = override.partition("=")[0]
            return f"{override}: must be a mapping; set its keys, as in {key}.KEY=VALUE{WITHOUT.get(key, '')}"
        return " ".join(f"{error}: {cause.msg or cause}".split())
    if isinstance(error, CompactHydraException):
        message = re.split(r" See https| To append to", " ".join(str(error).split()))[0]
        if present := re.match(r"Could not append to config\. An item is already at '([^']+)'", message):
            return f"+{present[1]}: leave out the +"
        if required := re.match(r"Error resolving interpolation '\$\{(\w+)\}'", message):
            return f"{required[1]} is required; choose one with {required[1]}=NAME"
        return message.replace("No match in the defaults list.", "The chosen configs have no such group.")
    if isinstance(error, ValueError) and str(error).startswith(HYDRA_ERRORS):
        return " ".join(str(error).split())
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "a config group cannot be null or a number; name one of its configs, such as none (logger=none)"
    return None
