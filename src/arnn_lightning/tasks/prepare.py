"""task=prepare: raw files to a prepared data set, and what each step of filtering kept."""

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.preprocessing.dataset import PreparedDataset, prepare
from arnn_lightning.reporting.console import funnel_table, paper_table
from arnn_lightning.run_folder import task_folder
from arnn_lightning.simulation.simulator import ensure_simulated


def run(config: DictConfig) -> None:
    """Prepares the data set and prints the counts after each step."""
    with task_folder(config):
        prepared = prepare_data(copy.deepcopy(config))
    console = Console()
    console.print(funnel_table(prepared.manifest))
    if config.published:
        console.print(paper_table(prepared.manifest, config.published))
    console.print(f"prepared data set: {prepared.folder}", soft_wrap=True)


def prepare_data(config: DictConfig) -> PreparedDataset:
    """Simulates the raw files first if the data set is a simulated one; shows a spinner on a terminal."""
    root = Path(config.paths.data)
    with Console(stderr=True).status("preparing") as status:
        progress = lambda text: status.update(f"{config.data.name}: {text}")  # noqa: E731
        if config.data.get("generate") is not None and config.data.raw_dir is None:
            generator = OmegaConf.to_container(config.data.generate, resolve=True)
            config.data.raw_dir = str(ensure_simulated(generator, config.data.name, root / "raw", progress))
        data: Any = OmegaConf.to_container(config.data, resolve=True)
        return prepare(data, root, progress)
