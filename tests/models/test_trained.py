"""SessionRecommender: optimizers and learning-rate schedules."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arnn_lightning.models.progress import TrainingProgress
from arnn_lightning.optim import TrainStep
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, model_config, trainer, write_dataset
from models import BY_NAME

SCHEDULERS = "torch.optim.lr_scheduler"


def fit(prepared: PreparedDataset, folder: Path, *overrides: str, epochs: int = 3, steps: int = 3) -> list[float]:
    """Trains a model; the learning rate of every mini-batch."""
    model = BY_NAME["gru4rec"].make(prepared, "model.optimizer.lr=0.1", *overrides)
    rates: list[float] = []
    train_on_step = TrainStep.__call__

    def recorded(self: TrainStep, *arguments: Any) -> Any:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return train_on_step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", recorded)
        trainer(folder, max_epochs=epochs).fit(model, make_data(prepared, steps_per_chunk=steps))
    return rates


@pytest.fixture
def n_steps(small_dataset: PreparedDataset) -> int:
    """Mini-batches of an epoch."""
    return len(make_data(small_dataset).chunks("train", 4).schedule.event)


def test_without_a_schedule_the_rate_is_constant(small_dataset: PreparedDataset, tmp_path: Path, n_steps: int) -> None:
    assert fit(small_dataset, tmp_path) == [0.1] * 3 * n_steps


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
def test_a_schedule_per_epoch(optimizer: str, small_dataset: PreparedDataset, tmp_path: Path, n_steps: int) -> None:
    schedule = f"model.scheduler={{_target_:{SCHEDULERS}.ExponentialLR,_partial_:true,gamma:0.5}}"
    rates = fit(small_dataset, tmp_path, f"model/optimizer={optimizer}", schedule)
    assert rates == pytest.approx([0.1] * n_steps + [0.05] * n_steps + [0.025] * n_steps)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_a_schedule_per_step(steps: int, small_dataset: PreparedDataset, tmp_path: Path, n_steps: int) -> None:
    schedule = f"model.scheduler={{_target_:{SCHEDULERS}.ExponentialLR,_partial_:true,gamma:0.9}}"
    rates = fit(
        small_dataset, tmp_path, schedule, "model.scheduler_interval=step", "model.clip_norm=1", epochs=2, steps=steps
    )
    assert rates == pytest.approx([0.1 * 0.9**step for step in range(2 * n_steps)])


def test_a_schedule_by_the_loss_of_an_epoch(small_dataset: PreparedDataset, tmp_path: Path, n_steps: int) -> None:
    """No epoch is better than the first by a factor of 1,000: the rate falls from the third epoch on."""
    plateau = "ReduceLROnPlateau,_partial_:true,patience:0,factor:0.5,threshold:0.999"
    rates = fit(small_dataset, tmp_path, f"model.scheduler={{_target_:{SCHEDULERS}.{plateau}}}", epochs=4)
    assert rates[::n_steps] == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_an_epochs_loss_is_its_own_and_its_first_chunk_not_timed() -> None:
    progress = TrainingProgress()
    progress.start_epoch()
    progress.add_chunk(loss=8.0, n_events=2, seconds=1.0)
    progress.start_epoch()
    progress.add_chunk(loss=3.0, n_events=3, seconds=0.5)
    assert progress.epoch_loss == 1.0
    assert progress.events_per_second == 6.0


def test_E13_every_value_of_a_config_reaches_the_optimizer(small_dataset: PreparedDataset) -> None:
    for name, kind in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        overrides = [f"model/optimizer={name}", "model.optimizer.lr=0.013", "model.optimizer.weight_decay=0.07"]
        optimizer = BY_NAME["gru4rec"].make(small_dataset, *overrides).configure_optimizers()
        assert type(optimizer) is kind
        config = model_config("gru4rec", small_dataset.dims, *overrides)["optimizer"]
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        (group,) = optimizer.param_groups
        assert {key: list(group[key]) if key == "betas" else group[key] for key in values} == values


@pytest.mark.parametrize("name", ["pnn", "concat", "latent_cross", "init_state", "input_concat", "prefix"])
def test_E28_unseen_categories_stand_at_their_fields_mean(name: str, tmp_path: Path) -> None:
    """Codes 0 of both fields and 3 of the second have no training event; users have 6, 4 and 2 of them."""
    sessions = [[0, 1, 2], [2, 1, 0], [1, 2], [0, 2], [2, 0]]
    single = {"level": [1, 2, 2, 0], "country": [1, 1, 2, 3]}
    prepared = write_dataset(
        tmp_path, {"train": (sessions, [0, 0, 1, 1, 2]), "val": ([[0, 1]], [3])}, 3, single, [[0], [1], [], []]
    )
    model = BY_NAME[name].make(prepared, "model.optimizer.lr=0.1")
    table = getattr(model.encoder, "contexts", model.encoder).single_embedding
    before = table.weight.detach().clone()
    trainer(tmp_path / "run", max_epochs=2).fit(model, make_data(prepared, batch_size=2))
    weight = table.weight.detach()  # three levels, then four countries
    level, country = weight[:3], weight[3:]
    assert torch.allclose(level[0], (6 * level[1] + 6 * level[2]) / 12, atol=1e-6)
    expected = (10 * country[1] + 2 * country[2]) / 12
    assert torch.allclose(country[0], expected, atol=1e-6)
    assert torch.allclose(country[3], expected, atol=1e-6)
    assert (level[0] != before[0]).any()  # not at its random start


def test_E28_seen_categories_are_trained_only(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    """The value "unknown" has training events here: nothing replaces what it learnt."""
    model = BY_NAME["pnn"].make(small_dataset)
    data = make_data(small_dataset)
    trainer(tmp_path, max_epochs=1).fit(model, data)
    before = model.encoder.single_embedding.weight.detach().normal_().clone()  # fit has placed the unseen ones
    model.place_unseen(data)
    events, _ = data.category_events()
    moved = (model.encoder.single_embedding.weight != before).any(1)
    assert not moved[events > 0].any()
