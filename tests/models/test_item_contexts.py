"""Attributes of items: against plain loops, by the chain rule, and in a world in which they decide."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import independent
from arnn_lightning.batch import StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.metrics import rank
from arnn_lightning.loading.contexts import assign_item_contexts
from arnn_lightning.models import SessionRecommender
from arnn_lightning.nn.table import EmbeddingTable, ItemAttributes
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.tasks.train import check_item_contexts
from helpers import make_data, make_model, model_config, train_losses, write_dataset
from models import BY_NAME

ADD, FIELDS = "model.item_contexts=add", "model.item_contexts=fields"
# One of each way to read item vectors: one-hot, tied, windows, products, two encoders and a copy of one.
NAMES = ("gru4rec", "gru4rec_tied", "sasrec", "pnn", "arnn_joint", "latent_cross")


def with_random_attributes(model: SessionRecommender) -> SessionRecommender:
    """In float64, with vectors of attributes that are not 0."""
    torch.manual_seed(3)
    for module in model.double().modules():
        if isinstance(module, ItemAttributes):
            torch.nn.init.normal_(module.weight, std=0.3)
    return model


@pytest.mark.parametrize(("name", "use"), [("gru4rec", ADD), ("pnn", ADD), ("pnn", FIELDS)])
def test_training_equals_a_reference_in_plain_loops(name: str, use: str, small_dataset: PreparedDataset) -> None:
    """Losses and all weights after an epoch, queries and gradients thus too."""
    model = with_random_attributes(BY_NAME[name].make(small_dataset, use, "model.optimizer.eps=1e-4")).train()
    model.encoder.dropout_hidden = 0.0
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    contexts = make_data(small_dataset).item_contexts()
    active = torch.where(contexts.active < 0, -1, contexts.active + sum(small_dataset.dims["item_single_sizes"]))
    weights["item_codes"] = torch.cat([contexts.single, active], 1)
    weights["item_attributes"] = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])  # five categories, three binary fields
    sessions = small_dataset.sessions("train")
    parts = np.split(sessions.item, sessions.offset[1:-1])
    logs = [(str(user), part.tolist()) for user, part in zip(sessions.user, parts, strict=True)]
    encoder: Any = independent.GRU4Rec()
    if name == "pnn":
        users = make_data(small_dataset).user_contexts()
        profiles = {
            str(user): (users.single[user].tolist(), {code for code in users.active[user].tolist() if code >= 0})
            for user in range(6)
        }
        encoder = independent.PNN(profiles, small_dataset.dims["n_binary"], 4, "encoder.")
    trained = [key for key, _ in model.named_parameters()]
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        try:
            expected = independent.train(weights, trained, encoder, logs, 4, "top1", 0.1, 1e-4)
        finally:
            torch.set_default_dtype(torch.float32)
    ours = train_losses(model, make_data(small_dataset))
    valid = [sum(slot is not None for slot in slots) for slots in independent.schedule(logs, 4)]
    assert ours == pytest.approx([loss * n / 4 for loss, n in zip(expected, valid, strict=True)], abs=1e-9)
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), weights[key], atol=1e-9, rtol=1e-9, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_rows_with_the_attributes_added(name: str, small_dataset: PreparedDataset) -> None:
    """The weights of a model without attributes, whose rows are the sums, give the same queries and scores."""
    model = with_random_attributes(BY_NAME[name].make(small_dataset, ADD)).eval()
    plain = BY_NAME[name].make(small_dataset).double().eval()
    modules = model.named_modules(remove_duplicate=False)  # a tied table has two names
    tables = {key: module for key, module in modules if isinstance(module, EmbeddingTable)}
    codes = make_data(small_dataset).item_contexts()
    first_binary = sum(small_dataset.dims["item_single_sizes"])
    state = {key: value.clone() for key, value in model.state_dict().items() if ".attributes." not in key}
    n_tables = 0
    for key, table in tables.items():
        if table.attributes is None:
            continue
        n_tables += 1
        for item in range(12):
            categories = [*codes.single[item].tolist()]
            categories += [first_binary + code for code in codes.active[item].tolist() if code >= 0]
            state[f"{key}.weight"][item] = table.weight[item].detach() + sum(
                table.attributes.weight[category].detach() for category in categories
            )
    assert n_tables >= 1
    plain.load_state_dict(state)
    item, user = torch.tensor([0, 5, 11]), torch.tensor([1, 2, 3])
    outputs = []
    for one in (model, plain):
        step, state_of = one.step_input(item, user, None), one.initial_state(3)
        _, state_of = one.encode(step, state_of)
        query, _ = one.encode(StepInput(item.flip(0), step.contexts, None, step.user_terms), state_of)
        outputs.append((query, one.score(query)))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["gru4rec", "gru4rec_tied", "sasrec", "arnn_joint"])
def test_a_category_gets_the_gradients_of_all_its_items(name: str, small_dataset: PreparedDataset) -> None:
    """With SGD a category moves by the sum of what the rows of its items move."""
    model = with_random_attributes(BY_NAME[name].make(small_dataset, ADD, "model/optimizer=sgd")).train()
    before = copy.deepcopy(model)
    data = make_data(small_dataset, n_sample=3, steps_per_chunk=1)
    model.configure_optimizers()
    model.run_steps(data.train_dataset(model.chunk_spec)[0, 0], model.initial_state(4))
    codes = next(module for module in model.modules() if isinstance(module, ItemAttributes)).codes
    for key, table in model.named_modules():
        if not isinstance(table, EmbeddingTable) or table.attributes is None:
            continue
        earlier = before.get_submodule(key)
        moved = table.weight.detach() - earlier.weight.detach()
        expected = torch.zeros_like(earlier.attributes.weight)
        for item, row in enumerate(codes.tolist()):
            for code in row:
                expected[code] += moved[item]
        expected[-1] = 0  # padding
        assert expected.abs().max() > 0
        step = table.attributes.weight.detach() - earlier.attributes.weight.detach()
        torch.testing.assert_close(step, expected, atol=1e-12, rtol=1e-9, msg=key)


def test_attributes_start_at_the_model_without_them(small_dataset: PreparedDataset) -> None:
    data = make_data(small_dataset)
    first = [train_losses(BY_NAME["gru4rec_tied"].make(small_dataset, *given), data)[0] for given in ([], [ADD])]
    assert first[0] == first[1]


def test_the_merging_layer_adds_none_to_frozen_encoders(small_dataset: PreparedDataset) -> None:
    model = BY_NAME["arnn"].make(small_dataset, ADD, "model.session.item_contexts=none")
    tables = {key for key, module in model.named_modules() if isinstance(module, ItemAttributes)}
    assert tables == {"encoder.context.item_embedding.attributes", "scorer.items.attributes"}


def test_items_without_attributes_are_refused(tmp_path: Path) -> None:
    prepared = write_dataset(tmp_path, {"train": ([[0, 1]], [0])}, n_items=2, item_single={})
    with pytest.raises(UserError, match=r"^model\.item_contexts=add: the data set has no attributes of items; .*$"):
        make_model("gru4rec", prepared.dims, ADD)


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("gru4rec", [FIELDS], "model"),
        ("latent_cross", [FIELDS], "model"),
        ("arnn", ["model.session.item_contexts=fields"], "model.session"),
        ("arnn", [FIELDS], None),
        ("arnn_concat", ["model.item_contexts=none", "model.context.item_contexts=fields"], None),
        ("pop", [], None),
    ],
)
def test_fields_are_refused_without_an_encoder_of_fields(
    name: str, overrides: list[str], part: str | None, small_dataset: PreparedDataset
) -> None:
    case = BY_NAME[name]
    settings = OmegaConf.create(model_config(case.preset, small_dataset.dims, *case.overrides, *overrides))
    refused = pytest.raises(UserError, match=rf"^{part}\.item_contexts=fields: .*; set {part}\.item_contexts=add$")
    with refused if part else nullcontext():
        check_item_contexts(settings, case.make(small_dataset, *overrides))


def test_permuted_attributes_keep_their_frequencies(small_dataset: PreparedDataset) -> None:
    own, permuted = (make_data(small_dataset, item_assignment=name).item_contexts() for name in ("own", "permuted"))
    assert not own.single.equal(permuted.single)
    assert sorted(own.single[:, 0].tolist()) == sorted(permuted.single[:, 0].tolist())
    stored = assign_item_contexts(small_dataset.items(), "permuted", 1)
    assert stored["context.category"].to_list() == permuted.single[:, 0].tolist()
    assert stored["id"].equals(small_dataset.items()["id"])
    ids = small_dataset.items().select("item", "id")  # a set without attributes of items
    assert assign_item_contexts(ids, "own", 1).equals(ids)


# --- a world in which attributes decide ---

N_ITEMS, N_KINDS, N_COLD = 240, 6, 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Each session has items of one kind, all of them rare; the last thirty items are clicked in the test alone."""
    rng = np.random.default_rng(4)

    def sessions(count: int, first: int, last: int) -> list[list[int]]:
        kinds = rng.integers(0, N_KINDS, count)
        return [
            [int(rng.integers(first // N_KINDS, last // N_KINDS)) * N_KINDS + kind for _ in range(4)] for kind in kinds
        ]

    train, test = sessions(220, 0, N_ITEMS - N_COLD), sessions(60, 0, N_ITEMS - N_COLD)
    for session in test[:30]:
        session[-1] = (
            int(rng.integers((N_ITEMS - N_COLD) // N_KINDS, N_ITEMS // N_KINDS)) * N_KINDS + session[0] % N_KINDS
        )
    splits = {"train": (train, [0] * len(train)), "test": (test, [0] * len(test))}
    kind = {"kind": [1 + item % N_KINDS for item in range(N_ITEMS)]}
    return write_dataset(tmp_path_factory.mktemp("world"), splits, N_ITEMS, item_single=kind)


def ranks_in(
    world: PreparedDataset, assignment: str, *overrides: str, name: str = "gru4rec"
) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of test targets that training has, and of those that it does not have."""
    config = ["model.hidden_size=16", "model/loss=cross_entropy_full"]
    config += ["model.dropout_hidden=0"] if name == "gru4rec" else []
    model = make_model(name, world.dims, *config, *overrides)
    data = make_data(world, batch_size=20, steps_per_chunk=50, item_assignment=assignment)
    model.set_contexts(data)
    train_losses(model.train(), data, epochs=6)
    model.place_unseen(data)
    model.eval()
    with torch.no_grad():
        query, target = model.encode_chunk(data.chunks("test", 20)[0, 0])
        counts = model.count_ranks(query, target)
    ranks, is_cold = (
        rank(counts[:, 0].numpy(), counts[:, 1].numpy(), "conservative"),
        target.numpy() >= N_ITEMS - N_COLD,
    )
    return ranks[~is_cold], ranks[is_cold]


def test_attributes_that_decide_are_learnt(world: PreparedDataset) -> None:
    """The next item has the kind of the one before: forty of 240 items. Permuted kinds are as good as none."""
    none, _ = ranks_in(world, "own")
    add, cold = ranks_in(world, "own", ADD)
    permuted, cold_permuted = ranks_in(world, "permuted", ADD)
    shares = [(ranks <= N_ITEMS // N_KINDS).mean() for ranks in (none, add, permuted, cold, cold_permuted)]
    assert shares[1] > 0.9 > 0.7 > shares[0]
    assert shares[2] < shares[0] + 0.05
    assert shares[3] > 0.9 > 0.3 > shares[4]  # never clicked in training: known by their kind alone


@pytest.fixture(scope="module")
def world_of_pairs(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The kind of the next item depends on the user's segment and the item's kind, and is uniform given one of them.

    The last two items of half of the test sessions are not in training.
    """
    rng, n_users = np.random.default_rng(5), 24
    kind_size, trained = N_ITEMS // N_KINDS, (N_ITEMS - N_COLD) // N_KINDS

    def split(count: int, n_cold_users: int) -> tuple[list[list[int]], list[int]]:
        sessions, users = [], rng.integers(0, n_users, count).tolist()
        for user in users:
            kinds = [int(rng.integers(N_KINDS))]
            for _ in range(3):
                kinds.append((kinds[-1] * 5 + user) % N_KINDS)
            ranges = [(trained, kind_size) if user < n_cold_users and place > 1 else (0, trained) for place in range(4)]
            sessions.append(
                [int(rng.integers(*bounds)) * N_KINDS + kind for bounds, kind in zip(ranges, kinds, strict=True)]
            )
        return sessions, users

    kind = {"kind": [1 + item % N_KINDS for item in range(N_ITEMS)]}
    segment = {"segment": [1 + user % N_KINDS for user in range(n_users)]}
    splits = {"train": split(500, 0), "test": split(60, n_users // 2)}
    return write_dataset(tmp_path_factory.mktemp("pairs"), splits, N_ITEMS, segment, item_single=kind)


@pytest.mark.slow
def test_pairs_of_user_and_item_attributes_are_learnt(world_of_pairs: PreparedDataset) -> None:
    """Forty of 240 items are of the right kind, which only both attributes together determine."""
    shares = []
    for assignment, use in (("own", "none"), ("own", "fields"), ("permuted", "fields")):
        ranks = ranks_in(world_of_pairs, assignment, f"model.item_contexts={use}", name="pnn")
        shares += [(ranks_of_part <= N_ITEMS // N_KINDS).mean() for ranks_of_part in ranks]
    none, _, fields, cold, permuted, cold_permuted = shares
    assert fields > 0.8 > 0.4 > max(none, permuted)
    assert cold > 0.7 > 0.4 > cold_permuted  # never clicked in training, neither the item before nor the next one
