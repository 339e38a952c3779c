"""Every user's context codes, and whose contexts a session gets (controls). U users, S fields, A active fields."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import torch

from arnn_lightning.batch import Contexts
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import PREFIX

Assignment = Literal["own", "permuted", "per_session", "unknown"]


def assign_contexts(users: np.ndarray, n_users: int, assignment: Assignment, seed: int) -> np.ndarray:
    """The user whose contexts each session gets: (S,) users of the sessions -> (S,) users.

    Args:
        users: user code of every session.
        n_users: number of users U.
        assignment: ``own``; ``permuted``: every user gets the contexts of one other user for good; ``per_session``:
            the sessions of a split swap users, so that contexts keep their frequencies and carry no information;
            ``unknown``: the user code U, the row past the last, stands for unknown contexts.
        seed: of the permutation.

    Raises:
        UserError: another ``assignment``.
    """
    rng = np.random.default_rng(seed)
    if assignment == "own":
        return users
    if assignment == "permuted":
        assigned: np.ndarray = rng.permutation(n_users)[users]
        return assigned
    if assignment == "per_session":
        return rng.permutation(users)
    if assignment == "unknown":
        return np.full_like(users, n_users)
    raise UserError(f"data.contexts.assignment={assignment}: choose own, permuted, per_session or unknown")


def context_codes(users: pl.DataFrame, single_sizes: Sequence[int]) -> Contexts:
    """Codes of every user (U + 1 rows); the last row stands for unknown contexts.

    Args:
        users: the prepared data set's users: one column ``context.<name>`` per single-valued field, and ``active``.
        single_sizes: number of codes of each single-valued field.
    """
    lengths = users["active"].list.len().to_numpy().astype(np.int64)
    active = np.full((users.height + 1, max(int(lengths.max(initial=0)), 1)), -1, np.int64)
    rows = np.repeat(np.arange(users.height), lengths)
    columns = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    active[rows, columns] = users["active"].explode().drop_nulls().to_numpy()
    single = np.zeros((users.height + 1, len(single_sizes)), np.int64)
    if single_sizes:
        single[:-1] = users.select(pl.col(f"^{re.escape(PREFIX)}.*$")).to_numpy()
    offset = np.cumsum([0, *single_sizes])[:-1]
    return Contexts(torch.from_numpy(single + offset), torch.from_numpy(active))
