"""A stage of training: which epoch it keeps."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import BEST
from arnn_lightning.training.stage import DONE_MARKER, LAST, evaluate_model, train_stage, validate_model
from helpers import compose_config, write_dataset
from models import BY_NAME

DATA = {"batch_size": 4, "n_sample": 0, "sample_alpha": 0.5, "negatives": "global"}


class Validations(Callback):
    """Collects the validation metric of every epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append(float(trainer.callback_metrics["val/mrr@20"]))


class Break(Callback):
    """Makes the loss of the second epoch's second chunk NaN; keeps ``last.ckpt`` as it was before."""

    def __init__(self, last: Path) -> None:
        self.last = last

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            self.saved = self.last.read_bytes()
            pl_module.get_parameter("scorer.items.weight").fill_(float("nan"))


def train(
    prepared: PreparedDataset,
    folder: Path,
    epochs: int,
    patience: int | None,
    *callbacks: Callback,
    overrides: Sequence[str] = (),
) -> tuple[list[float], float]:
    """The validation metric of every epoch, and that of the model afterwards."""
    settings = ("logger={}", "performance.steps_per_execution=3", "checkpoint.every_n_minutes=0", *overrides)
    config = compose_config("model=gru4rec", *settings)
    model = BY_NAME["gru4rec"].make(prepared, "model.optimizer.lr=1", metadata={"prepared": prepared.folder.name})
    validations = Validations()
    stage = {"epochs": epochs, "patience": patience, **DATA}
    train_stage(model, prepared, config, stage, folder, [], [validations, *callbacks])
    return validations.values, validate_model(model, prepared, config)["mrr@20"]


def test_V12_the_best_epoch_of_the_validation_is_kept(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    values, kept = train(small_dataset, tmp_path, epochs=6, patience=None)
    assert len(values) == 6
    assert np.argmax(values) not in (np.argmin(values), 5)  # neither the worst nor the last
    assert kept == pytest.approx(max(values), rel=1e-6)
    epochs = [torch.load(tmp_path / name, weights_only=True)["epoch"] for name in (BEST, LAST)]
    assert epochs == [int(np.argmax(values)), 5]
    assert (tmp_path / DONE_MARKER).is_file()


def test_patience_stops_after_epochs_without_a_better_one(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    values, _ = train(small_dataset, tmp_path, epochs=30, patience=2)
    best = int(np.argmax(values))
    assert len(values) == best + 1 + 2 < 30


@pytest.mark.parametrize(("step", "evaluate"), [("test_step", evaluate_model), ("validation_step", validate_model)])
def test_ctrl_c_ends_an_evaluation_as_it_ends_training(
    step: str, evaluate: Any, small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning alone exits with code 1, and ignores Ctrl-C from then on."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model, handler = BY_NAME["gru4rec"].make(small_dataset), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(type(model), step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, small_dataset, compose_config("model=gru4rec", "logger={}"))
    assert signal.getsignal(signal.SIGINT) is handler


class Defect(Callback):
    """Raises what Lightning raises for some settings."""

    def on_train_epoch_end(self, *_: Any) -> None:
        raise RuntimeError("a defect")


def test_settings_that_lightning_refuses_are_users_errors(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    """An error of a callback of the user is not."""

    def rejects(message: str, *callbacks: Callback, overrides: Sequence[str] = ()) -> None:
        with pytest.raises(UserError, match=rf"^trainer or callbacks: .*{message}"):
            train(small_dataset, tmp_path, 1, None, *callbacks, overrides=overrides)

    rejects(r"`val_check_interval` \(500\) must be less than", overrides=["+trainer.val_check_interval=500"])
    rejects("no logger", LearningRateMonitor())
    rejects("conditioned on metric `val/map@5` which is not available", EarlyStopping("val/map@5"))
    with pytest.raises(RuntimeError, match="a defect"):
        train(small_dataset, tmp_path, 1, None, Defect())


def test_V12_training_does_not_read_the_test_split(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    with_test, _ = train(small_dataset, tmp_path / "with", epochs=2, patience=None)
    (small_dataset.folder / "test.parquet").unlink()
    without, _ = train(small_dataset, tmp_path / "without", epochs=2, patience=None)
    assert without == with_test


def test_E24_the_last_checkpoint_is_that_before_a_loss_of_nan(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    break_loss = Break(tmp_path / LAST)
    with pytest.raises(UserError, match="the last checkpoint is unaffected"):
        train(small_dataset, tmp_path, 2, None, break_loss)
    assert break_loss.last.read_bytes() == break_loss.saved
    checkpoint = torch.load(break_loss.last, weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


def test_a_loss_of_nan_from_the_start_has_another_advice(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    class Broken(Callback):
        @torch.no_grad()
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.get_parameter("scorer.items.weight").fill_(float("nan"))

    message = r"is nan at mini-batch 1 \(epoch 1\); this happens with the initial weights already: check"
    with pytest.raises(UserError, match=message):
        train(small_dataset, tmp_path, 1, None, Broken())


# compile has a test of its own, E30: it takes a C++ compiler and a minute.
SPEED_KEYS = {
    "performance.threads": 2,
    "performance.steps_per_execution": 7,
    "performance.cache_mb": 0,
    "evaluation.batch_size": 3,
}
ROUNDING_KEYS = {"performance.threads", "performance.compile"}


def test_E27_every_key_of_speed_is_tested() -> None:
    keys = {f"performance.{key}" for key in compose_config().performance}
    assert keys | {"evaluation.batch_size"} == SPEED_KEYS.keys() | ROUNDING_KEYS


@pytest.mark.parametrize("key", SPEED_KEYS)
def test_E27_a_run_does_not_depend_on_a_key_of_speed(key: str, small_dataset: PreparedDataset, tmp_path: Path) -> None:
    """To the last bit in float32, but for keys with which sums are rounded otherwise."""
    exact = key not in ROUNDING_KEYS
    outcomes = []
    for overrides in ([], [f"{key}={SPEED_KEYS[key]}"]):
        config = compose_config("model=arnn", "logger={}", *overrides)
        folder = tmp_path / str(len(overrides))
        cache_mb = float(config.performance.cache_mb)
        settings = {"metadata": {"prepared": small_dataset.folder.name}, "cache_mb": cache_mb}
        # Rounding grows over the steps, and Adagrad makes full steps of the rounding of a gradient that is 0.
        model = BY_NAME["arnn"].make(small_dataset, *([] if exact else ["model.optimizer.eps=1e-4"]), **settings)
        if not exact:
            zeros = model.double().initial_state
            model.initial_state = lambda batch_size, zeros=zeros: tuple(part.double() for part in zeros(batch_size))
        stage = {"epochs": 2, "patience": None, **DATA, "n_sample": 5}
        train_stage(model, small_dataset, config, stage, folder, [])
        assert torch.get_num_threads() == config.performance.threads
        ranks = evaluate_model(model, small_dataset, config).ranks["rank"].to_numpy()
        outcomes.append((validate_model(model, small_dataset, config), ranks, model.state_dict()))
    torch.set_num_threads(1)
    (values, ranks, weights), (other_values, other_ranks, other_weights) = outcomes
    assert other_values == (values if exact else pytest.approx(values, rel=1e-6))
    assert (ranks == other_ranks).all()
    for name, weight in weights.items():
        tolerance = 0 if exact else 1e-8
        assert torch.allclose(weight.double(), other_weights[name].double(), rtol=0, atol=tolerance), name


@pytest.mark.parametrize("name", ["pop", "gru4rec"])
def test_V9_V10_every_position_is_ranked_among_all_items(name: str, tmp_path: Path) -> None:
    """The target of the second session is an item that it has seen: item 0, the most popular one."""
    train_sessions = [[0, 0, 0, 1], [0, 0, 2]]
    prepared = write_dataset(
        tmp_path, {"train": (train_sessions, [0, 1]), "test": ([[1, 2, 3, 0], [0, 0]], [0, 1])}, n_items=4
    )
    model = BY_NAME[name].make(prepared)
    model.fit(prepared.sessions("train"))
    ranks = evaluate_model(model, prepared, compose_config(f"model={name}", "logger={}")).ranks
    assert ranks.select("session", "position", "item").rows() == [
        (2, 1, 2), (2, 2, 3), (2, 3, 0), (3, 1, 0),
    ]  # fmt: skip
    if name == "pop":
        assert ranks["rank"].to_list()[2:] == [1.0, 1.0]
    else:
        step = model.eval().step_input(torch.tensor([0]), torch.tensor([1]), None)
        query, _ = model.encode(step, model.initial_state(1))
        (score,) = model.score(query).detach()
        assert ranks["rank"][3] == 1 + int((score > score[0]).sum())  # item 0 itself is not left out
