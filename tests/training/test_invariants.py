"""The laws of training and evaluation, for every model that has a memory or learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arnn_lightning.batch import Step
from arnn_lightning.errors import UserError
from arnn_lightning.models.base import SessionModel, State
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks.train import check_compiler
from helpers import LSTMRec, WideTensors, make_data, make_model, random_sessions, trainer, write_world

LEARNERS = ["gru4rec", "pnn", "arnn"]


def made(name: str, prepared: PreparedDataset, *overrides: str) -> SessionModel:
    if name == "lstm":
        torch.manual_seed(0)
        model: SessionModel = LSTMRec(prepared.dims["n_items"])
    else:
        sizes = ["model.hidden_size=8"]
        sizes += ["model.session.hidden_size=6", "model.context.hidden_size=5"] if name == "arnn" else []
        model = make_model(name, prepared.dims, *sizes, *overrides)
    contexts = make_data(prepared).contexts()
    for one in (*model.parts.values(), model):
        one.set_contexts(contexts)
    model.assemble()
    return model


def scores_alone(model: SessionModel, prepared: PreparedDataset, split: str) -> dict[tuple[int, int], Tensor]:
    """Scores at every event with each session run by itself, one lane."""
    sessions = prepared.sessions(split)
    scores = {}
    for index, session in enumerate(sessions.session):
        state = model.initial_state(1)
        items = sessions.item[sessions.offset[index] : sessions.offset[index + 1]]
        for place, item in enumerate(items[:-1]):
            step = Step(torch.tensor([item]), torch.tensor([sessions.user[index]]), torch.tensor([True]))
            query, state = model.represent(step, state)
            scores[int(session), place + 1] = model.score(query)[0]
    return scores


@pytest.mark.parametrize("name", [*LEARNERS, "lstm"])
@pytest.mark.parametrize("lanes", [2, 7, 50])
@torch.no_grad()
def test_E1_E2_E3_scores_in_lanes_equal_each_session_alone(name: str, lanes: int, small_world: PreparedDataset) -> None:
    model = made(name, small_world).eval()
    for split in ("train", "test"):
        alone = scores_alone(model, small_world, split)
        seen = {}
        windows = make_data(small_world, steps=3)._windows(split, lanes)
        for index in range(len(windows)):
            window = windows[(0, index)]
            query, _ = model.evaluation_step(window)
            attempts = zip(window.session[window.alive].tolist(), window.position[window.alive].tolist(), strict=True)
            seen |= dict(zip(attempts, model.score(query), strict=True))
        model._start_evaluation()
        assert seen.keys() == alone.keys()
        for attempt, score in seen.items():
            assert torch.allclose(score, alone[attempt], atol=1e-5), attempt


def losses(model: SessionModel, prepared: PreparedDataset, lanes: int) -> list[float]:
    """Loss of every training step, without learning."""
    values = []
    data = make_data(prepared, lanes=lanes)
    state = model.initial_state(lanes)
    for batch in data.train_dataloader():
        for k in range(len(batch.items)):
            loss, state = model.step_loss(batch, k, state)
            values.append(loss.item())
    return values


def test_E1_training_forgets_exactly_when_a_session_starts(tmp_path: Path) -> None:
    prepared = write_world(tmp_path, {"train": ([[0, 1, 2], [3, 4, 5], [0, 1, 2], [6, 7, 8]], [0] * 4)}, n_items=9)
    model = made("gru4rec", prepared, "model.dropout_hidden=0")
    values = losses(model, prepared, lanes=2)
    assert values[2] != pytest.approx(values[0])
    same = write_world(tmp_path, {"train": ([[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]], [0] * 4)}, n_items=9)
    repeated = losses(model, same, lanes=2)
    assert repeated[2:] == pytest.approx(repeated[:2])  # what came before a session leaves no trace


@pytest.mark.parametrize("name", LEARNERS)
def test_E5_one_session_in_many_lanes_trains(name: str, tmp_path: Path) -> None:
    prepared = write_world(tmp_path, {"train": ([[0, 1, 2]], [0]), "val": ([[1, 2]], [0])}, 3, {"level": [1]}, [[0, 1]])
    model = made(name, prepared)
    trainer(tmp_path).fit(model, make_data(prepared, lanes=5))
    assert int(model.mini_batches) == 2


@pytest.mark.parametrize("name", ["gru4rec", "pnn", "arnn"])
@pytest.mark.parametrize("n_sample", [0, 7])
def test_E8_E18_a_training_step_makes_nothing_as_wide_as_the_catalogue(
    name: str, n_sample: int, tmp_path: Path
) -> None:
    n_items = 5003
    sessions = random_sessions(0, 20, n_items)
    prepared = write_world(tmp_path, {"train": (sessions, [0] * 20)}, n_items, {"level": [1]}, [[0, 1]])
    model = made(name, prepared)
    optimizer = model.configure_optimizers()
    data = make_data(prepared, lanes=4, n_sample=n_sample)
    batches = list(data.train_dataloader())
    state = model.initial_state(4)

    def step(batch: Any, k: int, state: State) -> State:
        loss, state = model.step_loss(batch, k, state)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return state

    state = step(batches[0], 0, state)  # the optimizer makes its accumulators
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for slot in optimizer.state.values() for value in slot.values() if isinstance(value, Tensor)]
    with WideTensors(n_items, {tensor.untyped_storage().data_ptr() for tensor in tensors}) as wide:
        step(batches[0], 1, state)
    assert wide.found == []


def test_E8_the_watch_itself_sees_a_wide_tensor() -> None:
    with WideTensors(5003, set()) as wide:
        torch.zeros(2, 5003) + 1
    assert wide.found


class ReadBacks(TorchDispatchMode):
    """Collects the operations for which a GPU would have to wait: their result, or its size, is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "_coalesce", "equal", "is_nonzero")
        if by_mask or name in waits:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the ways that nobody has to wait on, on a processor."""
    monkeypatch.setattr("arnn_lightning.nn.product.may_look", lambda _: False)
    monkeypatch.setattr("arnn_lightning.optim.adagrad.may_look", lambda _: False)
    monkeypatch.setattr("arnn_lightning.optim.adagrad.RowAdagrad._fused", lambda *_: False)


@pytest.mark.parametrize("name", ["gru4rec", "gru4rec_tied", "pnn", "arnn"])
def test_a_training_step_reads_nothing_back(
    name: str, small_world: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    overrides = {"gru4rec_tied": ["model.embedding=tied"], "pnn": ["model.product_method=closed"]}.get(name, [])
    model = made(name.removesuffix("_tied"), small_world, *overrides)
    optimizer = model.configure_optimizers()
    batches = list(make_data(small_world, lanes=4, n_sample=7).train_dataloader())
    ends = [(batches[0], 1), (batches[-1], -1)]  # all lanes alive, and some
    assert [batch.full[k] for batch, k in ends] == [True, False]
    state = model.initial_state(4)
    model.step_loss(batches[0], 0, state)  # the users' part is computed once
    for batch, k in ends:
        with ReadBacks() as back:
            loss, state = model.step_loss(batch, k, state)
        loss.backward()  # unwatched: a watched gradient is copied, and lies no longer where the optimizer knows it
        with back:
            optimizer.step()
        optimizer.zero_grad()
        assert back.found == []


@pytest.mark.parametrize("name", ["gru4rec_tied", "pnn", "arnn"])
def test_what_a_gpu_does_without_looking_is_what_a_processor_does(
    name: str, small_world: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for gpu in (False, True):
        if gpu:
            as_on_a_gpu(monkeypatch)
        torch.manual_seed(0)
        overrides = {"gru4rec_tied": ["model.embedding=tied"], "pnn": ["model.product_method=closed"]}.get(name, [])
        overrides += ["model.optimizer.momentum=0.3", "model.optimizer.weight_decay=0.01"]
        overrides += ["model.freeze_encoders=false"] if name == "arnn" else []
        model = made(name.removesuffix("_tied"), small_world, *overrides).double().train()
        optimizer, state = model.configure_optimizers(), tuple(one.double() for one in model.initial_state(4))
        for batch in make_data(small_world, lanes=4, n_sample=7).train_dataloader():
            for k in range(len(batch.items)):
                loss, state = model.step_loss(batch, k, state)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        found.append(model.state_dict())
    assert all(torch.allclose(value, found[1][key], atol=1e-10) for key, value in found[0].items())


def test_the_watch_itself_sees_what_is_read_back() -> None:
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.ones(2), (3,), check_invariants=True)
    for look in (lambda: torch.ones(2).sum().item(), lambda: torch.ones(2)[torch.ones(2) > 0], gradient.coalesce):
        with ReadBacks() as back:
            look()
        assert back.found


@pytest.mark.parametrize("hits", ["mask", "keep"])
def test_accidental_hits_are_masked_or_kept_as_stated(hits: str, small_world: PreparedDataset) -> None:
    model = made("gru4rec", small_world, f"model.loss.accidental_hits={hits}")
    count = torch.tensor([3.0, 1.0, 3.0])  # targets 2, 0, 2 and extra negatives 2, 0, 0, 1: drawn twice counts twice
    negative = model.objective.candidates_of(torch.tensor([2, 0, 2]), count).negatives()
    own = 0 if hits == "mask" else 2  # the positive itself is not among its negatives
    assert negative.tolist() == [[3, 1, own], [own, 1, 3], [3, 1, own]]


def test_a_dead_lanes_target_is_nobodys_negative(small_world: PreparedDataset) -> None:
    for batch in make_data(small_world, lanes=7, n_sample=4).train_dataloader():
        for k, (lookup, count) in enumerate(zip(batch.scored, batch.counts, strict=True)):
            real = torch.cat([batch.window.alive[k], torch.ones(4, dtype=torch.bool)])
            columns = lookup.inverse[real].tolist()
            assert count.tolist() == [columns.count(row) for row in range(len(lookup.rows))]


def test_E11_both_dropouts_act_with_one_layer(small_world: PreparedDataset) -> None:
    step = Step(torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool))
    for setting in ("dropout_hidden", "dropout_embedding"):
        model = made(
            "gru4rec", small_world, "model.embedding=separate", "model.dropout_hidden=0", f"model.{setting}=0.5"
        )
        first, second = (model.train().represent(step, model.initial_state(3))[0] for _ in range(2))
        assert not torch.equal(first, second), setting
        first, second = (model.eval().represent(step, model.initial_state(3))[0] for _ in range(2))
        assert torch.equal(first, second), setting


@pytest.mark.parametrize("carry", [True, False])
def test_E23_the_dropped_out_state_is_carried_or_not(carry: bool, small_world: PreparedDataset) -> None:
    model = made("gru4rec", small_world, "model.dropout_hidden=0.5", f"model.carry_dropout={carry}").train()
    step = Step(torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool))
    query, (state,) = model.represent(step, model.initial_state(3))
    assert (query == 0).any()
    assert torch.equal(state[-1], query) == carry
    assert (state == 0).any() == carry


def test_E12_the_one_hot_input_has_a_fan_per_gate(small_world: PreparedDataset) -> None:
    model = make_model("gru4rec", {"n_items": 500}, "model.hidden_size=40")
    bound = (6 / 540) ** 0.5
    for block in model.item_gates.weight.chunk(3, 1):
        assert 0.97 * bound < block.abs().max() <= bound
    assert not any(bias.any() for bias in model.input_biases)


@pytest.mark.parametrize("embedding", ["onehot", "separate", "tied"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_embedding_and_depth_learns_what_follows(embedding: str, layers: int, tmp_path: Path) -> None:
    chain = [[i, (i + 1) % 6, (i + 2) % 6] for i in range(6)] * 20
    prepared = write_world(tmp_path, {"train": (chain, [0] * 120), "test": (chain[:6], [0] * 6)}, n_items=6)
    loss = ["model/loss=cross_entropy_full", "model.dropout_hidden=0", f"model.layers={layers}"]
    model = made("gru4rec", prepared, f"model.embedding={embedding}", *loss, "model.optimizer.lr=0.2")
    data = make_data(prepared, lanes=6, score_all=True)
    trainer(tmp_path, max_epochs=8).fit(model, train_dataloaders=data.train_dataloader())
    trainer(tmp_path).test(model, data.test_dataloader(), verbose=False)
    assert (model.evaluated["higher"] == 0).all()


def test_E24_a_loss_that_is_not_finite_stops_and_names_the_step(small_world: PreparedDataset, tmp_path: Path) -> None:
    model = made("gru4rec", small_world, "model/loss=cross_entropy")
    with torch.no_grad():
        model.scorer.items.weight[3] = float("nan")
    with pytest.raises(UserError, match=r"loss of gru4rec is nan at mini-batch \d+ \(epoch 1\)"):
        trainer(tmp_path).fit(model, make_data(small_world))


def test_validation_in_mid_epoch_leaves_the_training_state_alone(small_world: PreparedDataset, tmp_path: Path) -> None:
    def weights(**settings: Any) -> list[Tensor]:
        model = made("gru4rec", small_world, "model.dropout_hidden=0")
        trainer(tmp_path, **settings).fit(model, make_data(small_world))
        return list(model.parameters())

    for a, b in zip(weights(), weights(val_check_interval=2), strict=True):
        assert torch.equal(a, b)


def test_E25_the_reported_loss_is_the_mean_over_the_events_of_an_epoch(
    small_world: PreparedDataset, tmp_path: Path
) -> None:
    overrides = ["model.dropout_hidden=0", "model.optimizer.lr=0"]
    model = made("gru4rec", small_world, *overrides)
    trainer(tmp_path).fit(model, make_data(small_world, lanes=4))
    steps = losses(made("gru4rec", small_world, *overrides), small_world, lanes=4)
    attempts = small_world.sessions("train").n_predictions
    assert model.epoch_loss == pytest.approx(4 * sum(steps) / attempts, rel=1e-5)


def test_global_step_counts_windows_and_mini_batches_every_step(small_world: PreparedDataset, tmp_path: Path) -> None:
    model, data = made("gru4rec", small_world), make_data(small_world, steps=3)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, data)
    windows = len(data.train_dataloader())
    steps = len(data._windows("train", 4).schedule.event)
    assert run.global_step == 2 * windows
    assert int(model.mini_batches) == 2 * steps


def test_metrics_do_not_depend_on_the_lanes_of_the_evaluation(small_world: PreparedDataset, tmp_path: Path) -> None:
    model = made("arnn", small_world)
    results = []
    for lanes, steps in ((1, 2), (5, 3), (64, 50)):
        data = make_data(small_world, evaluation_lanes=lanes, steps=steps)
        results.append(trainer(tmp_path).test(model, data.test_dataloader(), verbose=False)[0])
    assert results[0] == results[1] == results[2]


def test_adam_gets_dense_gradients_and_row_adagrad_sparse_ones(small_world: PreparedDataset) -> None:
    for optimizer, sparse in (("adagrad", True), ("adam", False), ("sgd", False)):
        model = made("gru4rec", small_world, f"model/optimizer={optimizer}")
        model.configure_optimizers()
        (batch, *_) = make_data(small_world).train_dataloader()
        model.step_loss(batch, 0, model.initial_state(4))[0].backward()
        assert model.scorer.items.weight.grad.is_sparse == sparse


# --- precision ---


@pytest.mark.parametrize("name", ["gru4rec", "gru4rec_tied", "pnn", "arnn"])
def test_bf16_rounds_the_products_and_nothing_else(name: str, small_world: PreparedDataset) -> None:
    """Losses and gradients are close to float32's, weights and states stay float32, ranks come from float32 scores."""
    found = {}
    for bf16 in (False, True):
        tied = ["model.embedding=tied", "model.layers=2"] if name == "gru4rec_tied" else []
        model = made(name.removesuffix("_tied"), small_world, *tied).train()
        model.bf16 = bf16
        batch = next(iter(make_data(small_world, n_sample=5).train_dataloader()))
        torch.manual_seed(0)
        model.configure_optimizers()
        loss, state = model.step_loss(batch, 0, model.initial_state(4))
        loss.backward()
        gradients = {key: weight.grad.to_dense() for key, weight in model.named_parameters() if weight.grad is not None}
        assert loss.dtype == torch.float32
        assert all(part.dtype == torch.float32 for part in state)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        model.eval()
        scores = model.score(torch.ones(2, model.hidden_size))
        found[bf16] = loss.detach(), gradients, scores
    assert torch.equal(found[False][2], found[True][2])
    assert not torch.equal(found[False][0], found[True][0])
    assert torch.allclose(found[False][0], found[True][0], rtol=0.02)
    for key, exact in found[False][1].items():
        scale = exact.abs().max()
        assert (found[True][1][key] - exact).abs().max() <= 0.1 * scale + 1e-6, key


# --- torch.compile ---


def test_a_compiled_step_is_the_eager_one(small_world: PreparedDataset) -> None:
    batch = next(iter(make_data(small_world).train_dataloader()))
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = made("gru4rec", small_world).train()
        if compiled:
            model.compile_inner()
        optimizer, state = model.configure_optimizers(), model.initial_state(4)
        for k in range(len(batch.items)):
            loss, state = model.step_loss(batch, k, state)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append({"loss": loss.detach(), **model.state_dict()})
    assert all(torch.allclose(value, found[1][name], atol=1e-5) for name, value in found[0].items())
    assert list(found[0]) == list(found[1])


def test_where_nothing_compiles_compile_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no working C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    check_compiler.cache_clear()
    with pytest.raises(
        UserError, match=r"performance.compile=true: .*no working C\+\+ compiler\); set performance.compile=false"
    ):
        check_compiler(torch.device("cpu"))
