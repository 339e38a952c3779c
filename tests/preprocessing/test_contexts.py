"""Laws of the context fields and of whose contexts a session sees."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.errors import UserError
from arnn_lightning.loading.contexts import Assignment, assign_contexts
from arnn_lightning.preprocessing.contexts import (
    OTHER,
    EncodedContexts,
    encode_contexts,
    most_popular,
    select_attributes,
)

# Users 0 and 1 have training events, user 2 only others, user 3 tells nothing.
USERS = pl.DataFrame(
    {
        "user": [10, 20, 30, 40],
        "level": ["b", "a", "c", None],
        "roles": [["x", "y"], ["x"], ["z", "x"], None],
        "fields": [[], ["q", "p"], ["p"], []],
    },
    schema={"user": pl.Int64, "level": pl.String, "roles": pl.List(pl.String), "fields": pl.List(pl.String)},
)
EVENTS = pl.Series([3, 1, 0, 2])


def encoded(
    single: list[str], multi: list[str], coverage: float = 0.75, users: pl.DataFrame = USERS
) -> EncodedContexts:
    return encode_contexts(users, EVENTS, single, multi, coverage)


def categories(contexts: EncodedContexts, attribute: str) -> dict[str, int]:
    rows = contexts.vocabulary.filter(pl.col("attribute") == attribute)
    return dict(rows["category", "code"].iter_rows())


# --- most_popular ---


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_popular_rows_cover_the_share_and_no_fewer_levels_would(counts: list[int], coverage: float) -> None:
    kept = most_popular(pl.DataFrame({"id": range(len(counts)), "events": counts}), coverage)["events"].to_list()
    assert sum(kept) >= coverage * sum(counts)
    assert Counter(kept) == Counter(count for count in counts if count >= min(kept))  # every tie is kept
    assert sum(count for count in kept if count > min(kept)) < coverage * sum(counts)


def test_popular_keeps_the_order_of_its_rows() -> None:
    assert most_popular(pl.DataFrame({"id": [4, 1, 3, 2], "events": [2, 5, 1, 2]}), 0.6)["id"].to_list() == [4, 1, 2]


def test_popular_of_nothing_is_nothing() -> None:
    assert most_popular(
        pl.DataFrame({"id": [], "events": []}, schema={"id": pl.Int64, "events": pl.Int64}), 0.5
    ).is_empty()


@pytest.mark.parametrize("percent", [7, 14, 28, 55, 56])
def test_popular_stops_where_the_share_is_covered_exactly(percent: int) -> None:
    # In floating point 0.55 * 100 is 55.00000000000001, so that 55 of 100 would seem to fall short.
    counts = pl.Series([percent, *[1] * (100 - percent)])
    kept = most_popular(pl.DataFrame({"events": counts}), percent / 100)["events"].to_list()
    assert kept == [percent]


# --- single-valued fields ---


def test_code_0_is_unknown_for_missing_and_unseen_values() -> None:
    contexts = encoded(["level"], [])
    assert contexts.users["context.level"].to_list() == [
        2,
        1,
        0,
        0,
    ]  # "c" is told only by a user without training events
    assert categories(contexts, "level") == {"a": 1, "b": 2}
    assert contexts.single_sizes == [3]
    assert contexts.users["context.level"].dtype == pl.UInt32


def test_the_user_id_is_a_field_and_users_unseen_in_training_are_unknown() -> None:
    contexts = encoded(["user", "level"], [])
    assert contexts.users["context.user"].to_list() == [1, 2, 0, 3]
    assert contexts.single_sizes == [4, 3]
    assert categories(contexts, "user") == {"10": 1, "20": 2, "40": 3}


def test_an_attribute_that_nobody_tells_is_one_unknown_code() -> None:
    contexts = encoded(
        ["level"],
        ["roles"],
        users=USERS.with_columns(level=pl.lit(None, pl.String), roles=None).cast(dict(USERS.schema)),
    )
    assert contexts.single_sizes == [1]
    assert contexts.users["context.level"].to_list() == [0] * 4
    assert contexts.n_binary == 0
    assert contexts.users["active"].to_list() == [[]] * 4


def test_the_vocabulary_weighs_categories_by_training_events() -> None:
    rows = encoded(["level"], ["roles"], coverage=0.5).vocabulary.rows()
    assert rows == [
        ("level", "single", 1, "a", 1),
        ("level", "single", 2, "b", 3),
        ("roles", "multi", 0, "x", 4),
        ("roles", "multi", 1, OTHER, 3),
    ]


# --- multi-valued fields ---


def test_popular_categories_have_a_field_each_and_the_rest_share_one() -> None:
    # Weights: x 4 (users 0 and 1), y 3 (user 0); z is never seen in training.
    contexts = encoded([], ["roles"], coverage=0.5)
    assert categories(contexts, "roles") == {"x": 0, OTHER: 1}
    assert contexts.users["active"].to_list() == [[0, 1], [0], [0, 1], []]
    assert contexts.n_binary == 2
    assert encoded([], ["roles"], coverage=0.75).users["active"].to_list() == [[0, 1], [0], [0, 2], []]


def test_fields_of_a_second_attribute_follow_those_of_the_first() -> None:
    contexts = encoded(["level"], ["roles", "fields"], coverage=1.0)
    assert categories(contexts, "roles") == {"x": 0, "y": 1, OTHER: 2}
    assert categories(contexts, "fields") == {"p": 3, "q": 4, OTHER: 5}
    assert contexts.n_binary == 6
    assert contexts.users["active"].to_list() == [[0, 1], [0, 3, 4], [0, 2, 3], []]


def test_many_unpopular_categories_are_present_as_other_once() -> None:
    users = USERS.with_columns(roles=pl.Series([["x"], ["x"], ["b", "a", "c"], None], dtype=pl.List(pl.String)))
    assert encoded([], ["roles"], users=users).users["active"].to_list() == [[0], [0], [1], []]


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=6), min_size=4, max_size=4))
def test_active_lists_are_sorted_unique_and_empty_for_users_who_tell_nothing(roles: list[list[str]]) -> None:
    contexts = encoded([], ["roles"], users=USERS.with_columns(roles=pl.Series(roles, dtype=pl.List(pl.String))))
    for told, active in zip(roles, contexts.users["active"].to_list(), strict=True):
        assert active == sorted(set(active))
        assert all(0 <= code < contexts.n_binary for code in active)
        if contexts.n_binary:
            assert bool(active) == bool(told)


def test_known_counts_the_attributes_that_a_user_tells() -> None:
    contexts = encoded(["user", "level"], ["roles", "fields"])
    assert contexts.users["n_known"].to_list() == [3, 4, 4, 1]


def test_the_table_has_a_row_for_each_user_in_their_order() -> None:
    contexts = encoded(["level"], ["roles"])
    assert contexts.users.columns == ["context.level", "active", "n_known"]
    assert contexts.users.height == USERS.height


def test_data_without_attributes_has_no_fields() -> None:
    contexts = encoded([], [])
    assert (contexts.single_sizes, contexts.n_binary) == ([], 0)
    assert contexts.users["active"].to_list() == [[]] * 4
    assert contexts.users["n_known"].to_list() == [0] * 4


def test_the_order_of_users_decides_nothing() -> None:
    order = [2, 0, 3, 1]
    straight = encode_contexts(USERS, EVENTS, ["level"], ["roles", "fields"], 0.75)
    mixed = encode_contexts(USERS[order], EVENTS[order], ["level"], ["roles", "fields"], 0.75)
    assert mixed.vocabulary.equals(straight.vocabulary)
    assert mixed.users.equals(straight.users[order])


# --- errors ---


@pytest.mark.parametrize(("single", "multi"), [(["levle"], []), ([], ["levle"])])
def test_a_wrong_attribute_name_suggests_the_nearest(single: list[str], multi: list[str]) -> None:
    with pytest.raises(UserError, match=r"no attribute 'levle' \(did you mean \"level\"\?\)"):
        encoded(single, multi)


@pytest.mark.parametrize(
    ("single", "multi", "kind"), [(["roles"], [], "multi"), ([], ["level"], "single"), (["level"], ["user"], "single")]
)
def test_an_attribute_of_the_other_kind_says_where_it_belongs(single: list[str], multi: list[str], kind: str) -> None:
    with pytest.raises(UserError, match=rf"must be listed under data\.contexts\.{kind}$"):
        encoded(single, multi)


# --- draws ---

SESSIONS = np.array([3, 0, 0, 2, 3, 3, 1, 2, 0, 7, 5, 5])  # the users of twelve sessions
N_USERS = 9


def drawn(draw: Assignment, seed: int = 1) -> list[int]:
    users: list[int] = assign_contexts(SESSIONS.copy(), N_USERS, draw, seed).tolist()
    return users


def test_draw_user_shows_ones_own_contexts() -> None:
    assert drawn("own") == SESSIONS.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_draw_permuted_swaps_users_and_each_keeps_the_same_stranger(seed: int) -> None:
    pairs = set(zip(SESSIONS.tolist(), drawn("permuted", seed), strict=True))
    users = len(set(SESSIONS.tolist()))
    assert len(pairs) == users  # one stranger for each user
    assert len({shown for _, shown in pairs}) == users  # and no stranger for two
    assert all(0 <= shown < N_USERS for _, shown in pairs)


def test_draw_permuted_gives_a_user_the_same_stranger_in_every_split() -> None:
    train = assign_contexts(np.arange(N_USERS), N_USERS, "permuted", 3)
    assert sorted(train.tolist()) == list(range(N_USERS))
    test = assign_contexts(np.array([4, 4, 8]), N_USERS, "permuted", 3)
    assert test.tolist() == train[[4, 4, 8]].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_draw_session_keeps_how_often_each_user_is_shown(seed: int) -> None:
    assert Counter(drawn("per_session", seed)) == Counter(SESSIONS.tolist())


def test_draw_session_may_show_one_user_different_strangers() -> None:
    pairs = {pair for seed in range(5) for pair in zip(SESSIONS.tolist(), drawn("per_session", seed), strict=True)}
    assert len({shown for user, shown in pairs if user == 0}) > 1


def test_draw_constant_shows_everybody_the_unknown_user() -> None:
    assert drawn("unknown") == [N_USERS] * len(SESSIONS)


@pytest.mark.parametrize("draw", ["own", "permuted", "per_session", "unknown"])
def test_a_draw_depends_on_its_seed_alone(draw: Assignment) -> None:
    assert drawn(draw, 1) == drawn(draw, 1)
    if draw in ("permuted", "per_session"):
        assert len({tuple(drawn(draw, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("draw", ["own", "permuted", "per_session", "unknown"])
def test_a_draw_leaves_the_sessions_own_users_untouched(draw: Assignment) -> None:
    users = SESSIONS.copy()
    assign_contexts(users, N_USERS, draw, 1)
    assert users.tolist() == SESSIONS.tolist()


def test_an_unknown_draw_is_named() -> None:
    with pytest.raises(
        UserError, match=r"data\.contexts\.assignment=stranger: choose own, permuted, per_session or unknown"
    ):
        assign_contexts(SESSIONS, N_USERS, "stranger", 1)  # type: ignore[arg-type]


# --- how many attributes are told ---


@pytest.mark.parametrize("shown", range(5))
def test_models_are_told_of_the_first_attributes_as_if_there_were_no_others(shown: int) -> None:
    """Multi-valued attributes come first; what is left is what an encoding of those attributes alone gives."""
    users = USERS.with_columns(city=pl.Series(["u", "v", "w", "u"]))
    single, multi = ["city", "level"], ["fields", "roles"]
    whole = encoded(single, multi, users=users)
    dims = {"n_items": 7, "single_sizes": whole.single_sizes, "n_binary": whole.n_binary}
    fields = {"single": single, "multi": multi}
    told, sizes = select_attributes(whole.users, dims, whole.vocabulary, fields, shown)
    alone = encoded(single[: max(shown - 2, 0)], multi[:shown], users=users)
    assert sizes == {"n_items": 7, "single_sizes": alone.single_sizes, "n_binary": alone.n_binary}
    assert told.drop("n_known").equals(alone.users.drop("n_known"))


@pytest.mark.parametrize("shown", [-1, "two", True, 1.5])
def test_the_number_of_attributes_told_is_a_number(shown: Any) -> None:
    whole = encoded(["level"], ["roles"])
    dims = {"single_sizes": whole.single_sizes, "n_binary": whole.n_binary}
    with pytest.raises(UserError, match=r"data\.contexts\.n_attributes="):
        select_attributes(whole.users, dims, whole.vocabulary, {"single": ["level"], "multi": ["roles"]}, shown)
