"""The laws of training and evaluation, for every model."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arnn_lightning.batch import TrainChunk
from arnn_lightning.errors import UserError
from arnn_lightning.optim import RowAdagrad
from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import (
    WideTensors,
    lstm_model,
    make_data,
    make_model,
    random_sessions,
    train_losses,
    trainer,
    write_dataset,
)
from models import BY_NAME, LOSSES, MODELS, TRAINED, ModelCase, case_name, slow, slow_but, slow_variants

KINDS = ("gru4rec", "sasrec", "pnn", "arnn", "prefix")  # one model of each kind of encoder and fusion
LSTM = ModelCase("lstm", "", has_memory=True)


def make(case: ModelCase, prepared: PreparedDataset, *overrides: str, **settings: Any) -> Any:
    if case is LSTM:
        torch.manual_seed(0)
        return lstm_model(prepared.dims["n_items"])
    return case.make(prepared, *overrides, **settings)


def score_each_session(model: Any, prepared: PreparedDataset, split: str) -> dict[tuple[int, int], Tensor]:
    """Scores at every event with each session run by itself, in a batch of one."""
    sessions = prepared.sessions(split)
    scores = {}
    for index, session in enumerate(sessions.session):
        state = model.initial_state(1)
        items = sessions.item[sessions.offset[index] : sessions.offset[index + 1]]
        for place, item in enumerate(items[:-1]):
            step = model.step_input(torch.tensor([item]), torch.tensor([sessions.user[index]]), None)
            query, state = model.encode(step, state)
            scores[int(session), place + 1] = model.score(query)[0]
    return scores


@pytest.mark.parametrize("case", slow_variants([*MODELS, LSTM]), ids=case_name)
@torch.no_grad()
def test_E1_E2_E3_scores_in_slots_equal_each_session_alone(case: ModelCase, small_dataset: PreparedDataset) -> None:
    model = make(case, small_dataset).eval()
    for split in ("train", "test"):
        alone = score_each_session(model, small_dataset, split)
        for batch_size in (2, 7, 50):
            chunks = make_data(small_dataset, steps_per_chunk=3).chunks(split, batch_size)
            scores = {}
            for index in range(len(chunks)):
                chunk = chunks[0, index]
                query, target = model.encode_chunk(chunk)
                assert torch.equal(target, chunk.target[chunk.valid])
                places = zip(chunk.session[chunk.valid].tolist(), chunk.position[chunk.valid].tolist(), strict=True)
                scores |= dict(zip(places, model.score(query), strict=True))
            model.on_validation_epoch_start()
            assert scores.keys() == alone.keys()
            for place, score in scores.items():
                assert torch.allclose(score, alone[place], atol=1e-5), place


@pytest.mark.parametrize("case", slow_variants([*MODELS, LSTM]), ids=case_name)
@torch.no_grad()
def test_scores_depend_on_memory_and_contexts_as_listed(case: ModelCase, small_dataset: PreparedDataset) -> None:
    model = make(case, small_dataset).eval()

    def score(items: list[int], user: int) -> Tensor:
        state = model.initial_state(1)
        for item in items:
            query, state = model.encode(model.step_input(torch.tensor([item]), torch.tensor([user]), None), state)
        scores: Tensor = model.score(query)
        return scores

    assert bool(model.initial_state(1)) == case.has_memory
    assert torch.equal(score([1, 3], 2), score([2, 3], 2)) != case.has_memory
    assert torch.equal(score([1, 3], 2), score([1, 3], 3)) != case.reads_contexts
    assert model.uses_contexts == case.reads_contexts


def test_E1_training_resets_the_state_at_session_starts(tmp_path: Path) -> None:
    def losses(sessions: list[list[int]]) -> list[float]:
        prepared = write_dataset(tmp_path, {"train": (sessions, [0] * 4)}, n_items=9)
        model = BY_NAME["gru4rec"].make(prepared, "model.dropout_hidden=0").train()
        return train_losses(model, make_data(prepared, batch_size=2), learn=False)

    values = losses([[0, 1, 2], [3, 4, 5], [0, 1, 2], [6, 7, 8]])
    assert values[2] != pytest.approx(values[0])
    repeated = losses([[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]])
    assert repeated[2:] == pytest.approx(repeated[:2])  # what came before a session leaves no trace


@pytest.mark.parametrize("case", slow_variants(TRAINED), ids=case_name)
def test_E5_one_session_in_many_slots_trains(case: ModelCase, tmp_path: Path) -> None:
    prepared = write_dataset(
        tmp_path, {"train": ([[0, 1, 2]], [0]), "val": ([[1, 2]], [0])}, 3, {"level": [1]}, [[0, 1]]
    )
    model = case.make(prepared)
    trainer(tmp_path).fit(model, make_data(prepared, batch_size=5))
    assert int(model.mini_batches) == 2


@pytest.mark.parametrize("case", slow_variants(case for case in TRAINED if case.reads_contexts), ids=case_name)
@pytest.mark.parametrize("contexts", ["no single-valued", "no binary", "none"])
def test_models_of_contexts_train_without_some_fields(case: ModelCase, contexts: str, tmp_path: Path) -> None:
    single = {"level": [0, 1, 1]} if contexts == "no binary" else None
    active = [[0], [], [1, 2]] if contexts == "no single-valued" else None
    sessions = random_sessions(0, 9, 6)
    prepared = write_dataset(tmp_path, {"train": (sessions, [0, 1, 2] * 3)}, 6, single, active)
    losses = train_losses(case.make(prepared).train(), make_data(prepared))
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.parametrize(
    "case", slow_variants(case for case in TRAINED if not case.name.startswith("arnn_")), ids=case_name
)
@pytest.mark.parametrize("n_sample", [0, 7])
def test_E8_E18_a_step_makes_no_tensor_as_wide_as_the_catalogue(case: ModelCase, n_sample: int, tmp_path: Path) -> None:
    n_items = 5003
    sessions = random_sessions(0, 20, n_items)
    prepared = write_dataset(tmp_path, {"train": (sessions, [0] * 20)}, n_items, {"level": [1]}, [[0, 1]])
    model = case.make(prepared).train()
    optimizer = model.configure_optimizers()
    dataset = make_data(prepared, n_sample=n_sample).train_dataset(model.chunk_spec)
    _, state = model.run_steps(dataset[0, 0], model.initial_state(4))  # the optimizer makes its accumulators
    chunk = dataset[0, 1]
    tensors = [*model.parameters(), *model.buffers(), *model._train_step._positions.values()]
    tensors += [value for slot in optimizer.state.values() for value in slot.values() if isinstance(value, Tensor)]
    with WideTensors(n_items, {tensor.untyped_storage().data_ptr() for tensor in tensors}) as wide:
        model.run_steps(chunk, state)
    assert wide.found == []


def test_E8_the_mode_itself_detects_a_wide_tensor() -> None:
    with WideTensors(5003, set()) as wide:
        torch.zeros(2, 5003) + 1
    assert wide.found


# --- no host sync and no mixed devices in a training step: tensors on torch's meta device have no values to read ---


class OneDevice(TorchDispatchMode):
    """Raises where an operation takes or returns a tensor off the meta device; scalars may be on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, Tensor) and value.dim() and value.device.type != "meta":
                raise RuntimeError(f"{function}: a tensor of shape {tuple(value.shape)} on {value.device}")
        return out


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.autocast, which the meta device lacks, does nothing."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def run_on_meta(
    case: ModelCase, prepared: PreparedDataset, *overrides: str, n_sample: int = 0, steps: int = 1, **settings: Any
) -> None:
    """Trains on the first chunk, without empty slots in its first step, and on the last, with empty ones.

    The operations of a step take ten times as long there as on a CPU.
    """
    model = case.make(prepared, *overrides, **settings).to("meta").train()
    optimizer = model.configure_optimizers()
    dataset = make_data(prepared, n_sample=n_sample, steps_per_chunk=steps).train_dataset(model.chunk_spec)
    chunks = [dataset[0, 0], dataset[0, len(dataset) - 1]]
    assert [bool(chunks[0].all_valid[0]), bool(chunks[1].all_valid[-1])] == [True, False]
    state = model.initial_state(4)
    for chunk in map(to_meta, chunks):
        with OneDevice():
            losses, state = model.run_steps(chunk, state)
        assert losses.device.type == "meta"
        assert all(part.device.type == "meta" for part in state)
    assert all(value.device.type == "meta" for slot in optimizer.state.values() for value in slot.values())


def to_meta(chunk: TrainChunk) -> TrainChunk:
    """The chunk as Lightning moves it to a device: sizes stay on the host."""
    moved: TrainChunk = move_data_to_device(chunk, torch.device("meta"))
    assert moved.item.device.type == "meta"
    return moved


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("case", slow_variants(TRAINED), ids=case_name)
@pytest.mark.parametrize("n_sample", [slow(0), 7])
def test_a_training_step_runs_on_the_meta_device(
    case: ModelCase, n_sample: int, small_dataset: PreparedDataset
) -> None:
    run_on_meta(case, small_dataset, n_sample=n_sample, steps=2, cache_mb=1.0)


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hits", ["mask", slow("keep")])
def test_every_loss_runs_on_the_meta_device(loss: str, hits: str, small_dataset: PreparedDataset) -> None:
    overrides = [f"model/loss={loss}", f"model.loss.accidental_hits={hits}"]
    for name in ("gru4rec_tied", "pnn_closed"):
        run_on_meta(BY_NAME[name], small_dataset, *overrides, n_sample=7)


@pytest.mark.parametrize("activation", ["softmax", "tanh", "linear", "elu"])
def test_every_activation_runs_on_the_meta_device(activation: str, small_dataset: PreparedDataset) -> None:
    run_on_meta(BY_NAME["gru4rec"], small_dataset, f"model.loss.activation={activation}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.optimizer.momentum=0.3", "model.optimizer.weight_decay=0.01"],
        ["model/optimizer=adam"],
        ["model/optimizer=adamw", "model.clip_norm=1"],
        ["model/optimizer=sgd"],
        ["model.clip_norm=1"],
    ],
    ids=" ".join,
)
def test_every_optimizer_runs_on_the_meta_device(overrides: list[str], small_dataset: PreparedDataset) -> None:
    model = BY_NAME["gru4rec"].make(small_dataset, *overrides).to("meta").train()
    model.configure_optimizers()
    chunk = to_meta(make_data(small_dataset).train_dataset(model.chunk_spec)[0, 0])
    with OneDevice():
        assert model.run_steps(chunk, model.initial_state(4))[0].device.type == "meta"


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("case", slow_variants(MODELS), ids=case_name)
@torch.no_grad()
def test_encoding_and_scoring_run_on_the_meta_device(case: ModelCase, small_dataset: PreparedDataset) -> None:
    """All of an evaluation's step but the choice of valid slots, whose number the host needs.

    Counts of the window are scored on the host.
    """
    model = case.make(small_dataset).to("meta").eval()
    chunk = move_data_to_device(make_data(small_dataset).chunks("test", 5)[0, 0], torch.device("meta"))
    with OneDevice():
        state = model.initial_state(5)
        for item, user, valid in zip(chunk.item, chunk.user, chunk.valid, strict=True):
            query, state = model.encode(model.step_input(item, user, valid), state)
            assert case.repeats or model.score(query).shape == (5, 12)


@pytest.mark.parametrize(
    "operation",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor.nonzero(),
        lambda tensor: bool(tensor.any()),
        lambda tensor: tensor + torch.ones(3),
        lambda tensor: torch.ones(3).index_select(0, tensor.long()),
        lambda tensor: torch.arange(3),
    ],
    ids=["item", "mask", "nonzero", "bool", "mixed sum", "mixed lookup", "made on the host"],
)
def test_the_meta_device_itself_detects_host_reads(operation: Callable[[Tensor], Any]) -> None:
    meta = torch.ones(3, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)), OneDevice():
        operation(meta)


@pytest.mark.parametrize("name", ["gru4rec_tied", "pnn_closed", "arnn_joint"])
def test_what_a_gpu_computes_equals_what_a_cpu_computes(
    name: str, small_dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for gpu in (False, True):
        if gpu:
            monkeypatch.setattr("arnn_lightning.nn.product._host_sync_is_free", lambda _: False)
            monkeypatch.setattr(RowAdagrad, "_update_fused", RowAdagrad._update_with_momentum)
        overrides = ["model.optimizer.weight_decay=0.01", "model.optimizer.eps=1e-4"]
        model = BY_NAME[name].make(small_dataset, *overrides).double().train()
        torch.manual_seed(0)
        train_losses(model, make_data(small_dataset, n_sample=7))
        weights.append(model.state_dict())
    assert all(torch.allclose(value, weights[1][key], atol=1e-10) for key, value in weights[0].items())


# --- E27: what changes speed only ---


def fitted(
    case: ModelCase, prepared: PreparedDataset, folder: Path, cache_mb: float, **settings: Any
) -> dict[str, Tensor]:
    """Losses, metrics and weights of two epochs."""
    schedule = "{_target_:torch.optim.lr_scheduler.ExponentialLR,_partial_:true,gamma:0.9}"
    overrides = [f"model.scheduler={schedule}", "model.scheduler_interval=step"]
    model = case.make(prepared, *overrides, cache_mb=cache_mb).train()
    torch.manual_seed(0)
    data = make_data(prepared, **settings)
    run = trainer(folder, max_epochs=2)
    run.fit(model, data)
    values = {"loss": torch.tensor(model.progress.epoch_loss), "mrr": run.callback_metrics["val/mrr@20"]}
    return values | {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "n_sample", "attribute_dropout"),
    [
        slow("gru4rec", 0, 0.0),
        ("gru4rec", 7, 0.0),
        slow("pnn", 7, 0.0),
        ("pnn", 7, 0.5),
        slow("arnn", 0, 0.0),
        ("arnn", 7, 0.5),
        slow("arnn_footnote2", 7, 0.0),
        ("init_state", 7, 0.5),
    ],
)
def test_E27_what_changes_speed_changes_no_result(
    name: str, n_sample: int, attribute_dropout: float, small_dataset: PreparedDataset, tmp_path: Path
) -> None:
    samples = {"n_sample": n_sample, "attribute_dropout": attribute_dropout}
    expected = fitted(BY_NAME[name], small_dataset, tmp_path, 0.0, steps_per_chunk=3, **samples)
    for steps, batch_size, cache_mb in ((1, 1, 1.0), (50, 64, 0.002)):
        other = fitted(
            BY_NAME[name],
            small_dataset,
            tmp_path,
            cache_mb,
            steps_per_chunk=steps,
            evaluation_batch_size=batch_size,
            **samples,
        )
        for key, value in expected.items():
            if key in ("loss", "mrr"):  # sums in another order
                assert torch.allclose(value, other[key], rtol=1e-6), key
            else:
                assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(
    "case", slow_but(KINDS, (case for case in TRAINED if not case.name.startswith("arnn_"))), ids=case_name
)
@pytest.mark.parametrize("n_sample", [slow(0), 7])
def test_E27_losses_do_not_depend_on_the_length_of_a_chunk(
    case: ModelCase, n_sample: int, small_dataset: PreparedDataset
) -> None:
    losses = []
    for steps in (1, 3, 50):
        model = case.make(small_dataset).train()
        torch.manual_seed(0)
        losses.append(train_losses(model, make_data(small_dataset, n_sample=n_sample, steps_per_chunk=steps), epochs=2))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("case", slow_but(("itemknn", *KINDS), MODELS), ids=case_name)
def test_metrics_do_not_depend_on_the_evaluation_batch_size(
    case: ModelCase, small_dataset: PreparedDataset, tmp_path: Path
) -> None:
    model = case.make(small_dataset)
    results = []
    for batch_size, steps in ((1, 2), (5, 3), (64, 50)):
        data = make_data(small_dataset, evaluation_batch_size=batch_size, steps_per_chunk=steps)
        results.append(trainer(tmp_path).test(model, data.test_dataloader(), verbose=False)[0])
    assert results[0] == results[1] == results[2]


# --- E29: rows that no valid slot reads ---


@pytest.mark.parametrize("case", slow_variants(TRAINED), ids=case_name)
@pytest.mark.parametrize("n_sample", [0, 3])
def test_E29_rows_that_no_valid_slot_reads_do_not_move(case: ModelCase, n_sample: int, tmp_path: Path) -> None:
    """Items 0, 8 and 9 and user 0 are in no training session; an epoch's tail has empty slots."""
    sessions = [[item + 1 for item in session] for session in random_sessions(0, 9, 7)]
    users = [1 + index % 3 for index in range(9)]
    single = {"level": [3, 0, 1, 2], "country": [0, 1, 2, 2]}
    prepared = write_dataset(tmp_path, {"train": (sessions, users)}, 10, single, [[4], [0], [1, 2], [3]])
    rows = ["model.optimizer.weight_decay=1e-3", "model.optimizer.momentum=0.5"]
    model = case.make(prepared, *rows).train()
    optimizer = model.configure_optimizers()
    tables = model.make_train_step(optimizer).tables
    dataset = make_data(prepared, steps_per_chunk=1, n_sample=n_sample, sample_alpha=1.0).train_dataset(
        model.chunk_spec
    )
    codes = make_data(prepared).user_contexts().single
    modules = torch.nn.ModuleDict({"encoder": model.encoder, "scorer": model.scorer})
    weights = {name: modules.get_parameter(f"{name}.weight") for name in tables}
    state, moved_once, empty_steps = model.initial_state(4), dict.fromkeys(tables, False), 0
    for epoch in (0, 1):
        for number in range(len(dataset)):
            chunk, events = dataset[epoch, number], dataset.chunks[epoch, number]
            valid = events.valid[0]
            empty_steps += not valid.all()
            samples = dataset.sampler.sample(epoch, number, 1)[0].tolist()
            target = events.target[0, valid].tolist()
            places = zip(events.session[0, valid].tolist(), events.position[0, valid].tolist(), strict=True)
            length = model.encoder.last_n_events
            item = [item for session, place in places for item in sessions[session][max(0, place - length) : place]]
            read = {
                "item": {*item},
                "candidate": {*target, *samples},
                "item_and_candidate": {*item, *target, *samples},
                "single": {*codes[events.user[0, valid]].flatten().tolist()},
            }
            before = {name: weight.detach().clone() for name, weight in weights.items()}
            _, state = model.run_steps(chunk, state)
            for name, source in tables.items():
                moved = (weights[name] != before[name]).view(len(weights[name]), -1).any(1).nonzero()[:, 0].tolist()
                assert set(moved) <= read[source], (name, number)
                moved_once[name] |= bool(moved)
    assert all(moved_once.values())
    assert empty_steps > 2
    for name, source in tables.items():
        never = [3, 4] if source == "single" else [0, 8, 9]
        for value in optimizer.state[weights[name]].values():
            assert not value[never].any(), name


def test_E29_a_chunk_reads_no_row_for_an_empty_slot(small_dataset: PreparedDataset) -> None:
    model = BY_NAME["pnn"].make(small_dataset)
    model.configure_optimizers()
    dataset = make_data(small_dataset, batch_size=20).train_dataset(model.chunk_spec)
    codes = make_data(small_dataset).user_contexts().single
    chunk, events = dataset[0, len(dataset) - 1], dataset.chunks[0, len(dataset) - 1]
    assert not chunk.all_valid.any()
    for k, valid in enumerate(events.valid):
        rows = {source: set(ragged.split()[k].tolist()) for source, ragged in chunk.rows.items()}
        assert rows["item"] == {*events.item[k, valid].tolist()}
        assert rows["candidate"] == {*events.target[k, valid].tolist()}
        assert rows["single"] == {*codes[events.user[k, valid]].flatten().tolist()}


# --- dropout, initial weights, embeddings ---


def three_events(model: Any) -> Any:
    return model.step_input(torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64), None)


def test_E11_both_dropouts_act_with_one_layer(small_dataset: PreparedDataset) -> None:
    for setting in ("dropout_hidden", "dropout_embedding"):
        overrides = ["model.embedding=separate", "model.dropout_hidden=0", f"model.{setting}=0.5"]
        model = BY_NAME["gru4rec"].make(small_dataset, *overrides)
        step, state = three_events(model), model.initial_state(3)
        first, second = (model.train().encode(step, state)[0] for _ in range(2))
        assert not torch.equal(first, second), setting
        first, second = (model.eval().encode(step, state)[0] for _ in range(2))
        assert torch.equal(first, second), setting


@pytest.mark.parametrize("name", ["pnn", "arnn"])
def test_dropout_acts_in_training_only(name: str, small_dataset: PreparedDataset) -> None:
    model = BY_NAME[name].make(small_dataset, "model.dropout=0.5")
    step, state = three_events(model), model.initial_state(3)
    for training in (True, False):
        first, second = (model.train(training).encode(step, state)[0] for _ in range(2))
        assert torch.equal(first, second) != training


@pytest.mark.parametrize("carry", [True, False])
def test_E23_the_dropped_out_state_is_carried_or_not(carry: bool, small_dataset: PreparedDataset) -> None:
    model = BY_NAME["gru4rec"].make(small_dataset, "model.dropout_hidden=0.5", f"model.carry_dropout={carry}").train()
    query, (state,) = model.encode(three_events(model), model.initial_state(3))
    assert (query == 0).any()
    assert torch.equal(state[-1], query) == carry
    assert (state == 0).any() == carry


def test_E12_the_one_hot_input_has_a_fan_per_gate() -> None:
    model = make_model("gru4rec", {"n_items": 500}, "model.hidden_size=40")
    one_hot = model.encoder.inputs[0]
    bound = (6 / 540) ** 0.5
    for block in one_hot.gates.weight.chunk(3, 1):
        assert 0.97 * bound < block.abs().max() <= bound
    assert not one_hot.bias.any()


@pytest.mark.parametrize(
    ("embedding", "layers"),
    [("onehot", 1), slow("onehot", 2), slow("separate", 1), ("separate", 2), slow("tied", 1), slow("tied", 2)],
)
def test_every_embedding_and_depth_learns_a_chain(embedding: str, layers: int, tmp_path: Path) -> None:
    chain = [[i, (i + 1) % 6, (i + 2) % 6] for i in range(6)] * 20
    prepared = write_dataset(tmp_path, {"train": (chain, [0] * 120), "test": (chain[:6], [0] * 6)}, n_items=6)
    overrides = ["model/loss=cross_entropy_full", "model.dropout_hidden=0", f"model.layers={layers}"]
    model = BY_NAME["gru4rec"].make(prepared, f"model.embedding={embedding}", *overrides, "model.optimizer.lr=0.2")
    data = make_data(prepared, batch_size=6)
    trainer(tmp_path, max_epochs=8).fit(model, data)
    trainer(tmp_path).test(model, data, verbose=False)
    assert (model.rank_counts["higher"] == 0).all()


# --- losses of a run ---


def test_E24_a_loss_that_is_not_finite_stops_and_names_the_step(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    model = BY_NAME["gru4rec"].make(small_dataset, "model/loss=cross_entropy")
    with torch.no_grad():
        model.scorer.items.weight[:] = float("nan")
    with pytest.raises(UserError, match=r"loss of gru4rec is nan at mini-batch 1 \(epoch 1\)"):
        trainer(tmp_path).fit(model, make_data(small_dataset))


def test_validation_in_an_epoch_leaves_the_training_state_alone(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    def weights(**settings: Any) -> list[Tensor]:
        model = BY_NAME["gru4rec"].make(small_dataset, "model.dropout_hidden=0")
        trainer(tmp_path, **settings).fit(model, make_data(small_dataset))
        return list(model.parameters())

    for a, b in zip(weights(), weights(val_check_interval=2), strict=True):
        assert torch.equal(a, b)


def test_E25_the_epoch_loss_is_the_mean_over_events(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    overrides = ["model.dropout_hidden=0", "model.optimizer.lr=0"]
    model = BY_NAME["gru4rec"].make(small_dataset, *overrides)
    trainer(tmp_path).fit(model, make_data(small_dataset))
    losses = train_losses(BY_NAME["gru4rec"].make(small_dataset, *overrides).train(), make_data(small_dataset))
    assert model.progress.epoch_loss == pytest.approx(
        4 * sum(losses) / small_dataset.sessions("train").n_predictions, rel=1e-5
    )


def test_global_step_counts_chunks_and_mini_batches_every_step(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    model, data = BY_NAME["gru4rec"].make(small_dataset), make_data(small_dataset, steps_per_chunk=3)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, data)
    chunks = data.chunks("train", 4)
    assert run.global_step == 2 * len(chunks)
    assert int(model.mini_batches) == 2 * len(chunks.schedule.event)


@pytest.mark.parametrize("case", slow_variants(TRAINED), ids=case_name)
def test_E26_an_empty_slot_changes_no_other_query(case: ModelCase, small_dataset: PreparedDataset) -> None:
    model = case.make(small_dataset).train()
    valid, queries = torch.tensor([True, True, True, False]), []
    for item, user in ((0, 0), (7, 4)):  # in the empty slot
        torch.manual_seed(0)  # equal dropout
        step = model.step_input(torch.tensor([1, 2, 3, item]), torch.tensor([1, 2, 3, user]), valid)
        queries.append(model.encode(step, model.initial_state(4))[0][:3])
    assert torch.equal(*queries)


# --- precision ---


@pytest.mark.parametrize("name", ["gru4rec", "gru4rec_separate", "gru4rec_tied", "narm", "sasrec", "pnn", "arnn"])
def test_bf16_rounds_the_products_and_nothing_else(name: str, small_dataset: PreparedDataset) -> None:
    """Losses and steps are close to float32's, weights and states stay float32, ranks come from float32 scores."""
    results = {}
    for bf16 in (False, True):
        model = BY_NAME[name].make(small_dataset, "model/optimizer=sgd", "model.optimizer.lr=1", bf16=bf16).train()
        initial = {key: weight.detach().clone() for key, weight in model.named_parameters()}
        scores = model.score(torch.ones(2, model.encoder.hidden_size)).detach()
        model.configure_optimizers()
        chunk = make_data(small_dataset, n_sample=5, steps_per_chunk=1).train_dataset(model.chunk_spec)[0, 0]
        torch.manual_seed(0)
        losses, state = model.run_steps(chunk, model.initial_state(4))
        weights = dict(model.named_parameters())
        codes = {torch.int64} if name in ("narm", "sasrec") else {torch.float32}
        assert {part.dtype for part in state} <= codes
        assert all(tensor.dtype == torch.float32 for tensor in (losses, *weights.values()))
        results[bf16] = losses, {key: weights[key].detach() - value for key, value in initial.items()}, scores
    assert torch.equal(results[False][2], results[True][2])
    assert not torch.equal(results[False][0], results[True][0])
    assert torch.allclose(results[False][0], results[True][0], rtol=0.02)
    for key, exact in results[False][1].items():
        assert (results[True][1][key] - exact).abs().max() <= 0.1 * exact.abs().max() + 1e-6, key
