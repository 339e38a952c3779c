"""task=evaluate: the test metrics of a checkpoint, which stores its model's and its data's config."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from arnn_lightning.config import check_targets
from arnn_lightning.errors import UserError
from arnn_lightning.io import write_json
from arnn_lightning.nn.collectives import rank_and_world_size
from arnn_lightning.preprocessing.dataset import PATH_KEYS
from arnn_lightning.reporting.console import results_table
from arnn_lightning.tasks.lists import run_lists
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.train import METRICS_FILE, check_cutoffs, metadata_maker, published_results
from arnn_lightning.training.checkpoint import build_model, load_weights, read_checkpoint
from arnn_lightning.training.distributed import distributed_run, rank_zero_first
from arnn_lightning.training.stage import all_metrics, evaluate_model, headline_metrics, run_settings, to_container

# The raw files may lie elsewhere by now; everything else comes from the checkpoint.
PATH_OVERRIDES = tuple(f"data.{key}" for key in PATH_KEYS)


def run(config: DictConfig) -> None:
    """Evaluates ``checkpoint`` or ``lists``; writes metrics.json and test_ranks.parquet into the task's own folder."""
    output_dir = Path(HydraConfig.get().runtime.output_dir)
    if config.lists is not None:
        return run_lists(config, output_dir)
    with distributed_run(config, output_dir) as folder:
        _evaluate(config, folder)


def _evaluate(config: DictConfig, folder: Path) -> None:
    checkpoint = read_checkpoint(config.checkpoint)
    metadata = checkpoint["metadata"]
    check_targets(metadata["model"], config.trusted_modules)
    given = [item for item in HydraConfig.get().overrides.task if item.partition("=")[0] in PATH_OVERRIDES]
    moved = OmegaConf.from_dotlist(given).get("data", {})
    with open_dict(config):
        config.model = OmegaConf.create(metadata["model"])
        config.data = OmegaConf.create(metadata["data"])
        config.published = metadata["published"]
        for key, place in moved.items():
            config.data[key] = place
        config.data = to_container(config.data)  # interpolations pass the paths on to the reader
    check_targets(to_container(config.data), config.trusted_modules)
    prepared = rank_zero_first(lambda: prepare_data(config))
    if prepared.folder.name != metadata["prepared"]:
        raise UserError(
            f"{config.checkpoint} was trained on {metadata['prepared']}, the raw files here give {prepared.folder.name}"
        )
    check_cutoffs(config, prepared)
    model = build_model(metadata["model"], run_settings(config), metadata_maker(config, prepared))
    load_weights(model, checkpoint, config.checkpoint)
    result = evaluate_model(model, prepared, config)
    if rank_and_world_size()[0] != 0:
        return
    result.write(folder)
    record = {
        "data": config.data.name,
        "model": config.model.name,
        "seed": metadata["seed"],
        "test": result.metrics(all_metrics(config)),
        "manifest": prepared.manifest_sha256,
    }
    write_json(folder / METRICS_FILE, record)
    title = f"{config.checkpoint} on {config.data.name}"
    bootstrap = to_container(config.evaluation.bootstrap)
    Console().print(
        results_table([result], headline_metrics(config), title, published_results(config), bootstrap, config.seed)
    )
