"""A small prepared data set with ids, titles and attributes."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from arnn_lightning.models import RunSettings
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.serving.vocabulary import store_vocabulary
from arnn_lightning.tasks.prepare import prepare_data
from arnn_lightning.training.checkpoint import build_model, save_model
from arnn_lightning.training.stage import evaluate_model
from helpers import compose_config, model_config, ready
from models import ModelCase

SMALL_LOG = (
    "data.generate.events=20000",
    "data.item_contexts.single=[discipline_id,career_level]",
)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The default data set, small."""
    folder: Path = tmp_path_factory.mktemp("data")
    return prepare_data(compose_config(*SMALL_LOG, f"paths.data={folder}"))


@pytest.fixture(scope="session")
def checkpoints(prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelCase], Path]:
    """Makes the run folder of a model with random weights (a counting one is fitted): best.ckpt, test_ranks.parquet."""
    root = tmp_path_factory.mktemp("runs")
    config = compose_config(*SMALL_LOG)
    data = OmegaConf.to_container(config.data, resolve=True)
    vocabulary = store_vocabulary(prepared, None, store_users=True)

    def make(case: ModelCase) -> Path:
        folder = root / case.name
        if not folder.exists():
            config_of_model = model_config(case.preset, prepared.dims, *case.overrides)
            metadata = {"model": config_of_model, "data": data, "prepared": prepared.folder.name, "seed": 1}
            torch.manual_seed(1)
            model = build_model(config_of_model, RunSettings(metadata=metadata, vocabulary=vocabulary))
            for weight in model.parameters():  # larger scores, biases other than 0
                weight.data += 0.3 * torch.randn_like(weight)
            ready(model, prepared).fit(prepared.sessions("train"))
            evaluate_model(model, prepared, config).write(folder)
            save_model(model, folder / "checkpoints" / "best.ckpt")
        return folder

    return make


@pytest.fixture(scope="session")
def test_sessions(prepared: PreparedDataset) -> pl.DataFrame:
    """The events of the test split with the log's ids."""
    test = pl.read_parquet(prepared.folder / "test.parquet")
    user, item = prepared.users()["id"], pl.read_parquet(prepared.folder / "items.parquet")["id"]
    return test.select("session", user_id=user.gather(test["user"]), item_id=item.gather(test["item"]))
