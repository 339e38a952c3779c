"""Reader of the XING files (RecSys Challenge 2016), and of those that ``simulation/xing.py`` writes in their schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from arnn_lightning.readers.delimited import file_rows, member_path, read_delimited, require_files, require_one_of
from arnn_lightning.readers.schema import ITEM, TIME, TITLE, USER, RawData

CLICK = 1
INTERACTION_TYPES = (0, 1, 2, 3, 4, 5)  # impression, click, bookmark, reply, delete, recruiter (0 and 5 since 2017)
MULTI = ("jobroles", "edu_fieldofstudies")
SINGLE = (
    "career_level",
    "discipline_id",
    "industry_id",
    "country",
    "region",
    "experience_n_entries_class",
    "experience_years_experience",
    "experience_years_in_current",
    "edu_degree",
)
# Attributes whose code 0 means unknown; elsewhere, 0 is a category.
ZERO_IS_UNKNOWN = (
    "career_level",
    "region",
    "experience_years_experience",
    "experience_years_in_current",
    "edu_degree",
)


@dataclass(frozen=True)
class XingReader:
    """Reads ``interactions.csv`` and ``users.csv`` (tab-separated, one header line) in ``raw_dir``.

    Only clicks (interaction_type 1) are kept: their counts are those of the paper's Table 1. Titles and attributes of
    items are read from ``items.csv`` if it exists.

    Attributes:
        raw_dir: the folder.
        item_single: single-valued attributes of items to read.
        item_multi: multi-valued ones, separated by commas in the file.
    """

    raw_dir: str | None
    item_single: Sequence[str]
    item_multi: Sequence[str]

    def files(self) -> dict[str, Path]:
        return require_files(
            self.raw_dir,
            {"interactions.csv": "user_id, item_id, interaction_type, created_at", "users.csv": "id and 11 attributes"},
            "files of the RecSys Challenge 2016, which are no longer distributed",
            optional=["items.csv"],
        )

    def read(self) -> RawData:
        """Returns the canonical tables.

        Raises:
            UserError: a missing column, a missing id or time, or an invalid value.
        """
        files = self.files()
        source = files["interactions.csv"]
        # The narrowest types: millions of rows are read at once.
        columns = {"user_id": pl.Int32, "item_id": pl.Int32, "interaction_type": pl.Int8, "created_at": pl.Int64}
        events = read_delimited(
            source, columns, separator="\t", quote=None, name="interactions.csv", required=list(columns)
        )
        require_one_of(events, "interaction_type", INTERACTION_TYPES, member_path(source, "interactions.csv"))
        clicks = events.filter(pl.col("interaction_type") == CLICK).select(
            pl.col("user_id").alias(USER), pl.col("item_id").alias(ITEM), pl.col("created_at").alias(TIME)
        )
        return RawData(
            events=clicks,
            rows=events.height,
            load_users=partial(_users, files["users.csv"]),
            load_items=partial(self._items, files["items.csv"]) if "items.csv" in files else None,
            row_location=file_rows(
                {
                    table: member_path(files[name], name)
                    for table, name in (("users", "users.csv"), ("items", "items.csv"))
                    if name in files
                }
            ),
        )

    def _items(self, path: Path) -> pl.DataFrame:
        table = read_delimited(
            path,
            {"id": pl.Int32(), **dict.fromkeys(("title", *self.item_single, *self.item_multi), pl.String())},
            separator="\t",
            quote=None,
            name="items.csv",
            aliases={"id": ["item_id"]},
            required=["id"],
        )
        titles = [] if TITLE in (*self.item_single, *self.item_multi) else [pl.col("title").alias(TITLE)]
        return table.select(
            pl.col("id").alias(ITEM),
            *titles,  # else its terms are an attribute
            *(_known(name) for name in self.item_single),
            *(_values(name) for name in self.item_multi),
        )


def _users(path: Path) -> pl.LazyFrame:
    table = read_delimited(
        path,
        {"id": pl.Int32(), **dict.fromkeys((*MULTI, *SINGLE), pl.String())},
        separator="\t",
        quote=None,
        name="users.csv",
        aliases={"id": ["user_id"]},
        required=["id"],
    )
    return table.lazy().select(
        pl.col("id").alias(USER),
        *map(_known, SINGLE),
        *map(_values, MULTI),
    )


def _known(name: str) -> pl.Expr:
    """A single-valued attribute, null where it is unknown."""
    return pl.when(pl.col(name) != "0").then(pl.col(name)).alias(name) if name in ZERO_IS_UNKNOWN else pl.col(name)


def _values(name: str) -> pl.Expr:
    """The distinct known values of a multi-valued attribute, which are separated by commas."""
    known = pl.element().filter(~pl.element().is_in(["0", ""]))
    return pl.col(name).str.split(",").list.eval(known).list.unique(maintain_order=True)
