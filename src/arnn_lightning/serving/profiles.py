"""Profiles, alone or as rows of a frame -> codes of contexts."""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import OTHER, PREFIX, encode_profiles, other_code
from arnn_lightning.readers.schema import decimal_years, parse_dates, with_decimal_point
from arnn_lightning.serving.vocabulary import Vocabulary


class ProfileReader:
    """Reads profiles: their values are written as in the log, and coded by the categories of the checkpoint.

    Args:
        vocabulary: the checkpoint's.
        data: its data config, whose list_separator, null_values, date_format and decimal may be missing.
    """

    def __init__(self, vocabulary: Vocabulary, data: Mapping[str, Any]) -> None:
        self.vocabulary = vocabulary
        self.list_separator: str = data.get("list_separator", ",")
        self.null_values = ["", *data.get("null_values", [""])]  # as in reading the data
        self.date_format: str | None = data.get("date_format")
        self.decimal: str = data.get("decimal", ".")
        self.multi = [name for name in vocabulary.attributes if name not in vocabulary.single]
        is_numeric = pl.col("kind") == "numeric"
        self.numeric = set(vocabulary.contexts.filter(is_numeric)["attribute"])
        rows = {name: vocabulary.contexts.filter(pl.col("attribute") == name) for name in self.multi}
        self._other = {name: other_code(categories) for name, categories in rows.items()}
        self._codes: dict[str, dict[str, int]] = {name: {} for name in vocabulary.attributes}
        self._lows: dict[str, list[float]] = {name: [] for name in vocabulary.attributes}
        for name, code, category, low in vocabulary.contexts.select("attribute", "code", "category", "low").iter_rows():
            self._codes[name][category] = code
            self._lows[name].append(low)

    def encode(self, profiles: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[str, str]]]:
        """Context codes of profiles, as of ``encode_profiles``, and (attribute, value) of what is not known.

        Columns that are no attributes are ignored.

        Raises:
            UserError: a value of a wrong type; names its column.
        """
        names = [name for name in profiles.columns if name in self.vocabulary.attributes]
        canonical = pl.DataFrame({name: self._canonical(profiles[name]) for name in names})
        if not names:
            canonical = pl.DataFrame({"": pl.repeat(None, profiles.height, eager=True)})
        codes, unseen = encode_profiles(canonical, self.vocabulary.single, self.vocabulary.contexts)
        return codes, list(unseen.select("attribute", "value").iter_rows())

    def encode_one(self, profile: Mapping[str, Any]) -> tuple[list[int], list[int], list[tuple[str, str]]]:
        """``encode`` of one profile: the codes of all single-valued fields, the active ones, and what is not known.

        A frame takes milliseconds however few rows it has. It is made only where a value is no text, no integer, no
        list of these and no number of a numeric attribute.
        """
        profile = {str(name): value for name, value in profile.items()}
        values = {name: profile[name] for name in self.vocabulary.attributes if profile.get(name) is not None}
        if not all(self._is_plain(name, value) for name, value in values.items()):
            table, unseen = self.encode(one_row(profile))
            row = table.row(0, named=True)
            return [row[f"{PREFIX}{name}"] for name in self.vocabulary.single], row["active"], unseen
        single, active, unseen = dict.fromkeys(self.vocabulary.single, 0), set[int](), []
        for name, value in values.items():
            codes = self._codes[name]
            if name in self.numeric:
                single[name] = bisect_right(self._lows[name], value)
            elif name in self.multi:
                texts = value if isinstance(value, list) else str(value).split(self.list_separator)
                known = [text for text in map(str.strip, map(str, texts)) if text not in self.null_values]
                coded = {text: codes.get(text, self._other[name]) for text in known}
                active |= {code for code in coded.values() if code is not None}
                unseen += [(name, text) for text, code in coded.items() if codes and code is None]
            elif (text := str(value).strip()) not in self.null_values:
                single[name] = codes.get(text, codes.get(OTHER, 0))
                if codes and not single[name]:
                    unseen.append((name, text))
        return [*single.values()], sorted(active), unseen

    def _is_plain(self, name: str, value: Any) -> bool:
        if name in self.numeric:
            return type(value) in (int, float) and abs(value) < 2**53  # exact as float64
        if name in self.multi and type(value) is list:
            return {*map(type, value)} in ({int}, {str}, set())
        return type(value) in (int, str)

    def _number(self, column: pl.Series) -> pl.Series:
        """A numeric attribute; dates as years."""
        if column.dtype == pl.String:
            column = column.str.strip_chars()
            column = column.set(column.is_in(self.null_values), None)
        years = decimal_years(parse_dates(column, self.date_format))
        if years.dtype == pl.String:
            years = with_decimal_point(years.str.strip_chars(), self.decimal)
        try:
            return years.cast(pl.Float64)
        except pl.exceptions.PolarsError as error:
            values = years.cast(pl.String).drop_nulls()
            value = next((text for text in values if pl.Series([text]).cast(pl.Float64, strict=False)[0] is None), "")
            raise UserError(f"users: column {column.name}: {value!r} is neither a number nor a date") from error

    def _canonical(self, column: pl.Series) -> pl.Series:
        """An attribute as String, Float64 or List(String), as readers return it."""
        name = column.name
        value_type = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else column.dtype
        if value_type.is_nested() or value_type in (pl.Object, pl.Binary, pl.Duration):
            raise UserError(f"users: column {name}: must be numbers, strings or lists of them, not {column.dtype}")
        if column.dtype.is_nested() and name not in self.multi:
            raise UserError(f"users: column {name}: attribute {name!r} has one value, not a list")
        if name in self.numeric:
            return self._number(column)
        if name not in self.multi:
            text = column.cast(pl.String).str.strip_chars()
            if column.dtype.is_float():  # 3.0 where the log had 3
                categories = self.vocabulary.contexts.filter(pl.col("attribute") == name)["category"]
                text = text.zip_with(text.is_in(categories.implode()), text.str.strip_suffix(".0"))
            return text.set(text.is_in(self.null_values), None)
        if not isinstance(column.dtype, pl.List | pl.Array):
            column = column.cast(pl.String).str.split(self.list_separator)
        element = pl.element().cast(pl.String).str.strip_chars()
        kept = element.filter(~element.is_in(self.null_values))
        return column.cast(pl.List(pl.String)).list.eval(kept).list.unique(maintain_order=True)


def one_row(profile: Mapping[str, Any]) -> pl.DataFrame:
    """A profile as a frame; raises UserError for a value that is no text, number, date or list of these."""
    columns = {}
    for name, value in profile.items():
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        value = list(value) if isinstance(value, tuple | set | frozenset) else value
        try:
            columns[str(name)] = pl.Series([value], dtype=None if value != [] else pl.List(pl.String))
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            raise UserError(f"profile: {name}={value!r}: must be a string, a number, or a list of them") from error
    return pl.DataFrame(columns)
