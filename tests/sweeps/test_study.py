"""Optuna's studies: they go on where they stopped, and their best becomes a tuned file."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from commandline import SMALL, arnn, arnn_here
from helpers import compose_config

optuna = pytest.importorskip("optuna")
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
SEARCH = sorted((Path(__file__).parents[2] / "conf" / "search").glob("*.yaml"))
STUDY = ["-m", *SMALL, "model=itemknn", "hydra/sweeper=optuna"]


@pytest.mark.parametrize("file", SEARCH, ids=lambda file: file.stem)
def test_every_key_of_a_search_space_is_declared(file: Path) -> None:
    for key, space in OmegaConf.load(file).items():
        (parsed,) = OverridesParser.create().parse_overrides([f"{key}={space}"])
        assert parsed.is_sweep_override()
        config = compose_config(f"model={file.stem}", "data=xing")
        assert OmegaConf.select(config, key) is not None, key


def test_a_study_goes_on_where_it_was_cut_off_and_its_best_is_picked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARNN_DATA", raising=False)
    assert arnn_here([*STUDY, "hydra.sweeper.n_trials=2"], monkeypatch) == 0
    storage = "sqlite:///studies/synthetic_itemknn.db"
    study = optuna.load_study(study_name="synthetic_itemknn", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    first = study.trials
    assert [set(trial.params) for trial in first] == [{"model.neighbours", "model.shrinkage", "model.alpha"}] * 2
    cut_off = study.ask()  # as a killed process leaves it
    cut_off.suggest_float("model.alpha", 0.0, 1.0)
    assert arnn_here([*STUDY, "hydra.sweeper.n_trials=4"], monkeypatch) == 0
    trials = optuna.load_study(study_name="synthetic_itemknn", storage=storage).trials
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == 4
    assert [trial.params for trial in trials[:2]] == [trial.params for trial in first]
    assert trials[2].state == optuna.trial.TrialState.FAIL
    assert trials[3].params["model.alpha"] == cut_off.params["model.alpha"]  # tried once more
    assert len({tuple(trial.params.values()) for trial in complete}) == 4, "a draw was drawn again"
    # All are there: nothing is left to do.
    assert arnn_here([*STUDY, "hydra.sweeper.n_trials=4"], monkeypatch) == 0
    assert len(optuna.load_study(study_name="synthetic_itemknn", storage=storage).trials) == len(trials)
    # Its values would not compare with those of other settings.
    capfd.readouterr()
    assert arnn_here([*STUDY, "performance.steps_per_execution=11"], monkeypatch) in (1, 2)
    assert arnn_here([*STUDY, "data.split.val_days=1"], monkeypatch) == 2
    assert "was made with data.split.val_days=None, not 1" in capfd.readouterr().err

    assert arnn_here(["task=tuned", "study=studies/synthetic_itemknn.db"], monkeypatch) == 0
    best = max(complete, key=lambda trial: trial.value).params
    written = OmegaConf.load("arnn_conf/tuned/synthetic_itemknn.yaml")
    assert written == {key.removeprefix("model."): value for key, value in best.items()}
    shown = arnn(tmp_path, "model=itemknn", "--cfg", "job", "--package", "model").stdout
    assert OmegaConf.create(shown).alpha == best["model.alpha"]
    beside = OmegaConf.create(arnn(tmp_path, "model=gru4rec", "--cfg", "job", "--package", "baselines").stdout)
    assert beside.itemknn.alpha == best["model.alpha"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*STUDY[:-2], "model=pop", "hydra/sweeper=optuna"], "nothing to search for model=pop"),
        (["task=tuned", "study=nowhere.db"], "no study nowhere.db"),
        (["task=tuned", "study=text.db"], "text.db: not a database of Optuna's"),
    ],
)
def test_what_no_study_can_be_made_of_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.db").write_text("no database")
    assert arnn_here(arguments, monkeypatch) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
