"""task=report: run folders -> the results table as Markdown and CSV, and one HTML page."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.errors import UserError, nearest
from arnn_lightning.evaluation.metrics import LIST_METRICS, metric_names, parse_metric
from arnn_lightning.preprocessing.contexts import field_names
from arnn_lightning.reporting.comparison import Settings, counted
from arnn_lightning.reporting.console import rich_table
from arnn_lightning.reporting.runs import NO_TRAINING, Run, SkippedRun, find_run_dirs, load_data_sets, load_run
from arnn_lightning.reporting.sections import build_report
from arnn_lightning.run_folder import task_folder

MAX_METRICS = 4  # side by side in one chart


def run(config: DictConfig) -> None:
    """Writes table2.md, table2.csv and report.html into the task's run folder.

    Raises:
        UserError: no run folder at ``runs``, none that is finished, or invalid metrics.
    """
    settings = _settings(config)
    patterns = config.runs if OmegaConf.is_list(config.runs) else [config.runs]
    run_dirs = find_run_dirs(list(map(str, patterns)))
    data_sets, skipped = load_data_sets(Path(config.paths.data), run_dirs)
    loaded = [load_run(folder, data_sets) for folder in run_dirs]
    runs = [run for run in loaded if isinstance(run, Run)]
    parents = {parent for folder in run_dirs for parent in folder.parents}
    unfinished = [  # without folders of tasks whose runs they contain, such as task=verdict
        run
        for run in loaded
        if isinstance(run, SkippedRun) and not (run.folder in parents and run.reason == NO_TRAINING)
    ]
    skipped += unfinished
    if not runs:
        first = unfinished[0]
        raise UserError(f"runs: no finished training run; {first.folder}: {first.reason}")
    _require_known(config, runs)
    _require_below_catalogue(settings.metrics, runs)
    groups = [*settings.groups, *(name for run in runs for name in run.config["evaluation"].get("groups") or ())]
    report = build_report(runs, skipped, replace(settings, groups=list(dict.fromkeys(groups))))
    with task_folder(config) as folder:
        report.write(folder)
    console = Console(markup=False)
    for skipped_run in skipped:
        console.print(f"skipped: {skipped_run.folder}: {skipped_run.reason}", soft_wrap=True)
    if console.is_terminal:
        for title, table in report.tables:
            console.print(rich_table(title, table))
    else:
        console.print(report.markdown, soft_wrap=True, highlight=False)
    for note in report.notes:
        console.print(note, soft_wrap=True, highlight=False)
    page = folder / "report.html"
    console.print(
        f"{counted(len(runs), 'run')}: {os.path.relpath(page)} ({page.stat().st_size / 1e6:.1f} MB)", soft_wrap=True
    )


def _require_known(config: DictConfig, runs: Sequence[Run]) -> None:
    """Raises UserError for a model or an attribute of the command line that none of the runs has."""
    models = {entry.result.name for run in runs for entry in run.entries}
    is_given = any(override.startswith("report.base=") for override in HydraConfig.get().overrides.task)
    if is_given and config.report.base not in models:
        hint = nearest(config.report.base, models)
        raise UserError(
            f"report.base={config.report.base}: no run has this model{hint}; the models are {', '.join(sorted(models))}"
        )
    data_sets = [run.data for run in runs if run.data is not None]
    for name in config.evaluation.groups:
        if data_sets and not any(data.attribute(name) for data in data_sets):
            known = sorted({field for data in data_sets for field in field_names(data.manifest["config"]["contexts"])})
            raise UserError(
                f"evaluation.groups: {name} is not a single-valued or numeric attribute of any run's data set"
                f"{nearest(name, known)}; they have {', '.join(known) or 'none'}"
            )


def _require_below_catalogue(metrics: Sequence[str], runs: Sequence[Run]) -> None:
    """Raises UserError where K is not smaller than the catalogue of lists: targets missing in them would be hits."""
    for run in (run for run in runs if run.is_external):
        for name in metrics:
            k, n_items = parse_metric(name)[1], run.data.n_items if run.data is not None else None
            if n_items is not None and k >= n_items:
                raise UserError(
                    f"report.metrics: {name} is not below the catalogue of {n_items} items of {run.folder}; "
                    "set report.metrics, as in [recall@5,mrr@5]"
                )


def _settings(config: DictConfig) -> Settings:
    names = config.report.metrics
    if names is None:
        kinds = [kind for kind in config.evaluation.metrics if kind not in LIST_METRICS]
        names = metric_names(kinds, [max(config.evaluation.cutoffs)])
    names = list(dict.fromkeys(names))
    for name in names:
        parse_metric(name)
    if not 1 <= len(names) <= MAX_METRICS:
        raise UserError(f"report.metrics={names}: must be 1 to {MAX_METRICS} metrics, as in [recall@20,mrr@20]")
    return Settings(
        metrics=names,
        base=config.report.base,
        cutoffs=sorted(set(config.report.cutoffs)),
        groups=list(config.evaluation.groups),
        ties=config.evaluation.ties,
        bootstrap=OmegaConf.to_container(config.evaluation.bootstrap, resolve=True),  # type: ignore[arg-type]
        seed=config.seed,
    )
