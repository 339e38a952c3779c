"""A stage interrupted at any moment and resumed ends as one that was not, to the last bit."""

import logging
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.models import SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training import callbacks
from arnn_lightning.training.callbacks import IntervalCheckpoint, RelocatableCheckpoint
from arnn_lightning.training.stage import DONE_MARKER, LAST, train_stage
from helpers import compose_config, make_data, random_sessions, write_dataset
from models import BY_NAME, ModelCase, case_name, slow, slow_but

DATA: dict[str, Any] = {"batch_size": 4, "n_sample": 3, "sample_alpha": 0.5, "negatives": "global"}
ONE_LAYER = ("model.dropout_hidden=0.3", "model.optimizer.momentum=0.1")
SCHEDULE = "{_target_:torch.optim.lr_scheduler.ExponentialLR,_partial_:true,gamma:0.9}"
CHUNKS = 21  # of an epoch, see below
Whole = Callable[..., tuple[dict[str, Tensor], dict[str, Any]]]


class Killed(BaseException):
    """What a test raises within a run."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    splits = {
        name: (random_sessions(seed, count, 12), [index % 6 for index in range(count)])
        for seed, (name, count) in enumerate({"train": 60, "val": 30, "test": 30}.items())
    }
    single = {"level": [0, 1, 2, 1, 0, 2]}
    folder = tmp_path_factory.mktemp("prepared")
    return write_dataset(folder, splits, 12, single, [[], [0, 4], [1], [2, 3, 4], [0], [1, 2]])


@pytest.fixture(scope="module")
def whole(prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs that are not interrupted: weights and last checkpoint by settings."""
    root = tmp_path_factory.mktemp("whole")

    @cache
    def make(**settings: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        folder = root / f"{len(list(root.iterdir()))}"
        model = run(prepared, folder, **settings)
        return model.state_dict(), torch.load(folder / LAST, weights_only=True)

    return make


def config_of(*overrides: str) -> DictConfig:
    performance = ["performance.steps_per_execution=3", "evaluation.batch_size=5"]
    return compose_config("model=gru4rec", "logger={}", "checkpoint.every_n_minutes=0", *performance, *overrides)


def run(
    prepared: PreparedDataset,
    folder: Path,
    *overrides: str,
    seed: int = 0,
    epochs: int = 3,
    case: ModelCase = BY_NAME["gru4rec"],
    model: tuple[str, ...] = ONE_LAYER,
) -> SessionRecommender:
    """Trains one stage; ``seed`` is of the initial weights."""
    recommender: SessionRecommender = case.make(
        prepared, *model, seed=seed, metadata={"prepared": prepared.folder.name}, cache_mb=1.0
    )
    train_stage(recommender, prepared, config_of(*overrides), {"epochs": epochs, "patience": 2, **DATA}, folder, [])
    return recommender


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Makes the ``call``-th call of a method of the model end the run."""
    original = getattr(SessionRecommender, method)
    calls = 0

    def counted(self: SessionRecommender, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(SessionRecommender, method, counted)


def assert_resumes_as_if_not_interrupted(
    whole: Whole, prepared: PreparedDataset, folder: Path, method: str, call: int, **settings: Any
) -> None:
    weights, last = whole(**settings)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, method, call)
        with pytest.raises(Killed):
            run(prepared, folder / "cut", **settings)
    # A saved state is resumed whatever weights the new process starts with; else it starts as the old one did.
    seed = 7 if (folder / "cut" / LAST).exists() else 0
    resumed = run(prepared, folder / "cut", "resume=true", seed=seed, **settings)
    assert resumed.state_dict().keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    resumed_last = torch.load(folder / "cut" / LAST, weights_only=True)
    assert last["global_step"] == resumed_last["global_step"]
    assert torch.equal(last["progress"]["rng"], resumed_last["progress"]["rng"])
    rates = [checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] for checkpoint in (last, resumed_last)]
    assert rates[0] == rates[1]
    assert last["lr_schedulers"] == resumed_last["lr_schedulers"]


def test_a_stage_that_stopped_early_is_not_trained_further(
    prepared: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ("model.optimizer.lr=0",)
    run(prepared, tmp_path / "run", epochs=9, model=model)
    last = tmp_path / "run" / LAST
    before = torch.load(last, weights_only=True)["epoch"]
    assert before < 8
    for marker, epochs in (("", 9), ("9", 12)):  # killed before the marker was written; more epochs than before
        (tmp_path / "run" / DONE_MARKER).unlink()
        if marker:
            (tmp_path / "run" / DONE_MARKER).write_text(marker)
        run(prepared, tmp_path / "run", "resume=true", epochs=epochs, model=model)
        assert torch.load(last, weights_only=True)["epoch"] == before
        assert f"stopped early after epoch {before + 1}, not trained further" in caplog.text
        caplog.clear()


def test_a_stage_that_stopped_early_is_trained_to_min_epochs(prepared: PreparedDataset, tmp_path: Path) -> None:
    model = ("model.optimizer.lr=0",)
    run(prepared, tmp_path / "run", epochs=9, model=model)
    before = torch.load(tmp_path / "run" / LAST, weights_only=True)["epoch"]
    for min_epochs in (before + 1, before + 3):
        (tmp_path / "run" / DONE_MARKER).unlink()
        run(prepared, tmp_path / "run", "resume=true", f"+trainer.min_epochs={min_epochs}", epochs=9, model=model)
        assert torch.load(tmp_path / "run" / LAST, weights_only=True)["epoch"] == min_epochs - 1


def test_a_stage_stopped_in_its_first_epoch_is_trained_no_further(prepared: PreparedDataset, tmp_path: Path) -> None:
    stop = "monitor: val/recall@20, mode: max, stopping_threshold: -1"
    stop = f"+callbacks.stop={{_target_: pytorch_lightning.callbacks.EarlyStopping, {stop}}}"
    for resume in ("resume=false", "resume=true"):
        run(prepared, tmp_path / "run", stop, resume)
        assert torch.load(tmp_path / "run" / LAST, weights_only=True)["epoch"] == 0
        (tmp_path / "run" / DONE_MARKER).unlink()  # killed before it was written


def test_a_stage_is_not_resumed_with_fewer_epochs(prepared: PreparedDataset, tmp_path: Path) -> None:
    run(prepared, tmp_path / "run", epochs=2)
    (tmp_path / "run" / DONE_MARKER).unlink()  # killed before it was written
    with pytest.raises(UserError, match=r"last\.ckpt was trained for 2 epochs, more than the 1 of its stage; raise"):
        run(prepared, tmp_path / "run", "resume=true", epochs=1)


def test_epochs_without_validation_are_saved_and_have_no_metric(
    prepared: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ("+trainer.check_val_every_n_epoch=2", "checkpoint.every_n_minutes=1000")
    with caplog.at_level(logging.INFO):
        weights = run(prepared, tmp_path / "whole", *overrides).state_dict()
    assert [", val " in line for line in caplog.messages if "loss" in line] == [False, True, False]
    assert torch.load(tmp_path / "whole" / LAST, weights_only=True)["epoch"] == 2
    for epoch in (1, 2):  # killed in it
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, "training_step", CHUNKS + 1)
            with pytest.raises(Killed):
                run(prepared, tmp_path / "cut", "resume=true", *overrides)
        assert torch.load(tmp_path / "cut" / LAST, weights_only=True)["epoch"] == epoch - 1
    resumed = run(prepared, tmp_path / "cut", "resume=true", *overrides, seed=7).state_dict()
    assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())


def test_the_best_score_of_a_moved_run_is_kept(tmp_path: Path) -> None:
    before, after = (
        RelocatableCheckpoint(tmp_path / name, "best", monitor="val/mrr@20", mode="max") for name in ("before", "after")
    )
    before.best_model_score, before.best_model_path = torch.tensor(0.5), str(tmp_path / "before" / "best.ckpt")
    before.best_k_models = {before.best_model_path: before.best_model_score}
    after.load_state_dict(before.state_dict())
    path = str(tmp_path / "after" / "best.ckpt")
    assert (after.best_model_score, after.best_model_path, after.best_k_models) == (0.5, path, {path: 0.5})


def test_the_data_have_as_many_chunks_as_the_calls_below_assume(prepared: PreparedDataset) -> None:
    assert len(make_data(prepared, **DATA).chunks("train", 4)) == CHUNKS


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("training_step", 1),  # before the first save
        slow("training_step", 2),
        slow("training_step", 9),
        ("training_step", CHUNKS),  # the last chunk of an epoch
        slow("training_step", CHUNKS + 1),  # the first of the next
        ("training_step", 2 * CHUNKS - 3),
        slow("training_step", 3 * CHUNKS),
        ("validation_step", 1),
        slow("on_validation_epoch_end", 2),
        ("on_save_checkpoint", 5),
    ],
)
def test_a_resumed_stage_ends_as_an_uninterrupted_one(
    method: str, call: int, whole: Whole, prepared: PreparedDataset, tmp_path: Path
) -> None:
    assert_resumes_as_if_not_interrupted(whole, prepared, tmp_path, method, call)


RESUMED = (
    "gru4rec_separate",
    "gru4rec_tied",
    "sasrec",
    "pnn_fields",
    "concat",
    "arnn",
    "arnn_footnote2",
    "arnn_joint",
    "init_state",
)


@pytest.mark.parametrize("case", slow_but(("sasrec", "arnn"), [BY_NAME[name] for name in RESUMED]), ids=case_name)
def test_every_model_is_resumed(case: ModelCase, whole: Whole, prepared: PreparedDataset, tmp_path: Path) -> None:
    settings = {"case": case, "model": (), "epochs": 2}
    assert_resumes_as_if_not_interrupted(whole, prepared, tmp_path, "training_step", CHUNKS + 5, **settings)


@pytest.mark.parametrize("interval", [slow("epoch"), "step"])
@pytest.mark.parametrize("call", [slow(9), slow(CHUNKS + 1), 2 * CHUNKS - 3])
def test_a_resumed_stage_restores_its_schedule(
    interval: str, call: int, whole: Whole, prepared: PreparedDataset, tmp_path: Path
) -> None:
    schedule = (f"model.scheduler={SCHEDULE}", f"model.scheduler_interval={interval}", "model/optimizer=adamw")
    settings = {"model": ("model.dropout_hidden=0.3", *schedule)}
    assert_resumes_as_if_not_interrupted(whole, prepared, tmp_path, "training_step", call, **settings)


def test_a_failed_save_keeps_the_older_checkpoint(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prepared, tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / LAST).read_bytes()
    (tmp_path / "run" / DONE_MARKER).unlink()
    original = torch.save

    def half(value: Any, file: Any, *arguments: Any, **settings: Any) -> None:
        original({"half": 1}, file, *arguments, **settings)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        run(prepared, tmp_path / "run", "resume=true", epochs=2)
    assert (tmp_path / "run" / LAST).read_bytes() == before


class Malicious:
    """A pickle that makes a folder where it is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_corrupt_or_foreign_checkpoint_is_rejected(prepared: PreparedDataset, tmp_path: Path) -> None:
    run(prepared, tmp_path / "run", epochs=1)
    (tmp_path / "run" / DONE_MARKER).unlink()
    last = tmp_path / "run" / LAST
    whole = torch.load(last, weights_only=True)

    def rejects(checkpoint: dict[str, Any], message: str) -> None:
        torch.save(checkpoint, last)
        with pytest.raises(UserError, match=message):
            run(prepared, tmp_path / "run", "resume=true", epochs=2)

    rejects(whole | {"extra": Malicious(tmp_path / "owned")}, "refused: contains pickled objects")
    assert not (tmp_path / "owned").exists()
    rejects(whole | {"metadata": {"prepared": "tmall-1"}}, "was trained on tmall-1")
    rejects({key: value for key, value in whole.items() if key != "version"}, "version 1; this release")
    rejects(whole | {"state_dict": {}}, "do not fit this model")
    torch.save(whole, last)
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        run(prepared, tmp_path / "run", "resume=true", epochs=2)


def test_ctrl_c_finishes_the_chunk_and_saves(whole: Whole, prepared: PreparedDataset, tmp_path: Path) -> None:
    weights, _ = whole()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        original = SessionRecommender.training_step
        done: list[int] = []

        def interrupted(self: SessionRecommender, batch: Any, index: int) -> None:
            if len(done) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            original(self, batch, index)
            done.append(index)

        patch.setattr(SessionRecommender, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(prepared, tmp_path / "cut", "checkpoint.every_n_minutes=1000")
    assert done == [0, 1, 2, 3, 4]
    saved = torch.load(tmp_path / "cut" / LAST, weights_only=True)
    assert saved["global_step"] == 5
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = run(prepared, tmp_path / "cut", "resume=true", seed=7)
    assert all(torch.equal(weight, resumed.state_dict()[name]) for name, weight in weights.items())


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path) -> None:
    interval = IntervalCheckpoint(tmp_path / LAST, minutes=1000)
    with interval.handle_sigint():
        os.kill(os.getpid(), signal.SIGINT)
        assert interval.stop_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_checkpoints_are_minutes_apart_and_none_ends_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, saved, counts = [0.0], [], []
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    interval = IntervalCheckpoint(tmp_path / LAST, minutes=2)
    for seconds[0], is_last in [(119, False), (120, False), (130, False), (240, True), (241, False)]:
        trainer: Any = SimpleNamespace(is_last_batch=is_last, save_checkpoint=saved.append, strategy=strategy)
        interval.on_train_batch_end(trainer)
        counts.append(len(saved))
    assert counts == [0, 1, 1, 1, 2]
