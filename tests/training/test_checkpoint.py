"""Checkpoints are data."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from arnn_lightning.config import check_targets
from arnn_lightning.errors import UserError
from arnn_lightning.models import RunSettings
from arnn_lightning.models.base import CHECKPOINT_VERSION
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.checkpoint import (
    build_model,
    load_weights,
    read_checkpoint,
    require_same_dataset,
    save_model,
)
from helpers import make_data, make_model, model_config, trainer
from models import MODELS, ModelCase, case_name, slow_variants

DIMS = {"n_items": 7, "single_sizes": [3], "n_binary": 2}


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"metadata": {}, "state_dict": {}, "extra": Malicious(tmp_path / "owned")}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="refused: contains pickled objects other than tensors and plain values"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()  # the trap works where pickle is trusted


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
def test_the_configs_of_all_models_are_trusted(case: ModelCase) -> None:
    schedule = "+model.scheduler={_target_:torch.optim.lr_scheduler.CosineAnnealingLR,_partial_:true,T_max:10}"
    overrides = [*case.overrides, *([schedule] if case.is_trained else [])]
    check_targets(model_config(case.preset, DIMS, *overrides))


def test_truncated_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.ckpt"
    torch.save({"metadata": {}, "version": CHECKPOINT_VERSION, "state_dict": {"a": torch.zeros(1000)}}, whole)
    (tmp_path / "half.ckpt").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert read_checkpoint(whole)["state_dict"]["a"].shape == (1000,)
    for name, message in {
        "half": "damaged",
        "empty": "damaged",
        "foreign": "not a checkpoint of arnn-lightning",
        "missing": "no checkpoint at",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            read_checkpoint(tmp_path / f"{name}.ckpt")
        assert "\n" not in str(error.value)


def test_a_checkpoint_without_permission_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    file = tmp_path / "best.ckpt"
    torch.save({}, file)
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"best\.ckpt: cannot be read: Permission denied$"):
        read_checkpoint(file)


def test_another_format_version_is_a_users_error(tmp_path: Path) -> None:
    torch.save({"metadata": {}, "state_dict": {}}, tmp_path / "old.ckpt")  # the first version had no number
    newer = {"metadata": {}, "state_dict": {}, "version": CHECKPOINT_VERSION + 1}
    torch.save(newer, tmp_path / "new.ckpt")
    for name, version in (("old", 1), ("new", CHECKPOINT_VERSION + 1)):
        with pytest.raises(UserError, match=f"version {version}; this release reads version {CHECKPOINT_VERSION}"):
            read_checkpoint(tmp_path / f"{name}.ckpt")


def test_another_data_sets_checkpoint_is_a_users_error() -> None:
    checkpoint = {"metadata": {"prepared": "xing-1"}}
    require_same_dataset(checkpoint, "xing-1", "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt was trained on xing-1, but this run uses tmall-2"):
        require_same_dataset(checkpoint, "tmall-2", "x.ckpt")


def test_another_catalogues_weights_do_not_fit() -> None:
    model = make_model("gru4rec", DIMS)
    other = make_model("gru4rec", DIMS | {"n_items": 8})
    with pytest.raises(UserError, match="do not fit this model") as error:
        load_weights(model, {"state_dict": other.state_dict()}, "x.ckpt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
@torch.no_grad()
def test_a_saved_model_is_read_back_with_its_scores(
    case: ModelCase, small_dataset: PreparedDataset, tmp_path: Path
) -> None:
    metadata = {"prepared": "world-1", "seed": 1}
    model = case.make(small_dataset, metadata=metadata).eval()
    if case.is_trained:
        fit(model, small_dataset, tmp_path)
    else:
        save_model(model, tmp_path / "model.ckpt")
    checkpoint = read_checkpoint(tmp_path / "model.ckpt")
    assert checkpoint["version"] == CHECKPOINT_VERSION
    assert checkpoint["metadata"] == metadata
    other = case.make(small_dataset)
    load_weights(other, checkpoint, "model.ckpt")
    chunk = make_data(small_dataset).chunks("test", 50)[0, 0]
    scores = [either.eval().score(either.encode_chunk(chunk)[0]) for either in (model, other)]
    assert torch.equal(*scores)


@torch.enable_grad()
def fit(model: Any, prepared: PreparedDataset, folder: Path) -> None:
    run = trainer(folder)
    run.fit(model, make_data(prepared))
    run.save_checkpoint(folder / "model.ckpt")
    model.on_validation_epoch_start()


def test_stages_have_prefixes_and_metadata_of_their_own() -> None:
    def metadata(config: Any) -> dict[str, Any]:
        return {"model": config["name"]}

    settings = RunSettings(monitor="mrr@5")
    model: Any = build_model(model_config("arnn", DIMS), settings, metadata)
    stages = {"": model, "session/": model.stages["session"], "context/": model.stages["context"]}
    for prefix, stage in stages.items():
        assert stage.settings.log_prefix == prefix
        assert stage.settings.metadata == {"model": stage.name}
        assert stage.settings.monitor == "mrr@5"
    assert settings.metadata == {}


def test_a_run_is_resumed_on_as_many_devices_only() -> None:
    with pytest.raises(UserError, match=r"started on 2 device\(s\) and cannot be resumed on 1"):
        make_model("gru4rec", DIMS).on_load_checkpoint({"progress": {"devices": 2}})
