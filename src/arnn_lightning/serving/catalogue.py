"""The items of a checkpoint: codes <-> ids and titles. N sessions, I items, K length of a list."""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from arnn_lightning.errors import UserError
from arnn_lightning.serving.requests import ITEM_ID, find_codes, to_ids

INTEGER = re.compile(r"[+-]?[0-9]+")


class Recommendation(NamedTuple):
    """One item of a list.

    Attributes:
        item_id: of the log's type.
        score: the model's raw score; comparable within a session only.
        rank: from 1, as in ``Predictor.recommend``.
        title: None where the data set has none.
    """

    item_id: Any
    score: float
    rank: int
    title: str | None


class IdCodes:
    """The code (place) of every id of a column, for one id after the other."""

    def __init__(self, ids: pl.Series) -> None:
        self._code: dict[Any, int] = dict(zip(ids.to_list(), range(len(ids)), strict=True))
        self._type = str if ids.dtype == pl.String else int

    def find(self, value: Any, name: str) -> int | None:
        """The code of an id of either type, None for unknown ones; raises UserError for what is no id."""
        if type(value) is self._type and value in self._code:
            return self._code[value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UserError(f"{name}={value!r}: an id must be an integer or a string")
        if self._type is str:
            return self._code.get(str(value).strip())  # as in reading the data
        try:
            return self._code.get(int(value)) if isinstance(value, int) or INTEGER.fullmatch(value.strip()) else None
        except ValueError:  # thousands of digits
            return None


class Catalogue:
    """The items that can be recommended.

    Args:
        items: one row per item code, with id and, where there are, title.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self._items = items.select("id", *(["title"] if "title" in items.columns else []))

    @property
    def ids(self) -> pl.Series:
        """(I,) the id of every code."""
        return self._items["id"]

    @cached_property
    def codes(self) -> IdCodes:
        return IdCodes(self.ids)

    @cached_property
    def _lists(self) -> tuple[list[Any], list[str | None]]:
        """Ids and titles, read one by one."""
        titles = self._items["title"].to_list() if "title" in self._items.columns else [None] * len(self._items)
        return self.ids.to_list(), titles

    def allowed(self, items: Sequence[Any] | None, exclude_items: Sequence[Any] | None) -> Tensor | None:
        """(I,) which items may be recommended; None: all. Unknown ids among them have no effect.

        Args:
            items: ids of those that may.
            exclude_items: ids of those that may not.

        Raises:
            UserError: no item is left.
        """
        if items is None and exclude_items is None:
            return None
        allowed_I = torch.full((len(self._items),), items is None)
        for name, ids, value in (("items", items, True), ("exclude_items", exclude_items, False)):
            if ids is not None:
                codes = find_codes(to_ids(ids, name), self.ids, name).drop_nulls()
                allowed_I[torch.from_numpy(codes.to_numpy().astype(np.int64))] = value
        if not allowed_I.any():
            raise UserError("items, exclude_items: no item of the catalogue is left to recommend")
        return allowed_I

    def recommendations(self, scores: Sequence[float], items: Sequence[int]) -> list[Recommendation]:
        """A list from scores and item codes, the best first."""
        ids, titles = self._lists
        rows = zip([ids[item] for item in items], scores, count(1), [titles[item] for item in items])
        return [*map(Recommendation._make, rows)]

    def table(self, key: pl.Series, score_NK: Tensor, item_NK: Tensor) -> pl.DataFrame:
        """Lists as rows: the column ``key``, item_id, score, rank and, where there are, title.

        Args:
            key: (N,) what each list is of.
            score_NK: minus infinity where a list is shorter.
            item_NK: item codes.
        """
        is_listed_NK = (score_NK > -torch.inf).numpy()
        items = self._items[item_NK.numpy()[is_listed_NK]]
        columns = {
            key.name: key.gather(np.repeat(np.arange(len(key)), is_listed_NK.sum(1))),
            ITEM_ID: items["id"],
            "score": score_NK.numpy()[is_listed_NK].astype(np.float32),  # non-neural models have float64
            "rank": (is_listed_NK.cumsum(1))[is_listed_NK],
        }
        return pl.DataFrame(columns | ({"title": items["title"]} if "title" in items.columns else {}))

    def empty_table(self, key: pl.Series) -> pl.DataFrame:
        """``table`` of no list."""
        return self.table(key.clear(), torch.empty(0, 0), torch.empty(0, 0, dtype=torch.int64))
