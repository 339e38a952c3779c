"""What a checkpoint may instantiate, and instantiation errors."""

import tomllib
from typing import Any

import pytest
from omegaconf import OmegaConf

from arnn_lightning.config import check_targets, instantiate
from arnn_lightning.config.targets import EXTRAS
from arnn_lightning.errors import UserError
from helpers import CONF


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.hub.load",
        "arnn_lightning.io.write_text",  # of the package, but no part of a model
        "arnn_lightning.modelsx.Model",
        "arnn_lightning.models.missing",
        "arnn_lightning.models.base.torch.hub.load",  # defined elsewhere, reached through a trusted module
        "torch.optim.optimizer.cast",
        "torch.optim.optimizer.torch.hub.load",
        "mine.Model",
    ],
)
def test_a_checkpoint_instantiates_trusted_modules_only(target: str) -> None:
    for config in ({"loss": {"_target_": target}}, {"session": {"optimizer": [{"_target_": target}]}}):
        with pytest.raises(UserError, match="is not in a trusted module") as caught:
            check_targets(config)
        assert target in str(caught.value)


def test_trusted_modules_extend_what_a_checkpoint_names() -> None:
    config = {"_target_": "arnn_lightning.models.pop.POP", "a": {"_target_": "torch.optim.Adam"}}
    check_targets(config, [])
    counter = {"_target_": "collections.Counter"}
    check_targets(counter, ["collections"])
    for trusted in ([], ["collection"], ["collections.other"]):
        with pytest.raises(UserError, match=r"collections\.Counter is not in a trusted module.*trusted_modules="):
            check_targets(counter, trusted)


@pytest.mark.parametrize("value", ["${oc.create:'{_target_: os.system}'}", "arnn_lightning.models.${name}"])
def test_a_checkpoint_contains_no_interpolations(value: str) -> None:
    with pytest.raises(UserError, match="interpolations"):
        check_targets({"_target_": "arnn_lightning.models.pop.POP", "a": [value]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/mrr@20", "mode": "best"},
            "pytorch_lightning.callbacks.EarlyStopping: `mode` can be min, max, got best",
        ),
        ({"_target_": "nowhere.Logger"}, "nowhere.Logger: No module named 'nowhere'"),
        ({"_target_": "os.system", "_args_": ["true"]}, "Target 'os.system' is blocklisted"),
        ({"_target_": "pathlib.PurePath", "x": 1}, "pathlib.PurePath: "),
    ],
)
def test_instantiation_errors_are_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        instantiate(OmegaConf.create(config))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == project["optional-dependencies"].keys() - {"dev", "docs", "sweeps"}
