"""Context fields, and whose contexts a session gets."""

import re
from collections import Counter
from datetime import date
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
    attribute_names,
    encode_contexts,
    encode_profiles,
    field_names,
    select_attributes,
    top_by_coverage,
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


def contexts(single: list[str], multi: list[str], **changes: Any) -> dict[str, Any]:
    return {"single": single, "multi": multi, "numeric": None, "min_events": 1, "coverage": 0.75} | changes


def encoded(
    single: list[str], multi: list[str], coverage: float = 0.75, users: pl.DataFrame = USERS
) -> EncodedContexts:
    return encode_contexts(users, EVENTS, contexts(single, multi, coverage=coverage))


def categories(encoding: EncodedContexts, attribute: str) -> dict[str, int]:
    rows = encoding.vocabulary.filter(pl.col("attribute") == attribute)
    return dict(rows["category", "code"].iter_rows())


# --- top_by_coverage ---


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_top_by_coverage_is_the_smallest_covering_set(counts: list[int], coverage: float) -> None:
    kept = top_by_coverage(pl.DataFrame({"id": range(len(counts)), "events": counts}), coverage)["events"].to_list()
    assert sum(kept) >= coverage * sum(counts)
    assert Counter(kept) == Counter(count for count in counts if count >= min(kept))  # every tie is kept
    assert sum(count for count in kept if count > min(kept)) < coverage * sum(counts)


def test_top_by_coverage_keeps_the_order_of_rows() -> None:
    assert top_by_coverage(pl.DataFrame({"id": [4, 1, 3, 2], "events": [2, 5, 1, 2]}), 0.6)["id"].to_list() == [4, 1, 2]


def test_top_by_coverage_of_an_empty_table_is_empty() -> None:
    assert top_by_coverage(
        pl.DataFrame({"id": [], "events": []}, schema={"id": pl.Int64, "events": pl.Int64}), 0.5
    ).is_empty()


@pytest.mark.parametrize("percent", [7, 14, 28, 55, 56])
def test_top_by_coverage_stops_at_exact_coverage(percent: int) -> None:
    # In floating point 0.55 * 100 is 55.00000000000001, so that 55 of 100 would seem to fall short.
    counts = pl.Series([percent, *[1] * (100 - percent)])
    kept = top_by_coverage(pl.DataFrame({"events": counts}), percent / 100)["events"].to_list()
    assert kept == [percent]


# --- single-valued fields ---


def test_code_0_is_unknown_for_missing_and_unseen_values() -> None:
    encoding = encoded(["level"], [])
    assert encoding.users["context.level"].to_list() == [
        2,
        1,
        0,
        0,
    ]  # only a user without training events
    assert categories(encoding, "level") == {"a": 1, "b": 2}
    assert encoding.single_sizes == [3]
    assert encoding.users["context.level"].dtype == pl.UInt32


def test_user_id_field_is_unknown_for_users_unseen_in_training() -> None:
    encoding = encoded(["user", "level"], [])
    assert encoding.users["context.user"].to_list() == [1, 2, 0, 3]
    assert encoding.single_sizes == [4, 3]
    assert categories(encoding, "user") == {"10": 1, "20": 2, "40": 3}


def test_attribute_without_values_has_one_unknown_code() -> None:
    encoding = encoded(
        ["level"],
        ["roles"],
        users=USERS.with_columns(level=pl.lit(None, pl.String), roles=None).cast(dict(USERS.schema)),
    )
    assert encoding.single_sizes == [1]
    assert encoding.users["context.level"].to_list() == [0] * 4
    assert encoding.n_binary == 0
    assert encoding.users["active"].to_list() == [[]] * 4


def test_the_vocabulary_weighs_categories_by_training_events() -> None:
    rows = encoded(["level"], ["roles"], coverage=0.5).vocabulary.rows()
    assert rows == [
        ("level", "single", 1, "a", 1, None),
        ("level", "single", 2, "b", 3, None),
        ("roles", "multi", 0, "x", 4, None),
        ("roles", "multi", 1, OTHER, 3, None),
    ]


# --- multi-valued fields ---


def test_unpopular_categories_share_one_field() -> None:
    # Weights: x 4 (users 0 and 1), y 3 (user 0); z is never seen in training.
    encoding = encoded([], ["roles"], coverage=0.5)
    assert categories(encoding, "roles") == {"x": 0, OTHER: 1}
    assert encoding.users["active"].to_list() == [[0, 1], [0], [0, 1], []]
    assert encoding.n_binary == 2
    # No training event has "other" then, so that its weights are random: z is unknown.
    assert encoded([], ["roles"], coverage=0.75).users["active"].to_list() == [[0, 1], [0], [0], []]


def test_a_category_named_as_other_is_other() -> None:
    users = USERS.with_columns(roles=pl.Series([[OTHER], ["x"], [], []], dtype=pl.List(pl.String)))
    encoding = encoded([], ["roles"], coverage=1, users=users)
    assert encoding.vocabulary["category"].to_list() == ["x", OTHER]
    assert encoding.users["active"].to_list() == [[1], [0], [], []]


def test_fields_of_a_second_attribute_follow_those_of_the_first() -> None:
    encoding = encoded(["level"], ["roles", "fields"], coverage=1.0)
    assert categories(encoding, "roles") == {"x": 0, "y": 1, OTHER: 2}
    assert categories(encoding, "fields") == {"p": 3, "q": 4, OTHER: 5}
    assert encoding.n_binary == 6
    assert encoding.users["active"].to_list() == [[0, 1], [0, 3, 4], [0, 3], []]


def test_many_unpopular_categories_are_present_as_other_once() -> None:
    roles = pl.Series([["x"], ["x", "d"], ["b", "a", "c"], None], dtype=pl.List(pl.String))
    encoding = encoded([], ["roles"], users=USERS.with_columns(roles=roles))
    assert encoding.users["active"].to_list() == [[0], [0, 1], [1], []]


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=6), min_size=4, max_size=4))
def test_active_lists_are_sorted_unique_and_empty_if_unknown(roles: list[list[str]]) -> None:
    encoding = encoded([], ["roles"], users=USERS.with_columns(roles=pl.Series(roles, dtype=pl.List(pl.String))))
    for values, active in zip(roles, encoding.users["active"].to_list(), strict=True):
        assert active == sorted(set(active))
        assert all(0 <= code < encoding.n_binary for code in active)
        if encoding.n_binary and encoding.vocabulary["events"][-1]:
            assert bool(active) == bool(values)


def test_n_known_counts_the_known_attributes_of_a_user() -> None:
    encoding = encoded(["user", "level"], ["roles", "fields"])
    assert encoding.users["n_known"].to_list() == [3, 4, 4, 1]


def test_the_table_has_a_row_for_each_user_in_their_order() -> None:
    encoding = encoded(["level"], ["roles"])
    assert encoding.users.columns == ["context.level", "active", "n_known"]
    assert encoding.users.height == USERS.height


def test_data_without_attributes_has_no_fields() -> None:
    encoding = encoded([], [])
    assert (encoding.single_sizes, encoding.n_binary) == ([], 0)
    assert encoding.users["active"].to_list() == [[]] * 4
    assert encoding.users["n_known"].to_list() == [0] * 4


def test_encoding_does_not_depend_on_the_order_of_users() -> None:
    order = [2, 0, 3, 1]
    straight = encode_contexts(USERS, EVENTS, contexts(["level"], ["roles", "fields"]))
    mixed = encode_contexts(USERS[order], EVENTS[order], contexts(["level"], ["roles", "fields"]))
    assert mixed.vocabulary.equals(straight.vocabulary)
    assert mixed.users.equals(straight.users[order])


# --- numeric attributes ---

AGES = st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float), st.floats(-9, 9)), min_size=1, max_size=30)


def numeric(values: list[float | None], bins: int | list[float], events: list[int] | None = None) -> EncodedContexts:
    users = pl.DataFrame({"user": range(len(values)), "age": pl.Series(values, dtype=pl.Float64)})
    settings = contexts([], [], numeric={"age": bins})
    return encode_contexts(users, pl.Series(events if events is not None else [1] * len(values)), settings)


def code_of(value: float | None, lows: list[float]) -> int:
    """Plain Python: the last interval that begins at or below the value, counted from 1; 0 for unknown."""
    return 0 if value is None else sum(low <= value for low in lows)


@given(AGES, st.lists(st.integers(-4, 4).map(float), unique=True, min_size=1, max_size=4).map(sorted))
def test_edges_divide_numbers_into_half_open_intervals(ages: list[float | None], edges: list[float]) -> None:
    encoding = numeric(ages, edges)
    assert encoding.vocabulary["low"].to_list() == [float("-inf"), *edges]
    assert encoding.single_sizes == [len(edges) + 2]
    assert encoding.users["context.age"].to_list() == [code_of(age, [float("-inf"), *edges]) for age in ages]


@given(AGES, st.integers(2, 6))
def test_quantile_bins_are_those_of_sorting(ages: list[float | None], bins: int) -> None:
    encoding = numeric(ages, bins)
    known = sorted(age for age in ages if age is not None)
    edges = {known[place * len(known) // bins] for place in range(1, bins)} - {known[0]} if known else set()
    lows = [float("-inf"), *sorted(edges)] if known else []
    assert encoding.vocabulary["low"].to_list() == lows
    assert encoding.users["context.age"].to_list() == [code_of(age, lows) for age in ages]
    assert encoding.vocabulary["events"].sum() == len(known)
    assert encoding.users["n_known"].to_list() == [int(age is not None) for age in ages]


def test_equal_bins_have_equally_many_users() -> None:
    encoding = numeric([float(age) for age in range(20)], 5)
    assert Counter(encoding.users["context.age"].to_list()) == dict.fromkeys(range(1, 6), 4)
    names = encoding.vocabulary["category"].to_list()
    assert names == ["< 4", "4 to < 8", "8 to < 12", "12 to < 16", ">= 16"]


def test_intervals_of_dates_are_named_by_years_and_days() -> None:
    days = [date(1955, 5, 1), date(1960, 1, 1), date(1985, 7, 2), date(1985, 7, 3), None]
    users = pl.DataFrame({"user": range(5), "birth": days})
    for bins, names, codes in (
        ([1960, 1985.5], ["< 1960", "1960 to < 1985-07-03", ">= 1985-07-03"], [1, 2, 2, 3, 0]),
        (2, ["< 1985-07-02", ">= 1985-07-02"], [1, 1, 2, 2, 0]),
    ):
        encoding = encode_contexts(users, pl.Series([1] * 5), contexts([], [], numeric={"birth": bins}))
        assert encoding.vocabulary["category"].to_list() == names
        assert encoding.users["context.birth"].to_list() == codes


def test_V3_bins_are_fitted_on_training_users_only() -> None:
    encoding = numeric([1.0, 2.0, 3.0, 4.0, 70.0, 80.0, 90.0], 2, events=[5, 1, 1, 1, 0, 0, 0])
    assert encoding.vocabulary["low"].to_list() == [float("-inf"), 3.0]
    assert encoding.vocabulary["events"].to_list() == [6, 2]
    assert encoding.users["context.age"].to_list() == [1, 1, 2, 2, 2, 2, 2]


def test_numbers_that_are_not_a_number_are_unknown() -> None:
    assert numeric([float("nan"), 1.0, None, 5.0], [2.0]).users["context.age"].to_list() == [0, 1, 0, 2]


def test_numeric_fields_follow_the_single_valued_ones() -> None:
    users = USERS.with_columns(age=pl.Series([1.0, 2.0, 3.0, None]))
    settings = contexts(["level"], ["roles"], numeric={"age": [2]})
    encoding = encode_contexts(users, EVENTS, settings)
    assert encoding.users.columns == ["context.level", "context.age", "active", "n_known"]
    assert encoding.single_sizes == [3, 3]
    dims = {"n_items": 7, "single_sizes": encoding.single_sizes, "n_binary": encoding.n_binary}
    assert attribute_names(settings) == ["roles", "level", "age"]
    for n_attributes, sizes in [(1, []), (2, [3]), (3, [3, 3])]:
        selected, kept = select_attributes(encoding.users, dims, encoding.vocabulary, settings, n_attributes)
        assert kept["single_sizes"] == sizes
        assert len(selected.columns) == 2 + len(sizes)


@pytest.mark.parametrize("known", [["2", "7", "10"], ["007", "2", "8"], ["10", "2", "7"], ["2", "x"], ["07", "7"], []])
@pytest.mark.parametrize("ids", [[2, 7, 8, 10], [10, 2, 7, 7], [None, 2, 7], [2, 7, None], []])
def test_ids_that_are_numbers_are_coded_by_their_texts(known: list[str], ids: list[int | None]) -> None:
    categories = [*known, OTHER]
    rows = {"attribute": "user", "kind": "single", "code": range(1, len(categories) + 1), "category": categories}
    vocabulary = pl.DataFrame(rows, schema_overrides={"code": pl.UInt32})
    code = dict(zip(known, range(1, len(known) + 1), strict=True))
    table, _ = encode_profiles(pl.DataFrame({"user": pl.Series(ids, dtype=pl.Int32)}), ["user"], vocabulary)
    expected = [0 if value is None else code.get(str(value), len(categories)) for value in ids]
    assert table["context.user"].to_list() == expected


def test_new_profiles_are_coded_by_the_vocabulary_alone() -> None:
    users = USERS.with_columns(age=pl.Series([1.0, 2.0, 3.0, None]))
    settings = contexts(["level"], ["roles"], numeric={"age": 2})
    encoding = encode_contexts(users, EVENTS, settings)
    again, _ = encode_profiles(users[[3, 1, 0]], field_names(settings), encoding.vocabulary)
    assert again.equals(encoding.users[[3, 1, 0]].drop("n_known"))
    new = pl.DataFrame(
        {"level": ["a", "?", None], "roles": [["y", "?"], [], None], "age": [99.0, -99.0, None]},
        schema_overrides={"roles": pl.List(pl.String)},
    )
    codes, unseen = encode_profiles(new, field_names(settings), encoding.vocabulary)
    assert codes["context.level"].to_list() == [1, 0, 0]
    assert codes["context.age"].to_list() == [2, 1, 0]
    assert codes["active"].to_list() == [[1], [], []]
    assert sorted(unseen.rows()) == [(0, "roles", "?"), (1, "level", "?")]
    codes, _ = encode_profiles(new.select("roles"), field_names(settings), encoding.vocabulary)
    assert codes.drop("active").rows() == [(0, 0)] * 3


# --- rare categories ---


@given(
    st.lists(st.tuples(st.sampled_from([*"abc", OTHER, None]), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_rare_categories_share_other(users: list[tuple[str | None, int]], min_events: int) -> None:
    values, events = zip(*users, strict=True)
    table = pl.DataFrame({"user": range(len(users)), "level": pl.Series(values, dtype=pl.String)})
    encoding = encode_contexts(table, pl.Series(events), contexts(["level"], [], min_events=min_events))
    counts = Counter[str]()
    for value, count in users:
        if value is not None and count:
            counts[value] += count
    kept = sorted(value for value, count in counts.items() if count >= min_events and value != OTHER)
    rare = sum(counts.values()) - sum(counts[value] for value in kept)
    names = kept + [OTHER] * (len(kept) < len(counts))
    assert encoding.vocabulary["category"].to_list() == names
    assert encoding.vocabulary["events"].to_list() == [counts[value] for value in kept] + [rare] * (rare > 0)
    default = len(names) if OTHER in names else 0
    codes = [0 if value is None else 1 + kept.index(value) if value in kept else default for value in values]
    assert encoding.users["context.level"].to_list() == codes


# --- errors ---


def test_a_numeric_attribute_must_consist_of_numbers() -> None:
    with pytest.raises(UserError, match=r"numeric: attribute 'level' consists of String.*data\.contexts\.single$"):
        encode_contexts(USERS, EVENTS, contexts([], [], numeric={"level": 3}))


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
def test_a_random_assignment_depends_on_its_seed(assignment: Assignment) -> None:
    assert assigned(assignment, 1) == assigned(assignment, 1)
    n_outcomes = len({tuple(assigned(assignment, seed)) for seed in range(5)})
    assert (n_outcomes > 1) == (assignment in ("permuted", "per_session"))


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
    fields = contexts(single, multi)
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


@pytest.mark.parametrize("edges", [[19500101, 19600101], [20000, 50000], [0, 30], [-5, 1960], [1960, 9998.5]], ids=str)
@pytest.mark.parametrize("owner", ["user", "item"])
def test_edges_of_dates_are_years(edges: list[float], owner: str) -> None:
    users = pl.DataFrame({owner: [1, 2], "birth": [date(1955, 5, 1), None]})
    section = {"user": "data.contexts", "item": "data.item_contexts"}[owner]
    words = f"{section}.numeric.birth={edges}: edges of dates are years, as in [1960,1980]"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        encode_contexts(users, pl.Series([1, 1]), contexts([], [], numeric={"birth": edges}), owner)


def test_an_attribute_of_items_may_be_named_user() -> None:
    items = pl.DataFrame({"item": [1, 2, 3], "user": ["seller b", "seller a", "seller b"]})
    encoding = encode_contexts(items, pl.Series([1, 1, 1]), contexts(["user"], []), "item")
    assert categories(encoding, "user") == {"seller a": 1, "seller b": 2}
    assert encoding.users["context.user"].to_list() == [2, 1, 2]
