"""Metrics, groups and intervals from ranks, against loops over raw scores that share no line with the code."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

from arnn_lightning.evaluation.bootstrap import interval, percentile_limits, seed_bootstrap_means
from arnn_lightning.evaluation.groups import (
    by_category,
    by_known_attributes,
    by_popularity,
    by_position,
    by_seen,
    group_labels,
    group_metrics,
    tie_rate,
)
from arnn_lightning.evaluation.ranking import count_higher_and_tied
from arnn_lightning.evaluation.result import EvaluationResult

ITEMS, USERS = 230, 12
BOOTSTRAP = {"unit": "user", "resamples": 40, "confidence": 0.9}


@dataclass(frozen=True)
class Dataset:
    """Raw scores of two models on random sessions, with many ties."""

    test: pl.DataFrame
    scores: list[np.ndarray]  # (N, I) per model
    train: pl.DataFrame
    users: pl.DataFrame
    sessions: list[tuple[int, int, list[int]]]  # code, user, items

    @property
    def targets(self) -> list[tuple[int, int, int, int]]:
        """(session, position, user, target) of every prediction."""
        return [
            (code, place, user, items[place]) for code, user, items in self.sessions for place in range(1, len(items))
        ]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(3)
    lengths = [2, 3, 2, 14, 5, 2, 7, 12, 3, 2, 4, 6, 2, 2, 9, 3, 2, 5, 3, 4]
    sessions = [
        (100 + index, int(rng.integers(0, USERS)), rng.integers(0, ITEMS, length).tolist())
        for index, length in enumerate(lengths)
    ]
    rows = [(code, user, item, 0) for code, user, items in sessions for item in items]
    test = pl.DataFrame(rows, schema=["session", "user", "item", "time"], orient="row")
    n_predictions = sum(length - 1 for length in lengths)
    scores = [rng.integers(0, levels, (n_predictions, ITEMS)).astype(np.float32) for levels in (40, 9)]
    train = pl.DataFrame({"user": rng.integers(0, USERS - 4, 900), "item": (ITEMS * rng.random(900) ** 3).astype(int)})
    users = pl.DataFrame({"user": range(USERS), "n_known": [0, 5, 5, 3, 1, 3, 5, 2, 0, 3, 4, 5]})
    return Dataset(test, scores, train, users, sessions)


def result_of(dataset: Dataset, model: int, ties: str) -> EvaluationResult:
    scores, target = torch.from_numpy(dataset.scores[model]), torch.tensor([target[3] for target in dataset.targets])
    counts = count_higher_and_tied(lambda block: block.clone(), scores, target, ITEMS)
    shuffled = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    measured = {
        "session": torch.tensor([target[0] for target in dataset.targets])[shuffled],
        "position": torch.tensor([target[1] for target in dataset.targets])[shuffled],
        "higher": counts[shuffled, 0],
        "equal": counts[shuffled, 1],
    }
    return EvaluationResult.from_counts("m", measured, dataset.test, ties)


def rank_by_hand(score: np.ndarray, target: int, ties: str) -> float:
    """Sorts the scores and finds the first and last rank that the target can have."""
    descending = sorted(score.tolist(), reverse=True)
    first = descending.index(score[target]) + 1
    last = len(descending) - descending[::-1].index(score[target])
    return {"standard": first, "conservative": last, "median": (first + last) / 2}[ties]


def value_by_hand(rank: float, kind: str, k: int) -> float:
    if rank > k:
        return 0.0
    return {"recall": 1.0, "mrr": 1.0 / rank, "ndcg": math.log(2) / math.log(rank + 1)}[kind]


def interval_by_hand(value: list[float], cluster: list[int], seed: int) -> tuple[float, float]:
    """Resamples whole clusters, event by event."""
    there = sorted(set(cluster))
    events = {unit: [v for v, c in zip(value, cluster, strict=True) if c == unit] for unit in there}
    rng, means = np.random.default_rng(seed), []
    for _ in range(BOOTSTRAP["resamples"]):  # type: ignore[call-overload]
        resampled = [v for index in rng.integers(0, len(there), len(there)) for v in events[there[index]]]
        means.append(math.fsum(resampled) / len(resampled))
    means.sort()

    def quantile(share: float) -> float:
        place = share * (len(means) - 1)
        low = math.floor(place)
        return means[low] + (place - low) * (means[min(low + 1, len(means) - 1)] - means[low])

    return quantile(0.05), quantile(0.95)


@pytest.mark.parametrize("ties", ["conservative", "standard", "median"])
@pytest.mark.parametrize("unit", ["user", "session"])
def test_V14_metrics_and_intervals_equal_loops_over_scores(dataset: Dataset, ties: str, unit: str) -> None:
    mine, other = result_of(dataset, 0, ties), result_of(dataset, 1, ties)
    items = [target[3] for target in dataset.targets]
    ranks, others = (
        [rank_by_hand(score, item, ties) for score, item in zip(scores, items, strict=True)]
        for scores in dataset.scores
    )
    assert mine.ranks["rank"].to_list() == ranks
    bootstrap = BOOTSTRAP | {"unit": unit}
    cluster = [target[2] if unit == "user" else target[0] for target in dataset.targets]
    for kind in ("recall", "mrr", "ndcg"):
        for k in (1, 20, 50):
            value = [value_by_hand(rank, kind, k) for rank in ranks]
            measured = mine.metrics([f"{kind}@{k}"])
            assert measured[f"{kind}@{k}"] == pytest.approx(math.fsum(value) / len(value), abs=1e-9)
            per_session = [
                np.mean([v for v, target in zip(value, dataset.targets, strict=True) if target[0] == code])
                for code, _, _ in dataset.sessions
            ]
            assert measured[f"macro_{kind}@{k}"] == pytest.approx(np.mean(per_session), abs=1e-9)
            assert mine.interval(f"{kind}@{k}", bootstrap, 5) == pytest.approx(
                interval_by_hand(value, cluster, 5), abs=1e-9
            )
            gain = [v - value_by_hand(rank, kind, k) for v, rank in zip(value, others, strict=True)]
            expected = math.fsum(gain) / len(gain), *interval_by_hand(gain, cluster, 5)
            assert mine.paired_difference(other, f"{kind}@{k}", bootstrap, 5) == pytest.approx(expected, abs=1e-9)


def test_tie_mode_can_be_changed_without_the_model(dataset: Dataset) -> None:
    once = result_of(dataset, 1, "conservative")
    for ties in ("standard", "median"):
        assert once.with_tie_mode(ties).ranks.equals(result_of(dataset, 1, ties).ranks)
    items = [target[3] for target in dataset.targets]
    equal = [(score == score[item]).sum() for score, item in zip(dataset.scores[1], items, strict=True)]
    assert tie_rate(once.ranks["equal"]) == pytest.approx(np.mean([count > 1 for count in equal]), abs=1e-12)
    assert tie_rate(pl.Series([1, 1, 2, 1])) == 0.25


def position_by_hand(dataset: Dataset, prediction: tuple[int, int, int, int]) -> str:
    seen = prediction[1]
    return str(seen) if seen < 3 else "3-4" if seen < 5 else "5-9" if seen < 10 else "10+"


def known_attributes_by_hand(dataset: Dataset, prediction: tuple[int, int, int, int]) -> str:
    return str(dataset.users["n_known"][prediction[2]])  # every number has 5 % of the predictions here


def seen_by_hand(dataset: Dataset, prediction: tuple[int, int, int, int]) -> str:
    return "seen" if prediction[2] in dataset.train["user"].to_list() else "unseen"


def popularity_by_hand(dataset: Dataset, prediction: tuple[int, int, int, int]) -> str:
    counts = Counter(dataset.train["item"].to_list())
    ordered = sorted(range(ITEMS), key=lambda item: (-counts[item], item))
    place = ordered.index(prediction[3])
    if not counts[prediction[3]]:
        return "not in training"
    return "head 1 %" if place < math.ceil(len(counts) / 100) else "middle" if place < len(counts) / 2 else "tail"


GROUPS: dict[str, tuple[Callable[[Dataset, pl.DataFrame], pl.Series], Callable[..., str]]] = {
    "position": (lambda dataset, ranks: by_position(ranks["position"]), position_by_hand),
    "n_known": (lambda dataset, ranks: by_known_attributes(ranks["user"], dataset.users), known_attributes_by_hand),
    "seen": (lambda dataset, ranks: by_seen(ranks["user"], dataset.train), seen_by_hand),
    "popularity": (lambda dataset, ranks: by_popularity(ranks["item"], dataset.train, ITEMS), popularity_by_hand),
}


@pytest.mark.parametrize("group", GROUPS)
def test_group_metrics_equal_loops_over_raw_scores(
    dataset: Dataset, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arnn_lightning.evaluation.groups.MIN_CLUSTERS", 1)
    label, by_hand = GROUPS[group]
    mine = result_of(dataset, 0, "conservative")
    user = mine.ranks["user"].to_numpy()
    measured = group_metrics(
        {"mrr": [mine.per_prediction("mrr@50")]}, label(dataset, mine.ranks), user, BOOTSTRAP, seed=5
    )
    value = [
        value_by_hand(rank_by_hand(score, target[3], "conservative"), "mrr", 50)
        for score, target in zip(dataset.scores[0], dataset.targets, strict=True)
    ]
    names = [by_hand(dataset, target) for target in dataset.targets]
    assert set(measured["group"]) == set(names)
    assert len(set(names)) > 1
    users = sorted({target[2] for target in dataset.targets})
    for name, count, clusters, mean, low, high, gap, *_ in measured.iter_rows():
        inside = [v for v, n in zip(value, names, strict=True) if n == name]
        outside = [v for v, n in zip(value, names, strict=True) if n != name]
        assert count == len(inside)
        assert clusters == len({target[2] for n, target in zip(names, dataset.targets, strict=True) if n == name})
        assert gap == pytest.approx(np.mean(inside) - np.mean(outside), abs=1e-9)
        assert mean == pytest.approx(math.fsum(inside) / len(inside), abs=1e-9)
        # All users are resampled, those without a prediction in the group too; a resample without any is skipped.
        rng, means = np.random.default_rng(5), []
        for _ in range(BOOTSTRAP["resamples"]):  # type: ignore[call-overload]
            resampled = [
                v
                for index in rng.integers(0, len(users), len(users))
                for v, n, target in zip(value, names, dataset.targets, strict=True)
                if n == name and target[2] == users[index]
            ]
            means += [np.mean(resampled)] if resampled else []
        assert [low, high] == pytest.approx(np.quantile(means, [0.05, 0.95]).tolist(), abs=1e-9)


def test_small_groups_of_known_attributes_are_merged() -> None:
    users = pl.DataFrame({"user": range(6), "n_known": [7, 0, 3, 9, 4, 8]})
    events = pl.Series(np.repeat(range(6), [100, 2, 3, 1, 50, 4]))
    counts = dict(by_known_attributes(events, users).value_counts().iter_rows())
    assert counts == {"0-4": 55, "7-9": 105}
    for sizes, expected in (([5, 90, 5], {"0": 5, "1": 90, "2": 5}), ([96, 4], {"0-1": 100})):  # 5 % is enough
        users = pl.DataFrame({"user": range(len(sizes)), "n_known": range(len(sizes))})
        events = pl.Series(np.repeat(range(len(sizes)), sizes))
        assert dict(by_known_attributes(events, users).value_counts().iter_rows()) == expected


def test_V14_user_intervals_cover_the_truth_88_to_99_of_100() -> None:
    """Users differ in accuracy and in number of predictions; predictions of one user are not independent."""
    truth, by_user, by_event = 0.3, 0, 0
    for dataset in range(100):
        rng = np.random.default_rng([11, dataset])
        right = rng.beta(0.6, 1.4, 150)  # mean .3, far apart
        user = np.repeat(np.arange(150), 1 + rng.poisson(5, 150))
        value = (rng.random(len(user)) < right[user]).astype(np.float64)
        low, high = interval(value, user, resamples=300, confidence=0.95, seed=dataset)
        by_user += low <= truth <= high
        low, high = interval(value, np.arange(len(user)), resamples=100, confidence=0.95, seed=dataset)
        by_event += low <= truth <= high
    assert 88 <= by_user <= 99
    assert by_event < 88  # what ignoring users would cost


def test_head_is_1_percent_of_trained_items_tail_the_half() -> None:
    train = pl.DataFrame({"user": 0, "item": np.repeat(np.arange(230), np.arange(230))})  # item 229 leads
    labels = by_popularity(pl.Series(range(230)), train, 230)
    assert labels.to_list() == ["not in training"] + ["tail"] * 114 + ["middle"] * 112 + ["head 1 %"] * 3


def test_categories_beyond_the_largest_are_one_group() -> None:
    sizes = dict(zip("abcdefghijk", [12, 2, 11, 3, 10, 4, 9, 5, 8, 6, 7], strict=True))
    code = np.repeat(np.arange(12), [3, *sizes.values()])  # 0: unknown
    labels = by_category(pl.Series(range(len(code))), code, ["unknown", *"abcdefghijk"])
    counts = dict(labels.value_counts().iter_rows())
    assert counts == {"unknown": 3, "(others)": 2 + 3 + 4, **{name: sizes[name] for name in "aceghijk"}}
    assert labels.dtype.categories.to_list() == ["unknown", *"aceghijk", "(others)"]  # type: ignore[attr-defined]
    eight = ["unknown", *"abcdefgh"]
    whole = by_category(pl.Series(range(9)), np.arange(9), eight)
    assert whole.dtype.categories.to_list() == eight  # type: ignore[attr-defined]


def test_a_category_of_the_log_may_have_the_name_of_the_merged_ones() -> None:
    names = ["unknown", "(others)", *"abcdefghi"]
    code = np.repeat(np.arange(11), [1, *range(12, 2, -1)])
    assert (
        by_category(pl.Series(range(len(code))), code, names).dtype.categories.to_list()
        == [  # type: ignore[attr-defined]
            *names[:9],
            "((others))",
        ]
    )


def test_the_gaps_of_two_groups_are_one_hypothesis() -> None:
    user = np.arange(60)
    label = by_category(pl.Series(user), 1 + user % 2, ["unknown", "a", "b"])
    table = group_metrics(
        {"hit": [(user % 2).astype(np.float64)]}, label, user, {"resamples": 99, "confidence": 0.9}, 1
    )
    assert table["hit_gap_p"].to_list() == [0.02, 0.02]  # the least that 99 resamples can give, not twice as much
    label = by_category(pl.Series(user), 1 + user % 3, ["unknown", "a", "b", "c"])
    table = group_metrics(
        {"hit": [(user % 3 == 0).astype(np.float64)]}, label, user, {"resamples": 99, "confidence": 0.9}, 1
    )
    assert table["hit_gap_p"].to_list() == pytest.approx([0.06] * 3)  # three are


def test_intervals_of_groups_are_over_users_and_seeds() -> None:
    rng, user = np.random.default_rng(6), np.repeat(np.arange(40), 2)
    label = by_category(pl.Series(user), 1 + np.arange(40) % 2, ["unknown", "a", "b"])
    values = rng.random((3, 80)) + np.array([[0.0], [0.3], [0.9]])
    table = group_metrics({"hit": [*values]}, label, user, {"resamples": 99, "confidence": 0.9}, 1)
    columns = np.where((user % 2)[:, None] == [0, 1], values[:, :, None], np.nan)
    limits = percentile_limits(seed_bootstrap_means(columns, user, 99, 1), 0.9)
    np.testing.assert_allclose(table.select("hit_low", "hit_high").to_numpy().T, limits)


def test_V14_intervals_of_gaps_cover_the_truth() -> None:
    """Three groups of users that differ in accuracy; trainings differ, too."""
    truth, missed, rejected = np.array([0.3, 0.5, 0.5]), np.zeros(3), 0
    size = {"resamples": 200, "confidence": 0.95}
    for trial in range(120):
        rng = np.random.default_rng([5, trial])
        group = rng.integers(0, 3, 150)
        user = np.repeat(np.arange(150), 1 + rng.poisson(3, 150))
        effect = truth[group] + rng.normal(0, 0.1, 150)
        values = [effect[user] + rng.normal(0, 0.05) + rng.normal(0, 0.3, len(user)) for _ in range(3)]
        label = by_category(pl.Series(user), group, ["a", "b", "c"])
        measured = group_metrics({"hit": values}, label, user, size, trial)
        weight = np.bincount(group[user]).astype(float)  # the mean of all others depends on the sizes of their groups
        others = (weight @ truth - weight * truth) / (weight.sum() - weight)
        low, high = measured["hit_gap_low"].to_numpy(), measured["hit_gap_high"].to_numpy()
        missed += ~((low <= truth - others) & (truth - others <= high))
        rejected += bool((measured["hit_gap_p"] < 0.05).any())
    assert rejected > 80
    assert (missed <= 15).all()  # 6 of 120 are expected


def test_intervals_of_groups_of_few_users_are_left_out() -> None:
    user = pl.Series([*range(20), *range(4)])
    label = by_category(user, np.repeat([1, 2], [4, 16]), ["unknown", "few", "many"])
    value = np.random.default_rng(1).random(24)
    few, many = group_metrics({"hit": [value]}, label, user.to_numpy(), BOOTSTRAP, 1).iter_rows(named=True)
    assert few["clusters"] == 4
    assert few["hit_low"] is few["hit_gap_p"] is None
    assert many["hit_low"] < many["hit"] < many["hit_high"]
    assert many["hit_gap_low"] is many["hit_gap_p"] is None  # a difference to four users
    assert few["hit_gap"] == pytest.approx(-many["hit_gap"])
    (everyone,) = group_metrics({"hit": [value]}, by_seen(user, user.to_frame("user")), user, BOOTSTRAP, 1).iter_rows(
        named=True
    )
    assert {value for name, value in everyone.items() if "_gap" in name} == {None}
    assert everyone["hit_low"] is not None


def test_an_attribute_with_the_name_of_another_way_to_group_is_marked() -> None:
    ranks = pl.DataFrame({"position": [1, 2], "user": [0, 1], "item": [0, 1]})
    users = pl.DataFrame({"user": [0, 1], "n_known": [0, 1]})
    attribute = (np.array([0, 1]), ["unknown", "a"])
    names = ("age", "position", "known attributes", "known_attributes")
    labels = group_labels(ranks, users, ranks, 2, dict.fromkeys(names, attribute))
    assert [*labels][4:] == ["age", *(f"{name} (attribute)" for name in names[1:])]
