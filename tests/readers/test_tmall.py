"""The reader of the TMALL files: variants of its files, and errors."""

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.readers.schema import RawData, validate_events
from arnn_lightning.readers.tmall import TmallReader

LOG = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type\n"
CLICKS = LOG + "34176,323294,833,2882,2661,829,0\n34176,844400,1271,2882,,1111,0\n"
PEOPLE = "user_id,age_range,gender\n34176,6,0\n5,,\n6,0,2\n7,8,1\n"


def read(folder: Path, log: str = CLICKS, people: str = PEOPLE) -> RawData:
    (folder / "user_log_format1.csv").write_text(log)
    (folder / "user_info_format1.csv").write_text(people)
    reader = TmallReader(str(folder))
    raw = validate_events(reader.read(), next(iter(reader.files().values())))
    raw.users(), raw.items()  # checked too
    return raw


def midnight(month: int, day: int) -> int:
    return int(datetime(2014, month, day, tzinfo=UTC).timestamp())


def test_clicks_alone_are_events_in_the_order_of_the_file(tmp_path: Path) -> None:
    log = (
        LOG + "2,9,1,1,1,511,0\n2,8,1,1,1,511,2\n1,8,1,1,1,1112,0\n1,7,1,1,1,829,3\n1,7,1,1,1,829,0\n1,7,1,1,1,829,1\n"
    )
    raw = read(tmp_path, log)
    assert raw.events.rows() == [(2, 9, midnight(5, 11)), (1, 8, midnight(11, 12)), (1, 7, midnight(8, 29))]
    assert raw.rows == 6


@pytest.mark.parametrize(
    ("stamp", "month", "day"), [("101", 1, 1), ("0829", 8, 29), ("228", 2, 28), ("1031", 10, 31), ("1231", 12, 31)]
)
def test_a_time_stamp_is_a_day_of_2014(tmp_path: Path, stamp: str, month: int, day: int) -> None:
    assert read(tmp_path, LOG + f"1,7,1,1,1,{stamp},0\n").events["time"].to_list() == [midnight(month, day)]


@pytest.mark.parametrize("stamp", ["229", "431", "1301", "0", "100", "-829", "20140"])
def test_a_time_stamp_that_is_no_day_is_named(tmp_path: Path, stamp: str) -> None:
    with pytest.raises(UserError, match=rf"column 'time_stamp', row 4: {stamp} is not a day of 2014 written MMDD"):
        read(tmp_path, CLICKS + f"1,7,1,1,1,{stamp},2\n")


@pytest.mark.parametrize("seller", ["seller_id", "merchant_id"])
def test_sellers_may_be_called_merchants(tmp_path: Path, seller: str) -> None:
    assert read(tmp_path, CLICKS.replace("seller_id", seller)).events.height == 2


def test_prefix_and_order_of_columns_do_not_matter(tmp_path: Path) -> None:
    log = "log.action_type,log.time_stamp,log.item_id,log.user_id\n0,829,7,1\n"
    assert read(tmp_path, log).events.rows() == [(1, 7, midnight(8, 29))]


def test_unknown_ages_and_genders_are_missing(tmp_path: Path) -> None:
    people = "user_id,age_range,gender\n1,6,0\n2,,\n3,0,2\n4,8,1\n5,NULL,NULL\n6,3\n"
    assert read(tmp_path, people=people).users().collect().rows() == [
        (1, "6", "0"),
        (2, None, None),
        (3, None, None),
        (4, "8", "1"),
        (5, None, None),
        (6, "3", None),
    ]
    assert read(tmp_path).users().collect().schema == {"user": pl.Int32, "age_range": pl.String, "gender": pl.String}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,7,1,1,1,829,4", r"column 'action_type', row 4: 4 is not one of 0, 1, 2, 3"),
        ("1,,1,1,1,829,0", r"column 'item_id' is empty in row 4"),
        ("1,7,1,1,1,,0", r"column 'time_stamp' is empty in row 4"),
        ("1,7x,1,1,1,829,0", r"column 'item_id', row 4: '7x' is not an integer"),
        ("1,99999999999,1,1,1,829,0", r"column 'item_id', row 4: '99999999999' is not an integer that fits Int32"),
        ("1,7,1,1,1,829,0,9", r"row 4 has more fields than the 7 columns"),
        ("1,7,1,1,1", r"column 'time_stamp' is empty in row 4"),
    ],
)
def test_a_bad_row_of_the_log_is_named(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, CLICKS + row + "\n")


@pytest.mark.parametrize(("row", "words"), [("8,9,1", "'age_range', row 6: '9'"), ("8,1,m", "'gender', row 6: 'm'")])
def test_unknown_code_is_named(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, people=PEOPLE + row + "\n")


def test_the_file_of_an_archive_is_named(tmp_path: Path) -> None:
    for log, people, words in (
        (CLICKS + "1,7,1,1,1,829,4\n", PEOPLE, r"user_log_format1\.csv: column 'action_type', row 4"),
        (CLICKS + "1,7,1,1,1,229,0\n", PEOPLE, r"user_log_format1\.csv: column 'time_stamp', row 4"),
        (CLICKS, PEOPLE + "8,9,1\n", r"user_info_format1\.csv: column 'age_range', row 6"),
        (CLICKS, PEOPLE + "5,1,1\n", r"user_info_format1\.csv, row 6: user 5 is also in .*format1\.csv, row 3"),
    ):
        with zipfile.ZipFile(tmp_path / "tmall.zip", "w") as archive:
            archive.writestr("data/user_log_format1.csv", log)
            archive.writestr("data/user_info_format1.csv", people)
        with pytest.raises(UserError, match=r"tmall\.zip/" + words):
            TmallReader(str(tmp_path)).read().users()


def test_missing_files_are_named_with_their_origin(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*user_log_format1\.csv.*Tianchi.*data\.raw_dir"):
        TmallReader(str(tmp_path / "none")).files()
