"""What is listed before the first click: the better one of popularity and PNN, on the validation split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from arnn_lightning.batch import Contexts
from arnn_lightning.models import SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import BEST
from arnn_lightning.training import first_items, stage
from arnn_lightning.training.checkpoint import FIRST_ITEMS, load_weights, read_checkpoint
from arnn_lightning.training.first_items import compare_first_items
from arnn_lightning.training.stage import train_stage
from helpers import compose_config, make_data, make_model, write_dataset
from models import BY_NAME, slow

N_USERS, N_UNKNOWN, N_GROUPS, GROUP_ITEMS = 40, 4, 6, 10
SIZES = ("model.hidden_size=16", "model.optimizer.lr=0.1", "model/loss=cross_entropy_full")
PNN = (*SIZES, "model.embedding_size=8")
ARNN = (
    *SIZES,
    *(f"model.{role}.{key}" for role in ("session", "context") for key in ("hidden_size=16", "optimizer.lr=0.1")),
    *(f"model/loss@model.{role}.loss=cross_entropy_full" for role in ("session", "context")),
    "model.context.embedding_size=8",
)


def group_dataset(folder: Path, by_profile: bool) -> PreparedDataset:
    """Every user clicks items of one group, which is the attribute; or all click the same items, whoever they are.

    The attribute is then the user. The first users have no profile.
    """
    rng = np.random.default_rng(0)
    n_items, splits = N_GROUPS * GROUP_ITEMS, {}
    weights = np.arange(1, n_items + 1) ** -0.7
    for name, count in (("train", 400), ("val", 300), ("test", 100)):
        users = rng.integers(0, N_USERS, count)
        if by_profile:
            sessions = (users % N_GROUPS * GROUP_ITEMS)[:, None] + rng.integers(0, GROUP_ITEMS, (count, 4))
        else:
            sessions = rng.choice(n_items, (count, 4), p=weights / weights.sum())
        splits[name] = (sessions.tolist(), users.tolist())
    n_groups = N_GROUPS if by_profile else N_USERS
    groups = [0 if user < N_UNKNOWN else 1 + user % n_groups for user in range(N_USERS)]
    return write_dataset(folder, splits, n_items, single={"group": groups})


def train(
    prepared: PreparedDataset, folder: Path, name: str, *overrides: str, **data: Any
) -> tuple[SessionRecommender, dict[str, Any]]:
    """A model after its stages, and its checkpoint; ``data``: settings of the config."""
    config = compose_config(f"model={name}", "logger={}", *(f"{key}={value}" for key, value in data.items()))
    model = make_model(name, prepared.dims, *overrides, metadata={"prepared": prepared.folder.name})
    settings = {"epochs": 4, "patience": None, "batch_size": 20, "n_sample": 0, "sample_alpha": 0.5}
    for role, part in {**(model.stages if model.needs_stages else {}), "": model}.items():
        train_stage(part, prepared, config, {**settings, "negatives": "global"}, folder / role, [])
    return model, read_checkpoint(folder / BEST)


def mean_reciprocal_rank(score_NI: torch.Tensor, target_N: torch.Tensor) -> float:
    """Conservative, 0 beyond rank 20."""
    rank_N = (score_NI >= score_NI.gather(1, target_N[:, None])).sum(1)
    return float(torch.where(rank_N <= 20, 1 / rank_N, 0).mean())


@pytest.mark.parametrize(("name", "overrides"), [slow("pnn", PNN), ("arnn", ARNN)])
def test_pnn_is_chosen_where_profiles_decide_the_first_item(
    name: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    prepared = group_dataset(tmp_path, by_profile=True)
    model, checkpoint = train(prepared, tmp_path, name, *overrides)
    stored = checkpoint[FIRST_ITEMS]
    assert (stored["answer"], stored["encoder"]) == ("pnn", "PNN")
    sessions = make_data(prepared).sessions("val")
    is_known = sessions.user >= N_UNKNOWN
    assert stored["sessions"] == is_known.sum() < len(sessions.user)
    first_N = torch.from_numpy(sessions.item[sessions.offset[:-1]][is_known])
    events_I = torch.from_numpy(np.bincount(prepared.sessions("train").item, minlength=model.n_items))
    assert stored["popularity"] == pytest.approx(mean_reciprocal_rank(events_I.expand(len(first_N), -1), first_N))
    fresh = make_model(name, prepared.dims, *overrides, seed=9)
    load_weights(fresh, checkpoint, tmp_path)
    assert fresh.first_items == model.first_items == {key: stored[key] for key in stored if key != "scorer"}
    score = fresh.eval().profile_model.eval().profile_scorer(events_I)
    single_U1 = torch.arange(1 + N_GROUPS)[:, None]
    score_UI = score(Contexts(single_U1, torch.full_like(single_U1, -1)))
    group_N = torch.from_numpy(1 + sessions.user[is_known] % N_GROUPS)
    assert stored["pnn"] == pytest.approx(mean_reciprocal_rank(score_UI[group_N], first_N), rel=1e-5)
    best_G = score_UI[1:].topk(GROUP_ITEMS).indices // GROUP_ITEMS
    assert (best_G == torch.arange(N_GROUPS)[:, None]).all()


@pytest.mark.parametrize("name", ["pnn", slow("arnn")])
def test_popularity_is_chosen_where_profiles_are_noise(name: str, tmp_path: Path) -> None:
    prepared = group_dataset(tmp_path, by_profile=False)
    model, checkpoint = train(prepared, tmp_path, name, *(PNN if name == "pnn" else ARNN))
    stored = checkpoint[FIRST_ITEMS]
    assert stored["answer"] == "popularity"
    assert stored["popularity"] > stored["pnn"] > 0
    assert stored == model.first_items  # no scorer


def test_arnn_and_its_pnn_have_the_same_values(tmp_path: Path) -> None:
    prepared = group_dataset(tmp_path, by_profile=True)
    arnn, checkpoint = train(prepared, tmp_path, "arnn", *ARNN)
    of_pnn = read_checkpoint(tmp_path / "context" / BEST)
    assert of_pnn[FIRST_ITEMS] == arnn.first_items
    assert FIRST_ITEMS not in read_checkpoint(tmp_path / "session" / BEST)
    for name, weight in checkpoint[FIRST_ITEMS]["scorer"].items():
        assert torch.equal(weight, of_pnn["state_dict"][f"scorer.{name}"])


def test_popularity_is_the_answer_where_both_are_equal(
    small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_items, "per_prediction", lambda ranks, _: np.ones(len(ranks)))
    compared = compare_first_items(BY_NAME["pnn"].make(small_dataset), make_data(small_dataset))
    assert compared is not None
    assert (compared["answer"], compared["popularity"], compared["pnn"]) == ("popularity", 1, 1)


@pytest.mark.parametrize("name", ["gru4rec", "latent_cross", "arnn_concat"])
def test_a_model_without_pnn_stores_nothing(name: str, small_dataset: PreparedDataset) -> None:
    assert compare_first_items(BY_NAME[name].make(small_dataset), make_data(small_dataset)) is None


def test_another_encoder_of_profiles_is_named(small_dataset: PreparedDataset) -> None:
    model = BY_NAME["pnn"].make(small_dataset)
    model.encoder.__class__ = type("TowerEncoder", (type(model.encoder),), {})
    compared = compare_first_items(model, make_data(small_dataset))
    assert compared is not None
    assert compared["encoder"] == "Tower"


def test_without_profiles_or_validation_nothing_is_stored(small_dataset: PreparedDataset) -> None:
    model = BY_NAME["pnn"].make(small_dataset, "model.dropout=0.5")
    model.train().encoder.norm.eval()
    modes = [module.training for module in model.modules()]
    compared = compare_first_items(model, make_data(small_dataset))
    assert compared is not None
    assert compared == compare_first_items(model, make_data(small_dataset))
    assert modes == [module.training for module in model.modules()]
    assert compare_first_items(model, make_data(small_dataset, assignment="unknown")) is None
    small_dataset.manifest["splits"]["val"]["events"] = 0
    assert compare_first_items(model, make_data(small_dataset)) is None


def test_a_checkpoint_without_the_comparison_lists_popular_items(small_dataset: PreparedDataset) -> None:
    model = BY_NAME["pnn"].make(small_dataset)
    model.first_items = {"answer": "pnn"}
    load_weights(model, {"state_dict": model.state_dict()}, "older.ckpt")
    assert model.first_items is None


@pytest.mark.parametrize("name", ["pnn", slow("arnn_joint")])
def test_the_comparison_changes_no_training(
    name: str, small_dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of all stages, to the last bit: also where dropout and running statistics of shared encoders follow."""
    dropout = ["model.dropout=0.3"] if name == "pnn" else ["model.dropout=0.3", "model.context.dropout=0.3"]
    case, weights = BY_NAME[name], []
    for folder in (tmp_path / "with", tmp_path / "without"):
        model, checkpoint = train(small_dataset, folder, case.preset, *case.overrides, *dropout)
        weights.append(checkpoint["state_dict"])
        assert (FIRST_ITEMS in checkpoint) == (folder.name == "with") == (model.first_items is not None)
        monkeypatch.setattr(stage, "store_first_items", lambda *_: None)
    assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())


def test_a_part_of_many_sessions_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten sessions, whose users clicked items 0 to 9 first, numbers 0, 3 and 6."""
    sessions = [[item, 10] for item in range(10)]
    splits = {"train": (sessions, [*range(10)]), "val": (sessions, [*range(10)])}
    prepared = write_dataset(tmp_path, splits, 11, single={"level": [1] * 10})
    monkeypatch.setattr(first_items, "MAX_SESSIONS", 3)
    targets: list[int] = []
    usual = first_items.count_higher_and_tied

    def count(score: Any, users: torch.Tensor, target_N: torch.Tensor, n_items: int) -> torch.Tensor:
        targets.extend(target_N.tolist())
        return usual(score, users, target_N, n_items)

    monkeypatch.setattr(first_items, "count_higher_and_tied", count)
    compared = compare_first_items(BY_NAME["pnn"].make(prepared), make_data(prepared))
    assert compared is not None
    assert compared["sessions"] == 3
    assert targets == 2 * [0, 3, 6]


@pytest.mark.parametrize("name", ["pnn", "pnn_closed"])
def test_the_average_item_gives_the_average_of_the_product_layer(name: str, small_dataset: PreparedDataset) -> None:
    """Before ReLU: with weights so large that no unit is cut off, the queries are averages."""
    model = BY_NAME[name].make(small_dataset).double().eval()
    encoder = model.encoder
    torch.nn.init.constant_(encoder.product.bias, 100.0)
    events_I = torch.arange(model.n_items)
    encode = encoder.profile_encoder(events_I)
    user = torch.arange(len(model.user_single))
    expected_UH = torch.zeros((), dtype=torch.float64)
    for item, share in enumerate(events_I / events_I.sum()):
        step = model.step_input(torch.full_like(user, item), user, None)
        expected_UH = expected_UH + share * encoder.encode(step, ())[0]
    assert_close(encode(model.contexts_of(user)), expected_UH, rtol=1e-6, atol=1e-6)
