"""task=generate: raw files of a world whose truth is known, in the schema of a real data set."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from arnn_lightning.data.generate import XingWorld
from arnn_lightning.instantiate import instantiate


def run(config: DictConfig) -> None:
    """Writes the files of ``schema`` into ``output``."""
    world: XingWorld = instantiate(config.schema)
    output = Path(config.output)
    with Console(stderr=True).status("generating") as status:
        world.write(output, lambda text: status.update(text))
    Console().print(f"wrote {', '.join(sorted(file.name for file in output.iterdir()))} to {output}", soft_wrap=True)
