"""Small prepared data sets and models shared by the tests."""

import copy
import json
import pickle
import re
from functools import cache
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from arnn_lightning import conf
from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders import SessionEncoder
from arnn_lightning.loading.datamodule import SessionDataModule
from arnn_lightning.losses import CrossEntropy
from arnn_lightning.models import ARNN, RunSettings, SessionRecommender
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.preprocessing.sessions import Sessions
from arnn_lightning.training.checkpoint import build_model

CONF = Path(conf.__path__[0])


def make_sessions(items: list[list[int]], users: list[int] | None = None, first: int = 0) -> Sessions:
    """Sessions from lists of item codes; ``first`` numbers them."""
    offset = np.cumsum([0, *map(len, items)])
    return Sessions(
        item=np.concatenate([np.asarray(session, np.int64) for session in items]),
        offset=offset.astype(np.int64),
        session=np.arange(first, first + len(items)),
        user=np.asarray(users if users is not None else range(len(items)), np.int64),
        time=1000 * np.arange(first, first + len(items)),
    )


def write_dataset(
    folder: Path,
    splits: dict[str, tuple[list[list[int]], list[int]]],
    n_items: int,
    single: dict[str, list[int]] | None = None,
    active: list[list[int]] | None = None,
    item_single: dict[str, list[int]] | None = None,
    item_active: list[list[int]] | None = None,
) -> PreparedDataset:
    """Writes ``splits`` (name -> sessions, their users) as a prepared data set.

    ``single``: attribute -> code of every user; ``active``: binary fields present per user. Likewise of items,
    which have a category by default.
    """
    single = single or {}
    n_users = 1 + max(max(users, default=0) for _, users in splits.values())
    active = active or [[] for _ in range(n_users)]
    counts, session = {}, 0
    for name in ("train", "val", "test"):
        sessions, users = splits.get(name, ([], []))
        rows = [
            (session + index, users[index], item, 1000 * (session + index) + place)
            for index, one in enumerate(sessions)
            for place, item in enumerate(one)
        ]
        session += len(sessions)
        frame = pl.DataFrame(rows, schema=["session", "user", "item", "time"], orient="row").cast(pl.Int64)
        frame.write_parquet(folder / f"{name}.parquet")
        counts[name] = {"events": frame.height, "sessions": len(sessions), "users": 0, "items": 0}
    item_single = {"category": [item % 3 for item in range(n_items)]} if item_single is None else item_single
    item_active = item_active or [[] for _ in range(n_items)]
    dims = {"n_items": n_items}
    for prefix, file, one, many in (("", "users", single, active), ("item_", "items", item_single, item_active)):
        pl.DataFrame(
            {
                file.removesuffix("s"): range(len(many)),
                "id": range(len(many)),
                **{f"context.{name}": pl.Series(codes, dtype=pl.UInt32) for name, codes in one.items()},
                "active": pl.Series(many, dtype=pl.List(pl.UInt32)),
                "n_known": [len(one)] * len(many),
            }
        ).write_parquet(folder / f"{file}.parquet")
        n_binary = 1 + max((max(codes, default=-1) for codes in many), default=-1)
        dims |= {f"{prefix}single_sizes": [1 + max(codes) for codes in one.values()], f"n_{prefix}binary": n_binary}
        rows = [("tags", "multi", code) for code in range(n_binary)]
        schema = {"attribute": pl.String, "kind": pl.String, "code": pl.UInt32}
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / f"{prefix}contexts.parquet")
    manifest = {"name": "small", "dims": dims, "splits": counts, "version": "test", "fields": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return PreparedDataset(folder)


def python_block(text: str) -> str:
    """The only Python block of a document."""
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(block)


GROUPS = {file.parent.relative_to(CONF).as_posix() for file in CONF.rglob("*.yaml")} - {"."}


def compose_config(*overrides: str, with_hydra: bool = False, name: str = "config") -> DictConfig:
    """The config of a command line; ``with_hydra``: and its ``hydra`` part; ``name`` of the primary config.

    Hydra sets values once the groups are composed, which takes a quarter of a second; each choice is composed once.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    is_group = [o.package is not None or "/" in o.key_or_group or o.key_or_group in GROUPS for o in parsed]
    config = pickle.loads(_compose_groups(name, *compress(overrides, is_group)))
    ConfigLoaderImpl._apply_overrides_to_config([*compress(parsed, map(not_, is_group))], config)
    config.hydra.overrides.task = list(overrides)
    if not with_hydra:
        with open_dict(config):
            del config["hydra"]
    return config


@cache
def _compose_groups(name: str, *overrides: str) -> bytes:
    """Pickled, since a copy takes twice as long."""
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        return pickle.dumps(compose(name, overrides=list(overrides), return_hydra_config=True))


def store_models_alone() -> str:
    """A primary config with the groups that the model is made of: the others take longer to compose than these."""
    whole: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    groups = re.compile(r"data|model|optional (paper|tuned)@model.*")
    whole["defaults"] = [entry for entry in whole["defaults"] if entry == "_self_" or groups.fullmatch(*entry)]
    del whole["hydra"]
    ConfigStore.instance().store("models_alone", whole)
    return "models_alone"


MODELS_ALONE = store_models_alone()


def model_config(name: str, dims: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """The resolved config of a model with the sizes of ``dims``."""
    return copy.deepcopy(_model_config(name, json.dumps(dims), *overrides))


@cache
def _model_config(name: str, dims: str, *overrides: str) -> dict[str, Any]:
    config = compose_config(f"model={name}", "data=xing", *overrides, name=MODELS_ALONE)
    config.model.dims = json.loads(dims)
    plain = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def make_model(name: str, dims: dict[str, Any], *overrides: str, seed: int = 0, **settings: Any) -> Any:
    """A model of ``name``; ``settings`` are those of RunSettings."""
    torch.manual_seed(seed)
    return build_model(model_config(name, dims, *overrides), RunSettings(**settings))


def make_data(prepared: PreparedDataset, batch_size: int = 4, **settings: Any) -> SessionDataModule:
    defaults: dict[str, Any] = {
        "steps_per_chunk": 3,
        "evaluation_batch_size": 5,
        "n_sample": 0,
        "sample_alpha": 0.5,
        "negatives": "global",
        "assignment": "own",
        "item_assignment": "own",
        "attribute_dropout": 0.0,
        "n_attributes": None,
        "seed": 1,
    }
    return SessionDataModule(prepared, batch_size=batch_size, **(defaults | settings))


def ready(model: Any, prepared: PreparedDataset) -> Any:
    """The model with the contexts of a data set, and its encoders frozen where it freezes them, as a Trainer does."""
    model.set_contexts(make_data(prepared))
    if isinstance(model, ARNN):
        model.prepare_merge()
    return model


def train_losses(
    model: Any, data: SessionDataModule, epochs: int = 1, learn: bool = True, chunks: int | None = None
) -> list[float]:
    """Losses of mini-batches, trained in the bare loop; ``learn`` False keeps the weights; ``chunks`` of an epoch."""
    optimizer = model.configure_optimizers()
    for group in [] if learn else optimizer.param_groups:
        group["lr"] = 0.0
    losses: list[float] = []
    dataset = data.train_dataset(model.chunk_spec)
    for epoch in range(epochs):
        state = model.initial_state(data.batch_size)
        for number in range(len(dataset) if chunks is None else chunks):
            losses_K, state = model.run_steps(dataset[epoch, number], state)
            losses += losses_K.tolist()
    return losses


def profile_of(model: Any, user: int) -> Tensor:
    """(D,) the sum of a fusion's embeddings of all that is known of the user."""
    contexts = model.encoder.contexts
    single = [contexts.single_embedding.weight[category] for category in model.user_single[user]]
    present = [contexts.binary_embedding[field] for field in model.user_active[user] if field >= 0]
    return torch.stack([*single, *present]).sum(0)


def random_sessions(seed: int, count: int, n_items: int, longest: int = 7) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_items, rng.integers(2, longest + 1)).tolist() for _ in range(count)]


class WideTensors(TorchDispatchMode):
    """Collects dense results that are as wide as the catalogue and own their memory."""

    def __init__(self, n_items: int, known: set[int]) -> None:
        super().__init__()
        self.n_items, self.known, self.found = n_items, known, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            wide = isinstance(one, Tensor) and one.layout == torch.strided and self.n_items in one.shape
            if wide and one.untyped_storage().data_ptr() not in self.known:
                self.found.append((str(function), tuple(one.shape)))
        return out


def trainer(folder: Path, **settings: Any) -> Trainer:
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, **(defaults | quiet | settings))


class LSTMEncoder(SessionEncoder):
    """An encoder from outside the package, with a state of two tensors and a plain embedding."""

    def __init__(self, n_items: int, hidden_size: int = 8) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(n_items, hidden_size)
        self.cell = nn.LSTMCell(hidden_size, hidden_size)

    def initial_state(self, batch_size: int) -> State:
        return torch.zeros(batch_size, self.hidden_size), torch.zeros(batch_size, self.hidden_size)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        hidden, cell = self.cell(self.embedding(step.item), state)
        return hidden, (hidden, cell)


def lstm_model(n_items: int) -> SessionRecommender:
    return SessionRecommender(
        "lstm",
        {"n_items": n_items},
        LSTMEncoder(n_items),
        loss=CrossEntropy("linear", 0.5, "batch", "mask", 0.0),
        optimizer=lambda weights: torch.optim.Adam(weights, 0.05),
        scheduler=None,
        scheduler_interval="epoch",
        clip_norm=None,
        item_contexts="none",
        settings=RunSettings(),
    )
