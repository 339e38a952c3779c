"""task=evaluate: the test metrics of a checkpoint, which says itself which model and data it is."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.metrics import metric_names
from arnn_lightning.preprocessing.dataset import PATHS
from arnn_lightning.reporting.console import results_table
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.train import (
    METRICS_FILE,
    _set_up,
    check_cutoffs,
    headline,
    paper_figures,
    plain,
    test,
    write_json,
)
from arnn_lightning.training.checkpoint import build, load_weights, read_checkpoint
from arnn_lightning.training.distributed import device, first_once, together

# The raw files may lie elsewhere by now; everything else comes from the checkpoint.
MOVES = tuple(f"data.{key}" for key in PATHS)


def run(config: DictConfig) -> None:
    """Evaluates ``checkpoint`` and writes metrics.json and test_ranks.parquet into the task's own folder."""
    with together(config, Path(HydraConfig.get().runtime.output_dir)) as folder:
        _evaluate(config, folder)


def _evaluate(config: DictConfig, folder: Path) -> None:
    checkpoint = read_checkpoint(config.checkpoint)
    about = checkpoint["about"]
    given = [item for item in HydraConfig.get().overrides.task if item.partition("=")[0] in MOVES]
    moved = OmegaConf.from_dotlist(given).get("data", {})
    with open_dict(config):
        config.model = OmegaConf.create(about["model"])
        config.data = OmegaConf.create(about["data"])
        for key, place in moved.items():
            config.data[key] = place
    prepared = first_once(lambda: prepare_data(config))
    if prepared.folder.name != about["prepared"]:
        raise UserError(
            f"{config.checkpoint} was trained on {about['prepared']}, the raw files here give {prepared.folder.name}"
        )
    check_cutoffs(config, prepared)
    model = build(about["model"])
    _set_up(model, config, config.model, prepared)
    model.assemble()
    load_weights(model, checkpoint, config.checkpoint)
    tested = test(model, config, prepared, [])
    if device():
        return
    tested.write(folder)
    write_json(
        folder / METRICS_FILE,
        {
            "data": config.data.name,
            "model": config.model.name,
            "seed": about["seed"],
            "test": tested.metrics(metric_names(config.evaluation.metrics, config.evaluation.cutoffs)),
            "manifest": prepared.manifest_sha256,
        },
    )
    title = f"{config.checkpoint} on {config.data.name}"
    bootstrap = plain(config.evaluation.bootstrap)
    table = results_table([tested], headline(config), title, paper_figures(config), bootstrap, config.seed)
    Console().print(table)
