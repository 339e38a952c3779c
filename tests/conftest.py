"""Fixtures and settings of all tests.

The package is imported in functions: the process that distributes the tests does not need it.
"""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from arnn_lightning.preprocessing.dataset import PreparedDataset

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too, which share the cores
for variable in [name for name in os.environ if name.startswith(("ARNN_", "PL_TRAINER_"))]:
    del os.environ[variable]  # settings of who runs the tests
if "TESTS_SHARED_FOLDER" not in os.environ:  # the first process, which starts the others; see tests/reused.py
    os.environ["TESTS_SHARED_FOLDER"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["TESTS_SHARED_FOLDER"], ignore_errors=True)
settings.register_profile("any machine", deadline=None)  # examples may take longer on a busy machine
settings.load_profile("any machine")


# The tests of a file run in one process: those that take longest start first, so that all processes end together.
LONGEST = (
    *("test_distributed.py", "test_invariants.py", "test_export.py", "test_cli.py", "test_tune.py", "test_report.py"),
    *("test_docs.py", "test_jobs.py", "test_run_folder.py", "test_benchmarks.py", "test_compiled.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called where tests run, after their modules are imported."""
    import torch

    from reused import reuse

    reuse()
    torch.set_num_threads(1)  # the tensors are small: a second thread only waits
    gc.freeze()  # what is imported, which each full collection would walk through
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture
def small_dataset(tmp_path: Path) -> "PreparedDataset":
    """Sixteen random sessions a split over 12 items; six users with two attributes and five binary fields.

    Items have an attribute, which is unknown for one of them, and three binary fields.
    """
    from helpers import random_sessions, write_dataset

    rng = np.random.default_rng(5)
    splits = {
        name: (random_sessions(seed, 16, 12), rng.integers(0, 6, 16).tolist())
        for seed, name in enumerate(("train", "val", "test"))
    }
    return write_dataset(
        tmp_path,
        splits,
        n_items=12,
        single={"level": [0, 1, 2, 1, 0, 2], "country": [1, 1, 0, 2, 3, 0]},
        active=[[], [0, 4], [1], [2, 3, 4], [0], [1, 2]],
        item_single={"category": [0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]},
        item_active=[[], [0], [1], [0, 1], [2], [], [0, 2], [1], [], [0, 1, 2], [2], [1]],
    )
