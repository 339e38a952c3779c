"""Runs of fusions from the command line."""

from pathlib import Path

import polars as pl
import pytest

from commandline import NO_BASELINES, SMALL, arnn_here, metrics_of

SIZES = ["model.session.hidden_size=8", "model.session.n_sample=20", "model.session.batch_size=200"]


def test_runs_of_fusions_compare_them_with_their_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second run takes the first one's control; a tuning trial trains none."""
    monkeypatch.chdir(tmp_path)
    run = [*SMALL, *SIZES, *NO_BASELINES]
    assert arnn_here([*run, "model=latent_cross", "hydra.run.dir=first"], monkeypatch) == 0
    first = capfd.readouterr().out
    assert "session encoder: epoch 1 of 1" in first
    assert "latent_cross - gru4rec_strong, paired: Recall@20 " in first
    control = "pretrained.session=first/checkpoints/session/best.ckpt"
    assert arnn_here([*run, "model=init_state", control, "hydra.run.dir=second"], monkeypatch) == 0
    second = capfd.readouterr().out
    assert "session encoder: epoch" not in second
    assert "init_state - gru4rec_strong, paired: Recall@20 " in second
    ranks = [pl.read_parquet(f"{folder}/test_ranks_session.parquet") for folder in ("first", "second")]
    assert ranks[0].equals(ranks[1])
    for folder, name in (("first", "latent_cross"), ("second", "init_state")):
        metrics = metrics_of(Path(folder))
        assert metrics["model"] == name
        assert metrics["encoders"]["session"]["model"] == "gru4rec_strong"
        assert metrics["encoders"]["session"]["recall@20"] != metrics["test"]["recall@20"]
    trial = ["task=tune", "models=[latent_cross]", "trials=1", *SMALL, *SIZES, "hydra.run.dir=tune"]
    assert arnn_here(trial, monkeypatch) == 0
    assert not Path("tune/synthetic_latent_cross/0/checkpoints/session").exists()
    assert Path("tune/synthetic_latent_cross/0/checkpoints/best.ckpt").is_file()
