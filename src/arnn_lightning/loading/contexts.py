"""Every user's context codes, and whose contexts a session gets (controls). U users, S fields, A active fields."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import torch
from torch import Tensor

from arnn_lightning.batch import Contexts
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.contexts import PREFIX

Assignment = Literal["own", "permuted", "per_session", "unknown"]


def assign_contexts(users: np.ndarray, n_users: int, assignment: Assignment, seed: int, n_new: int = 0) -> np.ndarray:
    """The user whose contexts each session gets: (S,) users of the sessions -> (S,) users.

    Args:
        users: user code of every session.
        n_users: number of users U.
        assignment: ``own``; ``permuted``: a random permutation of the users, which may keep some; ``per_session``:
            the sessions of a split swap users, so that contexts keep their frequencies and carry no information;
            ``unknown``: the user code U, the row past the last, means unknown contexts.
        seed: of the permutation.
        n_new: how many users, the last ones, are new in a later log; ``permuted`` permutes them among themselves, so
            that the others get the contexts that they had in training.

    Raises:
        UserError: another ``assignment``.
    """
    rng = np.random.default_rng(seed)
    if assignment == "own":
        return users
    if assignment == "permuted":
        n_trained = n_users - n_new
        assigned = np.append(rng.permutation(n_trained), n_trained + rng.permutation(n_new))
        return cast(np.ndarray, assigned[users])
    if assignment == "per_session":
        return rng.permutation(users)
    if assignment == "unknown":
        return np.full_like(users, n_users)
    raise UserError(f"data.contexts.assignment={assignment}: choose own, permuted, per_session or unknown")


def single_attributes(users: pl.DataFrame) -> list[str]:
    """The single-valued attributes of a prepared data set's users, in the order of their fields."""
    return [column.removeprefix(PREFIX) for column in users.columns if column.startswith(PREFIX)]


def context_codes(users: pl.DataFrame, single_sizes: Sequence[int]) -> Contexts:
    """Codes of every user (U + 1 rows); the last row means unknown contexts.

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
        single[:-1] = users.select(f"{PREFIX}{name}" for name in single_attributes(users)).to_numpy()
    offset = np.cumsum([0, *single_sizes])[:-1]
    return Contexts(torch.from_numpy(single + offset), torch.from_numpy(active))


def has_profile(contexts: Contexts, unknown_S: Tensor) -> Tensor:
    """(N,) whether any attribute is known of each user; ``unknown_S``: the codes of unknown single-valued fields."""
    return (contexts.single != unknown_S).any(1) | (contexts.active >= 0).any(1)


def assign_item_contexts(items: pl.DataFrame, assignment: Assignment, seed: int) -> pl.DataFrame:
    """A prepared data set's items, each with the contexts of the item that ``assignment`` gives it."""
    columns = [name for name in items.columns if name.startswith(PREFIX) or name == "active"]
    rows = assign_contexts(np.arange(items.height), items.height, assignment, seed)
    return items.with_columns(items[rows].select(columns))


def item_context_codes(items: pl.DataFrame, dims: Mapping[str, Any]) -> Contexts:
    """Codes of every item (I rows); ``dims``: the sizes that models measure from data."""
    return Contexts(*(codes[:-1] for codes in context_codes(items, dims["item_single_sizes"])))


class AttributeDropout:
    """Hides attributes in training, so that a model learns to recommend without them.

    Half of ``share`` hides whole profiles, as those of visitors who are not logged in, the rest single attributes.
    What is hidden depends on the seed, the epoch and the session alone (E27).

    Args:
        share: of the attributes, in expectation.
        contexts: every user's context codes, the last row for unknown contexts.
        binary_attributes: (M,) the attribute that each binary field belongs to; those of one are adjacent.
        n_sessions: number of training sessions.
        seed: of the samples.
    """

    def __init__(
        self, share: float, contexts: Contexts, binary_attributes: pl.Series, n_sessions: int, seed: int
    ) -> None:
        self.share = share
        self.unknown_S = contexts.single[-1]
        self.n_single = len(self.unknown_S)
        number_M = binary_attributes.rle_id().to_numpy().astype(np.int64)
        self.column_M = torch.from_numpy(number_M + self.n_single)
        self.shape = (n_sessions, self.n_single + binary_attributes.n_unique())
        self.seed = seed
        self._epoch, self._hidden = -1, np.empty((0, 0), bool)

    def hidden(self, epoch: int) -> Tensor:
        """(sessions, attributes) whether an attribute is hidden, single-valued ones first."""
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            profile = self.share / 2
            single = (self.share - profile) / (1 - profile)  # of what is left
            is_hidden = rng.random((self.shape[0], 1), np.float32) < profile
            self._hidden = is_hidden | (rng.random(self.shape, np.float32) < single)
            self._epoch = epoch
        return torch.from_numpy(self._hidden)

    def apply(self, contexts: Contexts, hidden: Tensor) -> Contexts:
        """Codes (..., S) and (..., A) in which attributes with ``hidden`` (..., attributes) are unknown."""
        single = torch.where(hidden[..., : self.n_single], self.unknown_S, contexts.single)
        if not len(self.column_M):
            return Contexts(single, contexts.active)
        is_hidden = hidden.gather(-1, self.column_M[contexts.active.clamp(min=0)])
        return Contexts(single, contexts.active.masked_fill(is_hidden, -1))
