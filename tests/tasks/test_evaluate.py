"""task=evaluate: a run folder or a checkpoint from anywhere, on its test split or on a later log."""

from pathlib import Path

import polars as pl
import pytest

from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks.train import metadata_maker
from commandline import NO_BASELINES, SMALL, arnn, arnn_here, metrics_of
from helpers import compose_config

NOON = 1_447_243_200


def write_log(file: Path, days: range, items: int = 30, users: int = 40) -> None:
    lines = ["user,item,time"]
    for number in range(240):
        day = days[number % len(days)]
        for step in range(3):
            lines.append(
                f"u{number % users},i{(number + step) % items},{NOON + 86_400 * day + 600 * (number // 12) + step}"
            )
    file.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    write_log(folder / "clicks.csv", range(12))
    write_log(folder / "next.csv", range(12, 19), items=33, users=50)
    users = ["user,country", *(f"u{user},{'de' if user % 2 else 'at'}" for user in range(40))]
    (folder / "users.csv").write_text("\n".join(users))
    shop = ["data=tabular", "data.name=shop", "data.events=clicks.csv", "data.users=users.csv", *NO_BASELINES]
    shop += ["data.contexts.single=[country]", "data.split.val_days=2", "data.split.test_days=2", "seed=3"]
    arnn(folder, *SMALL[1:], *shop, "model=pnn", "data.contexts.assignment=permuted", "hydra.run.dir=run")
    (folder / "users.csv").rename(folder / "profiles.csv")
    return folder


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def evaluate(monkeypatch: pytest.MonkeyPatch, folder: str, *arguments: str) -> int:
    return arnn_here(["task=evaluate", "checkpoint=run", f"hydra.run.dir={folder}", *arguments], monkeypatch)


def test_a_run_folder_is_evaluated_without_its_raw_files(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the run's seed, which its permuted contexts depend on."""
    assert evaluate(monkeypatch, "again") == 0
    assert metrics_of(Path("again"))["test"] == metrics_of(Path("run"))["test"]
    assert (Path("again") / ".hydra" / "config.yaml").is_file()
    monkeypatch.chdir(workspace.parent)
    here = f"checkpoint={workspace / 'run'}"
    data = f"paths.data={workspace / 'data'}"
    assert arnn_here(["task=evaluate", here, data, f"hydra.run.dir={workspace / 'elsewhere'}"], monkeypatch) == 0
    assert metrics_of(workspace / "elsewhere")["test"] == metrics_of(workspace / "run")["test"]


def test_files_in_raw_dir_are_where_a_later_raw_dir_is(small_dataset: PreparedDataset) -> None:
    """The metadata of a checkpoint have absolute paths, but for what they are relative to."""
    data = metadata_maker(compose_config("data=movielens", "paths.data=here"), small_dataset)("a model")["data"]
    assert data["raw_dir"] == str(Path("here/raw/movielens").absolute())
    assert data["events"] == "${.raw_dir}/u.data"
    assert data["source"].startswith("ml-100k.zip")
    given = metadata_maker(compose_config("data=tabular", "data.events=[a.csv]"), small_dataset)("a model")["data"]
    assert given["events"] == [str(Path("a.csv").absolute())]


def test_a_checkpoint_is_evaluated_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(monkeypatch, "groups", "evaluation.groups=[country]") == 0
    metrics = metrics_of(Path("groups"))
    (groups,) = metrics["groups"]["country"].values()
    assert {group["group"] for group in groups} == {"at", "de"}
    assert groups[0]["mrr@20_gap"] == pytest.approx(-groups[1]["mrr@20_gap"])


@pytest.mark.parametrize("setting", ["model.n_sample=9", "data.gap=1h", "seed=2", "model=gru4rec", "logger=csv"])
def test_settings_of_the_checkpoint_are_refused(
    setting: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(monkeypatch, "refused", "data=tabular", "data.events=clicks.csv", setting) == 2
    assert f"{setting.partition('=')[0]} has no effect: task=evaluate takes" in capfd.readouterr().err
    assert not Path("refused").exists()


def test_another_data_set_than_that_of_training_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("xing", "movielens_1m"):  # of another reader, and of the same
        assert evaluate(monkeypatch, "refused", f"data={name}") == 2
        assert f"data={name}: run" in capfd.readouterr().err
    assert not Path("refused").exists()


def test_a_model_is_tested_under_another_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(monkeypatch, "unknown", "data.contexts.assignment=unknown") == 0
    assert metrics_of(Path("unknown"))["assignment"] == "unknown"
    ranks = [pl.read_parquet(Path(folder, "test_ranks.parquet")) for folder in ("run", "unknown")]
    assert not ranks[0].equals(ranks[1])


def test_a_later_log_has_the_codes_of_training(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(monkeypatch, "later", "data=tabular", "data.events=next.csv", "data.users=profiles.csv") == 0
    log = pl.read_csv("next.csv")
    trained = pl.read_parquet(next(Path("data/prepared").glob("shop-*/items.parquet")))
    n_unknown = log.filter(~pl.col("item").is_in(trained["id"].implode())).height
    assert n_unknown > 0
    shown = capfd.readouterr().out
    assert f"{n_unknown} of 720 events are dropped, since training did not contain their items" in shown
    assert "10 of 50 users are new" in shown
    test = pl.read_parquet("later/prepared/test.parquet")
    users = pl.read_parquet("later/prepared/users.parquet")
    events = test.join(users.select("user", user_name="id"), on="user").join(
        trained.rename({"id": "item_name"}), on="item"
    )
    kept = log.filter(pl.col("item").is_in(trained["id"].implode()))
    kept = kept.filter(pl.len().over("user", pl.col("time") // 600) > 1)  # write_log's sessions
    kept = kept.rename({"user": "user_name", "item": "item_name"})
    columns = ["user_name", "item_name", "time"]
    assert events.select(columns).sort(columns).equals(kept.select(columns).sort(columns))
    assert metrics_of(Path("later"))["test"]["events"] == test.height - test["session"].n_unique()
    assert users.filter(pl.col("id") == "u45")["n_known"].item() == 0
