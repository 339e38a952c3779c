"""The XING reader: variants of its files, and errors."""

from pathlib import Path

import polars as pl
import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.readers.schema import RawData, validate_events
from arnn_lightning.readers.xing import MULTI, SINGLE, ZERO_IS_UNKNOWN, XingReader

LOG = "user_id\titem_id\tinteraction_type\tcreated_at\n"
COLUMNS = (
    "id",
    "jobroles",
    "career_level",
    "discipline_id",
    "industry_id",
    "country",
    "region",
    "experience_n_entries_class",
    "experience_years_experience",
    "experience_years_in_current",
    "edu_degree",
    "edu_fieldofstudies",
)
PROFILES = "\t".join(COLUMNS) + "\n"
CLICKS = LOG + "1\t7\t1\t1440000000\n2\t8\t1\t1440000001\n"
PEOPLE = PROFILES + "1\t5,6\t3\t1\t2\tde\t4\t1\t2\t3\t1\t9\n2\t0\t0\t0\t0\tat\t0\t0\t0\t0\t0\t0\n"


def reader(folder: Path, log: str = CLICKS, profiles: str = PEOPLE) -> XingReader:
    (folder / "interactions.csv").write_text(log)
    (folder / "users.csv").write_text(profiles)
    return XingReader(str(folder), [], [])


def read(folder: Path, log: str = CLICKS, profiles: str = PEOPLE) -> RawData:
    raw = validate_events(reader(folder, log, profiles).read(), folder / "interactions.csv")
    raw.users(), raw.items()  # checked too
    return raw


def profile(**texts: str) -> str:
    """A line of users.csv; attributes that are not given are 1."""
    return "\t".join(texts.get(name, "1") for name in COLUMNS) + "\n"


# --- events ---


def test_only_clicks_are_kept_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [(2, 8, 1, 50), (1, 7, 2, 40), (1, 7, 3, 30), (1, 9, 4, 20), (1, 7, 1, 10), (2, 8, 0, 5), (2, 8, 1, 50)]
    raw = read(tmp_path, LOG + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    assert raw.events.rows() == [(2, 8, 50), (1, 7, 10), (2, 8, 50)]
    assert raw.events.schema == {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}
    assert raw.rows == 7


def test_extra_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    log = "created_at\textra\tinteraction_type\titem_id\tuser_id\n10\tx\t1\t7\t1\n"
    assert read(tmp_path, log).events.rows() == [(1, 7, 10)]


def test_a_table_prefix_in_the_header_is_stripped(tmp_path: Path) -> None:
    plain = read(tmp_path)
    prefixed = [
        "\t".join(f"export.v1.{name}" for name in header.strip().split("\t")) + "\n" + rows
        for header, rows in ((LOG, CLICKS.removeprefix(LOG)), (PROFILES, PEOPLE.removeprefix(PROFILES)))
    ]
    raw = read(tmp_path, *prefixed)
    assert raw.events.equals(plain.events)
    assert raw.users().collect().equals(plain.users().collect())


@pytest.mark.parametrize("name", ["user_id", "users.user_id", "users.id"])
def test_the_user_column_may_have_an_alias(tmp_path: Path, name: str) -> None:
    assert (
        read(tmp_path, profiles=name + PEOPLE.removeprefix("id"))
        .users()
        .collect()
        .equals(read(tmp_path).users().collect())
    )


# --- users ---


def test_users_have_every_attribute_as_text_or_as_list_of_texts(tmp_path: Path) -> None:
    users = read(tmp_path).users().collect()
    assert users.schema == {
        "user": pl.Int32,
        **dict.fromkeys(SINGLE, pl.String),
        **dict.fromkeys(MULTI, pl.List(pl.String)),
    }
    assert users.row(0, named=True) == {
        "user": 1,
        "career_level": "3",
        "discipline_id": "1",
        "industry_id": "2",
        "country": "de",
        "region": "4",
        "experience_n_entries_class": "1",
        "experience_years_experience": "2",
        "experience_years_in_current": "3",
        "edu_degree": "1",
        "jobroles": ["5", "6"],
        "edu_fieldofstudies": ["9"],
    }


@pytest.mark.parametrize("name", SINGLE)
def test_0_is_unknown_in_some_columns_and_a_category_elsewhere(tmp_path: Path, name: str) -> None:
    listed = {
        "career_level",
        "region",
        "experience_years_experience",
        "experience_years_in_current",
        "edu_degree",
    }
    assert set(ZERO_IS_UNKNOWN) == listed
    users = read(tmp_path, profiles=PROFILES + profile(**{name: "0"})).users().collect()
    assert users[name].to_list() == [None if name in listed else "0"]


@pytest.mark.parametrize("text", ["NULL", ""])
@pytest.mark.parametrize("name", [SINGLE[0], SINGLE[-1], MULTI[0]])
def test_null_and_empty_are_unknown(tmp_path: Path, name: str, text: str) -> None:
    users = read(tmp_path, profiles=PROFILES + profile(**{name: text})).users().collect()
    assert not users[name].to_list()[0]
    assert all(users[other].to_list()[0] for other in (*SINGLE, *MULTI) if other != name)


@pytest.mark.parametrize(
    ("text", "values"),
    [("7", ["7"]), ("7,10,3", ["7", "10", "3"]), ("0", []), ("0,7", ["7"]), ("7,,3", ["7", "3"]), ("100", ["100"])],
)
@pytest.mark.parametrize("name", MULTI)
def test_lists_are_split_at_commas_and_hold_no_unknown(tmp_path: Path, name: str, text: str, values: list[str]) -> None:
    assert read(tmp_path, profiles=PROFILES + profile(**{name: text})).users().collect()[name].to_list() == [values]


def test_a_row_may_lack_its_trailing_empty_field(tmp_path: Path) -> None:
    short = profile(id="1", edu_fieldofstudies="").rstrip("\n").removesuffix("\t") + "\n"
    assert short.count("\t") == 10
    users = read(tmp_path, profiles=PROFILES + short + profile(id="2", edu_fieldofstudies="4,5")).users().collect()
    assert users["user"].to_list() == [1, 2]
    assert not users["edu_fieldofstudies"].to_list()[0]
    assert users["edu_fieldofstudies"].to_list()[1] == ["4", "5"]
    assert users["edu_degree"].to_list() == ["1", "1"]


# --- errors ---


def test_the_events_file_comes_first(tmp_path: Path) -> None:
    assert list(reader(tmp_path).files()) == ["interactions.csv", "users.csv"]


def test_a_missing_folder_names_the_files_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*none.*interactions\.csv.*users\.csv.*RecSys Challenge 2016"):
        XingReader(str(tmp_path / "none"), [], []).files()


@pytest.mark.parametrize("name", ["interactions.csv", "users.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    xing = reader(tmp_path)
    (tmp_path / name).unlink()
    for read_or_list in (xing.files, xing.read):
        with pytest.raises(UserError, match=f"no {name}; expected: "):
            read_or_list()


@pytest.mark.parametrize("name", ["user_id", "item_id", "interaction_type", "created_at"])
def test_a_missing_column_of_interactions_suggests_the_nearest(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"interactions\.csv: no column '{name}' \(did you mean \"{name}s\"\?\)"):
        read(tmp_path, log=CLICKS.replace(name, f"{name}s"))


@pytest.mark.parametrize("name", [SINGLE[0], SINGLE[-1], MULTI[0]])
def test_a_missing_column_of_users_suggests_the_nearest(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"users\.csv: no column '{name}' \(did you mean \"{name}x\"\?\)"):
        read(tmp_path, profiles=PEOPLE.replace(name, f"{name}x"))


def test_users_file_without_ids_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"users\.csv: no column 'id'"):
        read(tmp_path, profiles="person" + PEOPLE.removeprefix("id"))


def test_invalid_time_is_named_with_file_column_row_and_value(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, CLICKS + "3\t7\t1\t2015-08-19\n")
    where = f"{tmp_path / 'interactions.csv'}: column 'created_at', row 4: '2015-08-19' is not an integer"
    assert where in str(error.value)
    assert "\n" not in str(error.value)


def test_invalid_user_id_is_named_in_the_users_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"users\.csv: column 'id', row 3: 'u2' is not an integer"):
        read(tmp_path, profiles=PROFILES + profile(id="1") + profile(id="u2"))


@pytest.mark.parametrize(
    ("row", "name"), [("NULL\t7\t1\t5", "user_id"), ("1\t\t1\t5", "item_id"), ("1\t7\t1\tNULL", "created_at")]
)
def test_a_click_without_user_item_or_time_is_rejected(tmp_path: Path, row: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"interactions\.csv: column '{name}' is empty in row 4"):
        read(tmp_path, CLICKS + row + "\n")


def test_a_user_listed_twice_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"users\.csv, row \d+: user 2 is also in .*users\.csv, row \d+; keep one row per user"
    ):
        read(tmp_path, profiles=PEOPLE + profile(id="2"))


@pytest.mark.parametrize("name", ["interactions.csv", "users.csv"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    texts = {"interactions.csv": CLICKS, "users.csv": PEOPLE} | {name: ""}
    with pytest.raises(UserError, match=f"{name}: the file or its first line is empty"):
        read(tmp_path, texts["interactions.csv"], texts["users.csv"])


@pytest.mark.parametrize("rows", ["", "1\t7\t4\t5\n1\t7\t2\t6\n"], ids=["a header alone", "other kinds alone"])
def test_a_file_without_clicks_is_rejected(tmp_path: Path, rows: str) -> None:
    with pytest.raises(UserError, match=rf"interactions\.csv: no events left after reading {rows.count('7')} rows"):
        read(tmp_path, LOG + rows)


def test_an_unknown_kind_of_interaction_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"column 'interaction_type', row 4: 9 is not one of 0, 1, 2"):
        read(tmp_path, CLICKS + "1\t7\t9\t5\n")


# --- titles ---


def test_titles_come_from_items_where_they_are(tmp_path: Path) -> None:
    assert read(tmp_path).items() is None
    (tmp_path / "items.csv").write_text("id\ttitle\tcareer_level\n7\t1,2\t3\n8\tNULL\t0\n")
    titles = read(tmp_path).items()
    assert titles is not None
    assert titles.rows() == [(7, "1,2"), (8, None)]
    assert list(reader(tmp_path).files()) == ["interactions.csv", "users.csv", "items.csv"]


def test_attributes_of_items_are_those_that_are_listed(tmp_path: Path) -> None:
    read(tmp_path)  # writes the other files
    lines = ["id\ttitle\tcareer_level\tdiscipline_id\ttags", "7\tx\t3\t0\t4,5", "8\ty\t0\t2\t"]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    items = XingReader(str(tmp_path), ["career_level", "discipline_id"], ["tags"]).read().items()
    assert items is not None
    assert items.columns == ["item", "title", "career_level", "discipline_id", "tags"]
    assert items["career_level"].to_list() == ["3", None]  # 0 is unknown
    assert items["discipline_id"].to_list() == ["0", "2"]
    assert items["tags"].to_list() == [["4", "5"], None]
    items = XingReader(str(tmp_path), [], ["title"]).read().items()
    assert items is not None
    assert items["item", "title"].rows() == [(7, ["x"]), (8, ["y"])]
    with pytest.raises(UserError, match=r"items\.csv.*'industry_id'"):
        XingReader(str(tmp_path), ["industry_id"], []).read().items()
