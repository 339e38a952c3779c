"""Weights & Biases: one run per job, whatever the number of its stages; offline unless the user is logged in.

Nothing here prompts or waits: without an account, or where the server is not reachable, the run is written to
``save_dir``/wandb, and ``wandb sync`` uploads it at any time. Console, source code, host and command line stay out.
"""

import logging
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger

from arnn_lightning.errors import UserError
from arnn_lightning.io import write_text

log = logging.getLogger(__name__)
ID_FILE = "wandb_id"
MAX_NAME_LENGTH = 120
# The folders of an absolute path within an override, up to the last slash: within quotes it may contain any character.
ABSOLUTE = r"(?!(?<=:)//)(?=/[^\s]|~[^\s/]*/|file:/|[A-Za-z]:[\\/])"
START = r"""(?<![^\s,:=\[\](){}'"])"""  # of a value
FOLDERS = re.compile(
    rf"""(?<='){ABSOLUTE}(\\.|[^'\\])*[\\/]|(?<="){ABSOLUTE}(\\.|[^"\\])*[\\/]"""
    rf"""|(?<![^\s,:=\[\](){{}}]){ABSOLUTE}(\\.|[^,\[\](){{}}'"\\])*[\\/]"""
)
# Nothing of the machine and of the source leaves it.
PRIVATE = {"console": "off", "symlink": False, "disable_git": True, "disable_code": True, "save_code": False}
PRIVATE |= {"program": "arnn_lightning", "host": "", "x_disable_meta": True, "x_disable_machine_info": True}
PRIVATE |= {"x_save_requirements": False}


class WandbLogger(LightningWandbLogger):
    """Lightning's WandbLogger with a step axis per stage and the run's whole config; ``finalize`` ends the run.

    Args:
        save_dir: the run's folder; its file ``wandb_id`` contains the id under which a resumed run continues.
        project, entity, tags: as in ``wandb.init``.
        group: null: the multirun's folder.
        job_type: the model.
        name: null: ``title`` and the command line's other overrides.
        title: model, data set and seed.
        artifacts: whether the best checkpoint and the manifest are added at the end.
        connect_timeout_s, upload_timeout_s: seconds to wait for the server at the start, and for uploads at the end.
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
        connect_timeout_s: float,
        upload_timeout_s: float,
    ) -> None:
        if isinstance(tags, str) or not isinstance(tags, Sequence):
            raise UserError("logger.wandb.tags: must be a list, as in [baseline]")
        is_multirun = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
        super().__init__(
            name=name or f"{title} {override_summary()}".rstrip()[:MAX_NAME_LENGTH],
            save_dir=save_dir,
            project=project,
            entity=entity,
            tags=list(map(str, tags)),
            group=group or (Path(HydraConfig.get().sweep.dir).name if is_multirun else None),
            job_type=job_type,
        )
        self._wandb_init.pop("anonymous", None)  # has no effect any more, and wandb warns of it
        self.artifacts = artifacts
        self.timeouts = {"init_timeout": connect_timeout_s, "finish_timeout": upload_timeout_s}
        self._steps: dict[str, float] = {}  # mini-batches of each stage, by prefix

    @property
    def experiment(self) -> Any:
        """The run, started at the first access."""
        if self._experiment is None:
            self._experiment = self._init_run()
            write_text(Path(self._wandb_init["dir"]) / ID_FILE, self._experiment.id)
        return self._experiment

    def _init_run(self) -> Any:
        import wandb

        settings = wandb.setup().settings
        id_file = Path(self._wandb_init["dir"]) / ID_FILE
        # A W&B sweep's agent sets the id.
        run_id = settings.run_id or (id_file.read_text() if id_file.is_file() else None)
        if settings.mode == "online" and not (
            is_logged_in(settings.base_url) and is_reachable(settings.base_url, self.timeouts["init_timeout"])
        ):
            settings.mode = "offline"  # of the process: otherwise wandb contacts the server at the end
        options = self._wandb_init | {"id": run_id, "resume": "allow" if run_id else None}
        errors = wandb.errors
        try:
            return wandb.init(**options, settings=self._settings(settings.mode))
        except (errors.CommError, errors.AuthenticationError, errors.UsageError, TimeoutError) as error:
            log.warning(f"Weights & Biases: {type(error).__name__}; logging offline")
            return wandb.init(**options, settings=self._settings("offline"))

    def _settings(self, mode: str) -> Any:
        import wandb

        return wandb.Settings(mode=mode, silent=mode != "online", **self.timeouts, **PRIVATE)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config; paths below the current folder become relative, of others the last part is kept."""
        self.experiment.config.update(relative_paths(params), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        for name in metrics:
            if name == "steps" or name.endswith("/steps"):
                stage = name.removesuffix("steps")
                if stage not in self._steps:
                    self._define_axes(stage)
                self._steps[stage] = values[name]
        for stage, steps in self._steps.items():  # validation logs no steps
            if any(name.startswith(stage) and (stage or name.count("/") == 1) for name in metrics):
                values.setdefault(f"{stage}steps", steps)
        self.experiment.log(values)

    def _define_axes(self, stage: str) -> None:
        """The x axis of a stage's metrics: its mini-batches."""
        run = self.experiment
        run.define_metric(f"{stage}steps", hidden=True)
        for kind in ("train", "val", "test"):
            summary = "max" if kind == "val" else None
            run.define_metric(f"{stage}{kind}/*", step_metric=f"{stage}steps", summary=summary)

    def log_tables(self, tables: Mapping[str, pl.DataFrame]) -> None:
        """Every table, and a chart of each metric by group.

        Args:
            tables: by name; one of groups has a column ``group``, and a column NAME_gap for each metric NAME.
        """
        import wandb

        charts: dict[str, Any] = {}
        for key, table in tables.items():
            charts[key] = wandb.Table(columns=list[str | int](table.columns), data=[list(row) for row in table.rows()])
            by = key.rpartition("by_")[2]
            parts = table.partition_by("model", as_dict=True) if "model" in table.columns else {("gain",): table}
            for metric in (name.removesuffix("_gap") for name in table.columns if name.endswith("_gap")):
                # Groups are in their order; the axis has the number of the group, the table its name.
                charts[f"{key.replace('by_', f'{metric}_by_')}"] = wandb.plot.line_series(
                    xs=[list(range(1, len(part) + 1)) for part in parts.values()],
                    ys=[part[metric].to_list() for part in parts.values()],
                    keys=[str(name) for (name,) in parts],
                    title=f"{metric} by {by.replace('_', ' ')}",
                    xname=f"{by.replace('_', ' ')}: number of the group",
                )
        self.experiment.log(charts)

    def log_files(self, model: str, checkpoint: Path, manifest: Path) -> None:
        """Logs the checkpoint and the manifest as artifacts where ``artifacts`` is set."""
        import wandb

        for kind, file in (("model", checkpoint), ("data", manifest)) if self.artifacts else ():
            artifact = wandb.Artifact(f"{model}-{self.experiment.id}-{kind}", type=kind)
            artifact.add_file(str(file))
            self.experiment.log_artifact(artifact)

    def finalize(self, status: str) -> None:
        """Ends the run; the next job of a multirun would continue it otherwise."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None


def is_logged_in(host: str) -> bool:
    """Whether wandb finds a key: in its settings, its environment variables or netrc."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        return authenticate_session(host=host, source="arnn", prompt=False, update_session=False) is not None
    except AuthenticationError as error:
        log.warning(f"Weights & Biases: {error}; logging offline")
        return False


def is_reachable(host: str, timeout_s: float) -> bool:
    """Whether a server responds; checked beforehand, since wandb would retry until the process ends."""
    try:
        urllib.request.urlopen(host, timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        log.warning(f"Weights & Biases: {host} is not reachable; logging offline")
        return False
    return True


def override_summary() -> str:
    """The command line's overrides except model, data set and seed, shortened."""
    if not HydraConfig.initialized():
        return ""
    excluded = ("model", "data", "seed", "logger", "resume", "task", "paths.data")
    shown = []
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+").partition("=")
        if key not in excluded:
            shown.append(f"~{short_key(key)}" if key[0] == "~" else f"{short_key(key)}={without_folders(value)}")
    return " ".join(shown)


def short_key(key: str) -> str:
    """The last part of a key, and the encoder that it belongs to.

    >>> short_key("model.optimizer.lr"), short_key("model/loss@model.session.loss")
    ('lr', 'session.loss')
    """
    parts = re.split(r"[./@]", key)
    return ".".join([*(part for part in parts[:-1] if part in ("session", "context")), parts[-1]])


def relative_paths(value: Any) -> Any:
    """A config without absolute paths.

    >>> relative_paths({"a": ["/home/me/x.csv", 3], "b": str(Path.cwd() / "data")})
    {'a': ['.../x.csv', 3], 'b': 'data'}
    """
    if isinstance(value, dict):
        return {key: relative_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [relative_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        path, here = Path(value), Path.cwd()
        is_below = path.is_relative_to(here) and here != Path("/")
        return str(path.relative_to(here)) if is_below else f".../{path.name}"
    return without_folders(value) if isinstance(value, str) else value


def without_folders(text: str) -> str:
    """The value of an override without the folders of its absolute paths.

    >>> print(without_folders("{x: [/home/me/a.csv,'/a, b/c.csv',~/d.csv], y: file:///home/me/e, z: https://me/x/y}"))
    {x: [.../a.csv,'.../c.csv',.../d.csv], y: .../e, z: https://me/x/y}
    """
    if (here := Path.cwd()) != Path("/"):
        text = re.sub(START + re.escape(f"{here}/"), "", text)
    return FOLDERS.sub(".../", text)
