"""task=evaluate: a run folder or a checkpoint from anywhere, on its test split or on a later log."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset, prepare
from arnn_lightning.preprocessing.later import prepare_later_log
from arnn_lightning.tasks.train import metadata_maker
from commandline import NO_BASELINES, SMALL, arnn, arnn_here, metrics_of
from helpers import compose_config, make_data

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


def test_raw_files_of_a_checkpoint_follow_a_later_raw_dir(small_dataset: PreparedDataset) -> None:
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


def test_renamed_files_are_no_later_log(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile("clicks.csv", "renamed.csv")
    assert evaluate(monkeypatch, "renamed", "data=tabular", "data.events=renamed.csv", "data.users=profiles.csv") == 0
    assert not Path("renamed/prepared").exists()
    assert metrics_of(Path("renamed"))["test"] == metrics_of(Path("run"))["test"]


# --- the data set of a later log ---

Row = tuple[str, str, float, str | int]  # user, item, seconds since noon of the first day, session


def visits(days: range, visitors: str) -> list[Row]:
    """One session per day and visitor: items a to d, a second apart."""
    return [
        (who, item, 86_400 * day + n, f"{who}-{day}")
        for day in days
        for who in visitors
        for n, item in enumerate("abcd")
    ]


def later_log(
    folder: Path, later: list[Row], *settings: str, trained: Sequence[Row] = ()
) -> tuple[PreparedDataset, str]:
    """A log after a week of visitors r to v and rows ``trained``, prepared with its settings, and its notice."""
    configs = {}
    for name, rows in (("log", [*visits(range(7), "rstuv"), *trained]), ("later", later)):
        table = pl.DataFrame(rows, schema=["user", "item", "time", "session"], orient="row", infer_schema_length=None)
        table.with_columns(pl.col("time") + NOON).write_parquet(folder / f"{name}.parquet")
        overrides = [f"data.events={folder / name}.parquet", "data.split={test_days: 1, val_days: 1}", *settings]
        configs[name] = OmegaConf.to_container(compose_config("data=tabular", *overrides).data, resolve=True)
    prepared = prepare(configs["log"], folder)  # type: ignore[arg-type]
    notice = prepare_later_log(configs["later"], prepared, folder / "prepared_later")  # type: ignore[arg-type]
    return PreparedDataset(folder / "prepared_later"), notice


def sessions_of(prepared: PreparedDataset) -> list[str]:
    """The items of every test session."""
    sessions, item = prepared.sessions("test"), prepared.items()["id"]
    return ["".join(item.gather(codes)) for codes in np.split(sessions.item, sessions.offset[1:-1])]


@pytest.mark.parametrize("visitors", ["uv", "uw", "xyu"])
def test_a_later_log_without_contexts(visitors: str, tmp_path: Path) -> None:
    prepared, notice = later_log(tmp_path, visits(range(7, 9), visitors))
    new = [who for who in visitors if who in "wxyz"]
    assert prepared.users()["id"].to_list() == [*"rstuv", *new]
    assert set(prepared.users()["n_known"]) == {0}
    assert f"{len(new)} of {len(visitors)} users are new" in notice


def test_known_attributes_of_new_users_are_counted(tmp_path: Path) -> None:
    users = [("r", ["x"], "de"), ("s", ["x", "y"], "at"), ("w", ["y", "z"], "ch"), ("y", [], "at"), ("z", None, None)]
    pl.DataFrame(users, schema=["user", "tags", "country"], orient="row").write_parquet(tmp_path / "users.parquet")
    table, multi = f"data.users={tmp_path / 'users.parquet'}", "data.contexts.multi=[tags]"
    for single, expected in (("[]", [1, 0, 0, 0]), ("[country]", [2, 0, 1, 0])):
        settings = [table, multi, f"data.contexts.single={single}"]
        prepared, _ = later_log(tmp_path, visits(range(7, 9), "wxyz"), *settings)
        assert prepared.users()["n_known"].tail(4).to_list() == expected


@pytest.mark.parametrize("user", ["user", "null"])
@pytest.mark.parametrize("ids", [["L-3", "L-1", "L-2", "L-0"], ["300", "1", "2", "3"], [-(2**62), 0, 2**62, 1]])
def test_sessions_of_a_later_log_may_be_given(ids: list[str | int], user: str, tmp_path: Path) -> None:
    rows: list[Row] = [(*row[:3], ids[n // 4]) for n, row in enumerate(visits(range(7, 9), "uv"))]
    prepared, _ = later_log(tmp_path, rows, "data.session=given", f"data.columns.user={user}")
    assert sessions_of(prepared) == ["abcd"] * 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ["aababccdda"]),
        (["data.duplicates=drop"], ["aabaccdda"]),
        (["data.repeats=drop"], ["ababcdda"]),
        (["data.max_session_length=4"], ["aaba", "bcc", "dda"]),
        (["data.duplicates=drop", "data.repeats=drop", "data.max_session_length=3"], ["aba", "cd", "da"]),
    ],
)
def test_sessions_of_a_later_log_are_shaped_as_in_training(
    settings: list[str], expected: list[str], tmp_path: Path
) -> None:
    """Events of unknown items are dropped after repeats and before long sessions are cut."""
    events = zip("aabab?ccd?da", [0, 0.5, 1, 1, 1, 1, 3, 4, 5, 5, 6, 7], strict=True)
    rows: list[Row] = [("u", item, 8 * 86_400 + second, "s") for item, second in events]
    assert sessions_of(later_log(tmp_path, rows, *settings)[0]) == expected


def test_sessions_of_the_trained_log_are_left_out_later(tmp_path: Path) -> None:
    """Of an export that contains its rows, too. A session that starts as the log ends may be one of them."""
    at_the_end: list[Row] = [("r", item, 6 * 86_400 + 3 + n, "r-end") for n, item in enumerate("abcd")]
    prepared, notice = later_log(tmp_path, [*visits(range(9), "uvw"), *at_the_end])
    assert sessions_of(prepared) == ["abcd"] * 6
    assert (
        "22 of 28 sessions are dropped, since they start before the end of the training log (2015-11-17 12:00:03)"
        in notice
    )
    assert "0 of 24 events are dropped" in notice
    assert "1 of 3 users are new" in notice
    assert not {"log", "users", "items"} & {*prepared.manifest}
    assert [step["events"] for step in prepared.manifest["funnel"]] == [112, 24]
    with pytest.raises(
        UserError, match=r"later\.parquet: no session starts after the end of the training log \(2015-11-17"
    ):
        later_log(tmp_path, visits(range(7), "uv"))


def test_sessions_dropped_in_training_are_not_later_ones(tmp_path: Path) -> None:
    """The last session of the trained log is of one event, so it is dropped there."""
    last: list[Row] = [("v", "a", 6 * 86_400 + 40_000, "last")]
    with pytest.raises(UserError, match=r"no session starts after .*2015-11-17 23:06:40"):
        later_log(tmp_path, [*visits(range(7), "rstuv"), *last, ("u", "a", 6 * 86_400 + 30_000, "x")], trained=last)


def test_users_of_training_keep_their_permuted_contexts(tmp_path: Path) -> None:
    prepared, _ = later_log(tmp_path, visits(range(7, 9), "rstuvwxyz"))
    data = make_data(prepared, assignment="permuted", seed=1)
    users = prepared.sessions("test").user.tolist()
    assigned = dict(zip(users, data.sessions("test").user.tolist(), strict=True))
    assert [assigned[user] for user in range(5)] == np.random.default_rng(1).permutation(5).tolist()
    assert {assigned[user] for user in range(5, 9)} == {*range(5, 9)}
