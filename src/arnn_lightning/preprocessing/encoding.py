"""Integer codes of users, items and sessions, which sort as the ids do and are counted with ``bincount``."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import polars as pl

from arnn_lightning.preprocessing.sessions import SESSION_ID, session_starts
from arnn_lightning.preprocessing.splitting import SPLIT
from arnn_lightning.readers.schema import ITEM, SESSION, TIME, USER

CHUNK_ROWS = 1 << 21  # 16 MB of 64-bit integers, which malloc reuses instead of returning to the system


def encode_ids(ids: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Codes (UInt32) that sort as the ids do, and the id of every code; some codes may not occur."""
    low, high = cast(Any, ids.min()), cast(Any, ids.max())
    if not ids.dtype.is_integer() or high >= 2**63 or low < -(2**63) or high - low > len(ids) // 2 + 1_000_000:
        return ids.rank("dense") - 1, ids.unique().sort()
    # Integers in a narrow range need no sorting: the offset in the range is the code.
    wide = ids if ids.dtype in (pl.Int32, pl.UInt32, pl.Int64, pl.UInt64) else ids.cast(pl.Int64)
    return (wide - low).cast(pl.UInt32), pl.int_range(low, high + 1, dtype=pl.Int64, eager=True).cast(ids.dtype)


def recode_events(events: pl.DataFrame, is_kept: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Numbers kept users and items from 0, and sessions by (start time, user, position in the log).

    Args:
        events: user and item codes, time, session id and split, sorted by session.
        is_kept: for the columns user and item, (number of codes,) whether a code is kept.

    Returns:
        session, user, item, time, split; sorted by the new session codes.
    """
    first = session_starts(events[SESSION_ID].to_numpy())
    length = np.diff(first, append=events.height)
    start_time = events.select(pl.col(TIME).gather(first))
    order = start_time.select(pl.arg_sort_by(TIME, maintain_order=True)).to_series().to_numpy()
    first, length = first[order], length[order]
    position = np.arange(events.height) - np.repeat(np.cumsum(length) - length, length)
    events = events[np.repeat(first, length) + position]
    new_code = {column: (np.cumsum(kept) - 1).astype(np.uint32) for column, kept in is_kept.items()}
    return events.select(
        pl.Series(SESSION, np.repeat(np.arange(len(first), dtype=np.uint32), length)),
        *(pl.Series(column, new_code[column]).gather(events[column]) for column in (USER, ITEM)),
        pl.col(TIME).cast(pl.Int64),
        SPLIT,
    )


def count_codes(codes: pl.Series, size: int) -> np.ndarray:
    """(size,) how often each code occurs."""
    counts = np.zeros(size, np.int64)
    for chunk in _chunks(codes):
        counts += np.bincount(chunk, minlength=size)
    return counts


def _chunks(column: pl.Series) -> Iterator[np.ndarray]:
    """Consecutive slices of a column: ``bincount`` converts its whole input to 64 bits."""
    return (column.slice(start, CHUNK_ROWS).to_numpy() for start in range(0, len(column), CHUNK_ROWS))
