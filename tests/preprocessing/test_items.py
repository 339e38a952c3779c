"""The items table: its attributes as codes, and items that training does not have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset, prepare
from arnn_lightning.readers.complete_journey import ATTRIBUTES, ITEM_ATTRIBUTES, CompleteJourneyReader
from helpers import compose_config

DAY = 86_400
# Training has a (3 events), b (3), d (1); the test day has a, c (a row of unknown attributes), d, e and f (no row).
SESSIONS = [(0, "ab"), (0, "ab"), (1, "abd"), (5, "aced"), (5, "fe"), (5, "ce"), (5, "ab")]
ITEMS = """item,title,kind,tags,price
a,Apple,fruit,"red,sweet",1.5
b,Beet,root,red,2
c,,,,
d,Date,fruit,sweet,9
e,Endive,leaf,"sweet,bitter",4
g,Grape,fruit,,
"""
ITEM_CONTEXTS = "data.item_contexts={single: [kind], multi: [tags], numeric: {price: [2]}, coverage: 1.0}"
Prepare = Callable[..., PreparedDataset]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    def make(*overrides: str, items: str | None = ITEMS) -> PreparedDataset:
        rows = [
            f"u{number},{item},{1_500_000_000 + day * DAY + number * 4_000 + place}"
            for number, (day, session) in enumerate(SESSIONS)
            for place, item in enumerate(session)
        ]
        (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
        files = [f"data.events={tmp_path / 'log.csv'}"]
        if items is not None:
            (tmp_path / "items.csv").write_text(items)
            files.append(f"data.titles={tmp_path / 'items.csv'}")
        split = "data.split={test_days: 1, val_days: null}"
        config = compose_config("data=tabular", split, "data.items.min_events=1", *files, *overrides)
        plain: Any = OmegaConf.to_container(config.data, resolve=True)
        return prepare(plain, tmp_path / "data")

    return make


def test_attributes_of_items_are_codes_as_those_of_users(prepared: Prepare) -> None:
    data = prepared(ITEM_CONTEXTS)
    items = data.items()
    assert items.columns == ["item", "id", "title", "context.kind", "context.price", "active", "n_known"]
    assert items["id"].to_list() == ["a", "b", "d"]
    assert items["context.kind"].to_list() == [1, 2, 1]  # fruit, root
    assert items["context.price"].to_list() == [1, 2, 2]  # below 2, from 2
    assert items["active"].to_list() == [[0, 1], [0], [1]]  # red, sweet
    vocabulary = data.item_vocabulary()
    events = {(name, category): n for name, category, n in vocabulary.select("attribute", "category", "events").rows()}
    assert events[("kind", "fruit")] == 4  # training events of a and d
    assert data.dims["item_single_sizes"] == [3, 3]
    assert data.dims["n_item_binary"] == 3  # red, sweet, (other)
    assert data.dims["item_multi_sizes"] == [3]


def test_a_set_without_item_attributes_has_ids_and_titles(prepared: Prepare) -> None:
    data = prepared()
    assert data.items().columns == ["item", "id", "title"]
    assert [data.dims[key] for key in ("item_single_sizes", "n_item_binary", "item_multi_sizes")] == [[], 0, []]
    assert prepared("data.columns.title=null").items().columns == ["item", "id"]


@pytest.mark.parametrize(("items", "without_row"), [(None, 0), (ITEMS.replace("\nb,", "\nx,"), 1)])
def test_items_without_row_are_those_of_a_table(prepared: Prepare, items: str | None, without_row: int) -> None:
    assert prepared("data.items.cold=drop", items=items).manifest["items"]["without_row"] == without_row


def test_items_without_training_event_are_dropped_by_default(prepared: Prepare) -> None:
    data = prepared(ITEM_CONTEXTS)
    ids, test = data.items()["id"], data.sessions("test")
    assert "".join(ids.gather(test.item).to_list()) == "adab"
    assert data.manifest["items"] == {"all": 3, "without_row": 0, "without_training_event": 0}


def test_cold_items_with_a_known_attribute_are_kept(prepared: Prepare) -> None:
    """e is in the test day alone, g in no event; c has no known attribute and f no row."""
    data = prepared(ITEM_CONTEXTS, "data.items.cold=keep")
    items, test = data.items(), data.sessions("test")
    assert items["id"].to_list() == ["a", "b", "d", "e", "g"]
    assert "".join(items["id"].gather(test.item).to_list()) == "aedab"  # fe and ce are left with one event
    assert data.manifest["items"] == {"all": 5, "without_row": 0, "without_training_event": 2}
    assert data.item_popularity().tolist() == [3, 3, 1, 0, 0]
    assert items["context.kind"].to_list() == [1, 2, 1, 0, 1]  # training has no leaf
    assert items["active"].to_list() == [[0, 1], [0], [1], [1], []]  # training has no bitter


def test_cold_items_include_those_too_rare_to_train(prepared: Prepare) -> None:
    data = prepared(ITEM_CONTEXTS, "data.items.cold=keep", "data.items.min_events=2")
    items, test = data.items(), data.sessions("test")
    assert items["id"].to_list() == ["a", "b", "d", "e", "g"]
    assert data.item_popularity().tolist() == [3, 3, 0, 0, 0]
    assert "".join(items["id"].gather(test.item).to_list()) == "aedab"


@pytest.mark.parametrize(
    ("overrides", "items", "message"),
    [
        ((ITEM_CONTEXTS,), None, r"data\.item_contexts: kind, tags, price: needs a table of items \(data\.titles="),
        (
            ("data.item_contexts.single=[knd]",),
            ITEMS,
            r"items\.csv: .*no column 'knd' \(did you mean \"kind\"\?\)",
        ),
        (
            ("data.items.cold=keep",),
            ITEMS,
            r"data\.items\.cold=keep: needs attributes of items; set data\.item_contexts",
        ),
        (
            ("data.item_contexts.single=[kind]", "data.item_contexts.multi=[kind]"),
            ITEMS,
            r"data\.item_contexts: attribute 'kind' is listed more than once",
        ),
        (("data.item_contexts.numeric={kind: 2}",), ITEMS, r"column 'kind', row 2: 'fruit' is not a number"),
    ],
)
def test_an_items_table_that_does_not_fit_is_one_line(
    prepared: Prepare, overrides: tuple[str, ...], items: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepared(*overrides, items=items)
    assert "\n" not in str(error.value)


def test_complete_journey_has_attributes_of_products(tmp_path: Path) -> None:
    time = pl.Series([0, 0, 1], dtype=pl.Datetime("ns"))
    columns = {"household_id": [1, 1, 1], "basket_id": [7, 7, 8], "product_id": [5, 6, 5]}
    pl.DataFrame(columns).with_columns(transaction_timestamp=time).write_parquet(tmp_path / "transactions.parquet")
    people = {"household_id": [1], **{name: ["x"] for name in ATTRIBUTES}}
    pl.DataFrame(people).write_parquet(tmp_path / "demographics.parquet")
    products = {"product_id": [5, 6], **{name: ["x", None] for name in ITEM_ATTRIBUTES}, "manufacturer_id": [3, 4]}
    reader = CompleteJourneyReader(str(tmp_path), shuffle_seed=1, keep_unknown_households=False)
    assert reader.read().items() is None  # the file is optional
    pl.DataFrame(products).write_parquet(tmp_path / "products.parquet")
    items = reader.read().items()
    assert items is not None
    assert items.columns == ["item", *ITEM_ATTRIBUTES]
    assert items["manufacturer_id"].to_list() == ["3", "4"]
    assert "products.parquet" in reader.files()
