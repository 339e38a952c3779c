"""task=prepare: raw files to a prepared data set, and its funnel."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.preprocessing.dataset import Prepared, prepare
from arnn_lightning.reporting.console import funnel_table, paper_table
from arnn_lightning.simulation.simulator import ensure_generated


def run(config: DictConfig) -> None:
    """Prepares the data set and prints the funnel."""
    prepared = prepare_data(config)
    console = Console()
    console.print(funnel_table(prepared.manifest))
    if config.data.paper is not None:
        console.print(paper_table(prepared.manifest, config.data.paper))
    console.print(f"prepared data set: {prepared.folder}", soft_wrap=True)


def prepare_data(config: DictConfig) -> Prepared:
    """Generates the raw files first where the data set is a generated one; shows a spinner on a terminal."""
    root = Path(config.paths.data)
    with Console(stderr=True).status("preparing") as status:
        progress = lambda text: status.update(f"{config.data.name}: {text}")  # noqa: E731
        if config.data.get("generate") is not None and config.data.raw_dir is None:
            generator = OmegaConf.to_container(config.data.generate, resolve=True)
            config.data.raw_dir = str(ensure_generated(generator, config.data.name, root / "raw", progress))
        data: Any = OmegaConf.to_container(config.data, resolve=True)
        return prepare(data, root, progress)
