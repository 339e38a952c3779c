"""The lists of models and losses that every contract test reads: a new model needs one line here."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from arnn_lightning.preprocessing.dataset import PreparedDataset
from helpers import CONF, make_model, ready


class ModelCase(NamedTuple):
    """A preset of conf/model, made small, and what the contract tests expect of it."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    has_memory: bool = False  # whether scores depend on the events before the last one
    reads_contexts: bool = False
    is_trained: bool = True  # by gradient steps; else fitted by counting
    repeats: bool = False  # whether items of the session score highest

    def make(self, prepared: PreparedDataset, *overrides: str, **settings: Any) -> Any:
        """The model as a Trainer sets it up on ``prepared``, fitted where it is not trained."""
        model = ready(make_model(self.preset, prepared.dims, *self.overrides, *overrides, **settings), prepared)
        if not self.is_trained:
            model.fit(prepared.sessions("train"))
        return model


_GRU4REC = ("model.hidden_size=8",)
_WINDOW = ("model.hidden_size=8", "model.last_n_events=3")
_PNN = ("model.hidden_size=8", "model.embedding_size=4")
_ARNN = (
    "model.hidden_size=8",
    "model.session.hidden_size=6",
    "model.context.hidden_size=5",
    "model.context.embedding_size=4",
)
_FUSION = ("model.session.hidden_size=8", "model.fusion.embedding_size=4")
_PREFIX = (*_FUSION, "model.session.last_n_events=3", "model.fusion.n_tokens=2")

MODELS = (
    ModelCase("pop", "pop", is_trained=False),
    ModelCase("itemknn", "itemknn", is_trained=False),
    ModelCase("sr", "sr", is_trained=False),
    ModelCase("spop", "spop", has_memory=True, is_trained=False, repeats=True),
    ModelCase("sknn", "sknn", has_memory=True, is_trained=False, repeats=True),
    ModelCase("vsknn", "vsknn", has_memory=True, is_trained=False, repeats=True),
    ModelCase("stan", "stan", has_memory=True, is_trained=False, repeats=True),
    ModelCase("vstan", "vstan", has_memory=True, is_trained=False, repeats=True),
    ModelCase("vstan_context", "vstan_context", has_memory=True, reads_contexts=True, is_trained=False, repeats=True),
    ModelCase("gru4rec", "gru4rec", _GRU4REC, has_memory=True),
    ModelCase(
        "gru4rec_separate", "gru4rec", (*_GRU4REC, "model.embedding=separate", "model.layers=2"), has_memory=True
    ),
    ModelCase("gru4rec_tied", "gru4rec", (*_GRU4REC, "model.embedding=tied"), has_memory=True),
    ModelCase("gru4rec_strong", "gru4rec_strong", _GRU4REC, has_memory=True),
    ModelCase("gru4rec_items", "gru4rec", (*_GRU4REC, "model.item_contexts=add"), has_memory=True),
    ModelCase("narm", "narm", _WINDOW, has_memory=True),
    ModelCase("sasrec", "sasrec", (*_WINDOW, "model.heads=2"), has_memory=True),
    ModelCase("pnn", "pnn", (*_PNN, "model.product_method=gram"), reads_contexts=True),
    ModelCase("pnn_closed", "pnn", (*_PNN, "model.product_method=closed"), reads_contexts=True),
    ModelCase("pnn_fields", "pnn", (*_PNN, "model.item_contexts=fields"), reads_contexts=True),
    ModelCase("concat", "concat", ("model.embedding_size=4",), reads_contexts=True),
    ModelCase("arnn", "arnn", _ARNN, has_memory=True, reads_contexts=True),
    ModelCase(
        "arnn_footnote2",
        "arnn",
        (*_ARNN, "model.finetune_context_batchnorm=true"),
        has_memory=True,
        reads_contexts=True,
    ),
    ModelCase("arnn_joint", "arnn", (*_ARNN, "model.freeze_encoders=false"), has_memory=True, reads_contexts=True),
    ModelCase(
        "arnn_concat",
        "arnn",
        (
            "model@model.context=concat",
            "model.item_contexts=fields",
            "model.hidden_size=8",
            "model.session.hidden_size=6",
            "model.context.embedding_size=4",
        ),
        has_memory=True,
        reads_contexts=True,
    ),
    ModelCase("arnn_strong", "arnn_strong", _ARNN, has_memory=True, reads_contexts=True),
    ModelCase("latent_cross", "latent_cross", _FUSION, has_memory=True, reads_contexts=True),
    ModelCase(
        "latent_cross_sasrec",
        "latent_cross",
        ("model@model.session=sasrec", *_FUSION, "model.session.last_n_events=3"),
        has_memory=True,
        reads_contexts=True,
    ),
    ModelCase("init_state", "init_state", _FUSION, has_memory=True, reads_contexts=True),
    ModelCase("input_concat", "input_concat", _FUSION, has_memory=True, reads_contexts=True),
    ModelCase("prefix", "prefix", _PREFIX, has_memory=True, reads_contexts=True),
    ModelCase(
        "arnn_sasrec",
        "arnn_strong",
        ("model@model.session=sasrec", *_ARNN, "model.session.last_n_events=3"),
        has_memory=True,
        reads_contexts=True,
    ),
)
# Each differs in a setting from another of the list; make test-all alone runs the contract tests with these.
VARIANTS = (
    *("gru4rec_separate", "gru4rec_tied", "gru4rec_items", "pnn_closed", "pnn_fields"),
    *("arnn_footnote2", "arnn_joint", "arnn_concat", "latent_cross_sasrec", "arnn_sasrec"),
)
LOSSES = sorted(path.stem for path in (CONF / "model" / "loss").glob("[!_]*.yaml"))
TRAINED = tuple(case for case in MODELS if case.is_trained)
BY_NAME = {case.name: case for case in MODELS}


def slow(*values: Any) -> Any:
    """A parameter of a test that ``make test-all`` alone runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_variants(cases: Iterable[ModelCase]) -> list[Any]:
    """Parameters of a test; those of ``VARIANTS`` are marked as slow."""
    return [slow(case) if case.name in VARIANTS else case for case in cases]


def slow_but(names: Iterable[str], cases: Iterable[ModelCase]) -> list[Any]:
    """Parameters of a test; all but ``names`` are marked as slow: one of each kind of what is tested is enough."""
    kept = {*names}
    return [case if case.name in kept else slow(case) for case in cases]


def case_name(case: ModelCase) -> str:
    """The id of a parametrized test."""
    return case.name
