"""A small prepared data set with ids, titles and attributes."""

from pathlib import Path

import pytest

from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks.prepare import prepare_data
from helpers import compose_config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The default data set, small."""
    folder: Path = tmp_path_factory.mktemp("data")
    return prepare_data(compose_config("data.generate.events=20000", f"paths.data={folder}"))
