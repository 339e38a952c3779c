"""task=evaluate lists=FILE: the test metrics of recommendations that another program made."""

import copy
import hashlib
from pathlib import Path

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.config import to_container
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.lists import evaluate_lists, read_lists
from arnn_lightning.io import write_json
from arnn_lightning.reporting.run_tables import groups_record, print_groups
from arnn_lightning.run_folder import METRICS_FILE, task_folder
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.results import print_table, run_tables
from arnn_lightning.tasks.start import check_evaluation
from arnn_lightning.training.stage import all_metrics


def run_lists(config: DictConfig) -> None:
    """Writes metrics.json and test_ranks.parquet of the lists, as a run does, and prints the table."""
    if not OmegaConf.is_missing(config, "checkpoint"):
        raise UserError("task=evaluate: checkpoint and lists cannot both be set")
    with task_folder(copy.deepcopy(config)) as folder:
        _evaluate_lists(config, folder)


def _evaluate_lists(config: DictConfig, folder: Path) -> None:
    file = Path(config.lists).expanduser()
    lists = read_lists(file)
    prepared = prepare_data(config)
    check_evaluation(config, prepared)
    result, n_missing = evaluate_lists(
        config.name or file.stem,
        lists,
        pl.read_parquet(prepared.folder / "test.parquet", glob=False),
        pl.read_parquet(prepared.folder / "items.parquet", glob=False)["id"],
        config.evaluation.ties,
        max(config.evaluation.cutoffs),
        file,
    )
    result = result.with_lists(prepared.item_popularity(), max(config.evaluation.cutoffs))
    result.write(folder)
    groups = run_tables(config, prepared).groups([result])
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    record = {
        "data": config.data.name,
        "model": result.name,
        "lists": {"file": file.name, "sha256": digest},
        "seed": config.seed,
        "test": result.metrics(all_metrics(config)),
        "val": {},
        "encoders": {},
        "baselines": {},
        "groups": groups_record(groups),
        "manifest": prepared.manifest_sha256,
        "seconds": {},
        "train_events_per_second": None,
    }
    write_json(folder / METRICS_FILE, record)
    console = Console(markup=False)
    bootstrap, title = to_container(config.evaluation.bootstrap), f"{file.name} on {config.data.name}"
    print_table(console, config, [result], title)
    print_groups(console, groups, bootstrap)
    if n_missing:
        n = result.ranks.height
        console.print(f"{n_missing:,} of {n:,} predictions have no list and count as misses", soft_wrap=True)
