"""task=tune on the command line: studies of several models, resumed, and their tuned files."""

import re
import shlex
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks import tune
from commandline import SMALL, arnn, arnn_here, metrics_of
from models import slow

optuna = pytest.importorskip("optuna")
TUNE = ["task=tune", *SMALL]


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trials(name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///studies/{name}.db").trials


@pytest.mark.usefixtures("in_tmp_path")
def test_the_best_trial_of_a_study_is_used_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    note, bootstrap = "data.note='two words'", "evaluation.bootstrap.resamples=50"
    command = [*TUNE, note, "model=itemknn", "model.shrinkage=7", "model.alpha=interval(0.2,0.4)"]
    assert arnn_here([*command, "trials=2"], monkeypatch) == 0
    (used_by,) = re.findall(r"used by python -m arnn_lightning (.*)", capfd.readouterr().out)
    assert shlex.split(used_by) == ["model=itemknn", "data.generate.events=8000", bootstrap, note]
    first = trials("synthetic_itemknn")
    assert [set(trial.params) for trial in first] == [{"model.neighbours", "model.alpha"}] * 2
    assert all(0.2 <= trial.params["model.alpha"] <= 0.4 for trial in first)
    assert arnn_here([*command, "trials=4"], monkeypatch) == 0
    resumed = trials("synthetic_itemknn")
    assert [trial.params for trial in resumed[:2]] == [trial.params for trial in first]
    assert len(resumed) == 4
    best = max(resumed, key=lambda trial: trial.value).params
    tuned = Path("arnn_conf/tuned/synthetic_itemknn.yaml")
    values = {key.removeprefix("model."): value for key, value in best.items()}
    (prepared,) = Path("data/prepared").glob("synthetic-*")
    assert OmegaConf.load(tuned) == values | {"shrinkage": 7, "tuned_on": PreparedDataset(prepared).raw_sha256}
    written = tuned.read_text()
    header = written.splitlines()
    assert header[0].startswith("# Best trial of studies/synthetic_itemknn.db (4 complete): validation MRR@20 0.")
    assert prepared.name in header[1]

    shown = OmegaConf.create(arnn(Path(), "model=itemknn", "--cfg", "job", "--package", "model").stdout)
    assert (shown.alpha, shown.neighbours) == (best["model.alpha"], best["model.neighbours"])
    shown = OmegaConf.create(
        arnn(Path(), "model=itemknn", "model.alpha=0.9", "--cfg", "job", "--package", "model").stdout
    )
    assert (shown.alpha, shown.neighbours) == (0.9, best["model.neighbours"])  # the command line wins
    shown = OmegaConf.create(arnn(Path(), "model=gru4rec", "--cfg", "job", "--package", "baselines").stdout)
    assert shown.itemknn.alpha == best["model.alpha"]

    tuned.unlink()
    assert arnn_here([*command, "trials=0"], monkeypatch) == 0
    assert tuned.read_text() == written
    assert len(trials("synthetic_itemknn")) == 4


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.slow
def test_a_later_model_starts_from_the_tuned_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    models = ["models=[gru4rec,arnn]", "trials=1", "model.optimizer.lr=interval(0.031,0.033)"]
    assert arnn_here([*TUNE, *models, "hydra.run.dir=out"], monkeypatch) == 0
    (trial,) = trials("synthetic_gru4rec")
    config = OmegaConf.load("out/synthetic_arnn/0/.hydra/config.yaml")
    assert config.model.session.optimizer.lr == trial.params["model.optimizer.lr"]
    assert config.model.session.batch_size == trial.params["model.batch_size"]
    # Values of the tuned file in the package are kept, and each file has the values of one model.
    assert OmegaConf.load("arnn_conf/tuned/synthetic_gru4rec_top1_adagrad.yaml").n_sample == 50
    assert not {"session", "context"} & OmegaConf.load("arnn_conf/tuned/synthetic_arnn_top1_adagrad.yaml").keys()


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.slow
def test_a_tuned_file_is_of_its_loss_and_optimizer_and_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    adam = ["model=gru4rec", "model/optimizer=adam"]
    space = ["model.optimizer.lr=interval(0.0031,0.0033)", "trials=1"]
    assert arnn_here([*TUNE, *adam, *space], monkeypatch) == 0
    tuned = Path("arnn_conf/tuned/synthetic_gru4rec_top1_adam.yaml")
    rate = OmegaConf.load(tuned).optimizer.lr
    for overrides, shown in ((adam, rate), (["model=gru4rec"], 0.07)):
        config = OmegaConf.create(arnn(Path(), *overrides, "--cfg", "job", "--package", "model").stdout)
        assert config.optimizer.lr == shown
    assert arnn_here([*SMALL, *adam, "hydra.run.dir=same_log"], monkeypatch) == 0
    assert metrics_of(Path("same_log"))["tuned"]["model"] == str(tuned.absolute())
    capfd.readouterr()
    assert arnn_here([*SMALL, *adam, "data.generate.seed=7", "hydra.run.dir=other_log"], monkeypatch) == 2
    assert f"error: {tuned} was tuned on another log; leave it out with ~tuned@model" in capfd.readouterr().err
    assert not list(Path("other_log").rglob("*.ckpt"))
    other = [*SMALL, *adam, "data.generate.seed=7", "~tuned@model", "hydra.run.dir=untuned"]
    assert arnn_here(other, monkeypatch) == 0
    assert "model" not in metrics_of(Path("untuned"))["tuned"]


@pytest.mark.usefixtures("in_tmp_path")
def test_trials_are_pruned_after_an_epoch(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pruner = ["pruner._target_=optuna.pruners.ThresholdPruner", "+pruner.lower=0.9"]
    assert arnn_here([*TUNE, *pruner, "model=gru4rec", "trials=2", "trainer.max_epochs=2"], monkeypatch) == 2
    assert "no trial has completed" in capfd.readouterr().err
    pruned = trials("synthetic_gru4rec")
    assert [trial.state.name for trial in pruned] == ["PRUNED"] * 2
    assert [list(trial.intermediate_values) for trial in pruned] == [[0], [0]]


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.slow
def test_workers_share_the_trials_of_a_study() -> None:
    done = arnn(Path(), *TUNE, "model=itemknn", "trials=4", "workers=2", "hydra.run.dir=out")
    assert [trial.state.name for trial in trials("synthetic_itemknn")] == ["COMPLETE"] * 4
    assert Path("out/worker_1/.hydra").is_dir()
    assert len(list(Path("out").rglob("metrics.json"))) == 4
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.slow
def test_a_study_is_refused_when_its_log_has_changed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert arnn_here([*TUNE, "model=itemknn", "trials=1"], monkeypatch) == 0
    assert arnn_here([*TUNE, "model=itemknn", "trials=2", "data.generate.seed=7"], monkeypatch) == 2
    assert "its trials have the prepared data set=synthetic-" in capfd.readouterr().err
    assert arnn_here([*TUNE, "model=itemknn", "trials=2", "evaluation.monitor=recall@10"], monkeypatch) == 2
    assert "its trials have evaluation.monitor=mrr@20, not recall@10" in capfd.readouterr().err
    assert len(trials("synthetic_itemknn")) == 1
    # What changes the speed only is not compared.
    assert arnn_here([*TUNE, "model=itemknn", "trials=2", "performance.steps_per_execution=11"], monkeypatch) == 0


@pytest.mark.usefixtures("in_tmp_path")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=pop"], "no search space for model=pop; set one, as in"),
        slow(["model=itemknn", "data.split.val_days=0"], "data=synthetic has no validation split"),
        (["model=itemknn", "model.alpha=interval(1,0)"], "the search space model.alpha=interval(1,0) is not valid"),
        slow(
            ["model=itemknn", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"],
            "is not supported with trainer=ddp",
        ),
        (
            ["model=itemknn", "space=['model.alpah=interval(0,1)']"],
            'model=itemknn has no key model.alpah to search (did you mean "model.alpha"?)',
        ),
        slow(["model=itemknn", "space=[model.alpha]"], "space=model.alpha: must be KEY=SPACE"),
        slow(["model=itemknn", "trials=0"], "studies/synthetic_itemknn.db: no trial has completed"),
    ],
)
def test_a_study_that_cannot_start_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert arnn_here([*TUNE, *arguments], monkeypatch) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not list(Path().rglob("metrics.json"))


def test_a_worker_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    codes = iter([0, 2])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: next(codes)))
    tune._run(OmegaConf.create({"models": [], "workers": 3}), Path("out"))
    assert caplog.messages == ["worker 2 ended with exit code 2; other workers run its trials"]


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM], ids=lambda ends: ends.name)
def test_the_end_of_a_study_ends_its_workers(ends: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches one process alone: workers have sessions of their own."""
    received: list[int] = []
    worker = SimpleNamespace(send_signal=received.append, wait=lambda: 130)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, start_new_session, **__: worker)

    def interrupted(*_: Any) -> None:
        if ends is signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(ends)

    monkeypatch.setattr(tune, "tune", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        tune._run(OmegaConf.create({"models": ["sr"], "workers": 3}), Path("out"))
    assert received == [signal.SIGINT] * 2


@pytest.mark.usefixtures("in_tmp_path")
def test_a_missing_optuna_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("arnn_lightning.tasks.tune.find_spec", lambda _: None)
    assert arnn_here(TUNE, monkeypatch) == 2
    assert "error: Optuna is not installed: pip install 'arnn-lightning[tune]'" in capfd.readouterr().err
