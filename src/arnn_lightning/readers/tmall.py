"""Reader of the TMALL files (IJCAI-15 repeat-buyers competition, "data_format1")."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.delimited import (
    FIRST_ROW,
    file_rows,
    member_path,
    read_delimited,
    require_files,
    require_one_of,
)
from arnn_lightning.readers.schema import ITEM, TIME, USER, RawData

CLICK = 0
ACTION_TYPES = (0, 1, 2, 3)  # click, cart, buy, favourite
YEAR = 2014
AGES = ("0", "1", "2", "3", "4", "5", "6", "7", "8")  # 0 is unknown
GENDERS = ("0", "1", "2")  # 2 is unknown


@dataclass(frozen=True)
class TmallReader:
    """Reads ``user_log_format1.csv`` and ``user_info_format1.csv`` (comma-separated, one header line) in ``raw_dir``.

    Only clicks (action_type 0) are kept: they are the 48.6M transactions of the paper's Table 1. ``time_stamp`` is MMDD
    of 2014 without a leading zero, so an event's time is midnight (UTC) of its day, and events of a day keep their
    order in the file. Sellers, brands and categories are not read.

    Attributes:
        raw_dir: the folder of both files.
    """

    raw_dir: str | None

    def files(self) -> dict[str, Path]:
        return require_files(
            self.raw_dir,
            {
                "user_log_format1.csv": "user_id, item_id, ..., time_stamp, action_type",
                "user_info_format1.csv": "user_id, age_range, gender",
            },
            "data_format1 of the IJCAI-15 competition on Alibaba Tianchi, free for registered users",
        )

    def read(self) -> RawData:
        """Returns the canonical tables.

        Raises:
            UserError: a missing column, a missing id or time, or an invalid value.
        """
        files = self.files()
        source, users = files["user_log_format1.csv"], files["user_info_format1.csv"]
        # The narrowest types: 55 million rows are read at once.
        columns = {"user_id": pl.Int32, "item_id": pl.Int32, "time_stamp": pl.Int16, "action_type": pl.Int8}
        log = read_delimited(source, columns, separator=",", name="user_log_format1.csv", required=list(columns))
        source = member_path(source, "user_log_format1.csv")
        require_one_of(log, "action_type", ACTION_TYPES, source)
        seconds = _mmdd_to_unix(log["time_stamp"], source)
        clicks = log.filter(pl.col("action_type") == CLICK).rename({"user_id": USER, "item_id": ITEM})
        return RawData(
            events=clicks.select(USER, ITEM, seconds.gather(clicks["time_stamp"]).alias(TIME)),
            rows=log.height,
            load_users=partial(_users, users),
            row_location=file_rows({"users": member_path(users, "user_info_format1.csv")}),
        )


def _users(path: Path) -> pl.LazyFrame:
    users = read_delimited(
        path,
        {"user_id": pl.Int32, "age_range": pl.String, "gender": pl.String},
        separator=",",
        name="user_info_format1.csv",
        required=["user_id"],
    )
    for column, allowed in (("age_range", AGES), ("gender", GENDERS)):
        require_one_of(users, column, allowed, member_path(path, "user_info_format1.csv"))
    return users.lazy().select(
        pl.col("user_id").alias(USER),
        pl.when(pl.col("age_range") != "0").then(pl.col("age_range")).alias("age_range"),
        pl.when(pl.col("gender") != "2").then(pl.col("gender")).alias("gender"),
    )


def month_and_day(days: np.ndarray) -> np.ndarray:
    """Days (datetime64) as the integers MMDD, of the same shape.

    >>> month_and_day(np.array(["2014-05-11", "2014-11-03"], "datetime64[D]")).tolist()
    [511, 1103]
    """
    months = days.astype("datetime64[M]")
    mmdd: np.ndarray = (months.astype(int) % 12 + 1) * 100 + (days - months).astype(int) + 1
    return mmdd


def _mmdd_to_unix(stamps: pl.Series, source: Path) -> pl.Series:
    """Unix seconds of the start of each day, indexed by MMDD; raises UserError if one of ``stamps`` is not a day."""
    days = np.arange(f"{YEAR}-01-01", f"{YEAR + 1}-01-01", dtype="datetime64[D]")
    mmdd = month_and_day(days)
    unique = stamps.unique()
    invalid = unique.filter(~unique.is_in(mmdd))
    if len(invalid):
        row = stamps.is_in(invalid.implode()).arg_true()[0]
        raise UserError(
            f"{source}: column 'time_stamp', row {row + FIRST_ROW}: {stamps[row]} is not a day of {YEAR} written MMDD; "
            "fix or remove the row"
        )
    table = np.zeros(mmdd.max() + 1, np.int64)
    table[mmdd] = days.astype("datetime64[s]").astype(np.int64)
    return pl.Series(table)
