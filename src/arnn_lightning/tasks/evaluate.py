"""task=evaluate: the test metrics of a checkpoint, which stores its model's and its data's config."""

import copy
import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from arnn_lightning.config import check_targets, instantiate, to_container
from arnn_lightning.errors import UserError
from arnn_lightning.io import write_json
from arnn_lightning.nn.collectives import is_rank_zero
from arnn_lightning.preprocessing.dataset import PATH_KEYS, PreparedDataset, hash_files
from arnn_lightning.preprocessing.later import prepare_later_log
from arnn_lightning.reporting.run_tables import groups_record, print_groups
from arnn_lightning.run_folder import METRICS_FILE, require_same_task, write_record
from arnn_lightning.tasks.lists import run_lists
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.tasks.results import print_table, run_tables
from arnn_lightning.tasks.start import check_evaluation
from arnn_lightning.tasks.train import metadata_maker
from arnn_lightning.training.checkpoint import build_model, load_weights, read_checkpoint
from arnn_lightning.training.distributed import broadcast_from_rank_zero, distributed_run, rank_zero_first
from arnn_lightning.training.stage import all_metrics, evaluate_model, run_settings

log = logging.getLogger(__name__)
PATHS = tuple(f"data.{key}" for key in PATH_KEYS)


def run(config: DictConfig) -> None:
    """Evaluates ``checkpoint`` or ``lists``; writes metrics.json and test_ranks.parquet into the task's own folder."""
    if config.lists is not None:
        return run_lists(config)
    with distributed_run(config, Path(HydraConfig.get().runtime.output_dir)) as folder:
        if is_rank_zero():
            require_same_task(config, folder)
        broadcast_from_rank_zero(None)
        _evaluate(config, folder)


def _evaluate(config: DictConfig, folder: Path) -> None:
    record = copy.deepcopy(config)
    checkpoint = read_checkpoint(config.checkpoint)
    metadata = checkpoint["metadata"]
    check_targets(metadata["model"], config.trusted_modules)
    given = _given_settings()
    _require_same_data(config, metadata["data"])
    with open_dict(config):
        config.model = OmegaConf.create(metadata["model"])
        config.data = OmegaConf.create(metadata["data"])
        config.published = metadata["published"]
        config.seed = metadata["seed"]  # of contexts that are assigned at random
        for key, value in given.items():
            OmegaConf.update(config, key, value)
        config.data = to_container(config.data)  # interpolations pass the paths on to the reader
    check_targets(to_container(config.data), config.trusted_modules)
    prepared = _test_data(config, metadata["prepared"], folder, moved=any(key in PATHS for key in given))
    check_evaluation(config, prepared)
    model = build_model(metadata["model"], run_settings(config), metadata_maker(config, prepared))
    load_weights(model, checkpoint, config.checkpoint)
    result = evaluate_model(model, prepared, config)
    if not is_rank_zero():
        return
    result.write(folder)
    groups = run_tables(config, prepared).groups([result])
    metrics = {
        "data": config.data.name,
        "model": config.model.name,
        "seed": metadata["seed"],
        "assignment": config.data.contexts.assignment,
        "test": result.metrics(all_metrics(config)),
        "groups": groups_record(groups),
        "manifest": prepared.manifest_sha256,
    }
    write_record(record, folder)
    write_json(folder / METRICS_FILE, metrics)
    title = f"{config.checkpoint} on {config.data.name}"
    bootstrap = to_container(config.evaluation.bootstrap)
    console = Console(markup=False)
    print_table(console, config, [result], title)
    print_groups(console, groups, bootstrap)


def _require_same_data(config: DictConfig, trained: dict[str, Any]) -> None:
    """Raises UserError for a ``data=NAME`` of the command line that is not the data set of the checkpoint."""
    data, choice = config.data, HydraConfig.get().runtime.choices["data"]
    is_given = any(override.partition("=")[0] == "data" for override in HydraConfig.get().overrides.task)
    is_same = data.name in (trained["name"], "tabular") and data.reader._target_ == trained["reader"]["_target_"]
    if is_given and not is_same:
        raise UserError(
            f"data={choice}: {config.checkpoint} was trained on {trained['name']}; leave it out, or set the paths of a "
            "later log of this data set"
        )


def _given_settings() -> dict[str, Any]:
    """The settings of ``data`` that the command line sets."""
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    given = {override.get_key_element().lstrip("+~"): override.value() for override in overrides}
    return {key: value for key, value in given.items() if key.startswith("data.")}


def _test_data(config: DictConfig, name: str, folder: Path, moved: bool) -> PreparedDataset:
    """The data set that the checkpoint was trained on, or with ``moved`` paths a later log of its catalogue."""
    trained = PreparedDataset(Path(config.paths.data) / "prepared" / name)
    is_prepared = trained.damage() is None
    if is_prepared and not moved:
        return trained
    if is_prepared:
        files = instantiate(to_container(config.data.reader)).files()
        if [*hash_files(files, lambda _: None).values()] == [*trained.manifest["raw"].values()]:  # whatever their names
            return trained
        later = folder / "prepared"
        if is_rank_zero():
            log.info(prepare_later_log(to_container(config.data), trained, later))
        broadcast_from_rank_zero(None)
        return PreparedDataset(later)
    prepared = rank_zero_first(lambda: prepare_data(config))
    if prepared.folder.name != name:
        raise UserError(
            f"{config.checkpoint} was trained on {name}, but the raw files here give {prepared.folder.name}; to test "
            "it on a later log, set paths.data to the folder with its prepared data set"
        )
    return prepared
