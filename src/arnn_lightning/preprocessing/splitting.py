"""Which sessions are training, validation and test: by the time at which they start, or by user."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.preprocessing.sessions import SESSION_ID, local_day
from arnn_lightning.readers.schema import TIME, USER

SPLITS = ("train", "val", "test")
SPLIT = "split"  # index into SPLITS


def assign_splits(events: pl.DataFrame, start_time: pl.Series, split: Mapping[str, Any], timezone: str) -> pl.DataFrame:
    """Adds the column ``split``: the sessions that start last are test, those before them validation.

    A session belongs to the split in which it starts. By days, the last day is the one on which the last session
    starts. By shares, sessions that start in the same second stay in one split, the later one.

    Args:
        events: events with their session ids, numbered from 0.
        start_time: (sessions,) unix second at which each session starts.
        split: ``test_days`` and ``val_days``, or ``test_share`` and ``val_share``; the others are None. No ``val_days``
            or ``val_share``: no validation split.
        timezone: of the days.
    """
    if split["test_days"] is None:
        start, ordered = start_time.to_numpy(), start_time.sort().to_numpy()
        n_test = round(split["test_share"] * len(ordered))
        n_val = round((split["val_share"] or 0) * len(ordered))
        # Past the last session where a split is to have none.
        val_from, test_from = np.append(ordered, ordered[-1] + 1)[[-1 - n_test - n_val, -1 - n_test]]
    else:
        start = start_time.rename(TIME).to_frame().select(local_day(timezone)).to_series().to_numpy()
        test_from = start.max() + 1 - int(split["test_days"])
        val_from = test_from - int(split["val_days"] or 0)
    split_of_session = np.where(start >= test_from, 2, np.where(start >= val_from, 1, 0)).astype(np.uint8)
    return events.with_columns(pl.Series(SPLIT, split_of_session).gather(events[SESSION_ID]))


def hold_out_users(events: pl.DataFrame, share: float, in_log: np.ndarray) -> pl.DataFrame:
    """Drops the training sessions of a share of the users, and the other sessions of all other users.

    The users are sampled once from all users of the log (``in_log``, by code): the same ones for the same log.
    """
    is_held_out, n_users = np.zeros(len(in_log), bool), int(in_log.sum())
    is_held_out[in_log] = np.random.default_rng(0).permutation(n_users) < round(share * n_users)
    is_training = events[SPLIT] == SPLITS.index("train")
    return events.filter(pl.Series(is_held_out).gather(events[USER]) != is_training)
