"""Recommendations of a checkpoint: ranks are those of the evaluation, whatever the frames."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from arnn_lightning.evaluation import screening
from arnn_lightning.serving import inference
from arnn_lightning.serving.predictor import load
from models import MODELS, ModelCase, case_name, slow_variants

Checkpoints = Callable[[ModelCase], Path]


def prefixes(test_sessions: pl.DataFrame) -> pl.DataFrame:
    """The sessions that the evaluation predicts from: session_id (session * 1000 + position), item_id, user_id."""
    events = test_sessions.with_columns(place=pl.int_range(pl.len()).over("session"), length=pl.len().over("session"))
    return (
        events.with_columns(position=pl.int_ranges("place", "length").list.eval(pl.element() + 1))
        .explode("position")
        .filter(pl.col("position") < pl.col("length"))
        .sort("session", "position", "place")
        .select("item_id", "user_id", session_id=1000 * pl.col("session").cast(pl.Int64) + pl.col("position"))
    )


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
def test_V18_ranks_of_lists_are_those_of_the_evaluation(
    case: ModelCase, checkpoints: Checkpoints, test_sessions: pl.DataFrame
) -> None:
    folder = checkpoints(case)
    predictor = load(folder)
    ranks = pl.read_parquet(folder / "test_ranks.parquet")
    lists = predictor.recommend(prefixes(test_sessions), k=predictor.n_items)
    targets = ranks.select(
        "higher",
        "equal",
        session_id=1000 * pl.col("session") + pl.col("position"),
        item_id=predictor.vocabulary.items["id"].gather(ranks["item"]),
    )
    joined = targets.join(lists, on=["session_id", "item_id"], how="left", maintain_order="left")
    off = joined.filter(~pl.col("rank").is_between(pl.col("higher") + 1, pl.col("higher") + pl.col("equal")))
    assert off.is_empty()
    assert not joined["rank"].has_nulls()


@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
def test_V18_ranks_of_live_sessions_are_those_of_the_evaluation(
    case: ModelCase, checkpoints: Checkpoints, test_sessions: pl.DataFrame
) -> None:
    """Thirty sessions in batches, and each of them alone, continued from its state after every click."""
    folder = checkpoints(case)
    predictor = load(folder)
    ranks = pl.read_parquet(folder / "test_ranks.parquet")
    expected = {(row["session"], row["position"]): row for row in ranks.iter_rows(named=True)}
    sessions = test_sessions.group_by("session", maintain_order=True).agg("item_id", pl.col("user_id").first()).head(30)
    batch = {row["session"]: predictor.session(user=row["user_id"]) for row in sessions.iter_rows(named=True)}
    items = dict(sessions.select("session", "item_id").iter_rows())
    n_compared = 0
    for position in range(1, max(map(len, items.values()))):
        active = [number for number in batch if len(items[number]) > position]
        clicks = [items[number][position - 1] for number in active]
        predictor.live.click([batch[number] for number in active], clicks)
        alone = [predictor.session(state=batch[number].state()) for number in active]
        together = predictor.live.top([batch[number] for number in active], predictor.n_items)
        for number, session, listed in zip(active, alone, together, strict=True):
            row, target = expected[number, position], items[number][position]
            for one in (listed, session.top(predictor.n_items)):
                (rank,) = [entry.rank for entry in one if entry.item_id == target]
                assert row["higher"] < rank <= row["higher"] + row["equal"]
                n_compared += 1
            batch[number] = session
    assert n_compared == 2 * sum(len(session) - 1 for session in items.values())


@pytest.mark.parametrize("case", [case for case in MODELS if case_name(case) == "arnn"], ids=case_name)
def test_the_profiles_of_new_sessions_are_encoded_in_one_batch(
    case: ModelCase, checkpoints: Checkpoints, test_sessions: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = load(checkpoints(case)).live
    users = test_sessions["user_id"].unique(maintain_order=True).head(5).to_list()
    items = test_sessions["item_id"].head(5).to_list()
    usual = live.inference.user_terms
    sizes: list[int] = []

    def user_terms(contexts: Any) -> Any:
        sizes.append(len(contexts.single))
        return usual(contexts)

    monkeypatch.setattr(live.inference, "user_terms", user_terms)
    first, *others = [live.open(user=user) for user in users]
    live.click([first], items[:1])
    live.click([first, *others], items)
    live.click([first, *others], items)
    assert sizes == [1, 4]


@pytest.mark.parametrize(
    ("processor", "cached_bytes", "most"), [("AVX512", 0, 4), ("AVX2", 0, 3), ("AVX2", 1 << 30, 8)]
)
@pytest.mark.parametrize("case", [case for case in MODELS if case.preset in ("gru4rec", "arnn")], ids=case_name)
def test_V18_screened_live_lists_are_those_of_all_scores(
    case: ModelCase,
    processor: str,
    cached_bytes: int,
    most: int,
    checkpoints: Checkpoints,
    test_sessions: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = test_sessions["user_id"][0]
    sessions = [load(checkpoints(case)).session(user=user)]
    monkeypatch.setattr(inference, "SCREEN_ITEMS", 1)
    monkeypatch.setattr(screening, "MAX_SHARE", 1)
    monkeypatch.setattr(screening, "CACHED_BYTES", cached_bytes)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    sessions.append(load(checkpoints(case)).session(user=user))
    usual, n_screened = screening.ItemScreen.top, 0

    def top(*arguments: Any) -> Any:
        nonlocal n_screened
        lists = usual(*arguments)
        n_screened += lists is not None
        return lists

    monkeypatch.setattr(screening.ItemScreen, "top", top)
    items = test_sessions["item_id"].head(12).to_list()
    filters: list[dict[str, Any]] = [{}, {"exclude_seen": True}, {"exclude_items": items}, {"items": items}]
    for item in items:
        for session in sessions:
            session.click(item)
        for filter in filters:
            expected, lists = (session.top(5, **filter) for session in sessions)
            assert [entry.item_id for entry in lists] == [entry.item_id for entry in expected]
            assert [entry.score for entry in lists] == pytest.approx([entry.score for entry in expected], abs=1e-6)
    assert n_screened == len(items) * len(filters)
    n_screened = 0
    for n_sessions in (most, most + 1):  # of more, all scores are computed in one product
        sessions[1]._sessions.top(n_sessions * [sessions[1]], 5)
    assert n_screened == most
