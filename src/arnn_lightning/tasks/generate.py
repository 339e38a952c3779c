"""task=generate: simulated raw files with a known ground truth, in the schema of a real data set."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from arnn_lightning.config import instantiate
from arnn_lightning.run_folder import task_folder
from arnn_lightning.simulation.simulator import Simulator


def run(config: DictConfig) -> None:
    """Writes the files of ``schema`` into ``output``, in place of files of the same names."""
    simulator: Simulator = instantiate(config.schema, events=config.events)
    with task_folder(config), Console(stderr=True, markup=False).status("generating") as status:
        written = simulator.write(Path(config.output), status.update)
    Console(markup=False).print(f"wrote {', '.join(file.name for file in written)} to {config.output}", soft_wrap=True)
