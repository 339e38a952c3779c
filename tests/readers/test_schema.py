"""What validate_events requires of the events of any reader."""

from pathlib import Path

import polars as pl
import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.readers.schema import RawData, parse_dates, validate_events

SOURCE = Path("raw") / "log.csv"
EVENTS = pl.DataFrame({"user": [1, 2, 1], "item": [7, 8, 9], "time": [100, 50, 100]})
USERS = pl.DataFrame({"user": [1, 2], "level": ["a", None]})


def raw(events: pl.DataFrame = EVENTS, users: pl.DataFrame = USERS) -> RawData:
    return RawData(events, events.height, load_users=users.lazy)


def test_canonical_tables_pass_unchanged() -> None:
    tables = raw()
    assert validate_events(tables, SOURCE) is tables


def test_ids_may_be_texts() -> None:
    tables = raw(EVENTS.with_columns(pl.col("user", "item").cast(pl.String)), USERS.cast({"user": pl.String}))
    assert validate_events(tables, SOURCE) is tables
    assert tables.users().collect()["user"].to_list() == ["1", "2"]


def test_users_of_the_events_may_be_missing_from_the_users_table() -> None:
    assert raw(users=USERS.head(1)).users().collect().height == 1


@pytest.mark.parametrize("name", ["user", "item", "time"])
def test_a_missing_column_suggests_the_nearest(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"log\.csv: the events have no column '{name}' \(did you mean \"{name}s\"\?\)"
    ):
        validate_events(raw(EVENTS.rename({name: f"{name}s"})), SOURCE)


@pytest.mark.parametrize("name", ["user", "item", "time"])
def test_a_null_is_counted_and_its_first_event_named(name: str) -> None:
    events = EVENTS.with_columns(pl.when(pl.col("item") < 8).then(pl.col(name)).alias(name))
    with pytest.raises(UserError, match=rf"log\.csv: 2 events have no {name}, the first is event 2;"):
        validate_events(raw(events), SOURCE)


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Int32, pl.Datetime("us"), pl.String])
def test_a_time_that_is_no_64_bit_integer_is_rejected(dtype: pl.DataType) -> None:
    with pytest.raises(UserError, match=r"log\.csv: event times must be Int64 unix seconds"):
        validate_events(raw(EVENTS.cast({"time": dtype})), SOURCE)


def test_no_events_are_rejected() -> None:
    with pytest.raises(UserError, match=r"log\.csv: no events left after reading 5 rows"):
        validate_events(RawData(EVENTS.clear(), 5, load_users=USERS.lazy), SOURCE)


def test_a_users_table_without_users_is_rejected() -> None:
    with pytest.raises(UserError, match=r"users table has no column 'user' \(did you mean \"users\"\?\)"):
        raw(users=USERS.rename({"user": "users"})).users()


def test_user_ids_of_two_types_are_rejected() -> None:
    with pytest.raises(UserError, match="user ids are Int64 in the events but String in the users table"):
        raw(users=USERS.cast({"user": pl.String})).users()


def test_a_user_listed_twice_is_rejected() -> None:
    with pytest.raises(
        UserError, match=r"the users table, row 3 without its header: user 2 is also in the users table, row 2 w"
    ):
        raw(users=pl.concat([USERS, USERS.tail(1)])).users()


def test_an_item_listed_twice_is_rejected() -> None:
    titles = pl.DataFrame({"item": [7, 8, 7], "title": ["a", "b", "c"]})
    with pytest.raises(
        UserError, match=r"the items table, row 3 without its header: item 7 is also in the items table, row 1"
    ):
        RawData(EVENTS, 3, USERS.lazy, lambda: titles).items()


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        ({"items": [7, 8]}, r"the items table has no column 'item' \(did you mean \"items\"\?\)"),
        ({"item": [None, None, 7]}, "the items table has 2 rows without an item; remove them"),
    ],
)
def test_an_items_table_without_ids_is_rejected(titles: dict[str, list[int | None]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RawData(EVENTS, 3, USERS.lazy, lambda: pl.DataFrame(titles)).items()


def test_without_titles_there_are_no_items() -> None:
    assert raw().items() is None


def test_events_need_sessions_plain_ids_and_plausible_seconds() -> None:
    sessions = EVENTS.with_columns(session=pl.Series([1, None, 2]))
    with pytest.raises(UserError, match=r"log\.csv: 1 events have no session; fill the column"):
        validate_events(raw(sessions), SOURCE)
    with pytest.raises(UserError, match=r"log\.csv: column 'item' contains List.*; ids must be integers or strings"):
        validate_events(raw(EVENTS.with_columns(pl.col("item").reshape((3, 1)).arr.to_list())), SOURCE)
    with pytest.raises(UserError, match=r"log\.csv: time 100000000000 of event 2 is not a valid unix timestamp"):
        validate_events(raw(EVENTS.with_columns(time=pl.Series([0, 10**11, 5]))), SOURCE)


def test_users_without_an_id_are_rejected() -> None:
    with pytest.raises(UserError, match=r"the users table has 1 rows without a user; remove them"):
        raw(users=USERS.with_columns(user=pl.Series([1, None]))).users()


def test_years_of_two_digits_are_no_dates() -> None:
    assert parse_dates(pl.Series(["85-07-02", "99-01-01"]), None).dtype == pl.String
