"""Checkpoints are data."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from arnn_lightning.errors import UserError
from arnn_lightning.models.base import LAYOUT
from arnn_lightning.training.checkpoint import build, check_data, load_weights, read_checkpoint
from helpers import make_model, model_config

DIMS = {"n_items": 7, "single_sizes": [3], "n_binary": 2}


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"about": {}, "state_dict": {}, "extra": Malicious(tmp_path / "owned")}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="more than tensors and plain values"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "owned").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()  # the trap works where pickle is trusted


@pytest.mark.parametrize("target", ["os.system", "arnn_lightning.cli.main", "torch.hub.load"])
def test_a_checkpoints_config_can_name_models_only(target: str) -> None:
    config = model_config("gru4rec", DIMS)
    config["optimizer"]["_target_"] = target
    with pytest.raises(UserError, match="is not in a trusted module"):
        build(config, trusted_modules=[])


def test_truncated_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.ckpt"
    torch.save({"about": {}, "layout": LAYOUT, "state_dict": {"a": torch.zeros(1000)}}, whole)
    (tmp_path / "half.ckpt").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert read_checkpoint(whole)["state_dict"]["a"].shape == (1000,)
    for name, message in {
        "half": "damaged",
        "empty": "damaged",
        "foreign": "not a checkpoint of arnn-lightning",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_checkpoint(tmp_path / f"{name}.ckpt")
        assert "\n" not in str(caught.value)


def test_an_older_layout_says_so(tmp_path: Path) -> None:
    torch.save({"about": {}, "state_dict": {}}, tmp_path / "old.ckpt")  # the first layout had no number
    torch.save({"about": {}, "state_dict": {}, "layout": LAYOUT + 1}, tmp_path / "new.ckpt")
    for name, layout in (("old", 1), ("new", LAYOUT + 1)):
        with pytest.raises(UserError, match=f"of layout {layout}, this version .* reads layout {LAYOUT}"):
            read_checkpoint(tmp_path / f"{name}.ckpt")


def test_another_data_sets_checkpoint_says_so() -> None:
    checkpoint = {"about": {"prepared": "xing-1"}}
    check_data(checkpoint, "xing-1", "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt was trained on xing-1, this run is on tmall-2"):
        check_data(checkpoint, "tmall-2", "x.ckpt")


def test_another_catalogues_weights_do_not_fit() -> None:
    model = make_model("gru4rec", DIMS)
    other = make_model("gru4rec", DIMS | {"n_items": 8})
    with pytest.raises(UserError, match="do not fit this model"):
        load_weights(model, {"state_dict": other.state_dict()}, "x.ckpt")
