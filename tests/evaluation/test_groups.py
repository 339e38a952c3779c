"""Metrics, groups and intervals from ranks, against loops over raw scores that share no line with the code."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

from arnn_lightning.evaluation.bootstrap import interval
from arnn_lightning.evaluation.groups import (
    breakdown,
    by_known,
    by_popularity,
    by_position,
    by_seen,
    list_metrics,
    means,
    tie_rate,
)
from arnn_lightning.evaluation.ranking import count_lists, count_ranks
from arnn_lightning.evaluation.result import Result, result

ITEMS, USERS = 230, 12
BOOTSTRAP = {"unit": "user", "resamples": 40, "confidence": 0.9}


@dataclass(frozen=True)
class World:
    """Raw scores of two models on random sessions, with many ties."""

    test: pl.DataFrame
    scores: list[np.ndarray]  # (N, I) per model
    train: pl.DataFrame
    users: pl.DataFrame
    sessions: list[tuple[int, int, list[int]]]  # code, user, items

    @property
    def attempts(self) -> list[tuple[int, int, int, int]]:
        """(session, position, user, target) one by one."""
        return [
            (code, place, user, items[place]) for code, user, items in self.sessions for place in range(1, len(items))
        ]


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(3)
    lengths = [2, 3, 2, 14, 5, 2, 7, 12, 3, 2, 4, 6, 2, 2, 9, 3, 2, 5, 3, 4]
    sessions = [
        (100 + index, int(rng.integers(0, USERS)), rng.integers(0, ITEMS, length).tolist())
        for index, length in enumerate(lengths)
    ]
    rows = [(code, user, item, 0) for code, user, items in sessions for item in items]
    test = pl.DataFrame(rows, schema=["session", "user", "item", "time"], orient="row")
    attempts = sum(length - 1 for length in lengths)
    scores = [rng.integers(0, levels, (attempts, ITEMS)).astype(np.float32) for levels in (40, 9)]
    train = pl.DataFrame({"user": rng.integers(0, USERS - 4, 900), "item": (ITEMS * rng.random(900) ** 3).astype(int)})
    users = pl.DataFrame({"user": range(USERS), "n_known": [0, 5, 5, 3, 1, 3, 5, 2, 0, 3, 4, 5]})
    return World(test, scores, train, users, sessions)


def result_of(world: World, model: int, ties: str) -> Result:
    scores, target = torch.from_numpy(world.scores[model]), torch.tensor([one[3] for one in world.attempts])
    counts = count_ranks(lambda block: block.clone(), scores, target, ITEMS)
    shuffled = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    told = {
        "session": torch.tensor([one[0] for one in world.attempts])[shuffled],
        "position": torch.tensor([one[1] for one in world.attempts])[shuffled],
        "higher": counts[shuffled, 0],
        "equal": counts[shuffled, 1],
    }
    return result("m", told, world.test, ties)


def rank_by_hand(score: np.ndarray, target: int, ties: str) -> float:
    """Sorts the scores and looks where the target could stand."""
    descending = sorted(score.tolist(), reverse=True)
    first = descending.index(score[target]) + 1
    last = len(descending) - descending[::-1].index(score[target])
    return {"standard": first, "conservative": last, "median": (first + last) / 2}[ties]


def value_by_hand(rank: float, kind: str, k: int) -> float:
    if rank > k:
        return 0.0
    return 1.0 if kind == "recall" else 1.0 / rank


def interval_by_hand(value: list[float], cluster: list[int], seed: int) -> tuple[float, float]:
    """Draws whole clusters, event by event."""
    there = sorted(set(cluster))
    events = {one: [v for v, c in zip(value, cluster, strict=True) if c == one] for one in there}
    rng, means = np.random.default_rng(seed), []
    for _ in range(BOOTSTRAP["resamples"]):  # type: ignore[call-overload]
        drawn = [v for index in rng.integers(0, len(there), len(there)) for v in events[there[index]]]
        means.append(math.fsum(drawn) / len(drawn))
    means.sort()

    def quantile(share: float) -> float:
        place = share * (len(means) - 1)
        low = math.floor(place)
        return means[low] + (place - low) * (means[min(low + 1, len(means) - 1)] - means[low])

    return quantile(0.05), quantile(0.95)


@pytest.mark.parametrize("ties", ["conservative", "standard", "median"])
@pytest.mark.parametrize("unit", ["user", "session"])
def test_V14_ranks_metrics_and_intervals_equal_loops_over_raw_scores(world: World, ties: str, unit: str) -> None:
    mine, other = result_of(world, 0, ties), result_of(world, 1, ties)
    ranks = [rank_by_hand(score, one[3], ties) for score, one in zip(world.scores[0], world.attempts, strict=True)]
    others = [rank_by_hand(score, one[3], ties) for score, one in zip(world.scores[1], world.attempts, strict=True)]
    assert mine.ranks["rank"].to_list() == ranks
    bootstrap = BOOTSTRAP | {"unit": unit}
    cluster = [one[2] if unit == "user" else one[0] for one in world.attempts]
    for kind in ("recall", "mrr"):
        for k in (1, 20, 50):
            value = [value_by_hand(rank, kind, k) for rank in ranks]
            told = mine.metrics([k])
            assert told[f"{kind}@{k}"] == pytest.approx(math.fsum(value) / len(value), abs=1e-9)
            per_session = [
                np.mean([v for v, one in zip(value, world.attempts, strict=True) if one[0] == code])
                for code, _, _ in world.sessions
            ]
            assert told[f"macro_{kind}@{k}"] == pytest.approx(np.mean(per_session), abs=1e-9)
            assert mine.interval(f"{kind}@{k}", bootstrap, 5) == pytest.approx(
                interval_by_hand(value, cluster, 5), abs=1e-9
            )
            gain = [v - value_by_hand(rank, kind, k) for v, rank in zip(value, others, strict=True)]
            expected = math.fsum(gain) / len(gain), *interval_by_hand(gain, cluster, 5)
            assert mine.difference(other, f"{kind}@{k}", bootstrap, 5) == pytest.approx(expected, abs=1e-9)


def test_ties_can_be_ranked_anew_without_the_model(world: World) -> None:
    once = result_of(world, 1, "conservative")
    for ties in ("standard", "median"):
        assert once.ranked(ties).ranks.equals(result_of(world, 1, ties).ranks)
    equal = [(score == score[one[3]]).sum() for score, one in zip(world.scores[1], world.attempts, strict=True)]
    assert tie_rate(once.ranks["equal"]) == pytest.approx(np.mean([count > 1 for count in equal]), abs=1e-12)


def position_by_hand(world: World, attempt: tuple[int, int, int, int]) -> str:
    seen = attempt[1]
    return str(seen) if seen < 3 else "3-4" if seen < 5 else "5-9" if seen < 10 else "10+"


def known_by_hand(world: World, attempt: tuple[int, int, int, int]) -> str:
    return str(world.users["n_known"][attempt[2]])  # every number has its twentieth here


def seen_by_hand(world: World, attempt: tuple[int, int, int, int]) -> str:
    return "seen" if attempt[2] in world.train["user"].to_list() else "unseen"


def popularity_by_hand(world: World, attempt: tuple[int, int, int, int]) -> str:
    counts = Counter(world.train["item"].to_list())
    ordered = sorted(range(ITEMS), key=lambda item: (-counts[item], item))
    place = ordered.index(attempt[3])
    return "head 1 %" if place < 3 else "middle" if place < 115 else "tail"


GROUPS: dict[str, tuple[Callable[[World, pl.DataFrame], pl.Series], Callable[..., str]]] = {
    "position": (lambda world, ranks: by_position(ranks["position"]), position_by_hand),
    "known": (lambda world, ranks: by_known(ranks["user"], world.users), known_by_hand),
    "seen": (lambda world, ranks: by_seen(ranks["user"], world.train), seen_by_hand),
    "popularity": (lambda world, ranks: by_popularity(ranks["item"], world.train, ITEMS), popularity_by_hand),
}


@pytest.mark.parametrize("group", GROUPS)
def test_breakdowns_equal_loops_over_raw_scores(world: World, group: str) -> None:
    label, by_hand = GROUPS[group]
    mine = result_of(world, 0, "conservative")
    told = breakdown(mine.values("mrr@50"), label(world, mine.ranks), mine.ranks["user"].to_numpy(), BOOTSTRAP, seed=5)
    value = [
        value_by_hand(rank_by_hand(score, one[3], "conservative"), "mrr", 50)
        for score, one in zip(world.scores[0], world.attempts, strict=True)
    ]
    names = [by_hand(world, one) for one in world.attempts]
    assert set(told["group"]) == set(names)
    assert len(set(names)) > 1
    users = sorted({one[2] for one in world.attempts})
    for name, attempts, mean, low, high in told.iter_rows():
        inside = [v for v, n in zip(value, names, strict=True) if n == name]
        assert attempts == len(inside)
        assert mean == pytest.approx(math.fsum(inside) / len(inside), abs=1e-9)
        # All users are drawn, those without an attempt in the group too; a draw without any says nothing.
        rng, means = np.random.default_rng(5), []
        for _ in range(BOOTSTRAP["resamples"]):  # type: ignore[call-overload]
            drawn = [
                v
                for index in rng.integers(0, len(users), len(users))
                for v, n, one in zip(value, names, world.attempts, strict=True)
                if n == name and one[2] == users[index]
            ]
            means += [np.mean(drawn)] if drawn else []
        assert [low, high] == pytest.approx(np.quantile(means, [0.05, 0.95]).tolist(), abs=1e-9)


def test_known_attributes_are_put_together_until_a_group_holds_a_twentieth() -> None:
    users = pl.DataFrame({"user": range(6), "n_known": [7, 0, 3, 9, 4, 8]})
    events = pl.Series(np.repeat(range(6), [100, 2, 3, 1, 50, 4]))
    counts = dict(by_known(events, users).value_counts().iter_rows())
    assert counts == {"0-4": 55, "7-9": 105}


def test_lists_count_every_place_of_every_list() -> None:
    scores = torch.tensor([[3.0, 2, 1, *[0] * 19], [1.0, 2, 3, *[-1] * 19]])[:, :22] - torch.arange(22) / 100
    times = count_lists(lambda block: block, scores, 22)
    assert times.sum() == 2 * 20
    assert times.tolist() == [2] * 20 + [0, 0]
    train = pl.DataFrame({"user": [0] * 4, "item": [0, 0, 1, 21]})
    assert list_metrics(times.numpy(), train) == {"coverage@20": 20 / 22, "mean_popularity@20": 2 * 3 / 40}


def test_V14_the_interval_over_users_holds_the_truth_88_to_99_times_of_100() -> None:
    """Users differ in how often they are right and in how many attempts they make; events of one are no free draws."""
    truth, by_user, by_event = 0.3, 0, 0
    for world in range(100):
        rng = np.random.default_rng([11, world])
        right = rng.beta(0.6, 1.4, 150)  # mean .3, far apart
        attempts = 1 + rng.poisson(5, 150)
        user = np.repeat(np.arange(150), attempts)
        value = (rng.random(len(user)) < right[user]).astype(np.float64)
        low, high = interval(value, user, resamples=300, confidence=0.95, seed=world)
        by_user += low <= truth <= high
        low, high = interval(value, np.arange(len(user)), resamples=100, confidence=0.95, seed=world)
        by_event += low <= truth <= high
    assert 88 <= by_user <= 99
    assert by_event < 88  # what ignoring users would cost


def test_the_head_is_a_hundredth_of_the_items_and_the_tail_the_second_half() -> None:
    train = pl.DataFrame({"user": 0, "item": np.repeat(np.arange(230), np.arange(230))})  # item 229 leads
    labels = by_popularity(pl.Series(range(230)), train, 230)
    assert labels.to_list() == ["tail"] * 115 + ["middle"] * 112 + ["head 1 %"] * 3


def test_means_of_groups_are_those_of_the_attempts_in_each() -> None:
    ranks = pl.DataFrame({"position": [1, 1, 3, 4, 9, 10, 400], "rank": [1.0, 21.0, 2.0, 20.0, 4.0, 50.0, 2.0]})
    found = means(ranks, by_position(ranks["position"]))
    assert found.columns == ["group", "first", "attempts", "recall@20", "mrr@20"]
    assert found.rows() == [
        ("1", 1, 2, 0.5, 0.5),
        ("3-4", 3, 2, 1.0, pytest.approx((0.5 + 0.05) / 2)),
        ("5-9", 5, 1, 1.0, 0.25),
        ("10+", 10, 2, 0.5, 0.25),
    ]
