"""A run in Weights & Biases: one per job, whatever the number of its stages; offline unless the user is logged in.

Nothing here asks or waits: without an account, or where the server does not answer, the run is written to
``save_dir``/wandb, to be uploaded by ``wandb sync`` at any time. Console, source code, host and command line stay out.
"""

import logging
import re
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger(__name__)
ID_FILE = "wandb_id"
LONGEST_NAME = 120


class WandbRun(Logger):
    """Metrics with a step of their own for each stage, the whole config, tables and charts.

    Args:
        save_dir: the run's folder; its file ``wandb_id`` lets a resumed run go on under its id.
        project, entity, tags: as in ``wandb.init``.
        group: null: the multirun's folder.
        job_type: the model.
        name: null: ``title`` and what the command line says beside it.
        title: model, data set and seed.
        artifacts: whether the best checkpoint and the manifest are added at the end.
        answer_seconds, upload_seconds: how long the server is waited for at the start, and at the end.
    """

    def __init__(
        self,
        save_dir: str,
        project: str,
        entity: str | None,
        tags: Sequence[str],
        group: str | None,
        job_type: str,
        name: str | None,
        title: str,
        artifacts: bool,
        answer_seconds: float,
        upload_seconds: float,
    ) -> None:
        super().__init__()
        self.folder = Path(save_dir)
        self.artifacts = artifacts
        self.answer_seconds, self.upload_seconds = answer_seconds, upload_seconds
        multirun = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
        self._about: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "tags": list(tags),
            "group": group or (Path(HydraConfig.get().sweep.dir).name if multirun else None),
            "job_type": job_type,
            "name": name or title + _said_beside(),
        }
        self._run: Any = None
        self._steps: dict[str, float] = {}  # mini-batches of each stage, by prefix

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self._run.id) if self._run is not None else ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun when first asked for."""
        if self._run is None:
            self._run = self._begin()
            (self.folder / ID_FILE).write_text(self._run.id)
        return self._run

    def _begin(self) -> Any:
        import wandb

        known = wandb.setup().settings
        remembered = self.folder / ID_FILE
        # In a sweep of theirs it is told which run it is.
        run_id = known.run_id or (remembered.read_text() if remembered.is_file() else None)
        mode = known.mode
        if mode == "online" and not (_logged_in(known.base_url) and _answers(known.base_url, self.answer_seconds)):
            mode = known.mode = "offline"  # known: or wandb itself would ask the server who the user is, at the end
        about = {**self._about, "id": run_id, "resume": "allow" if run_id else None, "dir": str(self.folder)}
        try:
            return wandb.init(**about, settings=self._settings(mode))
        except (
            wandb.errors.CommError,
            wandb.errors.AuthenticationError,
            wandb.errors.UsageError,
            TimeoutError,
        ) as error:
            log.warning(f"Weights & Biases: {type(error).__name__}; the run stays offline")
            return wandb.init(**about, settings=self._settings("offline"))

    def _settings(self, mode: str) -> Any:
        import wandb

        return wandb.Settings(
            mode=mode,  # type: ignore[arg-type]
            console="off",
            silent=mode != "online",
            init_timeout=self.answer_seconds,
            finish_timeout=self.upload_seconds,
            symlink=False,
            disable_git=True,
            disable_code=True,
            save_code=False,
            program="arnn_lightning",
            host="",
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's whole config, ``params``; paths are shown from the current folder on, others by their last part."""
        if isinstance(params, dict):
            self.experiment.config.update(_without_folders(params), allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        for name in metrics:
            stage = name.removesuffix("steps")
            if name == f"{stage}steps" and stage in ("", f"{stage.rstrip('/')}/"):
                if stage not in self._steps:
                    self._define(stage)
                self._steps[stage] = values[name]
        for stage, steps in self._steps.items():  # a validation's line has none of its own
            own = any(name.startswith(stage) and (stage or name.count("/") == 1) for name in metrics)
            if own:
                values.setdefault(f"{stage}steps", steps)
        self.experiment.log(values)

    def _define(self, stage: str) -> None:
        """One axis for each stage: its own mini-batches."""
        run = self.experiment
        run.define_metric(f"{stage}steps", hidden=True)
        for kind in ("train", "val", "test"):
            summary = "max" if kind == "val" else None
            run.define_metric(f"{stage}{kind}/*", step_metric=f"{stage}steps", summary=summary)

    @rank_zero_only
    def log_groups(self, by: str, groups: Mapping[str, pl.DataFrame]) -> None:
        """Metrics by groups of predictions, as a table and as a chart for each metric.

        Args:
            by: what the groups go by, as ``position``.
            groups: model -> group, first (the smallest number in it), predictions, and the metrics.
        """
        import wandb

        rows = [[model, *row] for model, frame in groups.items() for row in frame.rows()]
        columns = next(iter(groups.values())).columns
        shown: dict[str, Any] = {f"test/by_{by}": wandb.Table(columns=["model", *columns], data=rows)}
        for metric in columns[3:]:  # after group, first and predictions
            shown[f"test/{metric}_by_{by}"] = wandb.plot.line_series(
                xs=[frame["first"].to_list() for frame in groups.values()],
                ys=[frame[metric].to_list() for frame in groups.values()],
                keys=list(groups),
                title=f"{metric} by {by.replace('_', ' ')}",
                xname=by.replace("_", " "),
            )
        self.experiment.log(shown)

    @rank_zero_only
    def log_files(self, model: str, checkpoint: Path, manifest: Path) -> None:
        """The checkpoint and the manifest as artifacts, where they are wanted."""
        import wandb

        if self.artifacts:
            for kind, file in (("model", checkpoint), ("data", manifest)):
                artifact = wandb.Artifact(f"{model}-{self.experiment.id}-{kind}", type=kind)
                artifact.add_file(str(file))
                self.experiment.log_artifact(artifact)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning's word at the end of every stage; the run goes on until ``finish``."""

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        """Ends the run; the next job of a multirun would go on in it otherwise."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None


def _logged_in(host: str) -> bool:
    """Whether wandb finds a key: in its settings, its environment variables or netrc."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        return authenticate_session(host=host, source="arnn", prompt=False, update_session=False) is not None
    except AuthenticationError as error:
        log.warning(f"Weights & Biases: {error}; the run stays offline")
        return False


def _answers(host: str, seconds: float) -> bool:
    """Whether anything answers there; asked before wandb does, since it would go on asking until the process ends."""
    try:
        urllib.request.urlopen(host, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        log.warning(f"Weights & Biases: no answer from {host}; the run stays offline")
        return False
    return True


def _said_beside() -> str:
    """What the command line says beside model, data set and seed, shortened."""
    if not HydraConfig.initialized():
        return ""
    said = [override.partition("=") for override in HydraConfig.get().overrides.task]
    apart = ("model", "data", "seed", "logger", "resume", "task", "paths.data")
    words = [f"{_short(key)}={_without_folders(value)}" for key, _, value in said if key not in apart]
    return " ".join(["", *words])[:LONGEST_NAME]


def _short(key: str) -> str:
    """The last word of a key, and the part of the model that it belongs to.

    >>> _short("model.optimizer.lr"), _short("model/loss@model.session.loss")
    ('lr', 'session.loss')
    """
    words = re.split(r"[./@]", key)
    return ".".join([*(word for word in words[:-1] if word in ("session", "context")), words[-1]])


def _without_folders(value: Any) -> Any:
    """A config without absolute paths.

    >>> _without_folders({"a": ["/home/me/x.csv", 3], "b": str(Path.cwd() / "data")})
    {'a': ['.../x.csv', 3], 'b': 'data'}
    """
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        path = Path(value)
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"
    return value
