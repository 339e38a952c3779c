"""What a checkpoint stores for recommending."""

import polars as pl
import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.serving.vocabulary import Vocabulary, store_vocabulary


def test_a_vocabulary_contains_ids_categories_and_users(prepared: PreparedDataset) -> None:
    stored = store_vocabulary(prepared, None, store_users=True)
    vocabulary = Vocabulary(stored, "x.ckpt")
    items = pl.read_parquet(prepared.folder / "items.parquet")
    train = pl.read_parquet(prepared.folder / "train.parquet")
    assert vocabulary.items["id"].equals(items["id"])
    assert vocabulary.items["events"].sum() == train.height
    assert vocabulary.items["events"][int(train["item"][0])] == (train["item"] == train["item"][0]).sum()
    users = prepared.users()
    assert vocabulary.users.equals(users.select(vocabulary.users.columns))
    contexts = prepared.manifest["config"]["contexts"]
    assert set(vocabulary.attributes) == {*contexts["single"], *contexts["multi"]}
    assert sum(tensor.nbytes for tensor in stored.values()) < 20 * (len(items) + len(users))


@pytest.mark.parametrize("n_attributes", [0, 1, 3])
def test_a_vocabulary_has_the_attributes_of_the_model(prepared: PreparedDataset, n_attributes: int) -> None:
    vocabulary = Vocabulary(store_vocabulary(prepared, n_attributes, store_users=True), "x.ckpt")
    assert len(vocabulary.attributes) == n_attributes
    assert len(vocabulary.single) == len(prepared.user_contexts(n_attributes)[1]["single_sizes"])


def test_users_are_stored_on_request_only(prepared: PreparedDataset) -> None:
    stored = store_vocabulary(prepared, None, store_users=False)
    assert "users" not in stored
    assert Vocabulary(stored, "x.ckpt").users.is_empty()


def test_a_damaged_vocabulary_is_one_line(prepared: PreparedDataset) -> None:
    stored = store_vocabulary(prepared, None, store_users=True)
    with pytest.raises(UserError, match=r"x\.ckpt: the stored vocabulary is damaged"):
        Vocabulary(stored | {"items": stored["items"][:100]}, "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: stores no item ids"):
        Vocabulary({}, "x.ckpt")
