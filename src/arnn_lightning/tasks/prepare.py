"""task=prepare: raw files to a prepared data set, what each step kept, and what looks wrong in the data."""

import copy
from datetime import date
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from arnn_lightning.io import write_json
from arnn_lightning.preprocessing.dataset import PreparedDataset, prepare
from arnn_lightning.preprocessing.summary import attribute_remarks, log_remarks, summarize_attributes
from arnn_lightning.readers.schema import USER
from arnn_lightning.reporting.console import attributes_table, log_table, paper_table, steps_table
from arnn_lightning.run_folder import task_folder
from arnn_lightning.simulation.simulator import ensure_simulated


def run(config: DictConfig) -> None:
    """Prepares the data set, prints and writes what it looks like."""
    with task_folder(config):
        prepared = prepare_data(copy.deepcopy(config))
    manifest = prepared.manifest
    settings, log = manifest["config"], dict(manifest["log"])
    if settings["reader"].get("columns", {}).get("user", USER) is None:  # every session counts as a user
        del log["largest_user"], log["largest_user_events"]
    n_train_events = manifest["splits"]["train"]["events"]
    attributes = summarize_attributes(prepared.users(), prepared.vocabulary(), settings["contexts"], n_train_events)
    of_items = summarize_attributes(
        prepared.items(), prepared.item_vocabulary(), settings["item_contexts"], n_train_events
    )
    of_log, of_attributes = log_remarks(log, settings, date.today()), attribute_remarks(attributes)
    remarks_of_items = attribute_remarks(of_items, "item")
    console = Console(markup=False)
    console.print(log_table(log, of_log))
    if attributes:
        console.print(attributes_table(attributes, of_attributes))
    if of_items:
        console.print(attributes_table(of_items, remarks_of_items, "items"))
    console.print(steps_table(manifest))
    if config.published:
        console.print(paper_table(manifest, config.published))
    for note in manifest.get("notes", ()):
        console.print(note, soft_wrap=True, highlight=False)
    if config.data.note:
        console.print(f"{config.data.name}: {config.data.note}", soft_wrap=True, highlight=False)
    summary = {
        "prepared": str(prepared.folder),
        "steps": manifest["funnel"],
        "splits": manifest["splits"],
        "popularity_scope": settings["items"]["popularity_scope"],
        "log": log,
        "contexts": attributes,
        "item_contexts": of_items,
        "remarks": {"log": of_log, "contexts": of_attributes, "item_contexts": remarks_of_items},
    }
    write_json(Path(HydraConfig.get().runtime.output_dir) / "prepare.json", summary)
    console.print(f"prepared data set: {prepared.folder}", soft_wrap=True)
    if config.id_tables is not None:
        prepared.write_id_tables(Path(config.id_tables))
        console.print(f"train, val and test splits with the log's ids: {config.id_tables}", soft_wrap=True)


def prepare_data(config: DictConfig) -> PreparedDataset:
    """Simulates the raw files first if the data set is a simulated one; shows a spinner on a terminal."""
    root = Path(config.paths.data)
    with Console(stderr=True, markup=False).status("preparing") as status:
        progress = lambda text: status.update(Text(f"{config.data.name}: {text}"))  # noqa: E731
        if config.data.get("generate") is not None and config.data.raw_dir is None:
            generator = OmegaConf.to_container(config.data.generate, resolve=True)
            config.data.raw_dir = str(ensure_simulated(generator, config.data.name, root / "raw", progress))
        data: Any = OmegaConf.to_container(config.data, resolve=True)
        return prepare(data, root, progress)
