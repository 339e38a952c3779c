"""init_from: rows follow their ids, new ones are neutral, and what does not fit is one line before any training."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from arnn_lightning.batch import Contexts, StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.models import ARNN
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks.initial import load_pretrained
from arnn_lightning.training.initial import InitialWeights, TableRows
from helpers import make_data, make_model, model_config, random_sessions, ready, trainer, write_dataset
from models import BY_NAME, TRAINED, ModelCase, case_name, slow_but

SINGLE = ["level", "country"]
CATEGORIES = [  # of the items of small_dataset
    *(("category", "single", code, f"c{code}") for code in range(1, 5)),
    *(("tags", "multi", code, f"t{code}") for code in range(3)),
]


def ids_of(n_items: int, sizes: list[int], fields: list[str], shift: int = 0) -> TableRows:
    """Items i<shift>, i<shift + 1>, ...; categories <attribute>1, <attribute>2, ...; binary fields by name."""
    rows = [
        (name, "single", code, f"{name}{code}")
        for name, size in zip(SINGLE, sizes, strict=True)
        for code in range(1, size)
    ]
    rows += [("roles", "multi", code, name) for code, name in enumerate(fields)]
    items = pl.Series([f"i{shift + code}" for code in range(n_items)])
    of_items = TableRows(items, ["category"], vocabulary(CATEGORIES))
    return TableRows(items, SINGLE, vocabulary(rows), of_items)


def vocabulary(rows: list[tuple[str, str, int, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["attribute", "kind", "code", "category"], orient="row")


def start(
    model: Any,
    case: ModelCase,
    dims: dict[str, Any],
    now: TableRows,
    checkpoint: Any,
    then: TableRows,
    with_parts: bool = False,
) -> InitialWeights:
    """``with_parts``: also ARNN's encoders, which start from checkpoints of their own otherwise."""
    config = model_config(case.preset, dims, *case.overrides)
    encoders = None
    if isinstance(model, ARNN) and not with_parts:
        encoders = torch.nn.ModuleList(stage.encoder for stage in model.stages.values())
    return InitialWeights(model, config, now, checkpoint, then, Path("then.ckpt"), encoders)


def trained(case: ModelCase, world: PreparedDataset, folder: Path) -> dict[str, Any]:
    model = case.make(world, metadata={"model": model_config(case.preset, world.dims, *case.overrides)})
    run = trainer(folder)
    run.fit(model, make_data(world))
    run.save_checkpoint(folder / "then.ckpt")
    return torch.load(folder / "then.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "case", slow_but(("gru4rec_tied", "sasrec", "pnn_fields", "arnn", "latent_cross", "prefix"), TRAINED), ids=case_name
)
def test_a_run_on_the_same_data_starts_where_the_other_ended(
    case: ModelCase, small_dataset: PreparedDataset, tmp_path: Path
) -> None:
    """Weights and optimizer state are equal, except of parts that are trained before the model."""
    checkpoint = trained(case, small_dataset, tmp_path)
    dims = small_dataset.dims
    ids = ids_of(dims["n_items"], dims["single_sizes"], [f"f{code}" for code in range(dims["n_binary"])])
    model = case.make(small_dataset)
    before = copy.deepcopy(model.state_dict())
    callback = start(model, case, dims, ids, checkpoint, ids)
    captured = Captured()
    trainer(tmp_path, callbacks=[callback, captured]).fit(model, make_data(small_dataset))
    parts = ("encoder.session.", "encoder.context.") if isinstance(model, ARNN) else ("(none)",)
    for name, tensor in captured.weights.items():
        source = before if name.startswith(parts) or name == "mini_batches" else checkpoint["state_dict"]
        assert torch.equal(tensor, source[name]), name
    saved = checkpoint["optimizer_states"][0]["state"]
    for index, (name, state) in enumerate(captured.optimizer.items()):
        if not name.startswith(parts):
            assert torch.equal(state["accumulator"], saved[index]["accumulator"]), name


def test_another_optimizer_starts_without_state(small_dataset: PreparedDataset, tmp_path: Path) -> None:
    case = BY_NAME["gru4rec"]
    checkpoint = trained(case, small_dataset, tmp_path)
    dims = small_dataset.dims
    ids = ids_of(dims["n_items"], dims["single_sizes"], [f"f{code}" for code in range(dims["n_binary"])])
    adam = case._replace(overrides=(*case.overrides, "model/optimizer=adam"))
    model = adam.make(small_dataset)
    callback, captured = start(model, adam, dims, ids, checkpoint, ids), Captured()
    trainer(tmp_path, callbacks=[callback, captured]).fit(model, make_data(small_dataset))
    assert torch.equal(captured.weights["scorer.items.weight"], checkpoint["state_dict"]["scorer.items.weight"])
    assert not any(captured.optimizer.values())


class Captured(Callback):
    """Weights and optimizer state before the first step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights = copy.deepcopy(pl_module.state_dict())
        states = trainer.optimizers[0].state
        trained = {name: weight for name, weight in pl_module.named_parameters() if weight.requires_grad}
        self.optimizer = {name: copy.deepcopy(dict(states[weight])) for name, weight in trained.items()}


@pytest.mark.parametrize(
    "name",
    ["gru4rec", "gru4rec_tied", "pnn", "concat", "arnn_joint", "latent_cross", "init_state", "input_concat", "prefix"],
)
@torch.no_grad()
def test_known_rows_follow_their_ids(name: str, tmp_path: Path) -> None:
    """Items 2 to 11 of 12 are items 0 to 9 of 14 now; categories and binary fields are recoded too."""
    case, rng = BY_NAME[name], np.random.default_rng(0)
    active = [[0, 2], [1], [], [0, 1, 2], [2], [0]]
    single = {"level": [0, 1, 2, 1, 0, 2], "country": [1, 1, 0, 2, 3, 0]}
    users = rng.integers(0, 6, 30).tolist()
    (tmp_path / "then").mkdir()
    (tmp_path / "now").mkdir()
    then = write_dataset(
        tmp_path / "then", {"train": (random_sessions(1, 30, 12), users)}, 12, single=single, active=active
    )
    # Two-valued fields a, b, c then; c, new, a now. Levels have a new third category.
    now = write_dataset(
        tmp_path / "now",
        {"train": (random_sessions(2, 30, 14), users)},
        14,
        single={"level": [0, 1, 2, 1, 3, 2], "country": single["country"]},
        active=[[2, 0], [], [], [2, 0], [0], [2]],
    )
    ids_then = ids_of(12, then.dims["single_sizes"], ["a", "b", "c"])
    ids_now = ids_of(14, now.dims["single_sizes"], ["c", "new", "a"], shift=2)
    earlier = case.make(then)
    for weight in earlier.parameters():
        weight.copy_(torch.randn_like(weight))
    checkpoint = {
        "state_dict": earlier.state_dict(),
        "metadata": {"model": model_config(case.preset, then.dims, *case.overrides)},
    }
    if name in ("pnn", "concat", "arnn_joint"):  # b is gone: it must not matter
        single_out(earlier)
        checkpoint["state_dict"] = earlier.state_dict()
    model = case.make(now)
    callback = start(model, case, now.dims, ids_now, checkpoint, ids_then, with_parts=True)
    assert callback.summary.startswith("items 10 known, 4 new, 2 removed")
    if model.uses_contexts:
        assert callback.summary.endswith(
            "categories 5 known, 1 new, 0 removed; binary fields 2 known, 1 new, 1 removed"
        )
    run_start(callback, model)
    item = torch.arange(10)
    state = earlier.initial_state(10)
    expected = earlier.eval().encode(step(earlier, item + 2, [[0, 4]] * 10, [[0, 2]] * 10), state)[0]
    actual = model.eval().encode(step(model, item, [[0, 5]] * 10, [[0, 2]] * 10), state)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.score(actual)[:, :10], earlier.score(expected)[:, 2:], rtol=1e-4, atol=1e-4)
    mean = earlier.scorer.items.weight.mean(0)
    torch.testing.assert_close(model.scorer.items.weight[10:], mean.expand(4, -1))
    if model.uses_contexts:  # the field that is new has no effect yet; a new category is "unknown"
        for single_codes, fields in (([[3, 5]], [[0, 1]]), ([[3, 5]], [[0, -1]])):
            start_state = model.initial_state(1)
            neutral = model.encode(step(model, item[:1], single_codes, fields), start_state)[0]
            unknown = model.encode(step(model, item[:1], [[0, 5]], [[0, -1]]), start_state)[0]
            torch.testing.assert_close(neutral, unknown, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_categories_of_items_follow_their_names() -> None:
    """Categories a, b, price below 5 and tag t then; b, new, price below 5 and no tag now."""
    case, sizes = BY_NAME["gru4rec_items"], {"n_items": 4, "single_sizes": [], "n_binary": 0}
    then, now = (sizes | {"item_single_sizes": [3, 2], "n_item_binary": n} for n in (1, 0))
    items = pl.Series(["i0", "i1", "i2", "i3"])
    rows = [
        ("kind", "single", 1, "a"),
        ("kind", "single", 2, "b"),
        ("price", "numeric", 1, "< 5"),
        ("t", "multi", 0, "t"),
    ]
    new = [("kind", "single", 1, "b"), ("kind", "single", 2, "new"), ("price", "numeric", 1, "< 5")]
    ids_then, ids_now = (
        TableRows(items, [], vocabulary([]), TableRows(items, ["kind", "price"], vocabulary(categories)))
        for categories in (rows, new)
    )
    earlier, model = (make_model(case.preset, dims, *case.overrides) for dims in (then, now))
    for weight in earlier.parameters():
        weight.copy_(torch.randn_like(weight))
    metadata = {"model": model_config(case.preset, then, *case.overrides)}
    checkpoint = {"state_dict": earlier.state_dict(), "metadata": metadata}
    run_start(start(model, case, now, ids_now, checkpoint, ids_then), model)
    weight, before = (m.scorer.items.attributes.weight for m in (model, earlier))
    assert weight.equal(torch.stack([before[0], before[2], torch.zeros(8), before[3], before[4], before[6]]))


def single_out(model: Any) -> None:
    """Sets the weights of the binary field 1 to 0."""
    encoder = getattr(model.encoder, "context", model.encoder)
    if hasattr(encoder, "product"):
        product = encoder.product
        product.binary_fields[1] = 0
        product.cross_pairs[1] = 0
        product.item_pairs[1] = 0
        product.binary_pairs[0] = 0  # with field 0
        product.binary_pairs[2] = 0  # with field 2


def run_start(callback: InitialWeights, model: Any) -> None:
    callback.on_fit_start(SimpleNamespace(ckpt_path=None), model)  # type: ignore[arg-type]


def step(model: Any, item: torch.Tensor, single: list[list[int]], active: list[list[int]]) -> Any:
    return StepInput(item, Contexts(torch.tensor(single), torch.tensor(active)), None)


@pytest.mark.parametrize("name", ["gru4rec", "pnn"])
def test_new_rows_have_no_optimizer_state(name: str) -> None:
    """An item is new, and a category."""
    dims_then = {"n_items": 3, "single_sizes": [2, 2], "n_binary": 2}
    dims_now = dims_then | {"n_items": 4, "single_sizes": [3, 2]}
    case = BY_NAME[name]
    then, now = ids_of(3, [2, 2], ["a", "b"]), ids_of(4, [3, 2], ["a", "b"], shift=1)
    earlier = make_model(case.preset, dims_then, *case.overrides)
    accumulators = {index: {"accumulator": torch.ones_like(w)} for index, w in enumerate(earlier.parameters())}
    checkpoint = {
        "state_dict": earlier.state_dict(),
        "metadata": {"model": model_config(case.preset, dims_then, *case.overrides)},
        "optimizer_states": [{"state": accumulators, "param_groups": [{"params": [*accumulators]}]}],
    }
    model = make_model(case.preset, dims_now, *case.overrides)
    callback = start(model, case, dims_now, now, checkpoint, then)

    optimizer = model.configure_optimizers()
    callback.on_train_start(SimpleNamespace(ckpt_path=None, optimizers=[optimizer]), model)  # type: ignore[arg-type]
    tables = {module.weight: module.ids for module in model.modules() if isinstance(module, EmbeddingTable)}
    assert {*tables.values()} == ({"item", "single"} if model.uses_contexts else {"item"})
    of_rows = {"item": [1, 1, 0, 0], "single": [1, 1, 0, 1, 1]}
    for weight in model.parameters():
        accumulator = optimizer.state[weight]["accumulator"]
        assert accumulator.shape == weight.shape
        expected = of_rows[tables[weight]] if weight in tables else [1] * len(weight)
        assert (
            accumulator.flatten(1).amax(1).tolist() == expected
            if weight.dim() > 1
            else accumulator.tolist() == expected
        )


@pytest.mark.parametrize(
    ("then", "name", "overrides", "message"),
    [
        (
            "gru4rec",
            "gru4rec",
            ("model.hidden_size=9",),
            r"does not fit this model: model\.hidden_size is 8 in the checkpoint and 9 in this run",
        ),
        (
            "gru4rec",
            "gru4rec",
            ("model.layers=2",),
            r"does not fit this model: model\.layers is 1 in the checkpoint and 2 in this run",
        ),
        (
            "gru4rec",
            "gru4rec",
            ("model.embedding=tied",),
            r"does not fit this model: model\.embedding is onehot in the checkpoint and tied",
        ),
        (
            "sasrec",
            "sasrec",
            ("model.heads=4",),
            r"its weights cannot be used in this model: model\.heads is 2 in the checkpoint and 4 in this run",
        ),
        (
            "narm",
            "narm",
            ("model.last_n_events=5",),
            r"cannot be used in this model: model\.last_n_events is 3 in the checkpoint",
        ),
        ("gru4rec", "pnn", (), "then.ckpt is a checkpoint of gru4rec, but this run trains pnn"),
        (
            "latent_cross",
            "latent_cross",
            ("model.session.hidden_size=9",),
            r"does not fit this model: model\.session\.hidden_size is 8 in the checkpoint and 9 in this run",
        ),
        (
            "latent_cross",
            "init_state",
            (),
            r"does not fit this model \(latent_cross in the checkpoint, init_state in this run\): model\.fusion",
        ),
    ],
)
def test_another_models_checkpoint_is_one_line(
    then: str, name: str, overrides: tuple[str, ...], message: str, small_dataset: PreparedDataset
) -> None:
    case, dims = BY_NAME[then], small_dataset.dims
    earlier = case.make(small_dataset)
    checkpoint = {
        "state_dict": earlier.state_dict(),
        "metadata": {"model": model_config(case.preset, dims, *case.overrides)},
    }
    other = BY_NAME[name]._replace(overrides=(*BY_NAME[name].overrides, *overrides))
    ids = ids_of(dims["n_items"], dims["single_sizes"], [f"f{code}" for code in range(dims["n_binary"])])
    with pytest.raises(UserError, match=message) as error:
        start(other.make(small_dataset), other, dims, ids, checkpoint, ids)
    assert str(error.value).startswith("init_from: then.ckpt")
    assert "\n" not in str(error.value)


def test_other_attributes_are_one_line(small_dataset: PreparedDataset) -> None:
    case, dims = BY_NAME["pnn"], small_dataset.dims
    model = case.make(small_dataset)
    checkpoint = {
        "state_dict": model.state_dict(),
        "metadata": {"model": model_config(case.preset, dims, *case.overrides)},
    }
    ids = ids_of(dims["n_items"], dims["single_sizes"], [f"f{code}" for code in range(dims["n_binary"])])
    other = TableRows(ids.items, ["level"], ids.contexts)
    with pytest.raises(UserError, match=r"data\.contexts\.single=\[level\], but this run has \[level,country\]"):
        start(ready(model, small_dataset), case, dims, ids, checkpoint, other)


def test_item_attributes_that_are_fields_keep_their_order(small_dataset: PreparedDataset) -> None:
    case, dims = BY_NAME["pnn_fields"], small_dataset.dims
    model = case.make(small_dataset)
    metadata = {"model": model_config(case.preset, dims, *case.overrides)}
    checkpoint = {"state_dict": model.state_dict(), "metadata": metadata}
    of_users = ids_of(dims["n_items"], dims["single_sizes"], [f"f{code}" for code in range(dims["n_binary"])])
    then, now = (
        replace(of_users, of_items=TableRows(of_users.items, names, vocabulary([])))
        for names in (["price", "kind"], ["kind", "price"])
    )
    with pytest.raises(UserError, match=r"data\.item_contexts\.single=\[price,kind\], but this run has \[kind,price\]"):
        start(model, case, dims, now, checkpoint, then)


def test_a_pretrained_encoder_that_computes_others_is_one_line(small_dataset: PreparedDataset) -> None:
    """Its weights have the same shapes."""
    case, dims = BY_NAME["sasrec"], small_dataset.dims
    trained = model_config(case.preset, dims, *case.overrides)
    metadata = {"model": trained, "prepared": small_dataset.folder.name}
    checkpoint = {"state_dict": case.make(small_dataset).state_dict(), "metadata": metadata}
    sources: Any = SimpleNamespace(read=lambda *_: checkpoint)
    model: Any = SimpleNamespace(stages={"session": case.make(small_dataset)})
    config = OmegaConf.create({"pretrained": {"session": "then.ckpt"}, "model": {"session": trained}})
    load_pretrained(model, small_dataset, config, sources)
    config.model.session.heads = 4
    with pytest.raises(
        UserError, match=r"^pretrained\.session: then\.ckpt: .*: model\.session\.heads is 2 in the checkpoint"
    ):
        load_pretrained(model, small_dataset, config, sources)
