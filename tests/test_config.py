"""The schema of the settings, what a checkpoint may instantiate, and instantiation errors."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import arnn_lightning
from arnn_lightning.cli import composition_error
from arnn_lightning.config import EXTRAS, RULES, check_settings, check_targets, instantiate
from arnn_lightning.errors import UserError

CONF = Path(arnn_lightning.__file__).parents[2] / "conf"
# Groups below the top level, and a model whose loss and optimizer they are.
CHOICES = {"model/loss": ["model=gru4rec"], "model/optimizer": ["model=gru4rec"], "schema": ["task=generate"]}
GROUPS = sorted(
    {file.parent.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")} - {".", "paper", "tuned", "search"}
)


def compose_job(*overrides: str) -> DictConfig:
    """A run's config with its ``hydra`` part."""
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def error(*overrides: str) -> str:
    """The one line that these overrides cost, or nothing."""
    try:
        config = compose_job(*overrides)
    except Exception as problem:
        return composition_error(problem) or f"a defect: {problem}"
    try:
        check_settings(config, config.hydra.overrides.task, config.hydra.runtime.choices)
    except UserError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_yaml_passes_the_schema(group: str) -> None:
    names = [file.stem for file in sorted((CONF / group).glob("*.yaml")) if not file.stem.startswith("_")]
    for name in names:
        assert error(*CHOICES.get(group, []), f"{group}={name}") == "", name


def test_a_key_without_a_rule_fails_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "evaluation.ties")
    assert error() == "no key evaluation.ties"


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.epochs=two", "an integer of at least 1"),
        ("model.epochs=0", "an integer of at least 1"),
        ("model.epochs=-1", "an integer of at least 1"),
        ("model.epochs=true", "an integer of at least 1"),
        ("model.hidden_size=0", "an integer of at least 1"),
        ("model.optimizer.lr=fast", "a number of at least 0"),
        ("model.optimizer.lr=nan", "a number of at least 0"),
        ("model.session.dropout_hidden=1.5", "a number in [0, 1)"),
        ("model.batch_size=1.5", "an integer of at least 1"),
        ("model.patience=soon", "an integer of at least 0, or null"),
        ("model.negatives=some", "one of global, local"),
        ("model.session.embedding=hot", "one of onehot, separate, tied"),
        ("model.context.product_method=fast", "one of auto, gram, closed"),
        ("model.loss.activation=relu", "one of softmax, tanh, linear, elu"),
        ("model.freeze_encoders=yes please", "true or false"),
        ("baselines.itemknn.neighbours=0", "an integer of at least 1"),
        ("seed=abc", "an integer between 0 and 4294967295"),
        ("seed=-1", "an integer between 0 and 4294967295"),
        ("resume=maybe", "true or false"),
        ("evaluation.cutoffs=20", "a list of integers of at least 1, as in [5,10,20]"),
        ("evaluation.cutoffs=[]", "a list of integers of at least 1, as in [5,10,20]"),
        ("evaluation.ties=luck", "one of conservative, standard, median"),
        ("evaluation.bootstrap.unit=foo", "one of user, session"),
        ("evaluation.bootstrap.confidence=95", "a number in (0, 1)"),
        ("trainer.precision=16", "one of 32-true, bf16-mixed"),
        ("trainer.devices=0", "an integer of at least 1, or -1 or auto, or a list of device indices, as in [0,1]"),
        ("trainer.max_epochs=0", "an integer of at least 1, or null"),
        ("performance.steps_per_execution=0", "an integer of at least 1"),
        ("performance.compile=1", "true or false"),
        ("data.contexts.assignment=lots", "one of own, permuted, per_session, unknown"),
        ("data.contexts.single=region", "a list of names, as in [country,age]"),
        ("data.split.test_days=1.5", "an integer of at least 0"),
        ("data.window_days=0", "an integer of at least 1, or null"),
        ("data.gap=1x", "a duration such as 30m, or an integer of at least 1, or null"),
        ("data.name=a/b", "letters, digits, dots and dashes only, since it names folders"),
        ("data.context_strength=3", "a number in [0, 1]"),
        ("data.generate.noise_rate=much", "a number of at least 0"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(override: str, allowed: str) -> None:
    assert error(override).startswith(f"{override}: must be {allowed}")


def test_a_float_for_an_integer_is_written_out() -> None:
    assert error("data.generate.events=5e6").endswith("must be an integer of at least 1 (write 5000000)")
    assert "write" not in error("model.batch_size=1.5")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.items.min_count=3", "no key data.items.min_count; did you mean data.items.min_events?"),
        ("+data.items.min_count=3", "no key data.items.min_count; did you mean data.items.min_events?"),
        ("++data.items.min_count=3", "no key data.items.min_count; did you mean data.items.min_events?"),
        ("model.session.lr=.1", "no key model.session.lr; did you mean model.session.optimizer.lr?"),
        ("model=pnn model.dropout_hidden=.1", "no key model.dropout_hidden; did you mean model.dropout?"),
        ("+data.time_format=iso", "no key data.time_format"),
        ("+verbose=true", "no key verbose"),
        (
            "+trainer.limit_train_batchs=1",
            "no key trainer.limit_train_batchs; did you mean trainer.limit_train_batches?",
        ),
        ("+trainer.callbacks=[]", "trainer.callbacks: cannot be set; add callbacks"),
        ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val: cannot be set; set model.clip_norm"),
        ("model=gru4rek", 'no model gru4rek (did you mean "gru4rec"?)'),
        ("model.optimizer=adam", "model.optimizer=adam: must be a mapping; choose a config by model/optimizer=adam"),
        ("evaluation.bootstrap=false", "evaluation.bootstrap=false: must be a mapping"),
        ("~logger", "logger is required; logger=none logs nothing"),
        ("logger=null", "a config group cannot be null"),
        ("~performance.threads", "~performance.threads: is required"),
        ("hydra/launcher=nowhere", "no hydra/launcher nowhere"),
        ("model=gru4rec pretrained.session=a.ckpt", "pretrained.session=a.ckpt: model gru4rec has no session encoder"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(overrides: str, message: str) -> None:
    assert error(*overrides.split()).startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ["+trainer.limit_train_batches=1"],
        ["+logger.mine={_target_: mine.Logger, any: thing}"],
        ["+callbacks.mine={_target_: mine.Callback}"],
        ["model=gru4rec", "model/optimizer=adam", "+model.optimizer.amsgrad=true"],
        ["model=gru4rec", "model._target_=mine.Model", "model.hidden_size=[100,50]", "+model.heads=2"],
        ["model=gru4rec", "model.optimizer._target_=mine.Optimizer", "+model.optimizer.rho=0.9"],
        ["data.reader._target_=mine.Reader", "+data.encoding=utf-8"],
        ["task._target_=mine.run", "+mine=3"],
        ["+model@baselines.gru=gru4rec"],
        ["~model.session.dropout_hidden"],
    ],
)
def test_settings_of_foreign_targets_are_free(overrides: list[str]) -> None:
    assert error(*overrides) == ""


def test_training_keys_of_a_foreign_model_are_checked() -> None:
    assert "model.epochs=x: must be" in error("model=gru4rec", "model._target_=mine.Model", "model.epochs=x")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "arnn_lightning.io.write_text",  # of the package, but no part of a model
        "arnn_lightning.modelsx.Model",
        "torch.optim.optimizer.cast",  # defined elsewhere
        "torch.optim.optimizer.torch.hub.load",
        "mine.Model",
    ],
)
def test_a_checkpoint_instantiates_trusted_modules_only(target: str) -> None:
    config: Any = {"optimizer": [{"_target_": target}]}
    with pytest.raises(UserError, match="is not in a trusted module"):
        check_targets(config, [])


def test_trusted_modules_extend_what_a_checkpoint_names() -> None:
    config = {"_target_": "arnn_lightning.models.pop.POP", "a": {"_target_": "torch.optim.Adam"}}
    check_targets(config, [])
    counter = {"_target_": "collections.Counter"}
    check_targets(counter, ["collections"])
    with pytest.raises(UserError):
        check_targets(counter, ["collection"])


def test_a_checkpoint_contains_no_interpolations() -> None:
    with pytest.raises(UserError, match="interpolations"):
        check_targets({"loss": "${oc.create:'{_target_: os.system}'}"}, [])


@pytest.mark.parametrize(
    ("config", "message"),
    [
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
    assert set(EXTRAS) == project["optional-dependencies"].keys() - {"dev", "sweeps"}
