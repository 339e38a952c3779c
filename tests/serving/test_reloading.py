"""What the service does with a changed checkpoint, and how it makes batches; with models that compute nothing."""

import gc
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.serving.bodies import Prefix, RecommendRequest
from arnn_lightning.serving.messages import Recommend
from arnn_lightning.serving.predictor import Predictor, load
from arnn_lightning.serving.service import Job, ReloadingPredictor, Service, SessionStore
from models import BY_NAME, ModelCase


class FakePredictor:
    """Knows which of the values that take long have been computed."""

    def __init__(self) -> None:
        self.computed: set[str] = set()

    def __getattr__(self, name: str) -> str:
        self.computed.add(name)
        return name


class Reader:
    """Counts the reads; ``is_damaged``: whether they fail."""

    def __init__(self) -> None:
        self.reads, self.is_damaged = 0, False

    def __call__(self, file: Path) -> Any:
        self.reads += 1
        if self.is_damaged:
            raise UserError(f"{file}: damaged")
        return FakePredictor()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "best.ckpt").write_bytes(b"first")
    return tmp_path / "best.ckpt"


def set_age(file: Path, seconds: int) -> None:
    os.utime(file, (1_000_000_000 - seconds, 1_000_000_000 - seconds))


def test_a_file_written_again_with_equal_size_is_read(file: Path) -> None:
    set_age(file, 5)
    models, place = ReloadingPredictor(file, Reader(), 60), file.stat().st_ino
    assert not models.reload_if_changed()
    file.write_bytes(b"other")
    set_age(file, 0)
    assert file.stat().st_ino == place
    assert models.reload_if_changed()
    assert not models.reload_if_changed()


def test_a_damaged_file_is_read_once(file: Path) -> None:
    read = Reader()
    models = ReloadingPredictor(file, read, 60)
    before, read.is_damaged = models.current, True
    file.write_bytes(b"damaged")
    for _ in range(3):
        assert not models.reload_if_changed()
    assert (read.reads, models.current) == (2, before)


def test_a_model_is_computed_before_it_gets_requests(file: Path) -> None:
    models = ReloadingPredictor(file, Reader(), 60)
    assert vars(models.current)["computed"] == {"live", "model_id"}
    file.write_bytes(b"another")
    replacement = FakePredictor()
    models._read = lambda _: replacement  # type: ignore[assignment,return-value]
    computed: list[set[str]] = []

    class Watched(ReloadingPredictor):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "current":
                computed.append({*value.computed})
            super().__setattr__(name, value)

    models.__class__ = Watched
    assert models.reload_if_changed()
    assert computed == [{"live", "model_id"}]


@pytest.mark.parametrize("name", ["gru4rec", "arnn"])
def test_a_replaced_model_is_freed_at_once(name: str, checkpoints: Callable[[ModelCase], Path], file: Path) -> None:
    """Without a garbage collection: a full one may not come for hours."""
    shutil.copyfile(checkpoints(BY_NAME[name]) / "checkpoints" / "best.ckpt", file)
    made: list[weakref.ref[Predictor]] = []

    def read(path: Path) -> Predictor:
        predictor = load(path)
        made.append(weakref.ref(predictor))
        return predictor

    gc.disable()
    try:
        models = ReloadingPredictor(file, read, 60)
        service = Service(models, SessionStore(10, 60))
        for age in range(3):
            body = RecommendRequest(session=models.current.catalogue.ids.head(2).to_list())
            assert len([*service.answer([Recommend([Prefix(session=body.session)], body, is_batch=False)])]) == 1
            set_age(file, age)
            assert models.reload_if_changed()
        assert [reference() is not None for reference in made] == [False, False, False, True]
    finally:
        gc.enable()


def batch_sizes(size: int, jobs: Sequence[int]) -> list[list[int]]:
    """The sessions of each job of every batch; ``jobs``: how many sessions each has."""
    service: Any = Service(None, None, size)  # type: ignore[arg-type]
    made: Any = [
        Job(number, None, [object() for _ in range(count)], [], None, None) for number, count in enumerate(jobs)
    ]  # type: ignore[arg-type]
    return [[len(job.sessions) for job in batch] for batch in service._batches(made)]


def test_batches_are_filled_up_to_their_size() -> None:
    assert batch_sizes(2, [1, 1, 1]) == [[1, 1], [1]]
    assert batch_sizes(3, [1, 2, 1]) == [[1, 2], [1]]
    assert batch_sizes(2, [5, 1]) == [[5], [1]]
