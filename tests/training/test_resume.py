"""A stage cut off at any moment and resumed ends as one that was not, to the last bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from arnn_lightning.errors import UserError
from arnn_lightning.models.base import SessionModel
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.stage import LAST, train_stage
from helpers import compose_config, make_data, make_model, random_sessions, write_world

MODEL = ["model.hidden_size=8", "model.dropout_hidden=0.3", "model.optimizer.momentum=0.1"]


class Killed(BaseException):
    """What a test throws into a run."""


@pytest.fixture
def world(tmp_path: Path) -> PreparedDataset:
    splits = {
        name: (random_sessions(seed, count, 12), [index % 6 for index in range(count)])
        for seed, (name, count) in enumerate({"train": 60, "val": 30, "test": 30}.items())
    }
    return write_world(tmp_path, splits, n_items=12)


def config_of(*overrides: str) -> DictConfig:
    return compose_config("model=gru4rec", "logger={}", "checkpoint.every_n_minutes=0", *overrides)


def run(world: PreparedDataset, folder: Path, *overrides: str, seed: int = 0, epochs: int = 3) -> SessionModel:
    model = make_model("gru4rec", world.dims, *MODEL, seed=seed)
    stage = {"epochs": epochs, "patience": 2}
    train_stage(model, make_data(world, n_sample=3), config_of(*overrides), stage, folder, [])
    return model


def break_off(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Makes the ``call``-th call of a method of the model end the process, so to speak."""
    original = getattr(SessionModel, method)
    calls = 0

    def counted(self: SessionModel, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(SessionModel, method, counted)


WINDOWS = 21  # of an epoch, see below


def test_the_world_has_as_many_windows_as_the_cuts_below_assume(world: PreparedDataset) -> None:
    assert len(make_data(world, n_sample=3).train_dataloader()) == WINDOWS


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("training_step", 1),  # before the first save
        ("training_step", 2),
        ("training_step", 9),
        ("training_step", WINDOWS),  # the last window of an epoch
        ("training_step", WINDOWS + 1),  # the first of the next
        ("training_step", 2 * WINDOWS - 3),
        ("training_step", 3 * WINDOWS),
        ("validation_step", 1),
        ("on_validation_epoch_end", 2),
        ("on_save_checkpoint", 5),
    ],
)
def test_a_stage_cut_off_anywhere_ends_as_if_it_had_not_been(
    world: PreparedDataset, tmp_path: Path, method: str, call: int
) -> None:
    whole = run(world, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, method, call)
        with pytest.raises(Killed):
            run(world, tmp_path / "cut")
    # What was saved is gone on with, whatever weights the new process starts with; else it starts as the old one did.
    resumed = run(world, tmp_path / "cut", "resume=true", seed=7 if (tmp_path / "cut" / LAST).exists() else 0)
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    last = [torch.load(tmp_path / one / LAST, weights_only=True) for one in ("whole", "cut")]
    assert last[0]["global_step"] == last[1]["global_step"]
    assert torch.equal(last[0]["progress"]["rng"], last[1]["progress"]["rng"])


def test_a_save_that_fails_spoils_no_older_one(
    world: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / LAST).read_bytes()
    (tmp_path / "run" / "done").unlink()
    original = torch.save

    def half(value: Any, file: Any, *arguments: Any, **settings: Any) -> None:
        original({"half": 1}, file, *arguments, **settings)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        run(world, tmp_path / "run", "resume=true", epochs=2)
    assert (tmp_path / "run" / LAST).read_bytes() == before


class Malicious:
    """A pickle that makes a folder where it is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_spoilt_or_foreign_checkpoint_is_not_gone_on_with(world: PreparedDataset, tmp_path: Path) -> None:
    run(world, tmp_path / "run", epochs=1)
    (tmp_path / "run" / "done").unlink()
    last = tmp_path / "run" / LAST
    whole = torch.load(last, weights_only=True)

    def resumes(checkpoint: dict[str, Any], message: str) -> None:
        torch.save(checkpoint, last)
        with pytest.raises(UserError, match=message):
            run(world, tmp_path / "run", "resume=true", epochs=2)

    resumes(whole | {"extra": Malicious(tmp_path / "owned")}, "refused, it holds more than tensors")
    assert not (tmp_path / "owned").exists()
    resumes(whole | {"about": {"prepared": "tmall-1"}}, "was trained on tmall-1")
    resumes({key: value for key, value in whole.items() if key != "layout"}, "of layout 1, this version")
    resumes(whole | {"state_dict": {}}, "do not fit this model")
    torch.save(whole, last)
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        run(world, tmp_path / "run", "resume=true", epochs=2)


def test_ctrl_c_finishes_the_window_and_saves(world: PreparedDataset, tmp_path: Path) -> None:
    whole = run(world, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        original = SessionModel.training_step
        done: list[int] = []

        def interrupted(self: SessionModel, batch: Any, index: int) -> None:
            if len(done) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            original(self, batch, index)
            done.append(index)

        patch.setattr(SessionModel, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path / "cut", "checkpoint.every_n_minutes=1000")
    assert done == [0, 1, 2, 3, 4]
    saved = torch.load(tmp_path / "cut" / LAST, weights_only=True)
    assert saved["global_step"] == 5
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = run(world, tmp_path / "cut", "resume=true", seed=7)
    assert all(torch.equal(weight, resumed.state_dict()[name]) for name, weight in whole.state_dict().items())
