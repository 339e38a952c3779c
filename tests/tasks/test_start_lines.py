"""What a run prints before it trains."""

from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module

from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks.start import start_lines
from commandline import NO_BASELINES
from helpers import compose_config, write_dataset


def lines(prepared: PreparedDataset, *overrides: str, dims: dict[str, Any] | None = None) -> list[str]:
    config = compose_config(*overrides, with_hydra=True)
    config.model.dims = dims or prepared.dims
    return start_lines(config, prepared, config.hydra)


def test_tuned_files_of_a_run_are_named(small_dataset: PreparedDataset) -> None:
    (line,) = lines(small_dataset, *NO_BASELINES, "model=gru4rec")
    assert line == "tuned values used: model (synthetic_gru4rec_top1_adagrad); to leave them out, add ~tuned@model"
    assert lines(small_dataset, *NO_BASELINES, "model=gru4rec", "model/optimizer=adam") == []
    (line,) = lines(small_dataset, "model=pop")
    assert line.startswith(
        "tuned values used: baselines.vsknn (synthetic_vsknn), baselines.sr (synthetic_sr), baselines.item"
    )
    assert line.endswith("to leave them out, add ~tuned@baselines.vsknn ~tuned@baselines.sr ~tuned@baselines.itemknn")


def test_a_tuned_file_that_no_run_can_use_is_named(
    small_dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines(small_dataset, "data=movielens", "model=pop") == []
    folder = tmp_path / "arnn_conf" / "tuned"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("rsc15_gru4rec_top1_adagrad", "rsc15_sknn", "RSC15_sknn", "rsc15_gru4rec_adagrad"):
        (folder / f"{name}.yaml").touch()
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        unused = lines(small_dataset, "data=movielens", "model=pop")
    assert [line.partition(" is not used: ")[0] for line in unused] == [
        "arnn_conf/tuned/RSC15_sknn.yaml",
        "arnn_conf/tuned/rsc15_gru4rec_adagrad.yaml",
    ]


def test_what_looks_wrong_in_the_settings_of_the_data_is_shown(small_dataset: PreparedDataset) -> None:
    note = "data.where: no row has event=veiw"
    small_dataset.manifest["notes"] = [note]
    assert lines(small_dataset, "data=movielens", "model=pop") == [note]


def test_without_validation_the_last_epoch_is_kept(tmp_path) -> None:
    world = write_dataset(tmp_path, {"train": ([[0, 1]], [0]), "test": ([[0, 1]], [0])}, n_items=2)
    assert lines(world, "data=xing", "model=gru4rec") == [
        "no validation split (data.split): the last epoch of each stage is kept, not the best"
    ]
    assert lines(world, "data=xing", "model=itemknn") == []


def test_keys_of_the_merging_stage_alone_are_named(small_dataset: PreparedDataset) -> None:
    arnn = ["data=movielens", "model.epochs=2", "model.optimizer.lr=1", "model.freeze_encoders=false"]
    assert lines(small_dataset, *arnn) == [
        "model.epochs: for the merging stage only; the session encoder has model.session.epochs=10",
        "model.epochs: for the merging stage only; the context encoder has model.context.epochs=10",
    ]
    assert len(lines(small_dataset, *arnn, "pretrained.session=a.ckpt")) == 1
    shared = ["model.item_contexts=add", "model.attribute_dropout=0.2"]  # the encoders take the model's value
    assert lines(small_dataset, "data=movielens", *shared) == []
    assert lines(small_dataset, "data=movielens", "model=gru4rec", "model.epochs=2") == []


def test_what_a_fusion_does_not_share_with_its_control_is_named(small_dataset: PreparedDataset) -> None:
    fusion = ["data=movielens", "model=latent_cross"]
    assert lines(small_dataset, *fusion) == []
    assert lines(small_dataset, *fusion, "model.epochs=2") == [
        "model.epochs: for latent_cross only; the session encoder has model.session.epochs=10"
    ]
    other_loss = "latent_cross: model.loss differs from model.session.loss, the loss of its control"
    assert lines(small_dataset, *fusion, "model@model.session=gru4rec") == [other_loss]
    assert lines(small_dataset, *fusion, "model@model.session=gru4rec", "model/loss=top1") == []
    dims = small_dataset.dims | {"single_sizes": [], "n_binary": 0}
    assert lines(small_dataset, *fusion, dims=dims) == [
        "latent_cross: no contexts (data.contexts); model=gru4rec_strong is equivalent without them"
    ]


def test_arnn_without_contexts_advises_its_session_model(small_dataset: PreparedDataset) -> None:
    dims = small_dataset.dims | {"single_sizes": [], "n_binary": 0}
    assert lines(small_dataset, "data=movielens", dims=dims) == [
        "arnn: no contexts (data.contexts); model=gru4rec is equivalent without them"
    ]
    assert lines(small_dataset, "data=movielens") == []


@pytest.mark.parametrize("model", ["gru4rec", "arnn", "pnn", "latent_cross"])
def test_cold_items_advise_item_contexts(model: str, small_dataset: PreparedDataset) -> None:
    cold = ["data=movielens", f"model={model}", "data.items.cold=keep"]
    assert lines(small_dataset, *cold) == [
        f"{model}: does not distinguish items without training events (data.items.cold=keep); "
        "set model.item_contexts=add"
    ]
    assert lines(small_dataset, *cold, "model.item_contexts=add") == []
    assert lines(small_dataset, "data=movielens", "model=pop", "data.items.cold=keep") == []


@pytest.mark.parametrize(
    ("val", "test", "few"),
    [(99, 1, "99 validation sessions and 1 test session"), (0, 3, "3 test sessions"), (1, 100, "1 validation session")],
)
def test_few_sessions_of_a_users_log_are_counted(val: int, test: int, few: str, small_dataset: PreparedDataset) -> None:
    small_dataset.manifest["splits"] = {"val": {"events": val, "sessions": val}, "test": {"sessions": test}}
    line = f"only {few}: their metrics are uncertain (data.split sets the days or shares)"
    assert lines(small_dataset, "data=tabular", "data.events=a.csv", "model=pop") == [line]
    assert lines(small_dataset, "data=movielens", "model=pop") == []


@pytest.mark.parametrize("model", ["arnn", "gru4rec"])
def test_the_papers_loss_on_a_users_log_advises_a_strong_model(model: str, small_dataset: PreparedDataset) -> None:
    data = ["data=tabular", "data.events=a.csv"]
    small_dataset.manifest["splits"] = {"val": {"events": 900, "sessions": 100}, "test": {"sessions": 100}}
    assert lines(small_dataset, *data, f"model={model}") == [
        f"{model} uses the paper's loss; on your own log, start with model={model}_strong"
    ]
    assert lines(small_dataset, *data, f"model={model}_strong") == []
    assert lines(small_dataset, "data=movielens", f"model={model}") == []
