"""Chunks, the rows that their steps read, and their candidates."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arnn_lightning.batch import ChunkSpec, Ragged, RowSource
from arnn_lightning.loading.datasets import SessionParallelDataset, TrainDataset, _append_missing_ids, unique_ids
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import make_data, make_sessions, random_sessions, write_dataset

SOURCES: frozenset[RowSource] = frozenset({"item", "candidate", "item_and_candidate", "single"})


def chunks_of(sessions: list[list[int]], batch_size: int, steps: int) -> SessionParallelDataset:
    coded = make_sessions(sessions, first=100)
    return SessionParallelDataset(coded, batch_size, steps)


def spec(sources: frozenset[RowSource] = SOURCES, full_catalogue: bool = False, log_q: bool = False) -> ChunkSpec:
    return ChunkSpec(sources, full_catalogue, log_q)


def train_dataset(prepared: PreparedDataset, chunk_spec: ChunkSpec | None = None, **settings: Any) -> TrainDataset:
    return make_data(prepared, **settings).train_dataset(chunk_spec or spec())


def candidates(chunk: Any, device_rows: bool = True) -> list[Tensor]:
    """The items of every step's columns."""
    rows = chunk.rows["candidate"].split() if device_rows else [None] * len(chunk.item)
    columns = [None] * len(chunk.item) if chunk.columns is None else chunk.columns.split()
    return [
        ids if column is None else column if ids is None else ids[column]
        for ids, column in zip(rows, columns, strict=True)
    ]


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 7))
def test_E4_chunks_of_any_length_show_each_prediction_once(seed: int, batch_size: int, steps: int) -> None:
    sessions = random_sessions(seed, 12, 9)
    chunks = chunks_of(sessions, batch_size, steps)
    seen = []
    for index in range(len(chunks)):
        chunk = chunks[(0, index)]
        assert len(chunk.item) == steps or index == len(chunks) - 1
        seen += zip(
            *(getattr(chunk, name)[chunk.valid].tolist() for name in ("session", "position", "item", "target")),
            strict=True,
        )
    expected = [
        (100 + number, place + 1, session[place], session[place + 1])
        for number, session in enumerate(sessions)
        for place in range(len(session) - 1)
    ]
    assert sorted(seen) == sorted(expected)


@given(st.integers(0, 50), st.integers(1, 9))
def test_E29_an_empty_slot_repeats_a_valid_one_and_never_starts(seed: int, batch_size: int) -> None:
    sessions = [[item + 1 for item in session] for session in random_sessions(seed, 5, 9)]  # no item 0, no user 0
    coded = make_sessions(sessions, users=[3, 4, 5, 6, 7])
    chunk = SessionParallelDataset(coded, batch_size, 1000)[(0, 0)]
    for k in range(len(chunk.item)):
        valid = chunk.valid[k]
        read = set(zip(*(column[k, valid].tolist() for column in (chunk.item, chunk.target, chunk.user)), strict=True))
        empty = zip(*(column[k, ~valid].tolist() for column in (chunk.item, chunk.target, chunk.user)), strict=True)
        assert set(empty) <= read
        assert not chunk.is_session_start[k, ~valid].any()


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 7), st.integers(1, 4))
def test_input_items_are_those_of_a_sessions_last_events(seed: int, batch_size: int, steps: int, length: int) -> None:
    """Windows reach back over the start of a chunk and never over that of a session; empty slots repeat a valid one."""
    sessions = random_sessions(seed, 12, 40, longest=9)
    chunks = chunks_of(sessions, batch_size, steps)
    for index in range(len(chunks)):
        chunk, items = chunks[0, index], chunks.input_items(index, length)
        windows = items.view(*chunk.item.shape, length)
        for k, valid in enumerate(chunk.valid):
            for slot in valid.nonzero()[:, 0].tolist():
                end = int(chunk.position[k, slot])
                expected = sessions[int(chunk.session[k, slot]) - 100][max(0, end - length) : end]
                assert {*windows[k, slot].tolist()} == {*expected}
            assert {*windows[k].flatten().tolist()} == {*windows[k, valid].flatten().tolist()}


@given(st.integers(0, 1000), st.sampled_from([1, 1000]))  # a small catalogue and a large one: two methods
def test_unique_ids_are_those_of_every_step_sorted(seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, 6, (int(rng.integers(1, 5)), int(rng.integers(1, 9))))) * spread
    unique = unique_ids(ids)
    for k, rows in enumerate(unique.ids.split()):
        assert rows.tolist() == sorted(set(ids[k].tolist()))
        assert torch.equal(rows[unique.position[k]], ids[k])


@given(st.integers(0, 1000))
def test_other_ids_follow_the_first_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_steps = int(rng.integers(1, 5))
    first, second = ([sorted(set(rng.integers(0, 9, 6).tolist())) for _ in range(n_steps)] for _ in range(2))
    joined = _append_missing_ids(
        *(Ragged(torch.tensor([*chain(*ids)]), np.array([*map(len, ids)])) for ids in (first, second)), n_ids=9
    )
    expected = [a + [i for i in b if i not in a] for a, b in zip(first, second, strict=True)]
    assert [ids.tolist() for ids in joined.split()] == expected


@pytest.mark.parametrize("n_sample", [0, 4])
def test_rows_are_what_a_step_reads_each_once(n_sample: int, small_dataset: PreparedDataset) -> None:
    dataset = train_dataset(small_dataset, batch_size=7, n_sample=n_sample)
    contexts = make_data(small_dataset).user_contexts().single
    for number in range(len(dataset)):
        chunk, events = dataset[0, number], dataset.chunks[0, number]
        samples = dataset.sampler.sample(0, 3 * number, len(chunk.item))
        for k in range(len(chunk.item)):
            rows = {source: ragged.split()[k].tolist() for source, ragged in chunk.rows.items()}
            scored = [*events.target[k].tolist(), *samples[k].tolist()]
            assert rows["candidate"] == sorted(set(scored))
            assert rows["item"] == sorted(set(chunk.item[k].tolist()))
            others = [item for item in rows["item"] if item not in rows["candidate"]]
            assert rows["item_and_candidate"] == rows["candidate"] + others
            assert rows["single"] == sorted(set(contexts[chunk.user[k]].flatten().tolist()))
        assert chunk.all_valid.tolist() == chunk.valid.all(1).tolist()


def test_a_chunk_has_only_the_rows_of_its_spec(small_dataset: PreparedDataset) -> None:
    for sources in (frozenset(), frozenset({"item"}), frozenset({"candidate", "single"})):
        assert train_dataset(small_dataset, spec(sources))[0, 0].rows.keys() == sources
    tied = train_dataset(small_dataset, spec(frozenset({"item_and_candidate"})))[0, 0]
    assert tied.rows.keys() == {"candidate", "item_and_candidate"}
    full = train_dataset(small_dataset, spec(frozenset({"item"}), full_catalogue=True))
    assert full[0, 0].rows.keys() == {"item"}
    assert (full[0, 0].counts, full[0, 0].columns) == (None, None)
    assert torch.equal(full[0, 0].positive, full.chunks[0, 0].target)


@pytest.mark.parametrize("sources", [SOURCES, frozenset()], ids=["rows", "whole tables"])
def test_candidates_are_targets_and_samples_with_counts(
    sources: frozenset[RowSource], small_dataset: PreparedDataset
) -> None:
    """An empty slot's target is nobody's negative."""
    dataset = train_dataset(small_dataset, spec(sources), batch_size=7, n_sample=4)
    for number in range(len(dataset)):
        chunk, target = dataset[0, number], dataset.chunks[0, number].target
        samples = dataset.sampler.sample(0, 3 * number, len(chunk.item))
        items = candidates(chunk, device_rows=bool(sources))
        for k, (column, count) in enumerate(zip(items, chunk.counts.split(), strict=True)):
            assert torch.equal(column[chunk.positive[k]], target[k])
            sampled = [*target[k, chunk.valid[k]].tolist(), *samples[k].tolist()]
            assert count.tolist() == [sampled.count(item) for item in column.tolist()]


@pytest.mark.parametrize("negatives", ["global", "local"])
@pytest.mark.parametrize("sources", [SOURCES, frozenset()], ids=["rows", "whole tables"])
def test_two_devices_read_the_union_and_score_their_columns(
    negatives: str, sources: frozenset[RowSource], tmp_path: Path
) -> None:
    sessions = [*random_sessions(0, 12, 12), [*range(12)]]  # the last one leaves a device without a valid slot
    prepared = write_dataset(tmp_path, {"train": (sessions, [0] * 13)}, 12, {"level": [1]})
    settings = {"batch_size": 3, "n_sample": 4, "negatives": negatives, "n_devices": 2}
    parts = [train_dataset(prepared, spec(sources), device=device, **settings) for device in (0, 1)]
    whole = make_data(prepared).chunks("train", 6)
    empty_steps = 0
    for number in range(len(whole)):
        chunks, events = [part[0, number] for part in parts], whole[0, number]
        samples = [parts[0].sampler.sample(0, 3 * number, len(events.item), device) for device in (0, 1)]
        samples = samples if negatives == "local" else samples[:1]
        for name in ("item", "user", "valid", "is_session_start"):
            both = torch.cat([getattr(chunk, name) for chunk in chunks], 1)
            assert torch.equal(both, getattr(events, name))
        for device, chunk in enumerate(chunks):
            slots = slice(3 * device, 3 * device + 3)
            scored = candidates(chunk, device_rows=bool(sources))
            for k in range(len(events.item)):
                read = {*events.target[k].tolist(), *(item for share in samples for item in share[k].tolist())}
                if sources:
                    assert chunk.rows["candidate"].split()[k].tolist() == sorted(read)
                    assert chunk.rows["item"].split()[k].tolist() == sorted(set(events.item[k].tolist()))
                share = slice(0, 6) if negatives == "global" else slots
                valid, target = events.valid[k, share], events.target[k, share]
                own_samples = samples[device if negatives == "local" else 0][k].tolist()
                assert scored[k].tolist() == sorted({*target.tolist(), *own_samples})
                assert torch.equal(scored[k][chunk.positive[k]], events.target[k, slots])
                empty_steps += not valid.any()
                if valid.any():
                    sampled = [*target[valid].tolist(), *own_samples]
                    counts = chunk.counts.split()[k].tolist()
                    assert counts == [sampled.count(item) for item in scored[k].tolist()]
    assert bool(empty_steps) == (negatives == "local")


def log_q_dataset(n_sample: int, sessions: list[list[int]], folder: Path, batch_size: int) -> TrainDataset:
    prepared = write_dataset(folder, {"train": (sessions, [0] * len(sessions))}, n_items=6)
    return train_dataset(
        prepared, spec(log_q=True), batch_size=batch_size, steps_per_chunk=50, n_sample=n_sample, seed=3
    )


def test_log_q_is_the_log_frequency_of_the_other_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # The first event, always item 5, is no target.
    sessions = [[5, *rng.choice(6, 3, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04]).tolist()] for _ in range(4000)]
    dataset = log_q_dataset(4, sessions, tmp_path, batch_size=8)
    counts, log_q = np.zeros(6), {}
    for number in range(len(dataset) - 5):  # no empty slots
        chunk = dataset[0, number]
        columns = zip(candidates(chunk), chunk.counts.split(), chunk.log_q.split(), strict=True)
        for k, (items, count, values) in enumerate(columns):
            others = count.index_add(0, chunk.positive[k, :1], torch.tensor([-1.0]))  # beside the first slot's positive
            counts[items.numpy()] += others.numpy()
            log_q |= dict(zip(items.tolist(), values.tolist(), strict=True))
    q = np.exp([log_q[item] for item in range(6)])
    assert q.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(q, counts / counts.sum(), rtol=0.03)


def test_log_q_is_finite_for_every_column(tmp_path: Path) -> None:
    sessions = [[0, 1, 0], [0, 2], [0, 0, 3]] * 10
    for n_sample in (0, 3):
        dataset = log_q_dataset(n_sample, sessions, tmp_path, batch_size=5)
        for number in range(len(dataset)):
            assert all(torch.isfinite(values).all() for values in dataset[0, number].log_q.split())


def test_log_q_is_left_out_where_the_loss_needs_none(small_dataset: PreparedDataset) -> None:
    assert train_dataset(small_dataset, spec(log_q=False))[0, 0].log_q is None


def test_log_q_of_local_negatives_is_that_of_one_device(small_dataset: PreparedDataset) -> None:
    settings = {"batch_size": 3, "n_sample": 4, "negatives": "local"}
    one, two = (train_dataset(small_dataset, spec(log_q=True), n_devices=n, **settings).log_q for n in (1, 2))
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)
