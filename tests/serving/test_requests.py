"""What recommend() and live sessions accept and refuse: frames, ids, profiles, states."""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import OTHER
from arnn_lightning.run_folder import checkpoint_file
from arnn_lightning.serving.catalogue import Catalogue
from arnn_lightning.serving.predictor import BLOCK_SESSIONS, Predictor, load
from arnn_lightning.serving.profiles import one_row
from arnn_lightning.serving.vocabulary import Vocabulary, store_vocabulary
from arnn_lightning.tasks.recommend import _read
from arnn_lightning.training.checkpoint import read_checkpoint
from commandline import arnn_here
from helpers import write_dataset
from models import BY_NAME, MODELS, ModelCase, case_name, slow, slow_variants

Checkpoints = Callable[[ModelCase], Path]


@pytest.fixture(scope="module")
def with_profiles(checkpoints: Checkpoints) -> Predictor:
    return load(checkpoints(BY_NAME["arnn"]))


@pytest.fixture(scope="module")
def gru4rec(checkpoints: Checkpoints) -> Predictor:
    return load(checkpoints(BY_NAME["gru4rec"]) / "checkpoints" / "best.ckpt")


@pytest.fixture(scope="module")
def events(with_profiles: Predictor, test_sessions: pl.DataFrame) -> pl.DataFrame:
    """Eight sessions of the test split."""
    frame = test_sessions.rename({"session": "session_id"})
    return frame.filter(pl.col("session_id").is_in(frame["session_id"].unique(maintain_order=True).head(8).implode()))


def profile_of(predictor: Predictor, row: int) -> dict[str, Any]:
    """The categories of a user of the training data, as a profile."""
    user, contexts = predictor.vocabulary.users.row(row, named=True), predictor.vocabulary.contexts
    profile: dict[str, Any] = {}
    for attribute, kind, code, category in contexts.select("attribute", "kind", "code", "category").iter_rows():
        if kind == "single" and user[f"context.{attribute}"] == code:
            profile[attribute] = category
        elif kind == "multi" and code in user["active"]:
            profile.setdefault(attribute, []).append(category)
    return profile


# --- frames ---


def test_a_frame_comes_back_in_the_library_it_came_in(with_profiles: Predictor, events: pl.DataFrame) -> None:
    expected = with_profiles.recommend(events, k=5)
    pandas = with_profiles.recommend(pd.DataFrame({name: events[name].to_list() for name in events.columns}), k=5)
    arrow = with_profiles.recommend(events.to_arrow(), k=5)
    assert isinstance(expected, pl.DataFrame)
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(arrow, pa.Table)
    for frame in (pl.from_pandas(pandas), pl.from_arrow(arrow)):
        assert isinstance(frame, pl.DataFrame)
        assert frame["item_id"].to_list() == expected["item_id"].to_list()
        assert frame["rank"].to_list() == 8 * [1, 2, 3, 4, 5]
    assert expected["title"].null_count() == 0


def test_ids_of_another_type_are_the_same_items(with_profiles: Predictor, events: pl.DataFrame) -> None:
    expected = with_profiles.recommend(events)
    spaced = events.with_columns(pl.format(" {}\t", "item_id").alias("item_id"))
    assert with_profiles.recommend(spaced).equals(expected)
    for dtype in (pl.String, pl.UInt64, pl.Float64, pl.Categorical):
        column = (
            pl.col("item_id").cast(pl.String).cast(dtype) if dtype == pl.Categorical else pl.col("item_id").cast(dtype)
        )
        assert with_profiles.recommend(events.with_columns(column)).equals(expected)


def test_sessions_may_be_interleaved_and_sorted_by_time(with_profiles: Predictor, events: pl.DataFrame) -> None:
    timed = events.with_columns(time=pl.int_range(pl.len()))
    expected = with_profiles.recommend(events).sort("session_id", "rank")
    place = pl.int_range(pl.len()).over("session_id")
    for other in (timed.reverse(), events.sort(place, maintain_order=True)):
        listed = with_profiles.recommend(other).sort("session_id", "rank")
        assert_frame_equal(listed, expected, abs_tol=1e-6)  # a score's last bits depend on its row of a batch


@pytest.mark.parametrize(
    "times",
    [
        ["2026-11-01T10:00:00+02:00", "2026-11-01T09:00:00Z", "2026-11-01T11:00:00+01:00"],
        ["2026-11-01 10:00:00", "2026-11-01 10:00:00.5", "2026-11-01 10:00:01"],
        ["9", " 10", "11"],
        ["9.5", "10", "1e2"],
        ["1793527200999999999", "1793527201000000000", "1793527201000000001"],
    ],
)
def test_times_that_are_strings_are_sorted_as_times(with_profiles: Predictor, times: list[str]) -> None:
    items = with_profiles.catalogue.ids.head(3)
    expected = with_profiles.recommend(items.to_list(), k=3).drop("session_id")
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        columns = {"item_id": items[order], "time": [times[place] for place in order]}
        frame = pl.DataFrame({"session_id": [1, 1, 1], **columns})
        for dtype in (pl.String, pl.Categorical):
            typed = frame.with_columns(pl.col("time").cast(dtype))
            assert with_profiles.recommend(typed, k=3).drop("session_id").equals(expected)


def test_a_string_that_is_no_time_is_an_error(with_profiles: Predictor) -> None:
    columns = {"session_id": [1, 1], "item_id": with_profiles.catalogue.ids.head(2)}
    frame = pl.DataFrame(columns).with_columns(time=pl.Series(["2026-11-01", "30.10.2026 10:00"]))
    with pytest.raises(UserError, match=r"sessions: column time, row 2: '30\.10\.2026 10:00' is not an ISO 8601 time"):
        with_profiles.recommend(frame)


def test_blocks_of_sessions_change_no_list(gru4rec: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a block has no known item."""
    first, second = gru4rec.catalogue.ids.head(2)
    sessions = pl.DataFrame({"session_id": [0, 1, 2, 3], "item_id": [first, -1, -1, second]})
    expected = gru4rec.recommend(sessions, k=3, on_unknown="ignore")
    seen = gru4rec.recommend(sessions, k=3, exclude_seen=True, on_unknown="ignore")
    for n_scores in (gru4rec.n_items, gru4rec.n_items // 3):  # of one session, of a part of the catalogue
        monkeypatch.setattr("arnn_lightning.serving.predictor.BLOCK_SCORES", n_scores)
        assert_frame_equal(gru4rec.recommend(sessions, k=3, on_unknown="ignore"), expected, abs_tol=1e-6)
        listed = gru4rec.recommend(sessions, k=3, exclude_seen=True, on_unknown="ignore")
        assert_frame_equal(listed, seen, abs_tol=1e-6)


def test_a_list_of_ids_is_one_session(gru4rec: Predictor, events: pl.DataFrame) -> None:
    items = events.filter(pl.col("session_id") == events["session_id"][0])["item_id"].to_list()
    listed = gru4rec.recommend(items, k=4)
    assert listed["item_id"].to_list() == gru4rec.recommend(events.head(len(items)), k=4)["item_id"].to_list()
    popular = gru4rec.recommend([], k=4)["item_id"].to_list()
    assert popular == [listed.item_id for listed in gru4rec.session().top(4)]


def test_empty_frames_give_empty_lists_with_their_columns(with_profiles: Predictor, events: pl.DataFrame) -> None:
    listed = with_profiles.recommend(events.clear())
    assert listed.is_empty()
    assert listed.schema == with_profiles.recommend(events).schema
    assert with_profiles.recommend(pd.DataFrame({"session_id": [], "item_id": []})).empty


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"session": [1], "item_id": [1]}), 'no column session_id .did you mean "session"'),
        (pl.DataFrame({"session_id": [1, None], "item_id": [1, 2]}), "column session_id, row 2: no value"),
        (pl.DataFrame({"session_id": [1], "item_id": [[1]]}), "item_id: ids must be integers or strings"),
        (pl.DataFrame({"session_id": [1], "item_id": [True]}), "item_id: ids must be integers or strings"),
        (pl.DataFrame({"session_id": [[1]], "item_id": [1]}), "session_id: ids must be integers or strings"),
        (pl.DataFrame({"session_id": [1.0, math.nan], "item_id": [1, 2]}), "column session_id, row 2: no value"),
        (pl.DataFrame({"session_id": [1], "item_id": [1], "time": [math.nan]}), "column time, row 1: no value"),
        (pl.DataFrame({"session_id": [1], "item_id": [1], "time": [object()]}), "time: must be numbers, dates or"),
        (pl.DataFrame({"session_id": [1], "item_id": [1], "time": [[1]]}), "time: must be numbers, dates or strings"),
        (pd.DataFrame([[1, 2, 3]], columns=["session_id", "item_id", "item_id"]), "unique column names.*'item_id' 2"),
        (pl.DataFrame({"session_id": [1, 1], "item_id": [1, 2], "user_id": [5, 6]}), "session 1 has 2 users"),
        (pl.DataFrame({"session_id": [1], "item_id": [1]}).lazy(), "must be a polars or pandas DataFrame"),
        ({"session_id": [1]}, "must be a polars or pandas DataFrame or a pyarrow Table, not dict"),
        ([1, "a", 2.5, {}], "sessions: unexpected value .*; pass one session as a list of item ids"),
        ([["a"], ["b"]], "pass one session as a list of item ids, several as a DataFrame with session_id"),
        ("a", "sessions: must be a DataFrame or the list of one session's item ids, not 'a'"),
        (pd.DataFrame({"session_id": [1, 2], "item_id": [1, "x"]}), "sessions: Could not convert 'x' with type str"),
        (None, "must be a polars or pandas DataFrame"),
    ],
)
def test_wrong_sessions_are_one_line(gru4rec: Predictor, frame: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        gru4rec.recommend(frame)
    assert "\n" not in str(error.value)


def test_attributes_in_sessions_are_reported(
    with_profiles: Predictor, gru4rec: Predictor, events: pl.DataFrame
) -> None:
    attribute = with_profiles.vocabulary.single[0]
    mixed = events.with_columns(pl.lit("1").alias(attribute), price=2.5)
    with pytest.warns(UserWarning, match=rf"attributes of the model \(give them in users\): {attribute}$"):
        listed = with_profiles.recommend(mixed)
    assert listed.equals(with_profiles.recommend(events))
    with pytest.warns(UserWarning, match=rf"\(give them in users\): {attribute}$"):  # known, though not used
        assert with_profiles.recommend(mixed, on_unknown="raise").equals(listed)
    with pytest.raises(UserError, match=r"not in the catalogue \(8 events\), such as 1000000000$"):
        with_profiles.recommend(mixed.with_columns(item_id=pl.lit(10**9)).head(8), on_unknown="raise")
    with pytest.raises(UserError, match=r"not in the catalogue \(1 event\)"):
        with_profiles.recommend([10**9], on_unknown="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_profiles.recommend(mixed, pl.DataFrame({"user_id": events["user_id"][:1], attribute: [None]}))
        with_profiles.recommend(mixed, on_unknown="ignore")
        gru4rec.recommend(mixed)


def test_the_command_reports_attributes_and_names_files(
    checkpoints: Checkpoints,
    with_profiles: Predictor,
    events: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    attribute = with_profiles.vocabulary.single[0]
    mixed = events.with_columns(pl.lit("1").alias(attribute), price=2.5)
    mixed.write_csv("sessions.csv")
    mixed.write_parquet("sessions.parquet")
    command = ["task=recommend", f"checkpoint={checkpoints(BY_NAME['arnn'])}", "output=lists.csv", "hydra.run.dir=here"]
    for name in ("sessions.csv", "sessions.parquet"):
        assert arnn_here([*command, f"input={name}"], monkeypatch) == 0
        printed = capsys.readouterr()
        assert f"(give them in users): {attribute}\n" in printed.err
        assert "values: 0; attributes in input, not used: 1;" in printed.out  # what there is none of is left out
        assert pl.read_csv("lists.csv")["item_id"].to_list() == with_profiles.recommend(events)["item_id"].to_list()
    for mistake, hint in (
        (["input=sesions.csv"], 'error: input=sesions.csv: no such file (did you mean "sessions.csv"?)\n'),
        (["input=sessions.csv", "users=session.parquet"], 'no such file (did you mean "sessions.parquet"?)\n'),
        (["input=sessions.csv", "output=./sessions.csv"], "is input, which it would replace; choose another file\n"),
    ):
        assert arnn_here([*command, *mistake], monkeypatch) == 2
        assert capsys.readouterr().err.endswith(hint)
    assert pl.read_csv("sessions.csv").height == events.height
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arnn_here([*command, 'input="~/sessions.csv"', 'output="~/home.csv"'], monkeypatch) == 0
    assert (tmp_path / "home.csv").is_file()


def test_the_command_reads_times_to_the_nanosecond(with_profiles: Predictor, tmp_path: Path) -> None:
    """Not as floats, of which two times 100 ns apart are one."""
    ids, start = with_profiles.catalogue.ids, 1_700_000_000_000_000_000
    events = pl.DataFrame({"session_id": "s", "item_id": ids.head(2), "time": [start + 100, start]})
    events.write_csv(tmp_path / "events.csv")
    listed = with_profiles.recommend(_read(str(tmp_path / "events.csv"), "input", tuple(events.columns)))
    assert listed["item_id"].to_list() == with_profiles.recommend(events)["item_id"].to_list()
    assert listed["item_id"].to_list() != with_profiles.recommend(events.drop("time"))["item_id"].to_list()


def test_names_in_a_header_may_contain_separators(tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text('session_id;country;"income, EUR|year"\n1;at;2\n')
    assert _read(str(file), "users", None).to_dicts() == [{"session_id": "1", "country": "at", "income, EUR|year": "2"}]


@pytest.mark.parametrize("n_sessions", [30_000, slow(1_000_000)])
def test_many_sessions_are_written_as_they_are_computed(
    n_sessions: int,
    checkpoints: Checkpoints,
    gru4rec: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    number = pl.int_range(n_sessions, eager=True)
    sessions = pl.DataFrame({"session_id": number, "item_id": gru4rec.catalogue.ids.gather(number % gru4rec.n_items)})
    sessions.write_parquet("sessions.parquet")
    block_sessions, written = [], []
    lists = Predictor.lists

    def watched(*args: Any) -> Iterator[pl.DataFrame]:
        for block in lists(*args):
            block_sessions.append(block["session_id"].n_unique())
            written.append(sum(file.stat().st_size for file in tmp_path.rglob("*lists.csv*")))
            yield block

    monkeypatch.setattr(Predictor, "lists", watched)
    command = ["task=recommend", f"checkpoint={checkpoints(BY_NAME['gru4rec'])}", "hydra.run.dir=here", "k=5"]
    assert arnn_here([*command, "input=sessions.parquet", "output=lists.csv"], monkeypatch) == 0
    assert capsys.readouterr().out.startswith(f"sessions: {n_sessions:,} (0 without a known item)")
    assert max(block_sessions) <= BLOCK_SESSIONS
    assert written[-1] > Path("lists.csv").stat().st_size / 2
    listed = pl.read_csv("lists.csv")
    assert (listed["session_id"].to_numpy() == np.repeat(np.arange(n_sessions), 5)).all()
    expected = gru4rec.recommend(sessions.tail(100), k=5)
    assert listed.tail(500)["item_id"].to_list() == expected["item_id"].to_list()


# --- what is recommended ---


def test_lists_are_as_long_as_the_catalogue_at_most(gru4rec: Predictor, events: pl.DataFrame) -> None:
    listed = gru4rec.recommend(events, k=10**6)
    assert listed.height == 8 * gru4rec.n_items
    assert listed["score"].is_finite().all()


@pytest.mark.parametrize("k", [0, -1, 2.5, True, None, "20"])
def test_a_wrong_length_is_one_line(gru4rec: Predictor, events: pl.DataFrame, k: Any) -> None:
    for refused in (
        lambda: gru4rec.recommend(events, k=k),
        lambda: gru4rec.session().top(k),
        lambda: gru4rec.similar_items([], k),
    ):
        with pytest.raises(UserError, match="must be an integer of at least 1"):
            refused()


def test_left_out_items_change_no_order(with_profiles: Predictor, events: pl.DataFrame) -> None:
    whole = with_profiles.recommend(events, k=with_profiles.n_items)
    seen = with_profiles.recommend(events, k=with_profiles.n_items, exclude_seen=True)
    expected = whole.join(events, on=["session_id", "item_id"], how="anti", maintain_order="left")
    assert seen["item_id"].equals(expected["item_id"])
    some = whole["item_id"].head(7).to_list()
    for unknown in ([10**9], ["a"], [10**60], [10**60, "a"]):
        kept = with_profiles.recommend(events, items=[*some, *unknown], exclude_items=[*unknown, *some[:2]])
        assert set(kept["item_id"]) == set(some[2:])
        assert kept["rank"].to_list() == 8 * [1, 2, 3, 4, 5]
    session = with_profiles.session()
    session.click(some[0])
    assert {entry.item_id for entry in session.top(items=some, exclude_items=some[:2])} == set(some[2:])
    assert some[0] not in {entry.item_id for entry in session.top(with_profiles.n_items, exclude_seen=True)}
    with pytest.raises(UserError, match="no item of the catalogue is left"):
        with_profiles.recommend(events, items=[10**9])
    for refused in ([1, 2.5], [True, 1], [b"a", 1], [{}]):
        with pytest.raises(UserError, match=r"^items: .*must be "):
            with_profiles.recommend(events, items=refused)


def test_similar_items_leave_the_item_out(gru4rec: Predictor, checkpoints: Checkpoints) -> None:
    items = gru4rec.vocabulary.items["id"].head(3).to_list()
    for predictor in (gru4rec, load(checkpoints(BY_NAME["itemknn"]))):
        similar = predictor.similar_items(items, k=4)
        assert similar["item_id"].to_list() == np.repeat(items, 4).tolist()
        assert (similar["item_id"] != similar["similar_item_id"]).all()
    vectors = gru4rec.inference.model.get_parameter("scorer.items.weight").numpy()
    first, ids = vectors[0], gru4rec.vocabulary.items["id"].to_list()
    for _, similar_item, score, *_ in gru4rec.similar_items(items[:1], 4).iter_rows():
        other = vectors[ids.index(similar_item)]
        cosine = first @ other / (np.linalg.norm(first) * np.linalg.norm(other))
        assert score == pytest.approx(cosine, abs=1e-6)
    with pytest.raises(UserError, match="1000000000 is not in the catalogue"):
        gru4rec.similar_items([10**9])
    with pytest.raises(UserError, match="pop does not compare items"):
        load(checkpoints(BY_NAME["pop"])).similar_items(items)


# --- what is not known ---


def test_unknown_items_change_nothing_and_are_counted(with_profiles: Predictor, events: pl.DataFrame) -> None:
    strange = pl.DataFrame({"session_id": events["session_id"].unique(maintain_order=True), "item_id": [10**9] * 8})
    mixed = pl.concat([events, strange.cast({"item_id": pl.Int64})], how="diagonal_relaxed")
    with pytest.warns(UserWarning, match=r"ignored: items that are not .* \(8 events\), such as 1000000000"):
        listed = with_profiles.recommend(mixed)
    assert listed["item_id"].equals(with_profiles.recommend(events)["item_id"])
    with pytest.raises(UserError, match=r"not in the catalogue \(8 events\)"):
        with_profiles.recommend(mixed, on_unknown="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_profiles.recommend(mixed, on_unknown="ignore")
    with pytest.raises(UserError, match="on_unknown='never'"):
        with_profiles.recommend(mixed, on_unknown="never")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
def test_sessions_without_a_click_get_the_most_popular_items(case: ModelCase, checkpoints: Checkpoints) -> None:
    predictor = load(checkpoints(case))
    best = predictor.vocabulary.items.sort("events", descending=True, maintain_order=True).head(5)
    users = pl.DataFrame(
        {"session_id": ["a", "b"], **{attribute: ["x", "y"] for attribute in predictor.attributes[:1]}}
    )
    sessions = pl.DataFrame({"session_id": ["a"], "item_id": [None]})
    listed = predictor.recommend(sessions, users, k=5, on_unknown="ignore")
    assert listed["session_id"].unique(maintain_order=True).to_list() == ["a", "b"]
    assert listed["item_id"].to_list() == 2 * best["id"].to_list()
    assert [entry.item_id for entry in predictor.session().top(5)] == best["id"].to_list()


def test_a_profile_equals_the_stored_user_that_has_it(with_profiles: Predictor, events: pl.DataFrame) -> None:
    for row in range(20):
        user, profile = with_profiles.vocabulary.users["id"][row], profile_of(with_profiles, row)
        lists = []
        for session in (with_profiles.session(user=user), with_profiles.session(profile), with_profiles.session()):
            session.click(events["item_id"][0])
            lists.append(session.top(10))
            assert session.unknown.warning_text(with_profiles.attributes) is None
        assert lists[0] == lists[1]
        if profile:
            assert lists[0] != lists[2]
        frame = pl.DataFrame({"session_id": [1], "item_id": events["item_id"][:1], "user_id": [10**8]})
        users = pl.DataFrame({"user_id": [10**8], **{name: [value] for name, value in profile.items()}})
        assert with_profiles.recommend(frame, users, k=10)["item_id"].to_list() == [entry.item_id for entry in lists[0]]


@pytest.fixture
def with_user_attribute(tmp_path: Path) -> Predictor:
    """The user is an attribute, and so is the age; users 0 and 1 are known."""
    single = {"user": [1, 2], "age": [1, 1]}
    prepared = write_dataset(tmp_path, {"train": ([[0, 1, 2]] * 2, [0, 1])}, 3, single=single)
    rows = {"attribute": ["user", "user", "age", "age"], "kind": "single", "code": [1, 2] * 2, "low": None}
    table = pl.DataFrame(rows | {"category": ["0", "1", "3", "4"]}, schema_overrides={"code": pl.UInt32})
    table.write_parquet(tmp_path / "contexts.parquet")
    users = pl.read_parquet(tmp_path / "users.parquet")
    codes = [pl.col("^context\\..*$").cast(pl.UInt32), pl.col("active").cast(pl.List(pl.UInt32))]
    users.with_columns(codes).write_parquet(tmp_path / "users.parquet")
    vocabulary = Vocabulary(store_vocabulary(prepared, None, store_users=True), "here")
    metadata = {"model": {"dims": prepared.dims}, "data": {"contexts": {"assignment": "own"}}}
    return Predictor(BY_NAME["concat"].make(prepared), vocabulary, metadata)


@pytest.mark.parametrize("profile", [{}, {"country": None}])
def test_an_empty_profile_replaces_the_stored_one(
    profile: dict[str, Any], with_profiles: Predictor, events: pl.DataFrame
) -> None:
    """As a row of ``users`` without values does."""
    user = events["user_id"][0]
    session, stored = with_profiles.session(profile, user=user), with_profiles.session(user=user)
    for opened in (session, stored):
        opened.click(events["item_id"][0])
    frame = events.head(1)
    lists = with_profiles.recommend(frame, pl.DataFrame({"user_id": [user], **{name: [None] for name in profile}}))
    assert [item.item_id for item in session.top()] == lists["item_id"].to_list()
    assert session.top() != stored.top()


def test_a_profile_of_a_stored_user_is_of_that_user(with_user_attribute: Predictor) -> None:
    predictor = with_user_attribute
    sessions = [predictor.session({"age": 3}, user=1), predictor.session(user=1), predictor.session(user=0)]
    assert predictor.session({}, user=1).contexts.single.tolist() == [[2, 3]]  # of the fields: user 1, no age
    for session in sessions:
        session.click(0)
    lists = [session.top() for session in sessions]
    assert lists[0] == lists[1] != lists[2]


@pytest.mark.parametrize(
    ("user_id", "users"),
    [
        ([1, 1], {"user_id": [1]}),
        ([1, 1], {"session_id": [5]}),
        ([None, None], {"session_id": [5], "user_id": [1]}),
        ([1.0, None], {"user_id": [1]}),
        ([1.0, float("nan")], {"user_id": [1]}),
        (["1 ", "1"], {"user_id": ["1"]}),
        (["1", "1"], {"user_id": [" 1"]}),
        ([1, 1], {"user_id": [1.0]}),
    ],
)
def test_users_are_matched_however_their_ids_are_stored(
    user_id: list[Any], users: dict[str, list[Any]], with_user_attribute: Predictor
) -> None:
    """As a live session of that user, with the attribute "user" and the given age."""
    session = with_user_attribute.session({"age": 3}, user=1)
    session.click(0)
    session.click(1)
    frame = pl.DataFrame({"session_id": [5, 5], "item_id": [0, 1], "user_id": user_id})
    lists = with_user_attribute.recommend(frame, pl.DataFrame(users | {"age": ["3"]}), on_unknown="raise")
    assert lists["score"].to_list() == pytest.approx([item.score for item in session.top()])


@pytest.mark.parametrize("library", [pl.DataFrame, pd.DataFrame])
def test_a_frame_without_a_row_or_a_user_takes_profiles(
    library: Callable[[dict[str, Any]], Any], with_user_attribute: Predictor
) -> None:
    users = library({"session_id": ["s"], "age": ["3"]})
    lists = with_user_attribute.recommend(library({"session_id": [], "item_id": []}), users)
    assert set(lists["session_id"]) == {"s"}
    events = library({"session_id": [1], "item_id": [0], "user_id": [None]})
    users = library({"user_id": ["u"], "age": ["3"]})
    with pytest.warns(UserWarning, match="no session has their ids, such as 'u'"):
        with_user_attribute.recommend(events, users)


def test_an_item_id_that_is_nan_is_missing(with_user_attribute: Predictor) -> None:
    frame = pl.DataFrame({"session_id": [1, 1], "item_id": [0.0, float("nan")]})
    lists = with_user_attribute.recommend(frame, on_unknown="raise")
    assert lists["score"].equals(with_user_attribute.recommend(frame.head(1))["score"])


def test_a_value_like_which_training_has_none_is_unknown(checkpoints: Checkpoints) -> None:
    """One of a multi-valued attribute whose "other" values have no training event."""
    loaded = load(checkpoints(BY_NAME["arnn"]))
    name, events = loaded.profile_reader.multi[0], pl.when(pl.col("category") == OTHER).then(0).otherwise("events")
    loaded.vocabulary.contexts = loaded.vocabulary.contexts.with_columns(events=events)
    predictor = Predictor(loaded.model, loaded.vocabulary, loaded.metadata)
    clicks = predictor.catalogue.ids.head(2).to_list()
    for value in ("no such role", ["no such role"]):
        session = predictor.session({name: value})
        assert session.unknown.values == [(name, "no such role")]
        assert session.contexts.active.tolist() == [[-1]]
        users = pl.DataFrame({"session_id": [0], name: [value]})
        assert predictor.recommend(clicks, users, on_unknown="ignore").equals(predictor.recommend(clicks))
        with pytest.raises(UserError, match="no such role"):
            predictor.recommend(clicks, users, on_unknown="raise")


VALUES = st.one_of(
    st.none(),
    st.sampled_from(["de", "at", "1", "3", "other", "", "nowhere", "1,3", "2, 99 ,"]),
    st.integers(-5, 99),
    st.sampled_from([3.0, 2.5, float("nan"), True, date(1990, 5, 1)]),
    st.lists(st.sampled_from(["1", "3", " 7", "no such role", ""]), max_size=3),
    st.lists(st.integers(0, 30), max_size=3),
)


@given(data=st.data())
def test_one_profile_is_encoded_as_frames_of_profiles_are(with_profiles: Predictor, data: st.DataObject) -> None:
    profile = data.draw(st.dictionaries(st.sampled_from([*with_profiles.attributes, "agee"]), VALUES))
    reader = with_profiles.profile_reader
    try:
        codes, unseen = reader.encode(one_row(profile or {"agee": None}))
    except UserError:
        with pytest.raises(UserError):
            reader.encode_one(profile)
    else:
        row = codes.row(0, named=True)
        single = [row[f"context.{name}"] for name in with_profiles.vocabulary.single]
        assert reader.encode_one(profile) == (single, row["active"], unseen)
        assert with_profiles.session(profile).unknown.attributes == [name for name in profile if name == "agee"]


def test_mistyped_users_are_counted_and_named(
    with_profiles: Predictor, gru4rec: Predictor, events: pl.DataFrame
) -> None:
    user = with_profiles.vocabulary.users["id"]
    mistyped = events.with_columns(
        user_id=pl.when(pl.col("session_id") == events["session_id"][0]).then(-5).otherwise("user_id")
    )
    users = pl.DataFrame({"user_id": [-5, -6, -7], with_profiles.vocabulary.single[0]: ["1", "1", "1"]})
    others = with_profiles.read(mistyped, users).unknown
    assert (others.users, others.unmatched) == ([], [-6, -7])  # a table of all users is the usual case
    with pytest.warns(UserWarning, match=r"^ignored: users without a profile \(1\), such as -5$"):
        with_profiles.recommend(mistyped, on_unknown="raise")  # may be a new visitor
    with pytest.warns(
        UserWarning, match=r"such as -5; all 2 rows of users, since no session has their ids, such as -6$"
    ):
        with_profiles.recommend(mistyped, users.tail(2), on_unknown="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gru4rec.recommend(mistyped)  # reads no profiles
    assert [with_profiles.session(user=value).unknown.users for value in (-5, user[0])] == [[-5], []]


def test_a_model_without_contexts_names_all_attributes(gru4rec: Predictor, events: pl.DataFrame) -> None:
    users = pl.DataFrame({"session_id": events["session_id"][:1], "age": [3], "team": ["a"]})
    line = "attributes that the model does not use: age, team (it uses none)"
    with pytest.warns(UserWarning, match=rf"^ignored: {re.escape(line)}$"):
        lists = gru4rec.recommend(events, users)
    assert lists.equals(gru4rec.recommend(events))
    with pytest.raises(UserError, match=re.escape(line)):
        gru4rec.recommend(events, users, on_unknown="raise")
    session = gru4rec.session(profile={"age": 3})
    assert session.unknown.attributes == ["age"]


def test_unknown_attributes_and_values_are_named(with_profiles: Predictor, events: pl.DataFrame) -> None:
    single = with_profiles.vocabulary.single[0]
    profile = {single: "nowhere", "agee": 3}
    session = with_profiles.session(profile)
    assert session.unknown.attributes == ["agee"]
    assert session.unknown.values == [(single, "nowhere")]
    session.click("no such item")
    session.click(events["item_id"][0])
    assert session.unknown.items == ["no such item"]
    assert repr(session.unknown).startswith("Unknown(items=['no such item'], attributes=")
    assert repr(session.unknown).endswith(", users=[])")
    assert session.clicks == 1
    other = with_profiles.session()
    other.click(events["item_id"][0])
    assert session.top() == other.top()  # nothing was known of either
    users = pl.DataFrame({"session_id": events["session_id"][:1], single: ["nowhere"], "agee": [3]})
    with pytest.warns(UserWarning, match=rf"does not use: agee.*attribute values .*\(1\), such as {single}='nowhere'"):
        with_profiles.recommend(events, users)


@pytest.mark.parametrize(
    "value",
    [b"\xff", timedelta(1), [["1"]], [[["1"]]], [{"a": 1}], {"a": 1}, object()],
    ids=lambda value: str(type(value)),
)
def test_values_that_are_no_categories_are_one_line(with_profiles: Predictor, events: pl.DataFrame, value: Any) -> None:
    for name in with_profiles.attributes:
        users = pl.DataFrame({"session_id": events["session_id"][:1], name: pl.Series([value])})
        with pytest.raises(UserError, match=f"column {name}: ") as error:
            with_profiles.recommend(events, users)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"country": ["de"]}, "users: no column session_id or user_id"),
        ({"user_id": [1, 1]}, "user_id 1 occurs more than once"),
        ({"user_id": [1, None]}, "column user_id, row 2: None is not a valid id"),
        ({"user_id": [True]}, "users: user_id: ids must be integers or strings"),
    ],
)
def test_wrong_users_are_one_line(
    with_profiles: Predictor, events: pl.DataFrame, users: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        with_profiles.recommend(events, pl.DataFrame(users))
    assert "\n" not in str(error.value)


def test_the_logs_column_of_users_is_named(gru4rec: Predictor, events: pl.DataFrame) -> None:
    data = gru4rec.metadata["data"] | {"columns": {"user": "customer", "user_in_users": "number"}}
    predictor = Predictor(gru4rec.model, gru4rec.vocabulary, {**gru4rec.metadata, "data": data})
    other = events.rename({"user_id": "customer"})
    for sessions, column, fix in (
        (events, "number", "users: no column .*; rename its column number to user_id"),
        (events, "customer", "users: no column .*; rename its column customer to user_id"),
        (events, "x", "users: no column .*; rename the column of user ids to user_id"),
        (other, "user_id", "sessions: no column user_id; .*; rename its column customer to user_id"),
    ):
        with pytest.raises(UserError, match=fix):
            predictor.recommend(sessions, pl.DataFrame({column: [1]}))


def test_users_need_a_column_to_be_matched_by(with_profiles: Predictor, events: pl.DataFrame) -> None:
    with pytest.raises(UserError, match="sessions: no column user_id"):
        with_profiles.recommend(events.drop("user_id"), pl.DataFrame({"user_id": [1]}))


@pytest.mark.parametrize("profile", [[], "de", 3, {"level": object()}, {"level": {"a": 1}}, {"level": [1, "a", None]}])
def test_a_wrong_profile_is_one_line(with_profiles: Predictor, profile: Any) -> None:
    profile = {with_profiles.vocabulary.single[0]: profile["level"]} if isinstance(profile, dict) else profile
    with pytest.raises(
        UserError,
        match=r"must map attributes to values|must be a string, a number, or a list|must be numbers, strings or lists",
    ) as error:
        with_profiles.session(profile)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("item", [None, True, 2.5, [1], {}, b"1"])
def test_a_click_on_no_id_is_one_line(with_profiles: Predictor, item: Any) -> None:
    session = with_profiles.session()
    with pytest.raises(UserError, match="an id must be an integer or a string"):
        session.click(item)
    assert session.clicks == 0


def test_a_batch_has_every_session_once(with_profiles: Predictor, events: pl.DataFrame) -> None:
    session, item = with_profiles.session(), events["item_id"][0]
    for sessions, items in (([session], []), ([session, session], [item, item])):
        with pytest.raises(UserError, match="each session once"):
            with_profiles.live.click(sessions, items)
    with_profiles.live.click([], [])
    assert with_profiles.live.top([]) == []


def test_sessions_of_another_model_are_refused(
    with_profiles: Predictor, gru4rec: Predictor, events: pl.DataFrame
) -> None:
    session = gru4rec.session()
    for call in (
        lambda: with_profiles.live.click([session], [events["item_id"][0]]),
        lambda: with_profiles.live.top([with_profiles.session(), session]),
    ):
        with pytest.raises(UserError, match=r"^a session of another model \(gru4rec\)"):
            call()
    assert session.clicks == 0


def test_numpy_values_are_those_of_python(with_profiles: Predictor) -> None:
    contexts = with_profiles.vocabulary.contexts.filter(pl.col("kind") == "multi")
    multi, values = contexts["attribute"][0], contexts["category"].head(2).to_list()
    profile = {multi: np.array(values), **{name: np.int64(1) for name in with_profiles.vocabulary.single}}
    plain = {multi: values, **dict.fromkeys(with_profiles.vocabulary.single, 1)}
    sessions = [with_profiles.session(values) for values in (profile, plain)]
    assert (sessions[0].contexts.active >= 0).sum() == 2
    assert sessions[0].contexts.single.equal(sessions[1].contexts.single)
    assert sessions[0].contexts.active.equal(sessions[1].contexts.active)


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
def test_sessions_with_and_without_clicks_share_a_batch(
    case: ModelCase, checkpoints: Checkpoints, events: pl.DataFrame
) -> None:
    """Also of users with few and many categories. Scores of counted models have float64: in float32 some would tie."""
    predictor = load(checkpoints(case))
    users = predictor.vocabulary.users.sort(pl.col("active").list.len())["id"]
    sessions = [predictor.session(), predictor.session(), predictor.session(user=users[0])]
    sessions.append(predictor.session(user=users[-1]))
    for session in (sessions[0], *sessions[2:]):
        session.click(events["item_id"][0])
    lists = predictor.live.top(sessions, predictor.n_items)
    for session, listed in zip(sessions, lists, strict=True):
        assert [entry.item_id for entry in session.top(predictor.n_items)] == [entry.item_id for entry in listed]


# --- states ---


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
def test_a_state_continues_the_session(case: ModelCase, checkpoints: Checkpoints, events: pl.DataFrame) -> None:
    """Also with the last item of the catalogue, whose code is the highest; and its size does not grow with clicks."""
    predictor, other = load(checkpoints(case)), load(checkpoints(case))
    items = [*events["item_id"].head(3), predictor.vocabulary.items["id"][-1]]
    session = predictor.session(user=events["user_id"][0])
    for item in items:
        continued = other.session(state=session.state())
        assert continued.top(30) == session.top(30)
        assert continued.top(30, exclude_seen=True) == session.top(30, exclude_seen=True)
        assert continued.state() == session.state()
        session.click(item)
    assert other.session(state=session.state()).top(30) == session.top(30)
    size = len(session.state())
    for item in 60 * items:
        session.click(item)
    assert len(session.state()) == size


def test_models_of_other_items_refuse_a_state(gru4rec: Predictor) -> None:
    """Whatever their weights: a state has codes of items."""
    other = Predictor(gru4rec.model, gru4rec.vocabulary, gru4rec.metadata)
    items = gru4rec.vocabulary.items
    other.catalogue = Catalogue(items.with_columns(items["id"].reverse()))
    with pytest.raises(UserError, match="state: belongs to another model"):
        other.session(state=gru4rec.session().state())


def test_the_id_of_a_model_does_not_depend_on_versions(gru4rec: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of polars are those of its version."""
    other = Predictor(gru4rec.model, gru4rec.vocabulary, gru4rec.metadata)
    expected, usual = gru4rec.model_id, pl.Series.hash
    monkeypatch.setattr(pl.Series, "hash", lambda *_, **__: usual(gru4rec.catalogue.ids, seed=1))
    assert other.model_id == expected


def test_a_state_has_a_bounded_size(with_profiles: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arnn_lightning.serving.live.MAX_SEEN", 5)
    session, sizes = with_profiles.session(), []
    for item in with_profiles.vocabulary.items["id"].head(12):
        session.click(item)
        sizes.append(len(session.state()))
    assert sizes[3] < sizes[4] == max(sizes)
    assert session.clicks == 12


def test_the_latest_items_of_a_session_are_left_out(with_profiles: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that is clicked again is a latest one."""
    monkeypatch.setattr("arnn_lightning.serving.live.MAX_SEEN", 2)
    first, second, third = with_profiles.vocabulary.items["id"].head(3)
    session = with_profiles.session()
    for item in (first, second, first, third):
        session.click(item)
    recommended = {entry.item_id for entry in session.top(with_profiles.n_items, exclude_seen=True)}
    assert {first, second, third} - recommended == {first, third}


def test_a_state_that_is_damaged_or_foreign_is_refused(
    with_profiles: Predictor, gru4rec: Predictor, events: pl.DataFrame
) -> None:
    session = with_profiles.session(user=events["user_id"][0])
    session.click(events["item_id"][0])
    state = session.state()
    for end in range(len(state)):
        with pytest.raises(UserError, match="state: damaged or truncated"):
            with_profiles.session(state=state[:end])
    for place in range(0, len(state), 3):
        flipped = bytearray(state)
        flipped[place] ^= 0xFF
        with pytest.raises(UserError, match="state: "):
            with_profiles.session(state=bytes(flipped))
    with pytest.raises(UserError, match=f"state: belongs to another model .{with_profiles.model_id}"):
        gru4rec.session(state=state)
    with pytest.raises(UserError, match="state: has format 3, not 2; start a new session"):
        with_profiles.session(state=state[:4] + bytes([3]) + state[5:])
    with pytest.raises(UserError, match="must be the bytes"):
        with_profiles.session(state="text")  # type: ignore[arg-type]
    for other in ({"profile": {}}, {"user": 3}):
        with pytest.raises(UserError, match="state: contains the user's contexts; leave out profile and user"):
            with_profiles.session(state=state, **other)
    assert with_profiles.session(state=state).top() == session.top()
    session.hidden = tuple(part * float("nan") for part in session.hidden)
    with pytest.raises(UserError, match="state: damaged or truncated"):
        with_profiles.session(state=session.state())


@pytest.mark.parametrize(("above_last", "count", "is_valid"), [(0, 1_000, True), (0, 1_001, False), (1, 1, False)])
def test_codes_of_a_state_are_checked(with_profiles: Predictor, above_last: int, count: int, is_valid: bool) -> None:
    session: Any = with_profiles.session()
    session.seen = [with_profiles.n_items - 1 + above_last] * count
    if is_valid:
        assert with_profiles.session(state=session.state()).clicks == 0
        return
    with pytest.raises(UserError, match="state: damaged or truncated"):
        with_profiles.session(state=session.state())


# --- checkpoints ---


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        load(tmp_path)


@pytest.mark.parametrize("level", ["", "train/tabular/arnn/"])
def test_a_folder_of_runs_names_its_five_newest(tmp_path: Path, level: str) -> None:
    folders = [tmp_path / level / f"run{number}" for number in range(7)]
    for age, folder in enumerate(folders):
        (folder / "checkpoints" / "session").mkdir(parents=True)
        (folder / "checkpoints" / "session" / "best.ckpt").touch()
        (folder / "checkpoints" / "best.ckpt").touch()
        os.utime(folder / "checkpoints" / "best.ckpt", (1e9 - age, 1e9 - age))
    runs = re.escape(", ".join(map(str, folders[:5])))
    for read in (load, read_checkpoint):
        with pytest.raises(
            UserError, match=rf"a folder of 7 runs, not a run or a checkpoint; choose one: {runs}, \.\.\.$"
        ):
            read(tmp_path)
    checkpoints = folders[0] / "checkpoints"
    assert checkpoint_file(folders[0]) == checkpoint_file(checkpoints) == checkpoints / "best.ckpt"
    with pytest.raises(UserError, match=r'no checkpoint at .*bst\.ckpt \(did you mean "best\.ckpt"\?\)'):
        load(checkpoints / "bst.ckpt")
