"""Which sessions are training, validation and test: by the day on which they start, or by user."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.preprocessing.sessions import SESSION_ID
from arnn_lightning.readers.schema import USER

SPLITS = ("train", "val", "test")
SPLIT = "split"  # index into SPLITS


def assign_splits(events: pl.DataFrame, start_day: np.ndarray, days: Mapping[str, Any]) -> pl.DataFrame:
    """Adds the column ``split``: sessions of the last ``test_days`` are test, of the ``val_days`` before validation.

    A session belongs to the split in which it starts. The last day is the one on which the last session starts.

    Args:
        events: events with their session ids, numbered from 0.
        start_day: (sessions,) day since 1970 on which each session starts.
        days: ``test_days`` and ``val_days``.
    """
    age = start_day.max() - start_day
    test_days, val_days = int(days["test_days"]), int(days["val_days"])
    split_of_session = np.where(age < test_days, 2, np.where(age < test_days + val_days, 1, 0)).astype(np.uint8)
    return events.with_columns(pl.Series(SPLIT, split_of_session).gather(events[SESSION_ID]))


def hold_out_users(events: pl.DataFrame, share: float, in_log: np.ndarray) -> pl.DataFrame:
    """Drops the training sessions of a share of the users, and the other sessions of all other users.

    The users are sampled once from all users of the log (``in_log``, by code): the same ones for the same log.
    """
    is_held_out, n_users = np.zeros(len(in_log), bool), int(in_log.sum())
    is_held_out[in_log] = np.random.default_rng(0).permutation(n_users) < round(share * n_users)
    is_training = events[SPLIT] == SPLITS.index("train")
    return events.filter(pl.Series(is_held_out).gather(events[USER]) != is_training)
