"""Context fields, and whose contexts a session gets."""

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
    encode_profiles,
    most_popular,
    select_attributes,
)

# Users 0 and 1 have training events, user 2 only others, user 3 none.
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
def test_most_popular_is_the_smallest_covering_set(counts: list[int], coverage: float) -> None:
    kept = most_popular(pl.DataFrame({"id": range(len(counts)), "events": counts}), coverage)["events"].to_list()
    assert sum(kept) >= coverage * sum(counts)
    assert Counter(kept) == Counter(count for count in counts if count >= min(kept))  # every tie is kept
    assert sum(count for count in kept if count > min(kept)) < coverage * sum(counts)


def test_most_popular_keeps_the_order_of_rows() -> None:
    assert most_popular(pl.DataFrame({"id": [4, 1, 3, 2], "events": [2, 5, 1, 2]}), 0.6)["id"].to_list() == [4, 1, 2]


def test_most_popular_of_an_empty_table_is_empty() -> None:
    assert most_popular(
        pl.DataFrame({"id": [], "events": []}, schema={"id": pl.Int64, "events": pl.Int64}), 0.5
    ).is_empty()


@pytest.mark.parametrize("percent", [7, 14, 28, 55, 56])
def test_most_popular_stops_at_exact_coverage(percent: int) -> None:
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
    ]  # only a user without training events
    assert categories(contexts, "level") == {"a": 1, "b": 2}
    assert contexts.single_sizes == [3]
    assert contexts.users["context.level"].dtype == pl.UInt32


def test_user_id_field_is_unknown_for_users_unseen_in_training() -> None:
    contexts = encoded(["user", "level"], [])
    assert contexts.users["context.user"].to_list() == [1, 2, 0, 3]
    assert contexts.single_sizes == [4, 3]
    assert categories(contexts, "user") == {"10": 1, "20": 2, "40": 3}


def test_attribute_without_values_has_one_unknown_code() -> None:
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


def test_unpopular_categories_share_one_field() -> None:
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
def test_active_lists_are_sorted_unique_and_empty_if_unknown(roles: list[list[str]]) -> None:
    contexts = encoded([], ["roles"], users=USERS.with_columns(roles=pl.Series(roles, dtype=pl.List(pl.String))))
    for values, active in zip(roles, contexts.users["active"].to_list(), strict=True):
        assert active == sorted(set(active))
        assert all(0 <= code < contexts.n_binary for code in active)
        if contexts.n_binary:
            assert bool(active) == bool(values)


def test_n_known_counts_the_known_attributes_of_a_user() -> None:
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


def test_encoding_does_not_depend_on_the_order_of_users() -> None:
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
def test_attribute_of_the_wrong_kind_is_named(single: list[str], multi: list[str], kind: str) -> None:
    with pytest.raises(UserError, match=rf"must be listed under data\.contexts\.{kind}$"):
        encoded(single, multi)


# --- assignment ---

SESSIONS = np.array([3, 0, 0, 2, 3, 3, 1, 2, 0, 7, 5, 5])  # the users of twelve sessions
N_USERS = 9


def assigned(assignment: Assignment, seed: int = 1) -> list[int]:
    users: list[int] = assign_contexts(SESSIONS.copy(), N_USERS, assignment, seed).tolist()
    return users


def test_own_assigns_each_users_contexts() -> None:
    assert assigned("own") == SESSIONS.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_permuted_assigns_one_other_user_to_each_user(seed: int) -> None:
    pairs = set(zip(SESSIONS.tolist(), assigned("permuted", seed), strict=True))
    users = len(set(SESSIONS.tolist()))
    assert len(pairs) == users  # one other user for each
    assert len({other for _, other in pairs}) == users  # and none for two
    assert all(0 <= other < N_USERS for _, other in pairs)


def test_permuted_assigns_the_same_user_in_every_split() -> None:
    train = assign_contexts(np.arange(N_USERS), N_USERS, "permuted", 3)
    assert sorted(train.tolist()) == list(range(N_USERS))
    test = assign_contexts(np.array([4, 4, 8]), N_USERS, "permuted", 3)
    assert test.tolist() == train[[4, 4, 8]].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_per_session_keeps_the_frequency_of_each_user(seed: int) -> None:
    assert Counter(assigned("per_session", seed)) == Counter(SESSIONS.tolist())


def test_per_session_assigns_several_users_to_one_user() -> None:
    pairs = {pair for seed in range(5) for pair in zip(SESSIONS.tolist(), assigned("per_session", seed), strict=True)}
    assert len({other for user, other in pairs if user == 0}) > 1


def test_unknown_assigns_the_row_past_the_last_user() -> None:
    assert assigned("unknown") == [N_USERS] * len(SESSIONS)


@pytest.mark.parametrize("assignment", ["own", "permuted", "per_session", "unknown"])
def test_assignment_depends_on_its_seed_only(assignment: Assignment) -> None:
    assert assigned(assignment, 1) == assigned(assignment, 1)
    if assignment in ("permuted", "per_session"):
        assert len({tuple(assigned(assignment, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("assignment", ["own", "permuted", "per_session", "unknown"])
def test_assignment_does_not_modify_its_input(assignment: Assignment) -> None:
    users = SESSIONS.copy()
    assign_contexts(users, N_USERS, assignment, 1)
    assert users.tolist() == SESSIONS.tolist()


def test_unknown_assignment_is_named() -> None:
    with pytest.raises(
        UserError, match=r"data\.contexts\.assignment=stranger: choose own, permuted, per_session or unknown"
    ):
        assign_contexts(SESSIONS, N_USERS, "stranger", 1)  # type: ignore[arg-type]


# --- the number of attributes ---


@pytest.mark.parametrize("n_attributes", range(5))
def test_selected_attributes_equal_encoding_them_alone(n_attributes: int) -> None:
    """Multi-valued attributes come first; what is left is what an encoding of those attributes alone gives."""
    users = USERS.with_columns(city=pl.Series(["u", "v", "w", "u"]))
    single, multi = ["city", "level"], ["fields", "roles"]
    whole = encoded(single, multi, users=users)
    dims = {"n_items": 7, "single_sizes": whole.single_sizes, "n_binary": whole.n_binary}
    fields = {"single": single, "multi": multi}
    selected, sizes = select_attributes(whole.users, dims, whole.vocabulary, fields, n_attributes)
    alone = encoded(single[: max(n_attributes - 2, 0)], multi[:n_attributes], users=users)
    assert sizes == {"n_items": 7, "single_sizes": alone.single_sizes, "n_binary": alone.n_binary}
    assert selected.drop("n_known").equals(alone.users.drop("n_known"))


@pytest.mark.parametrize("n_attributes", [-1, "two", True, 1.5])
def test_n_attributes_must_be_a_count(n_attributes: Any) -> None:
    whole = encoded(["level"], ["roles"])
    dims = {"single_sizes": whole.single_sizes, "n_binary": whole.n_binary}
    with pytest.raises(UserError, match=r"data\.contexts\.n_attributes="):
        select_attributes(whole.users, dims, whole.vocabulary, {"single": ["level"], "multi": ["roles"]}, n_attributes)


def test_profiles_are_coded_as_the_users_that_were_fitted() -> None:
    contexts = encoded(["level"], ["roles", "fields"], coverage=0.5)
    codes, unseen = encode_profiles(USERS.drop("user"), ["level"], contexts.vocabulary)
    assert codes.equals(contexts.users.drop("n_known"))
    assert unseen.rows() == [(2, "level", "c")]  # no user with training events has it


def test_profiles_without_an_attribute_are_unknown() -> None:
    contexts = encoded(["level"], ["roles"])
    codes, unseen = encode_profiles(pl.DataFrame({"roles": [["x"], None]}), ["level"], contexts.vocabulary)
    assert codes.rows() == [(0, [0]), (0, [])]
    assert unseen.is_empty()
