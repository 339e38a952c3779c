"""Reader of MovieLens-100K and -1M as GroupLens distributes them: events in time order, four user attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arnn_lightning.errors import UserError
from arnn_lightning.readers.delimited import decompressed, require_files
from arnn_lightning.readers.schema import ITEM, TIME, TITLE, USER, RawData

SOURCE_HINT = "download ml-100k.zip or ml-1m.zip from grouplens.org (free for research)"
IGNORED = "-"
# File -> its separator, and its columns in order.
ML_100K: Mapping[str, tuple[str, Sequence[str]]] = {
    "u.data": ("\t", (USER, ITEM, IGNORED, TIME)),
    "u.user": ("|", (USER, "age", "gender", "occupation", "zip_code")),
    "u.item": ("|", (ITEM, TITLE, *[IGNORED] * 22)),
}
ML_1M: Mapping[str, tuple[str, Sequence[str]]] = {
    "ratings.dat": ("::", (USER, ITEM, IGNORED, TIME)),
    "users.dat": ("::", (USER, "gender", "age", "occupation", "zip_code")),
    "movies.dat": ("::", (ITEM, TITLE, IGNORED)),
}
INTEGER_COLUMNS = (USER, ITEM, TIME)


@dataclass(frozen=True)
class MovieLensReader:
    """Reads the three files of either version in ``raw_dir``; every rating is an event, whatever its value."""

    raw_dir: str

    def files(self) -> dict[str, Path]:
        folder = Path(self.raw_dir)
        is_1m = folder.is_dir() and any((folder / name).exists() for name in ("ratings.dat", "ml-1m.zip"))
        expected = {name: ", ".join(filter(IGNORED.__ne__, columns)) for name, (_, columns) in _layout(is_1m).items()}
        return require_files(folder, expected, SOURCE_HINT)

    def read(self) -> RawData:
        """The canonical tables; raises UserError for a wrong number of fields or an id that is not an integer."""
        files = self.files()
        events, users, titles = (
            _read(path, name, *_layout("ratings.dat" in files)[name]) for name, path in files.items()
        )
        return RawData(events, events.height, load_users=users.lazy, load_items=lambda: titles)


def _layout(is_1m: bool) -> Mapping[str, tuple[str, Sequence[str]]]:
    return ML_1M if is_1m else ML_100K


def _read(path: Path, name: str, separator: str, columns: Sequence[str]) -> pl.DataFrame:
    with decompressed(path, name) as file:
        text = file.read_text(encoding="latin-1")
    lines = pl.Series(name, text.removesuffix("\n").replace("\r\n", "\n").split("\n"))
    # No CSV reader supports a separator of two characters, and quotes have no meaning in these files.
    fields = lines.str.split(separator)
    ragged = (fields.list.len() != len(columns)).arg_true()
    if len(ragged):
        raise UserError(
            f"{path}: row {ragged[0] + 1} of {name} has {len(fields[ragged[0]])} fields, expected are "
            f"{len(columns)}: {lines[ragged[0]]!r}; download the file again"
        )
    frame = pl.DataFrame(
        [fields.list.get(index).alias(column) for index, column in enumerate(columns) if column != IGNORED]
    )
    for column in set(INTEGER_COLUMNS) & set(frame.columns):
        number = frame[column].cast(pl.Int64, strict=False)
        if number.has_nulls():
            row = number.is_null().arg_true()[0]
            raise UserError(
                f"{path}: column {column!r}, row {row + 1} of {name}: {frame[column][row]!r} is not an integer; "
                "download the file again"
            )
        frame = frame.with_columns(number)
    return frame
