"""Unknown attributes: hidden in training, counted, and what a model recommends without them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from arnn_lightning.batch import ChunkSpec, Contexts
from arnn_lightning.loading.contexts import AttributeDropout, has_profile
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.stage import warn_of_untrained_unknowns
from helpers import compose_config, make_data, make_model, random_sessions, trainer, write_dataset

SPEC = ChunkSpec(frozenset({"single"}), full_catalogue=True, log_q=False)


def tagged_dataset(folder: Path) -> PreparedDataset:
    """Two single-valued attributes and two multi-valued ones: fields 0 to 2 are roles, 3 and 4 fields of study."""
    single = {"level": [1, 2, 1, 2, 1], "country": [1, 1, 2, 3, 3]}
    active = [[0, 4], [1, 3], [0, 2, 3, 4], [2, 4], [1, 4]]
    splits = {name: (random_sessions(seed, 40, 9), [k % 5 for k in range(40)]) for seed, name in enumerate(("train",))}
    prepared = write_dataset(folder, splits, 9, single, active)
    names = ["roles"] * 3 + ["studies"] * 2
    vocabulary = pl.DataFrame({"attribute": names, "kind": "multi", "code": pl.Series(range(5), dtype=pl.UInt32)})
    vocabulary.write_parquet(folder / "contexts.parquet")
    return prepared


def hidden_by_session(prepared: PreparedDataset, epoch: int, **settings: object) -> dict[int, np.ndarray]:
    """Session -> the codes of its contexts, unknown where they were hidden; the same at all its events."""
    dataset = make_data(prepared, attribute_dropout=0.5, **settings).train_dataset(SPEC)
    codes: dict[int, np.ndarray] = {}
    for number in range(len(dataset)):
        chunk, events = dataset[epoch, number], dataset.chunks[epoch, number]
        assert chunk.contexts is not None
        both = torch.cat([chunk.contexts.single, chunk.contexts.active], 2)
        for session, row in zip(events.session[events.valid].tolist(), both[events.valid].numpy(), strict=True):
            assert (codes.setdefault(session, row) == row).all()
    return codes


def test_E27_hidden_attributes_depend_on_epoch_and_session(tmp_path: Path) -> None:
    prepared = tagged_dataset(tmp_path)
    expected = hidden_by_session(prepared, 0, batch_size=4, steps_per_chunk=3)
    assert len(expected) == 40
    parts = [hidden_by_session(prepared, 0, batch_size=2, steps_per_chunk=50, device=k, n_devices=2) for k in (0, 1)]
    for other in (hidden_by_session(prepared, 0, batch_size=9, steps_per_chunk=1), parts[0] | parts[1]):
        assert all((other[session] == row).all() for session, row in expected.items())
    for other in (hidden_by_session(prepared, 1, batch_size=4), hidden_by_session(prepared, 0, seed=2)):
        assert any((other[session] != row).any() for session, row in expected.items())


def test_E27_every_epoch_hides_other_attributes(tmp_path: Path) -> None:
    dataset = make_data(tagged_dataset(tmp_path), attribute_dropout=0.5, batch_size=40).train_dataset(SPEC)
    first, second, again = (dataset[epoch, 0].contexts for epoch in (0, 1, 0))
    assert first is not None
    assert second is not None
    assert again is not None
    assert not torch.equal(first.single, second.single)
    assert torch.equal(first.single, again.single)


def test_a_profile_is_any_known_attribute() -> None:
    contexts = Contexts(torch.tensor([[1], [0], [0], [0]]), torch.tensor([[-1], [0], [1], [-1]]))
    assert has_profile(contexts, torch.tensor([0])).tolist() == [True, True, True, False]


def test_a_hidden_attribute_loses_all_its_fields_and_no_other(tmp_path: Path) -> None:
    data = make_data(tagged_dataset(tmp_path))
    contexts = data.user_contexts()
    dropout = AttributeDropout(0.5, contexts, data.prepared.binary_attributes(), n_sessions=1, seed=1)
    hidden = torch.tensor([[False, True, False, True]]).expand(6, 4)  # country and fields of study
    single, active = dropout.apply(contexts, hidden)
    assert torch.equal(single[:, 0], contexts.single[:, 0])
    assert (single[:, 1] == contexts.single[-1, 1]).all()
    kept = [[code for code in row if code >= 0] for row in active.tolist()]
    assert kept == [[0], [1], [0, 2], [2], [1], []]


def test_the_share_of_hidden_attributes_is_as_set() -> None:
    """Half of it in whole profiles: .1 + .9 / 9 = .2 of the attributes."""
    contexts = Contexts(torch.tensor([[1, 3, 6], [0, 2, 5]]), torch.empty(2, 0, dtype=torch.int64))
    dropout = AttributeDropout(0.2, contexts, pl.Series(dtype=pl.String), n_sessions=50_000, seed=1)
    hidden = dropout.hidden(0)
    assert hidden.float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert hidden.all(1).float().mean().item() == pytest.approx(0.1 + 0.9 / 9**3, abs=0.005)


def test_E29_hidden_attributes_are_the_rows_of_their_step(tmp_path: Path) -> None:
    dataset = make_data(tagged_dataset(tmp_path), batch_size=7, attribute_dropout=0.5).train_dataset(SPEC)
    n_unknown = 0
    for number in range(len(dataset)):
        chunk = dataset[0, number]
        assert chunk.contexts is not None
        for k, rows in enumerate(chunk.rows["single"].split()):
            read = chunk.contexts.single[k, chunk.valid[k]]
            assert rows.tolist() == read.unique().tolist()
            n_unknown += int((read == torch.tensor([0, 3])).sum())
    assert n_unknown


def test_without_attribute_dropout_chunks_have_no_contexts(small_dataset: PreparedDataset) -> None:
    dataset = make_data(small_dataset).train_dataset(SPEC)
    assert all(dataset[epoch, 0].contexts is None for epoch in (0, 1))


def test_E28_unknown_has_the_events_of_dropped_attributes(tmp_path: Path) -> None:
    """With training events of its own, "unknown" is not replaced by the mean."""
    single = {"level": [1, 2], "country": [1, 2]}
    sessions = (random_sessions(0, 20, 5), [0, 1] * 10)
    prepared = write_dataset(tmp_path, {"train": sessions, "val": ([[0, 1]], [0])}, 5, single)
    events = [make_data(prepared, attribute_dropout=share).category_events()[0] for share in (0.0, 0.25)]
    total = events[0][:3].sum()
    assert events[0][0] == events[0][3] == 0
    assert events[1][0] == events[1][3] == total / 4
    assert torch.allclose(events[1].view(2, 3).sum(1), total.expand(2))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "seed=1",
            "attributes that are unknown in some test events but in no training event: country 40.0%, tags 60.0%",
        ),
        ("model.attribute_dropout=0.1", None),  # trained
        ("data.contexts.dropout=0.1", None),
        ("data.contexts.assignment=unknown", None),  # unknown in training, too
        ("data.contexts.n_attributes=0", None),  # not used
    ],
)
def test_untrained_unknowns_are_a_warning(
    override: str, expected: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test users 2 and 3: one without a country, the other without tags; level is unknown in training, too."""
    single = {"level": [0, 1, 0, 1], "country": [1, 2, 0, 1]}
    splits = {"train": ([[0, 1, 2]] * 2, [0, 1]), "test": ([[0, 1], [2, 1, 0]], [2, 3])}
    prepared = write_dataset(tmp_path, splits, 3, single, [[0], [0, 1], [1], []])
    settings = {"contexts": {"single": [*single], "multi": ["tags"]}}
    prepared.manifest["config"] = settings
    warn_of_untrained_unknowns(prepared, compose_config("model=pnn", override))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (expected is not None)
    assert expected is None or expected in messages[0]


# --- recommendations for visitors without a profile ---

N_ITEMS, SEGMENTS = 60, 3


def segments_dataset(folder: Path) -> PreparedDataset:
    """Three segments, each with a successor of its own for every item; the user's segment is an attribute.

    A session's first prediction is a guess among three without it; later ones can tell the segment from the items.
    The tested users are new.
    """
    rng = np.random.default_rng(0)
    successor = np.stack([rng.permutation(N_ITEMS) for _ in range(SEGMENTS)])
    segment = rng.integers(0, SEGMENTS, 500)
    splits = {}
    for name, users in (("train", rng.integers(0, 400, 1500)), ("test", rng.integers(400, 500, 400))):
        sessions = []
        for user in users:
            items = [int(rng.integers(N_ITEMS))]
            while len(items) < 5:
                follows = rng.random() < 0.8
                items.append(int(successor[segment[user], items[-1]] if follows else rng.integers(N_ITEMS)))
            sessions.append(items)
        splits[name] = (sessions, users.tolist())
    return write_dataset(folder, splits, N_ITEMS, {"segment": (1 + segment).tolist()})


@pytest.mark.parametrize("model", ["arnn", "arnn_strong", "concat", "latent_cross", "pnn"])
def test_dropout_of_the_data_precedes_the_models_default(model: str) -> None:
    default = 0.2 if model in ("arnn_strong", "latent_cross") else 0.0
    for overrides, expected in (([], default), (["data.contexts.dropout=0.3"], 0.3), (["data.contexts.dropout=0"], 0)):
        config = compose_config(f"model={model}", *overrides).model
        stages = [config, config.context] if "context" in config else [config]
        assert [stage.attribute_dropout for stage in stages] == [expected] * len(stages)


@pytest.mark.slow
def test_arnn_strong_serves_visitors_without_a_profile(tmp_path: Path) -> None:
    """Within 5 % of its session encoder without a profile, and far above it with one."""
    prepared = segments_dataset(tmp_path)
    sizes = [f"model.{role}hidden_size=48" for role in ("", "session.", "context.")]
    rates = [f"model.{role}optimizer.lr=0.1" for role in ("", "session.", "context.")]
    model = make_model("arnn_strong", prepared.dims, *sizes, *rates)
    dropout = compose_config("model=arnn_strong").model.attribute_dropout
    settings = {"batch_size": 20, "steps_per_chunk": 50, "evaluation_batch_size": 100}
    for stage in (*model.stages.values(), model):
        data = make_data(prepared, n_sample=20, attribute_dropout=dropout, **settings)
        trainer(tmp_path, max_epochs=6).fit(stage, data)
    session, own, unknown = (
        trainer(tmp_path).test(tested, make_data(prepared, assignment=assignment, **settings), verbose=False)[0]
        for tested, assignment in ((model.stages["session"], "own"), (model, "own"), (model, "unknown"))
    )
    for metric in ("recall@20", "mrr@20"):
        assert unknown[f"test/{metric}"] > 0.95 * session[f"session/test/{metric}"]
    assert own["test/mrr@20"] > 1.1 * session["session/test/mrr@20"]
