"""The reader of your own tables."""

import bz2
import csv
import dataclasses
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import prepare
from arnn_lightning.readers.schema import RawData, validate_events
from arnn_lightning.readers.tabular import TabularReader
from helpers import compose_config

NOON = int(datetime(2015, 11, 3, 12, 0, tzinfo=UTC).timestamp())
USABLE = ("data.columns.user=uid", "data.columns.item=sku", "data.columns.time=ts")


def reader(events: Any, *overrides: str) -> TabularReader:
    config = compose_config("data=tabular", *overrides)
    config.data.events = events if isinstance(events, list) else str(events)
    plain: Any = OmegaConf.to_container(config.data.reader, resolve=True)
    del plain["_target_"]
    return TabularReader(**plain)


def read(events: Any, *overrides: str) -> RawData:
    tabular = reader(events, *overrides)
    raw = validate_events(tabular.read(), next(iter(tabular.files().values())))
    raw.users(), raw.items()  # checked too
    return raw


@pytest.fixture
def log(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str, name: str = "clicks.csv") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


# --- text ---


@pytest.mark.parametrize(
    "text",
    [
        f"user,item,time\nu1,a,{NOON}\nu2,b,{NOON}\n",
        f"user;item;time\nu1;a;{NOON}\nu2;b;{NOON}\n",
        f"user\titem\ttime\nu1\ta\t{NOON}\nu2\tb\t{NOON}\n",
        f"user|item|time\nu1|a|{NOON}\nu2|b|{NOON}",
        f'\ufeff"user";"item";"time"\n"u1";"a";{NOON}\n"u2";"b";"{NOON}"\n',
        f"time,other,item,user\r\n{NOON},1,a,u1\r\n{NOON},,b,u2\r\n",
    ],
)
def test_any_separator_quotes_and_a_byte_order_mark(log: Any, text: str) -> None:
    assert read(log(text)).events.rows() == [("u1", "a", NOON), ("u2", "b", NOON)]


def test_files_with_a_byte_order_mark_are_utf8_in_any_encoding(log: Any) -> None:
    path = log(f"\ufeffKd.-Nr.;item;time\nJürgen;a;{NOON}\n")
    columns = ["data.columns.user=Kd.-Nr.", "data.encoding=cp1252"]
    assert read(path, *columns).events.rows() == [("Jürgen", "a", NOON)]
    with pytest.raises(UserError, match=r"no column 'user'; its columns: Kd\.-Nr\., item, time"):
        read(path)


def test_ids_are_texts_as_they_are_written(log: Any) -> None:
    events = read(log(f'user,item,time\n007,"a,b",{NOON}\n7," ""c""; ",{NOON}\n')).events
    assert events.rows() == [("007", "a,b", NOON), ("7", '"c";', NOON)]


def test_spaces_around_ids_are_removed(tmp_path: Path, log: Any) -> None:
    texts = f"user,item,time\nu,a,{NOON}\n u,a ,{NOON}\n  ,a,{NOON}\n"
    pl.read_csv(texts.encode()).write_parquet(tmp_path / "log.parquet")
    for path, row in ((log(texts), 4), (tmp_path / "log.parquet", 3)):
        with pytest.raises(UserError, match=rf"column 'user' is empty in row {row}"):
            read(path)
        assert read(path, "data.incomplete=drop").events.rows() == [("u", "a", NOON)] * 2


def test_columns_are_named_by_the_config(log: Any) -> None:
    path = log(f"uid,sku,ts\nu1,a,{NOON}\n")
    names = ["data.columns.user=uid", "data.columns.item=sku", "data.columns.time=ts"]
    assert read(path, *names).events.rows() == [("u1", "a", NOON)]
    with pytest.raises(UserError, match=r"clicks\.csv: no column 'uids' \(did you mean .uid.\?\)"):
        read(path, "data.columns.user=uids", *names[1:])


@pytest.mark.parametrize(
    ("overrides", "column", "key"),
    [
        ([], "user", r"user \(null: a log without users\); likewise data.columns.item, data.columns.time"),
        (["data.columns.user=uid"], "item", "item; likewise data.columns.time"),
        (["data.columns.user=uid", "data.columns.item=sku"], "time", "time"),
        ([*USABLE, "data.columns.order=n"], "n", "order"),
        (["data.session=given", *USABLE], "session", "session"),
        ([*USABLE, "data.users=users.csv"], "uid", "user_in_users"),
        ([*USABLE, "data.titles=users.csv"], "sku", "item_in_titles; likewise data.columns.title"),
        ([*USABLE, "data.titles=users.csv", "data.columns.item_in_titles=id"], "title", "title"),
        ([*USABLE, "data.contexts.single=[title]"], "title", "data.contexts names it"),
        (
            [*USABLE, "data.users=users.csv", "data.columns.user_in_users=id", "data.contexts.multi=[x]"],
            "x",
            "data.contexts names it",
        ),
        ([*USABLE, "data.where={session: [1]}"], "session", "data.where names it"),
        (
            [
                *(*USABLE, "data.users=users.csv", "data.columns.user_in_users=id"),
                *(f"data.where={{ts: [{NOON}]}}", "data.contexts.single=[ts]"),  # the events have it
            ],
            "ts",
            "data.contexts names it",
        ),
    ],
)
def test_the_setting_of_a_missing_column_is_named(
    overrides: list[str], column: str, key: str, tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = log(f"uid,sku,ts\nu1,a,{NOON}\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.csv").write_text("id\na\n")
    with pytest.raises(UserError) as error:
        read(path, *overrides)
    setting = f"; {key}" if "names it" in key else f"; if the column has another name, set data.columns.{key}"
    assert re.fullmatch(rf".*\.csv: no column '{column}'.*; its columns: \w+(, \w+)*{setting}", str(error.value))


@pytest.mark.parametrize("table", ["events", "users", "titles"])
@pytest.mark.parametrize("paths", [[], [1]], ids=str)
def test_a_table_without_a_path_is_refused(log: Any, table: str, paths: list[Any]) -> None:
    tabular = dataclasses.replace(reader(log(f"user,item,time\nu1,a,{NOON}\n", "log.csv")), **{table: paths})
    with pytest.raises(UserError, match=rf"data\.{table}=.*: must be a path, a glob, or a list of them"):
        tabular.files()


def test_several_files_and_globs_are_one_table(tmp_path: Path, log: Any) -> None:
    log(f"user,item,time\nu1,a,{NOON}\n", "day-1.csv")
    log(f"item;user;time\nb;u2;{NOON}\n", "day-2.csv")
    (tmp_path / "day-3.csv.gz").write_bytes(gzip.compress(f"user,item,time\nu3,c,{NOON}\n".encode()))
    rows = [("u1", "a", NOON), ("u2", "b", NOON), ("u3", "c", NOON)]
    assert read(tmp_path / "day-*").events.rows() == rows
    assert read([str(tmp_path / "day-2.csv"), str(tmp_path / "day-[13]*")]).events.drop(
        "instant", strict=False
    ).rows() == [rows[1], rows[0], rows[2]]
    with pytest.raises(UserError, match=r"data\.events: .*night-\* is not a file"):
        reader(tmp_path / "night-*").files()


@pytest.mark.parametrize("table", ["events", "users", "titles"])
def test_a_missing_file_names_the_nearest_one(tmp_path: Path, log: Any, table: str) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\n", "customers.csv")
    other = [] if table == "events" else [f"data.{table}={tmp_path}/custmers.csv"]
    with pytest.raises(
        UserError, match=rf'data\.{table}: .*custmers\.csv is not a file \(did you mean "customers\.csv"'
    ):
        reader(path if other else tmp_path / "custmers.csv", *other).files()


# --- times ---


@pytest.mark.parametrize(
    ("texts", "times"),
    [
        ([str(NOON), f"{NOON}.75", f" {NOON + 1}"], [NOON, NOON, NOON + 1]),
        ([str(NOON * 1000), str(NOON * 1000 + 999)], [NOON, NOON]),
        (["2015-11-03 12:00:00", "2015-11-03T12:00", "2015-11-03T12:00:00.999Z"], [NOON] * 3),
        (["2015-11-03T13:00:00+01:00", "2015-11-03 06:30:00-0530", "2015-11-03 12:00:00 Z"], [NOON] * 3),
        (["2015-11-03", "1995-01-01"], [NOON - 43_200, 788_918_400]),
    ],
)
def test_unix_times_and_iso_texts_are_understood(log: Any, texts: list[str], times: list[int]) -> None:
    rows = "".join(f"u,i,{text}\n" for text in texts)
    assert read(log("user,item,time\n" + rows)).events["time"].to_list() == times


@pytest.mark.parametrize(
    ("how", "text", "time"),
    [
        ("%m/%d/%Y", "11/03/2015", NOON - 43_200),
        ("%d/%m/%Y %H:%M", "03/11/2015 12:00", NOON),
        ("%d.%m.%y %H:%M:%S", "03.11.15 12:00:00", NOON),
        ("%Y-%m-%d %H:%M:%S %z", "2015-11-03 14:00:00 +0200", NOON),
    ],
)
def test_other_texts_need_a_format(log: Any, how: str, text: str, time: int) -> None:
    path = log(f"user,item,time\nu,i,{text}\n")
    assert read(path, f"data.time_format='{how}'").events["time"].to_list() == [time]


def test_day_and_month_are_never_guessed(log: Any) -> None:
    with pytest.raises(
        UserError, match=r"column 'time', row 3: '11/03/2015' is not an ISO 8601 time.*data\.time_format"
    ):
        read(log("user,item,time\nu,i,2015-11-03\nu,i,11/03/2015\n"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["2015-11-03", "2015-02-30"], r"column 'time', row 3: '2015-02-30' is not an ISO"),
        (["2015-11-03", "2015-11-03 24:00"], r"row 3: '2015-11-03 24:00' is not an ISO"),
        ([str(NOON), str(NOON), "soon"], r"column 'time', row 4: 'soon' is not a unix time"),
        ([str(NOON), str(NOON), f"{NOON}000"], r"row 4: '\d+' is not in the unit of the other rows"),
        ([f"{NOON}0000000000"], r"row 2: '\d+' is not a unix time"),
        ([str(NOON), "NaN"], r"column 'time' is empty in row 3"),
        ([str(NOON), ""], r"column 'time' is empty in row 3"),
    ],
)
def test_a_time_that_does_not_parse_is_named(log: Any, rows: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(log("user,item,time\n" + "".join(f"u,i,{row}\n" for row in rows)))


def test_a_format_that_does_not_fit_is_named(log: Any) -> None:
    with pytest.raises(UserError, match=r"row 3: '13/03/2015' is not in the format %m/%d/%Y"):
        read(log("user,item,time\nu,i,11/03/2015\nu,i,13/03/2015\n"), "data.time_format='%m/%d/%Y'")


# --- parquet ---


@pytest.mark.parametrize(
    "times",
    [
        [datetime(2015, 11, 3, 12)] * 2,
        [datetime(2015, 11, 3, 14, tzinfo=timezone(timedelta(hours=2)))] * 2,
        [NOON, NOON],
        [NOON * 1000, NOON * 1000],
        [float(NOON), float(NOON)],
        ["2015-11-03 12:00", "2015-11-03 12:00"],
    ],
)
def test_parquet_keeps_its_types(tmp_path: Path, times: list[Any]) -> None:
    frame = pl.DataFrame({"user": [7, 2**60], "item": ["a", "b"], "time": times})
    frame.with_columns(pl.col("item").cast(pl.Categorical)).write_parquet(tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet").events.rows() == [
        (7, "a", NOON),
        (2**60, "b", NOON),
    ]


def test_parquet_dates_are_midnights(tmp_path: Path) -> None:
    pl.DataFrame({"user": [7], "item": [1], "time": [date(2015, 11, 3)]}).write_parquet(tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet").events["time"].to_list() == [NOON - 43_200]


def test_what_parquet_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [7.0, float("nan")], "item": [1, 2], "times": [NOON, NOON]}).write_parquet(path)
    with pytest.raises(UserError, match=r"no column 'time' \(did you mean .times.\?\)"):
        read(path)
    with pytest.raises(UserError, match=r"column 'user' is empty in row 2"):
        read(path, "data.columns.time=times")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"log\.parquet: not a readable parquet file"):
        read(path)


# --- sessions ---


def test_sessions_are_read_where_they_are_asked_for(log: Any) -> None:
    path = log(f"user,item,time,visit\nu,a,{NOON},x\nu,b,{NOON},y\n")
    assert "session" not in read(path).events.columns
    events = read(path, "data.session=given", "data.columns.session=visit").events
    assert events["session"].to_list() == ["x", "y"]


# --- contexts ---


def test_a_users_table_gives_attributes(log: Any) -> None:
    path = log(f"uid,item,time\nu1,a,{NOON}\nu2,b,{NOON}\n")
    users = log('id;country;age;interests\nu1;de;30;"music, sports ,,music"\nu2;NULL;;\nu9;fr;40;arts\n', "users.csv")
    raw = read(
        path,
        "data.columns.user=uid",
        f"data.users={users}",
        "data.columns.user_in_users=id",
        "data.contexts.single=[user,country,age]",
        "data.contexts.multi=[interests]",
    )
    assert raw.users().collect().to_dicts() == [
        {"user": "u1", "country": "de", "age": "30", "interests": ["music", "sports"]},
        {"user": "u2", "country": None, "age": None, "interests": None},
        {"user": "u9", "country": "fr", "age": "40", "interests": ["arts"]},
    ]


def test_lists_of_parquet_are_lists(tmp_path: Path) -> None:
    events, users = tmp_path / "events.parquet", tmp_path / "users.parquet"
    pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [NOON, NOON]}).write_parquet(events)
    pl.DataFrame({"user": [1, 2], "likes": [[3, 4], []], "age": [30, None]}).write_parquet(users)
    settings = [f"data.users={users}", "data.contexts.multi=[likes]", "data.contexts.single=[age]"]
    raw = read(events, *settings)
    assert raw.users().collect().to_dicts() == [
        {"user": 1, "age": "30", "likes": ["3", "4"]},
        {"user": 2, "age": None, "likes": []},
    ]
    with pytest.raises(UserError, match=r"'likes' is a list; name it in data\.contexts\.multi"):
        read(events, f"data.users={users}", "data.contexts.single=[likes]")


def test_integer_and_string_ids_are_matched(tmp_path: Path, log: Any) -> None:
    pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [NOON, NOON]}).write_parquet(tmp_path / "events.parquet")
    users, titles = log("user,age\n2,30\n", "users.csv"), log("item,title\n1,One\n", "titles.csv")
    raw = read(
        tmp_path / "events.parquet", f"data.users={users}", f"data.titles={titles}", "data.contexts.single=[age]"
    )
    assert raw.events["user"].to_list() == ["1", "2"]
    assert raw.users().collect()["user"].to_list() == ["2"]
    items = raw.items()
    assert items is not None
    assert items.rows() == [("1", "One")]


@pytest.mark.parametrize("types", [(pl.Int32, pl.Int64), (pl.UInt32, pl.Int32)])
def test_integer_ids_of_any_width_are_matched_as_integers(tmp_path: Path, types: tuple[Any, Any]) -> None:
    ids = [pl.Series("user", [2, 10], dtype=dtype) for dtype in types]
    pl.DataFrame([ids[0], pl.Series("item", [1, 2]), pl.Series("time", [NOON] * 2)]).write_parquet(tmp_path / "log")
    pl.DataFrame([ids[1], pl.Series("age", ["a", "b"])]).write_parquet(tmp_path / "users")
    raw = read(tmp_path / "log", f"data.users={tmp_path / 'users'}", "data.contexts.single=[age]")
    assert (raw.events["user"].dtype, raw.users().collect()["user"].dtype) == (pl.Int64, pl.Int64)


def test_files_with_ids_of_signed_and_unsigned_integers_have_int64(tmp_path: Path) -> None:
    for name, dtype in (("a", pl.Int32), ("b", pl.UInt64)):
        columns = {"user": pl.Series([1], dtype=dtype), "item": [name], "time": [NOON]}
        pl.DataFrame(columns).write_parquet(tmp_path / name)
    assert read([str(tmp_path / name) for name in "ab"]).events["user"].dtype == pl.Int64


def test_whole_numbers_of_any_type_are_integers(tmp_path: Path) -> None:
    prices = pl.Series(["1.00", "2.50"]).cast(pl.Decimal(10, 2))
    columns = {"user": pl.Series(["19.00", "20.00"]).cast(pl.Decimal(10, 2)), "item": [1, 2], "time": [NOON] * 2}
    tags = pl.Series([[1.0, 2.5], [3.0]])
    pl.DataFrame(columns | {"price": prices, "tags": tags}).write_parquet(tmp_path / "log")
    users = read(tmp_path / "log", "data.contexts={single: [price], multi: [tags]}").users().collect()
    assert users.sort("user").rows() == [(19, "1", ["1", "2.5"]), (20, "2.5", ["3"])]


def test_without_a_users_table_attributes_are_in_the_events(log: Any) -> None:
    path = log(f"user,item,time,country\nu1,a,{NOON},\nu2,b,{NOON},fr\nu1,c,{NOON},de\nu3,c,{NOON},\n")
    raw = read(path, "data.contexts.single=[user,country]")
    assert raw.users().collect().sort("user").rows() == [("u1", "de"), ("u2", "fr"), ("u3", None)]
    assert raw.events.columns == ["user", "item", "time"]
    assert read(path).users().collect().sort("user").rows() == [("u1",), ("u2",), ("u3",)]


def test_an_attribute_that_changes_within_a_user_is_named(log: Any) -> None:
    path = log(f"user,item,time,country\nu1,a,{NOON},de\nu2,b,{NOON},fr\nu1,c,{NOON},at\n")
    with pytest.raises(
        UserError,
        match=r"clicks\.csv, row 4: column 'country' changes within user 'u1': 'at' here, 'de' in .*clicks\.csv, row 2",
    ):
        read(path, "data.contexts.single=[country]")


def test_a_user_listed_twice_is_named_with_rows(log: Any) -> None:
    path, users = log(f"user,item,time\nu1,a,{NOON}\n"), log("user,age\nu1,3\nu2,4\nu1,3\n", "users.csv")
    with pytest.raises(UserError, match=r"users\.csv, row 4: user 'u1' is also in .*users\.csv, row 2; keep one row"):
        read(path, f"data.users={users}", "data.contexts.single=[age]")
    users, more = log("user,age\nu1,3\n", "users.csv"), log("user,age\nu2,4\nu1,5\n", "more.csv")
    with pytest.raises(UserError, match=r"more\.csv, row 3: user 'u1' is also in .*users\.csv, row 2"):
        read(path, f"data.users=[{users},{more}]", "data.contexts.single=[age]")


def test_rows_of_users_are_located_in_files_of_each_format(tmp_path: Path, log: Any) -> None:
    path, users = log(f"user,item,time\nu1,a,{NOON}\n"), log("user,age\nu1,3\n", "users.csv")
    pl.DataFrame({"user": ["u2", "u1"], "age": ["4", "5"]}).write_parquet(tmp_path / "more.parquet")
    with pytest.raises(UserError, match=r"more\.parquet, row 2: user 'u1' is also in .*users\.csv, row 2"):
        read(path, f"data.users=[{users},{tmp_path / 'more.parquet'}]", "data.contexts.single=[age]")


def test_a_row_of_users_without_an_id_is_named(log: Any) -> None:
    path, users = log(f"user,item,time\nu1,a,{NOON}\n"), log("user,age\nu1,3\n,4\n", "users.csv")
    with pytest.raises(UserError, match=r"users\.csv: column 'user' is empty in row 3"):
        read(path, f"data.users={users}", "data.contexts.single=[age]")


def test_attributes_of_items_need_their_table(log: Any) -> None:
    with pytest.raises(
        UserError, match=r"data\.item_contexts: genre: needs a table of items \(data\.titles=items\.csv\)"
    ):
        read(log(f"user,item,time\nu,a,{NOON}\n"), "data.item_contexts.single=[genre]")


# --- the prepared data set ---


def test_titles_are_kept_and_users_without_profile_counted(tmp_path: Path, log: Any) -> None:
    rows = [
        (user, item, NOON + 86_400 * day + step)
        for day in range(6)
        for user in "uvw"
        for step, item in enumerate("abc")
    ]
    path = log("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    users, titles = log("user,age\nu,30\n", "users.csv"), log("item,name\na,Apple\nz,Zebra\n", "titles.csv")
    config = compose_config(
        "data=tabular",
        f"data.events={path}",
        f"data.users={users}",
        f"data.titles={titles}",
        "data.columns.title=name",
        "data.contexts.single=[age]",
    )
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    prepared = prepare(plain, tmp_path / "data")
    items = pl.read_parquet(prepared.folder / "items.parquet")
    assert items.rows() == [(0, "a", "Apple"), (1, "b", None), (2, "c", None)]
    assert prepared.manifest["users"] == {"all": 3, "without_profile": 2}
    assert prepared.users()["context.age"].to_list() == [1, 0, 0]
    assert set(prepared.manifest["raw"]) == {"events/1/clicks.csv", "users/1/users.csv", "titles/1/titles.csv"}


# --- tables as they are exported ---


def test_an_existing_name_with_brackets_is_not_a_pattern(tmp_path: Path, log: Any) -> None:
    log(f"user,item,time\nwrong,a,{NOON}\n", "log1.csv")
    assert read(log(f"user,item,time\nright,a,{NOON}\n", "log[1].csv")).events["user"].to_list() == ["right"]
    for name, user in (("p1.parquet", 1), ("p[1].parquet", 2)):
        pl.DataFrame({"user": [user], "item": [1], "time": [NOON]}).write_parquet(tmp_path / name)
    assert read(tmp_path / "p[1].parquet").events["user"].to_list() == [2]


def test_another_order_of_files_is_another_data_set(tmp_path: Path, log: Any) -> None:
    for name, item in (("a.csv", "x"), ("b.csv", "y")):
        rows = [f"u{user},{item},{NOON + 86_400 * day}" for user in range(9) for day in range(6)]
        log("user,item,time\n" + "\n".join(rows), name)
    a, b = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    first_items = []
    for files in ([a, b], [b, a]):
        config = compose_config("data=tabular", "data.session=day", "data.split.test_days=2", "data.items.min_events=1")
        config.data.events = files
        plain: Any = OmegaConf.to_container(config.data, resolve=True)
        items = pl.read_parquet(prepare(plain, tmp_path / "data").folder / "train.parquet")["item"]
        first_items.append(items.to_list()[:2])
    assert first_items == [[0, 1], [1, 0]]


def test_a_file_named_twice_is_rejected(log: Any) -> None:
    path = str(log(f"user,item,time\nu,a,{NOON}\n"))
    with pytest.raises(UserError, match=r"clicks\.csv is listed more than once"):
        reader([path, path[:-5] + "*"]).files()


@pytest.mark.parametrize(
    "name", ["id", "events", "profile", "row", "n_known", "active", "category", "item", "time", "(row)"]
)
def test_an_attribute_may_have_any_name(tmp_path: Path, log: Any, name: str) -> None:
    rows = [
        f"u{user},{item},{NOON + 86_400 * day},c{user % 3}" for user in range(9) for day in range(6) for item in "ab"
    ]
    path = log(f"who,what,when,{name}\n" + "\n".join(rows))
    columns = ["data.columns.user=who", "data.columns.item=what", "data.columns.time=when"]
    config = compose_config("data=tabular", *columns, f"data.contexts.single=['{name}']")
    config.data.events = str(path)
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    users = prepare(plain, tmp_path / "data").users()
    assert users[f"context.{name}"].to_list() == [1 + user % 3 for user in range(9)]


def test_quotes_in_tab_separated_files(log: Any) -> None:
    assert read(log(f'user\titem\ttime\n"u""1"\t"a\tb"\t{NOON}\n')).events.rows() == [('u"1', "a\tb", NOON)]


def test_integer_ids_stored_as_floats_are_integers(tmp_path: Path, log: Any) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [7.0, 8.0], "item": [1, 2], "time": [NOON, NOON]}).write_parquet(path)
    raw = read(
        path, f"data.users={log('user,age' + chr(10) + '7,30' + chr(10), 'users.csv')}", "data.contexts.single=[age]"
    )
    assert raw.events["user"].to_list() == ["7", "8"]
    pl.DataFrame({"user": [7.5, 8.0], "item": [1, 2], "time": [NOON, NOON]}).write_parquet(path)
    with pytest.raises(UserError, match=r"column 'user', row 1: 7\.5 is not a valid id"):
        read(path)


def test_tables_without_common_ids_are_rejected(log: Any) -> None:
    path, users = log(f"user,item,time\nu7,a,{NOON}\n"), log("user,age\nU7,30\n", "users.csv")
    with pytest.raises(UserError, match=r"data\.users: no user of the events is in this table; .*'U7', .*'u7'"):
        read(path, f"data.users={users}", "data.contexts.single=[age]")
    titles = log("item,title\nA,Apple\n", "titles.csv")
    with pytest.raises(UserError, match=r"data\.titles: no item of the events is in this table"):
        read(path, f"data.titles={titles}")


def test_a_header_alone_is_a_table_without_events(log: Any) -> None:
    with pytest.raises(UserError, match=r"clicks\.csv: no events left after reading 0 rows"):
        read(log("user,item,time\n"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("user,item,time\nu,caf\xe9,1\n".encode("latin-1"), r"line 2 is not UTF-8.*iconv"),
        ("user,item,time\nu,a,1\n".encode("utf-16"), r"encoded in UTF-16, must be UTF-8"),
        ("user,item,time\nu,a,1\n".encode("utf-16-le"), r"encoded in UTF-16.*data\.encoding=utf-16-le"),
        ("user,item,time\nu,a,1\n".encode("utf-16-be"), r"encoded in UTF-16.*data\.encoding=utf-16-be"),
        (gzip.compress(b"PAR1\0\0", mtime=0), r"a parquet file in a compressed file or an archive; unpack it"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0", r"zstd with frames of another program, such as pzstd; decompress it"),
        (tarfile.TarInfo("a.csv").tobuf(), r"a tar archive; unpack it"),
        (gzip.compress(tarfile.TarInfo("a.csv").tobuf(), mtime=0), r"a tar archive; unpack it"),
        (b"SQLite format 3\0", r"an SQLite database; export the table as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", r"a spreadsheet"),
        (b"\x89HDF\r\n\x1a\n\0\0", r"a binary file, starting with b'\\x89HDF"),
        (b'{"user": "u", "item": "a"}\n', r"JSON; convert it to CSV or parquet"),
        (b'[\n {"user": "u"}]\n', r"JSON; convert it"),
        (b"sep=;\nuser;item;time\n", r"row 1 is 'sep=;'; it must be the header; remove the lines before it"),
        (b"# exported\nuser,item,time\n", r"row 1 is '# exported'; it must be the header"),
        (b"user,item,time\nu,a,1\nu,a,1,2,3\n", r"row 3 has more fields than the 3 columns"),
        (b'user,item,time\nu,"a,1\nu,a,1\n', r"row 2, .*quote"),
        (b"\nuser,item,time\nu,a,1\n", r"the file or its first line is empty"),
    ],
)
def test_unreadable_table_is_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "clicks.csv").write_bytes(data)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "clicks.csv")


def test_file_format_is_detected_from_magic_bytes(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u"], "item": ["a"], "time": [NOON]})
    frame.write_parquet(tmp_path / "log.csv")
    (tmp_path / "packed").write_bytes(gzip.compress(frame.write_csv().encode()))
    for name in ("log.csv", "packed"):
        assert read(tmp_path / name).events.rows() == [("u", "a", NOON)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.columns.item=null", r"data\.columns\.item=null"),
        ("data.encoding=klingon", r"data\.encoding=klingon: no such encoding"),
        ("data.encoding=base64", r"data\.encoding=base64: no such encoding"),
        ("data.where=view", r"data\.where=view: must be columns with their values"),
        ("data.columns.user=null", r"data\.columns\.user=null needs data\.session=given, not gap"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(log: Any, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        reader(log(f"user,item,time\nu,a,{NOON}\n"), override)


@pytest.mark.parametrize(
    ("text", "how", "words"),
    [
        ("09/01/20", "%m/%d/%Y", r"row 2: '09/01/20' is not in the format %m/%d/%Y"),
        (
            "20151103",
            None,
            r"row 2: '20151103' is ambiguous: could be a date .* set data\.time_format",
        ),
    ],
)
def test_ambiguous_dates_are_rejected(log: Any, text: str, how: str | None, words: str) -> None:
    path = log(f"user,item,time\nu,a,{text}\n")
    with pytest.raises(UserError, match=words):
        read(path, *([] if how is None else [f"data.time_format='{how}'"]))
    time_format = "%m/%d/%y" if how else "%Y%m%d"
    day = datetime.strptime(text, time_format).replace(tzinfo=UTC)
    assert read(path, f"data.time_format='{time_format}'").events["time"].to_list() == [day.timestamp()]


def test_a_change_is_located_in_its_file(log: Any) -> None:
    first, second = log(f"user,item,time,c\nu,a,{NOON},x\n", "1.csv"), log(f"user,item,time,c\nu,a,{NOON},y\n", "2.csv")
    with pytest.raises(
        UserError, match=r"2\.csv, row 2: column 'c' changes within user 'u': 'y' here, 'x' in .*1\.csv, row 2"
    ):
        read([str(first), str(second)], "data.contexts.single=[c]")


@pytest.mark.parametrize("item", [",a;,", "a;,"])
def test_a_quoted_separator_does_not_decide_between_separators(log: Any, item: str) -> None:
    # By commas the first row has as many fields, of which the last extends to row 3, or its quote never closes.
    rows = [f'a;"{item}";{NOON};0', f"a;a;{NOON};0", f'"a;";a,;{NOON};0'][: 3 if item[0] == "," else 2]
    path = log("\n".join(rows) + "\n")
    events = read(path, "data.header=[user,item,time,place]").events
    assert events["item"].to_list()[:2] == [item, "a"]


# --- from bytes to events, against a parser in plain Python ---

IDS = st.builds("{}a{}".format, *[st.text(st.sampled_from('bc0";,|\t'), max_size=3)] * 2).filter(
    lambda text: text.strip() == text
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60, derandomize=True)
@given(
    rows=st.lists(st.tuples(IDS, IDS, st.integers(NOON, NOON + 5), st.integers(0, 999), st.integers(0, 3)), min_size=1),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    has_header=st.booleans(),
    has_order=st.booleans(),
    digits=st.sampled_from([0, 1, 3]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    n_blank=st.integers(0, 2),
    everything_quoted=st.booleans(),
)
def test_bytes_become_events_as_plain_python_reads_them(
    tmp_path: Path,
    rows: list[tuple[str, str, int, int, int]],
    separator: str,
    has_header: bool,
    has_order: bool,
    digits: int,
    line_end: str,
    n_blank: int,
    everything_quoted: bool,
) -> None:
    names = ["user", "item", "time", "place"]
    text = io.StringIO()
    style = csv.QUOTE_ALL if everything_quoted else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end, quoting=style)
    if has_header:
        writer.writerow(names)
    for user, item, second, millisecond, place in rows:
        fraction = f".{millisecond:03}"[: 1 + digits] if digits else ""
        writer.writerow(
            [user, item, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction, place]
        )
    # Without a header, ids may contain another separator so often that the first line has as many fields by it.
    first_line = text.getvalue().split(line_end)[0]
    fitting = [other for other in ",;\t|" if len(next(csv.reader([first_line], delimiter=other))) == len(names)]
    assume(has_header or fitting == [separator])
    (tmp_path / "log.csv").write_bytes((text.getvalue() + line_end * n_blank).encode())
    # The reference: fields by the standard library, times by datetime, sorted where seconds do not give the order.
    lines = list(csv.reader(io.StringIO((tmp_path / "log.csv").read_bytes().decode(), newline=""), delimiter=separator))
    fields = [line for line in lines[has_header:] if line]
    times = [datetime.fromisoformat(line[2]).replace(tzinfo=UTC) for line in fields]
    is_finer = any(time.microsecond for time in times)
    order = range(len(fields))
    if is_finer or has_order:
        order = sorted(order, key=lambda row: (times[row], int(fields[row][3]) if has_order else 0))  # type: ignore[assignment]
    expected = [(fields[row][0], fields[row][1], int(times[row].timestamp())) for row in order]
    plain = default_settings() | {"events": str(tmp_path / "log.csv"), "null_values": [""]}
    plain["header"] = None if has_header else names
    plain["columns"] = {**plain["columns"], "order": "place" if has_order else None}
    assert TabularReader(**plain).read().events.drop("instant", strict=False).rows() == expected


@cache
def default_settings() -> dict[str, Any]:
    config = compose_config("data=tabular")
    config.data.events = "log.csv"
    plain: Any = OmegaConf.to_container(config.data.reader, resolve=True)
    del plain["_target_"]
    return plain  # type: ignore[no-any-return]


# --- order ---


@pytest.mark.parametrize("form", ["{ms}", "{s}.{rest:03}", "2015-11-03T12:00:{second:02}.{rest:03}Z"])
def test_E7_the_newest_row_first_is_the_last_event(log: Any, form: str) -> None:
    rows = [
        (f"u{user}", item, NOON * 1000 + step)
        for user in range(3)
        for step, item in ((130, "11"), (120, "10"), (110, "9"))
    ]
    text = "".join(
        f"{user},{item},{form.format(ms=ms, s=ms // 1000, rest=ms % 1000, second=ms // 1000 % 60)}\n"
        for user, item, ms in rows
    )
    events = read(log("user,item,time\n" + text)).events
    assert events.filter(user="u1")["item"].to_list() == ["9", "10", "11"]
    assert events["time"].unique().to_list() == [NOON]


def test_E7_files_with_and_without_fractions_are_one_order(log: Any) -> None:
    whole, finer = (
        log(f"user,item,time\nu,a,{NOON}\n", "1.csv"),
        log(f"user,item,time\nu,c,{NOON}.9\nu,b,{NOON}.1\n", "2.csv"),
    )
    assert read([str(finer), str(whole)]).events["item"].to_list() == ["a", "b", "c"]


def test_E7_an_order_column_orders_equal_times(log: Any) -> None:
    path = log(f"user,item,time,n\nu,c,{NOON},10\nu,b,{NOON},9\nu,a,{NOON},9\nu,z,{NOON - 1},99\n")
    assert read(path, "data.columns.order=n").events["item"].to_list() == ["z", "b", "a", "c"]
    with pytest.raises(UserError, match=r"column 'item', row 2: 'c' is not a number"):
        read(path, "data.columns.order=item")


def test_E7_an_order_column_may_be_of_nanoseconds(tmp_path: Path) -> None:
    start = NOON * 10**9
    order = pl.Series([start + 2, start + 1, start], dtype=pl.Int64).cast(pl.Datetime("ns"))
    columns = {"user": ["u"] * 3, "item": list("cba"), "time": [NOON] * 3, "n": order}
    pl.DataFrame(columns).write_parquet(tmp_path / "log")
    assert read(tmp_path / "log", "data.columns.order=n").events["item"].to_list() == ["a", "b", "c"]


# --- rows that are not read ---


def test_where_keeps_rows_and_counts_the_others(log: Any) -> None:
    path = log(f"user,item,time,event,n\nu,a,{NOON},view,1\n,,,cart,2\nu,b,{NOON}, buy ,3\nu,c,{NOON},view,4\n")
    raw = read(path, "data.where={event: [view, buy], n: [1, 3]}")
    assert raw.events["item"].to_list() == ["a", "b"]
    assert (raw.rows, raw.dropped) == (4, {"with event=view or buy": 1, "with n=1 or 3": 1})
    with pytest.raises(UserError, match=r"data\.where: no row has event=veiw; its values: view, "):
        read(path, "data.where={event: veiw}")
    with pytest.raises(UserError, match=r"data\.where: no row with event=view has n=3; its values: 1, 4$"):
        read(path, "data.where={event: view, n: 3}")
    with pytest.raises(UserError, match=r"no column 'events' \(did you mean .event.\?\)"):
        read(path, "data.where={events: view}")
    with pytest.raises(UserError, match=r"data\.where\.event: must be a value or a list of values"):
        read(path, "data.where={event: null}")
    with pytest.raises(UserError, match=r"data\.where\.event: must be a value or a list of values"):
        read(path, "data.where={event: []}")


def test_a_value_of_where_without_a_row_is_noted(log: Any) -> None:
    first = log(f"user,item,time,event\nu,a,{NOON},view\nu,b,{NOON},cart\n")
    assert list(read(first, "data.where={event: [view, crat, cart]}").notes) == [
        'data.where: no row has event=crat (did you mean "cart"?)'
    ]
    assert list(read(first, "data.where={event: [view, cart]}").notes) == []


def test_a_header_with_another_delimiter_than_the_rows_is_named(log: Any) -> None:
    path = log(f"user,item,time\nu;a;{NOON}\nu;b;{NOON}\n")
    with pytest.raises(UserError, match=r"column 'item' is empty in all rows; is the header delimited like the rows"):
        read(path)


def test_a_value_of_where_need_not_be_in_every_file(log: Any) -> None:
    files = [
        log(f"user,item,time,event\nu,{event},{NOON},{event}\nu,b,{NOON},cart\n", event) for event in ("view", "buy")
    ]
    raw = read([str(file) for file in files], "data.where={event: [view, buy, crat]}")
    assert list(raw.notes) == ['data.where: no row has event=crat (did you mean "cart"?)']


def test_a_file_without_a_row_of_where_is_no_error(log: Any) -> None:
    files = [log(f"user,item,time,event\nu,{event},{NOON},{event}\n", event) for event in ("view", "cart")]
    assert read([str(file) for file in files], "data.where={event: view}").events["item"].to_list() == ["view"]


def test_rows_are_counted_by_the_first_condition_that_drops_them(log: Any) -> None:
    path = log(f"user,item,time,event,n\nu,a,{NOON},view,1\nu,b,{NOON},cart,1\nu,c,{NOON},cart,2\nu,d,{NOON},view,2\n")
    assert read(path, "data.where={event: view, n: 1}").dropped == {"with event=view": 2, "with n=1": 1}


def test_files_of_equal_events_and_other_rows_are_no_copies(log: Any) -> None:
    row = f"u,a,{NOON}"
    files = [
        log(f"user,item,time,event\n{row},view\n{more}", name) for name, more in (("1", ""), ("2", f"{row},cart\n"))
    ]
    assert read([str(file) for file in files], "data.where={event: view}").events.height == 2


def test_incomplete_rows_are_an_error_or_dropped_and_counted(log: Any) -> None:
    rows = [f"u,a,{NOON},1", f"NA,b,{NOON},1", "", f"u,NULL,{NOON},1", "u,d,,1", "u,d,  ,1", f"u,d,{NOON},  "]
    path = log("\n".join(["user,item,time,n", *rows, f"u,e,{NOON},2\n"]))
    with pytest.raises(UserError, match=r"'user' is empty in 2 rows, the first is row 3; .*data\.incomplete=drop"):
        read(path)
    raw = read(path, "data.incomplete=drop", "data.columns.order=n")
    assert raw.events["item"].to_list() == ["a", "e"]
    assert (raw.rows, raw.dropped) == (8, {"without missing values": 6})


def test_a_change_is_located_where_rows_are_dropped(log: Any) -> None:
    path = log(f"user,item,time,c\nu,a,{NOON},x\n,b,{NOON},z\nu,c,{NOON},y\n")
    with pytest.raises(UserError, match=r"clicks\.csv, row 4: column 'c' changes.* in .*clicks\.csv, row 2"):
        read(path, "data.incomplete=drop", "data.contexts.single=[c]")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("age", [timedelta(days=1)] * 2, "column 'age' contains Duration"),
        ("kind", [timedelta(days=1)] * 2, "column 'kind' contains Duration.*; store it as text or numbers"),
        ("tags", [[["x"]]] * 2, r"column 'tags' contains List\(List\(String\)\); store it as text or numbers"),
        ("age", [time(12)] * 2, "column 'age' contains Time; must be numbers"),
        ("time", [[1], [2]], r"column 'time', row 1: contains List\(Int64\); times must be numbers, strings or dates"),
    ],
)
def test_parquet_columns_of_a_wrong_type_are_one_line(
    column: str, values: list[Any], message: str, tmp_path: Path
) -> None:
    columns = {"user": ["u", "v"], "item": ["a", "b"], "time": [1_446_552_000, 1_446_552_001], "age": [30, 40]}
    columns |= {"kind": ["x", "y"], "tags": [["x"], ["y"]]}
    pl.DataFrame(columns | {column: values}).write_parquet(tmp_path / "log")
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path / "log", "data.contexts={numeric: {age: 2}, single: [kind], multi: [tags]}").users()
    assert "\n" not in str(refused.value)


def test_a_parquet_column_without_any_value_is_unknown(tmp_path: Path) -> None:
    columns = {"user": ["u"], "item": ["a"], "time": [1_446_552_000], "age": [None], "country": [None]}
    pl.DataFrame(columns).write_parquet(tmp_path / "log")
    raw = read(tmp_path / "log", "data.contexts={numeric: {age: 2}, single: [country]}")
    assert raw.users().collect().select("age", "country").row(0) == (None, None)


def test_rows_that_are_not_kept_need_no_valid_values(log: Any) -> None:
    path = log(f"user,item,time,event,n\nu,a,never,cart,1\nu,b,{NOON},view,2\n,c,soon,view,3\nu,d,{NOON},view,x\n")
    keep = ["data.where={event: view}", "data.incomplete=drop"]
    assert read(path, *keep).events["item"].to_list() == ["b", "d"]
    with pytest.raises(UserError, match=r"column 'n', row 5: 'x' is not a number"):
        read(path, *keep, "data.columns.order=n")


def test_where_compares_numbers_and_booleans_by_value(tmp_path: Path, log: Any) -> None:
    path = log(f"user,item,time,cart\nu,a,{NOON},True\nu,b,{NOON},False\nu,c,{NOON},\n")
    assert read(path, "data.where={cart: True}").events["item"].to_list() == ["a"]
    assert read(path, "data.where={cart: [true, False, View]}").events["item"].to_list() == ["a", "b"]
    frame = pl.read_csv(path).with_columns(kind=pl.Series([1.0, 2.0, None]))
    frame.write_parquet(tmp_path / "log")
    assert read(tmp_path / "log", "data.where={cart: false, kind: 2}").events["item"].to_list() == ["b"]
    with pytest.raises(UserError, match=r"no row has kind=3; its values: [12], [12]$"):
        read(tmp_path / "log", "data.where={kind: 3}")
    mixed = log(f"user,item,time,cart\nu,a,{NOON},TRUE\nu,b,{NOON},View\nu,c,{NOON},view\n")
    assert read(mixed, "data.where={cart: [true, View]}").events["item"].to_list() == ["a", "b"]


# --- logs without users ---


def test_without_users_every_session_is_one(log: Any) -> None:
    path = log(f"session,item,time\ns2,a,{NOON}\ns1,b,{NOON}\ns2,c,{NOON}\n")
    raw = read(path, "data.columns.user=null", "data.session=given")
    assert raw.events["user"].to_list() == raw.events["session"].to_list() == ["s2", "s1", "s2"]
    assert sorted(raw.users().collect()["user"]) == ["s1", "s2"]


@pytest.mark.parametrize("override", ["data.contexts.single=[user]", "data.contexts.multi=[x]", "data.users=users.csv"])
def test_without_users_there_are_no_contexts(log: Any, override: str) -> None:
    path = log(f"session,item,time\ns2,a,{NOON}\n")
    with pytest.raises(UserError, match=r"a log without users \(data\.columns\.user=null\) has no contexts"):
        read(path, "data.columns.user=null", "data.session=given", override)


# --- files without a header, quotes, other encodings ---


def test_a_file_without_a_header_gets_names(log: Any) -> None:
    path = log(f"s1::a::{NOON}\ns2::b::{NOON}\n")
    assert read(path, "data.header=[user,item,time]").events["item"].to_list() == ["a", "b"]
    with pytest.raises(UserError, match=r"the header has 2 columns, but row 1 has 3 fields, separated by '::'"):
        read(path, "data.header=[user,item]")
    with pytest.raises(UserError, match=r"column 'time', row 1: 'b' is not"):
        read(log(f"s1,b,{NOON}\n"), "data.header=[user,time,item]")


QUOTED_TITLES = (
    f'user\titem\ttitle\ttime\nu\ta\t"Heroes\t{NOON}\nu\tb\tx\t{NOON}\nu\tc\tHelp 12"\t{NOON}\nu\td\ty\t{NOON}\n'
)


@pytest.mark.parametrize(
    "title", ['"Heroes', '5" disk', '"Heroes" (live)', '"say \\"hi\\""'], ids=["opens", "within", "closes", "backslash"]
)
@pytest.mark.parametrize("columns", [[], ["data.contexts.single=[title]"]], ids=["not read", "read"])
def test_a_misplaced_quote_is_an_error_with_its_row(log: Any, title: str, columns: list[str]) -> None:
    path = log(f"user\titem\ttitle\ttime\nu\ta\tx\t{NOON}\nu\tb\t{title}\t{NOON}\n" + f"u\tc\tx\t{NOON}\n" * 3)
    if "live" in title and not columns:
        assert read(path).events.height == 5  # the quotes are closed, and the column is not read
        return
    with pytest.raises(UserError, match=r"clicks\.csv: row 3.*set data\.quote=null"):
        read(path, *columns)
    assert read(path, "data.quote=null").events["item"].to_list() == ["a", "b", "c", "c", "c"]


def test_quotes_of_two_rows_do_not_join_the_rows_between(log: Any) -> None:
    path = log(QUOTED_TITLES)
    with pytest.raises(UserError, match=r"row 2: a quote opens in .*Heroes.* and joins 3 rows; .*set data\.quote=null"):
        read(path)
    assert read(path, "data.quote=null").events["item"].to_list() == ["a", "b", "c", "d"]


def test_a_quote_that_joins_two_rows_is_an_error(log: Any) -> None:
    path = log(f'user\titem\ttitle\ttime\nu\ta\t"Heroes\t{NOON}\nu\tb\tHelp"\t{NOON}\nu\tc\tx\t{NOON}\n')
    with pytest.raises(UserError, match=r"row 2: a quote opens in .*Heroes.* and joins 2 rows"):
        read(path)


def test_quoted_fields_may_span_lines(log: Any) -> None:
    path = log(f'user,item,title,time\nu,a,"one,\ntwo ""three""",{NOON}\nu,b,x,{NOON}\n')
    assert read(path).events["item"].to_list() == ["a", "b"]


def test_text_in_other_encodings_is_read_if_named(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16", "cp1252"):
        (tmp_path / "log.csv").write_bytes(f"user,item,time\nu,café,{NOON}\n".encode(encoding))
        assert read(tmp_path / "log.csv", f"data.encoding={encoding}").events["item"].to_list() == ["café"]
        with pytest.raises(UserError, match=r"UTF.*data\.encoding"):
            read(tmp_path / "log.csv")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_every_packed_form_is_read_and_found_by_name(tmp_path: Path, kind: str) -> None:
    data = f"user,item,time\nu,a,{NOON}\n\nu,b,{NOON}\n".encode()
    path = tmp_path / f"log.csv.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/log.csv", data)
    elif kind == "zst":
        pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "time": [NOON, NOON]}).write_csv(
            path, compression="zstd", check_extension=False
        )
    else:
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(data))  # type: ignore[attr-defined]
    for name in (path, tmp_path / "log.csv"):
        assert read(name, "data.incomplete=drop").events["item"].to_list() == ["a", "b"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"log\.csv.*(cannot be decompressed|not a readable zip archive)"):
        read(path)


def test_of_an_archive_one_file_is_read(tmp_path: Path) -> None:
    """macOS adds a hidden twin for every file."""
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("__MACOSX/._log.csv", b"\0")
        archive.writestr("log.csv", f"user,item,time\nu,a,{NOON}\n")
    assert read(tmp_path / "log.zip").events["item"].to_list() == ["a"]
    with zipfile.ZipFile(tmp_path / "log.zip", "a") as archive:
        archive.writestr("more.csv", f"user,item,time\nu,b,{NOON}\n")
    with pytest.raises(UserError, match=r"log\.zip: must contain one file, not 2; unpack it"):
        read(tmp_path / "log.zip")


def test_a_file_in_two_archives_is_an_error(tmp_path: Path) -> None:
    for name in ("old.zip", "new.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("log.csv", f"user,item,time\nu,{name},{NOON}\n")
    with pytest.raises(UserError, match=r"log\.csv is in 2 archives \(new\.zip, old\.zip\)"):
        read(tmp_path / "log.csv")


def test_a_name_in_another_case_is_suggested(log: Any) -> None:
    with pytest.raises(UserError, match=r"no column 'user' \(did you mean .USER.\?\)"):
        read(log(f"USER,ITEM,TIME\nu,a,{NOON}\n"))


def test_spaces_around_names_of_columns_are_ignored(log: Any) -> None:
    assert read(log(f"user, item , time\nu,a,{NOON}\n")).events["item"].to_list() == ["a"]


# --- ids that merge ---


@pytest.mark.parametrize(
    ("ids", "dtype", "words"),
    [
        ([1e18, 1e18 + 128], pl.Float64, r"row 1: 1e\+18 is a float above 9007199254740992"),
        ([2.0**25, 1.0], pl.Float32, r"row 1: 33554432\.0 is a float above 16777216"),
        ([float("inf"), 1.0], pl.Float64, r"row 1: inf is not a valid id"),
    ],
)
def test_floats_that_stand_for_several_ids_are_refused(
    tmp_path: Path, ids: list[float], dtype: Any, words: str
) -> None:
    pl.DataFrame({"user": pl.Series(ids, dtype=dtype), "item": [1, 2], "time": [NOON] * 2}).write_parquet(
        tmp_path / "l"
    )
    with pytest.raises(UserError, match=r"column 'user', " + words):
        read(tmp_path / "l")


@pytest.mark.parametrize("text", ["1.23457E+17", "1E+17", "1,23457E+17"])
def test_ids_in_scientific_notation_are_refused(log: Any, text: str) -> None:
    with pytest.raises(
        UserError, match=rf"column 'item', row 2: '{re.escape(text)}' is in scientific notation, without some digits"
    ):
        read(log(f"user;item;time\nu;{text};{NOON}\n"))


def test_null_strings_of_parquet_are_missing(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["u", "NA"], "item": [1, 2], "time": [NOON] * 2}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"column 'user' is empty in row 2"):
        read(tmp_path / "log.parquet")


def test_fields_of_nested_parquet_columns_are_columns(tmp_path: Path) -> None:
    visitor = {"id": "u", "device": {"kind": "phone"}}
    pl.DataFrame({"visitor": [visitor], "item": ["a"], "time": [NOON]}).write_parquet(tmp_path / "log.parquet")
    settings = ["data.columns.user=visitor.id", "data.contexts.single=[visitor.device.kind]"]
    raw = read(tmp_path / "log.parquet", *settings)
    assert raw.events.rows() == [("u", "a", NOON)]
    assert raw.users().collect().rows() == [("u", "phone")]
    with pytest.raises(
        UserError, match=r"no column 'user'.*; its columns: visitor\.id, visitor\.device\.kind, item, time"
    ):
        read(tmp_path / "log.parquet")


def test_binary_strings_of_parquet_are_strings(tmp_path: Path) -> None:
    pl.DataFrame({"user": [b"u"], "item": [b"a"], "time": [NOON]}).write_parquet(tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet").events.rows() == [("u", "a", NOON)]
    pl.DataFrame({"user": [b"\xff"], "item": [b"a"], "time": [NOON]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"log\.parquet: column 'user' contains bytes that are not UTF-8 text"):
        read(tmp_path / "log.parquet")


# --- files that are listed twice ---


def test_a_copy_of_a_file_is_rejected(tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = log(f"user,item,time\nu,a,{NOON}\n", "a.csv")
    for name, data in {"b.csv": first.read_bytes(), "c.csv.gz": gzip.compress(first.read_bytes())}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} is a copy of .*a\.csv; its rows would be counted twice"):
            read([str(first), str(tmp_path / name)])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(first.read_bytes()))
    with pytest.raises(UserError, match=r"a\.csv\.gz is listed more than once \(also as .*a\.csv\)"):
        reader(tmp_path / "a.*").files()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is listed more than once \(also as a\.csv\)"):
        reader(["a.csv", str(first)]).files()
    (tmp_path / "link.csv").symlink_to(first)
    with pytest.raises(UserError, match=r"link\.csv is listed more than once"):
        reader([str(first), "link.csv"]).files()


def test_files_are_compared_with_those_alike_only(tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each with every other one: there may be thousands."""
    for second in range(20):
        log(f"user,item,time\nu,a,{NOON + second}\n", f"{second}.csv")
    monkeypatch.setattr(pl.DataFrame, "equals", lambda *_: pytest.fail("compared"))
    assert read(tmp_path / "*.csv").events.height == 20


def test_days_without_events_may_have_equal_files(log: Any) -> None:
    for name in ("1.csv", "2.csv"):
        log("user,item,time\n", name)
    log(f"user,item,time\nu,a,{NOON}\n", "3.csv")
    assert read(log("user,item,time\n", "4.csv").parent / "*.csv").events.rows() == [("u", "a", NOON)]


# --- values of attributes ---


def test_lists_are_separated_or_written_as_lists(log: Any) -> None:
    path = log(f"uid,item,time\nu1,a,{NOON}\n")
    texts = ["folk, rock", '["folk", "rock"]', "['folk' 'rock']", "['folk', 'rock', None]", "[folk,rock]", "[]", "NA"]
    texts += ["{folk,rock}", "{'folk', 'rock'}", '{folk,"rock"}', "set()", "{}"]
    rows = "".join('u{},"{}"\n'.format(number, text.replace('"', '""')) for number, text in enumerate(texts, 1))
    raw = read(
        path,
        "data.columns.user=uid",
        f"data.users={log('uid,likes' + chr(10) + rows, 'users.csv')}",
        "data.contexts.multi=[likes]",
    )
    assert raw.users().collect()["likes"].to_list() == [
        *[["folk", "rock"]] * 5,
        [],
        None,
        *[["folk", "rock"]] * 3,
        [],
        [],
    ]


def test_values_are_stripped_and_plain(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1, 2, 3], "item": [1, 2, 3], "time": [NOON] * 3}).write_parquet(tmp_path / "events")
    profiles = {
        "user": [1, 2, 3],
        "country": ["de ", "de", " NA "],
        "member": [True, False, None],
        "born": [date(1990, 1, 2), None, None],
        "level": [30.0, float("nan"), None],
    }
    pl.DataFrame(profiles).write_parquet(tmp_path / "users")
    single = "data.contexts.single=[country,member,born,level]"
    raw = read(tmp_path / "events", f"data.users={tmp_path / 'users'}", single)
    assert raw.users().collect().rows() == [
        (1, "de", "true", "1990-01-02", "30"),
        (2, "de", "false", None, None),
        (3, None, None, None, None),
    ]


def test_numeric_attributes_are_numbers(tmp_path: Path, log: Any) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\nu2,a,{NOON}\n")
    users = log("user,age,score\nu1, 31 ,1.5\nu2,NA,\n", "users.csv")
    raw = read(path, f"data.users={users}", "data.contexts.numeric={age: 5, score: 2}")
    assert raw.users().collect().rows() == [("u1", 31.0, 1.5), ("u2", None, None)]
    assert raw.users().collect().schema["age"] == pl.Float64
    log("user,age\nu1,31 years\n", "users.csv")
    with pytest.raises(UserError, match=r"users\.csv: column 'age', row 2: '31 years' is not a number"):
        read(path, f"data.users={users}", "data.contexts.numeric={age: 5}")
    plain = {"user": ["u1", "u2"], "since": [date(1970, 1, 3), None], "member": [True, None]}
    pl.DataFrame(plain).write_parquet(tmp_path / "users.parquet")
    raw = read(path, f"data.users={tmp_path / 'users.parquet'}", "data.contexts.numeric={since: 5, member: 2}")
    assert raw.users().collect().rows() == [("u1", date(1970, 1, 3), 1.0), ("u2", None, None)]


def test_dates_of_one_file_and_years_of_another_are_years(log: Any) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\n")
    dates, missing = log("user,born\nu1,1970-01-01\n", "dates.csv"), log("user,born\nu2,\n", "missing.csv")
    years = log("user,born\nu3,1980\n", "years.csv")
    numeric = "data.contexts.numeric={born: 2}"
    users = read(path, f"data.users=[{dates},{missing}]", numeric).users().collect()
    assert users["born"].to_list() == [date(1970, 1, 1), None]
    users = read(path, f"data.users=[{dates},{missing},{years}]", numeric).users().collect()
    assert users["born"].to_list() == [1970.0, None, 1980.0]


def test_numbers_and_dates_are_read_in_german_notation(log: Any) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\nu2,a,{NOON}\n")
    users = log("user;income;born\nu1;46.744,5;02.01.1970\nu2;1000;NA\n", "users.csv")
    numeric = [f"data.users={users}", "data.contexts.numeric={income: 2, born: 2}"]
    with pytest.raises(
        UserError, match=r"row 2: '46\.744,5' is not a number; fix or remove it, or set data\.decimal=',' if"
    ):
        read(path, *numeric)
    comma = [*numeric, "data.decimal=','"]
    with pytest.raises(UserError, match=r"'02\.01\.1970' is not a number; fix or remove it, or set data\.date_format"):
        read(path, *comma)
    rows = read(path, *comma, "data.date_format='%d.%m.%Y'").users().collect().rows()
    assert rows == [("u1", 46744.5, date(1970, 1, 2)), ("u2", 1000.0, None)]


def test_a_doubtful_number_or_date_is_named_with_all_readings(log: Any) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\nu2,a,{NOON}\n")
    users = log("user;income;born\nu1;34,500;1970-01-02\nu2;1,000,000;1985-13-45\nu3;5;1990-01-01", "users.csv")
    with pytest.raises(
        UserError, match=r"'34,500' is not a number.*commas if they separate thousands, or set data\.dec"
    ):
        read(path, f"data.users={users}", "data.contexts.numeric={income: 2}")
    with pytest.raises(UserError, match=r"column 'born', row 3: '1985-13-45' is not an ISO 8601 date; fix"):
        read(path, f"data.users={users}", "data.contexts.numeric={born: 2}")
    log("user,born\nu1,1970-01-02\nu2, \n", "users.csv")
    born = read(path, f"data.users={users}", "data.contexts.numeric={born: 2}").users().collect()["born"]
    assert born.to_list() == [date(1970, 1, 2), None]


def test_a_whole_float_is_the_same_category_in_every_file(tmp_path: Path) -> None:
    events = {"user": [1, 2], "item": ["a", "b"], "time": [NOON, NOON]}
    for name, ages in {"1": [30.0, 31.0], "2": [30.0, None], "3": [30.0, 31.0]}.items():
        pl.DataFrame(events | {"age": ages}).write_parquet(tmp_path / f"{name}.parquet")
    pl.DataFrame({"user": [1, 3], "item": ["c", "d"], "time": [NOON, NOON], "age": [30.0, 31.5]}).write_parquet(
        tmp_path / "3.parquet"
    )
    users = read(tmp_path / "*.parquet", "data.contexts.single=[age]").users().collect()
    assert dict(users.rows()) == {1: "30", 2: "31", 3: "31.5"}


def test_where_compares_whole_floats_by_value(tmp_path: Path) -> None:
    columns = {"user": ["u"] * 4, "item": list("abcd"), "time": [NOON] * 4, "rating": [4.5, 5.0, 3.5, 1e300]}
    pl.DataFrame(columns | {"stars": [4, 5, 3, 1]}).write_parquet(tmp_path / "log")
    for values in ("{rating: [4.5, 5]}", "{rating: [4.5, 5.0]}", "{stars: [4.0, 5]}"):
        raw = read(tmp_path / "log", f"data.where={values}")
        assert (raw.events["item"].to_list(), raw.notes) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.item_contexts.single=[item]"], r"data\.item_contexts: 'item' is the item's id"),
        (["data.item_contexts.multi=[title]"], r"data\.item_contexts: 'title' is the item's title"),
        (["data.item_contexts.numeric={title: 2}"], r"data\.item_contexts: 'title' is the item's title"),
        (["data.columns.title=name", "data.item_contexts.single=[title]"], r"'title' is the item's title"),
        (["data.columns.title=null", "data.item_contexts.single=[title]"], r"'title' is the item's title"),
        (["data.columns.item_in_titles=sku", "data.item_contexts.single=[item]"], r"'item' is the item's id"),
    ],
)
def test_an_attribute_may_not_replace_the_id_or_title_of_items(log: Any, overrides: list[str], words: str) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\n")
    items = log("item,sku,title,name\na,a,Apple,Boskop\n", "items.csv")
    with pytest.raises(UserError, match=words + r".*rename the column"):
        read(path, f"data.titles={items}", *overrides)


def test_the_title_may_be_an_attribute(log: Any) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\n")
    items = log("item,title\na,Apple\n", "items.csv")
    table = read(path, f"data.titles={items}", "data.item_contexts.single=[title]").items()
    assert table is not None
    assert table.to_dicts() == [{"item": "a", "title": "Apple"}]


def test_an_empty_list_is_no_value_of_a_user(tmp_path: Path) -> None:
    columns = {"user": ["u", "u", "v"], "item": list("abc"), "time": [NOON] * 3, "tags": [[], ["y", "x"], []]}
    pl.DataFrame(columns, schema_overrides={"tags": pl.List(pl.String)}).write_parquet(tmp_path / "log")
    users = read(tmp_path / "log", "data.contexts.multi=[tags]").users().collect()
    assert dict(users.rows()) == {"u": ["y", "x"], "v": None}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("['a', nan]", ["a"]),
        ("[nan, 'nan b', 'a']", ["nan b", "a"]),
        ('["a", NaN]', ["a"]),
        ("{'garden': 0.9, 'home': 0.1}", ["garden", "home"]),
        ('{"garden": 0.9, "home": 0.1}', ["garden", "home"]),
        ("[Live] Rock, Pop [Remix]", ["[Live] Rock", "Pop [Remix]"]),
        ("{x} a, b {y}", ["{x} a", "b {y}"]),
        ('{folk,"rock [live]"}', ["folk", "rock [live]"]),
        ("[" * 100_000 + "]" * 100_000, ["[" * 100_000 + "]" * 100_000]),
    ],
)
def test_lists_and_mappings_of_python_and_json_are_read_alike(log: Any, text: str, values: list[str]) -> None:
    quoted = text.replace('"', '""')
    path = log(f'user,item,time,likes\nu1,a,{NOON},"{quoted}"\n')
    assert read(path, "data.contexts.multi=[likes]").users().collect()["likes"].to_list() == [values]


def test_the_header_line_and_data_header_may_not_be_confused(log: Any) -> None:
    with pytest.raises(UserError, match=r"no column 'user' \(is the first line a header\? if not, set data\.header\)"):
        read(log(f"u1,17,{NOON}\n"))
    with pytest.raises(UserError, match=r"row 1 is a header: user, item, time; remove data\.header"):
        read(log(f"user,item,time\nu1,17,{NOON}\n"), "data.header=[user,item,time]")


def test_a_spreadsheet_is_refused_as_such(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "")
        archive.writestr("xl/worksheets/sheet1.xml", "")
    with pytest.raises(UserError, match=r"log\.xlsx: a spreadsheet; export it as CSV"):
        read(tmp_path / "log.xlsx")


def test_local_times_are_those_of_the_time_zone(log: Any) -> None:
    path = log("user,item,time\nu,a,2015-11-03 13:00\n")
    assert read(path, "data.timezone=Europe/Berlin").events["time"].to_list() == [NOON]


def test_a_header_line_of_fewer_columns_and_one_field_are_refused(log: Any) -> None:
    path = log(f"user,item,time\nu,a,{NOON}\n")
    with pytest.raises(UserError, match=r"row 1 is a header: user, item, time; remove data\.header"):
        read(path, "data.header=[user,item,time,price]")
    with pytest.raises(UserError, match=r"the header has 3 columns, but row 1 has 1 fields"):
        read(log(f"u/a/{NOON}\n"), "data.header=[user,item,time]")


def test_a_number_is_finite_and_nan_is_unknown(log: Any) -> None:
    path = log(f"user,item,time\nu1,a,{NOON}\n")
    users = log("user,age\nu1,nan\nu2,3.5\n", "users.csv")
    age = "data.contexts.numeric={age: 5}"
    assert read(path, f"data.users={users}", age).users().collect()["age"].to_list() == [None, 3.5]
    log("user,age\nu1,inf\nu2,3.5\n", "users.csv")
    with pytest.raises(UserError, match=r"users\.csv: column 'age', row 2: 'inf' is not a number"):
        read(path, f"data.users={users}", age)


def test_an_empty_text_of_parquet_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "events"
    pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [NOON] * 2, "country": ["", "de"]}).write_parquet(path)
    raw = read(path, "data.contexts.single=[country]", "data.null_values=[NA]")
    assert raw.users().collect()["country"].to_list() == [None, "de"]
