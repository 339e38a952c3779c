"""The product layer's fast methods against all pairs written out."""

import itertools

import pytest
import torch
from torch import Tensor

from arnn_lightning.nn import product
from arnn_lightning.nn.product import ProductLayer

SIZES = [(0, 0), (0, 3), (1, 0), (1, 2), (2, 1), (7, 0), (7, 3), (20, 4)]


def naive(layer: ProductLayer, active: Tensor, single: Tensor, item: Tensor) -> Tensor:
    """FC([z; p]) with every pair of fields in a Python loop."""
    M, S = len(layer.values), single.shape[1]
    out = []
    for slot in range(len(item)):
        present = {int(field) for field in active[slot] if field >= 0}
        binary = [layer.values[i, int(i in present)] for i in range(M)]
        singles = list(single[slot])
        of_item = list(item[slot].T)
        of_pairs = layer.item_pairs.unflatten(1, (len(of_item), -1)) if layer.products else []
        total = layer.bias
        for t, field in enumerate(of_item):
            total = total + field @ layer.item_field.unflatten(1, (len(of_item), -1))[:, t]
        for weight, field in [
            *zip(layer.binary_fields, binary, strict=True),
            *zip(layer.single_fields, singles, strict=True),
        ]:
            total = total + field @ weight
        if layer.products:
            for weight, (a, b) in zip(layer.binary_pairs, itertools.combinations(binary, 2), strict=True):
                total = total + weight * (a @ b)
            for weight, (a, b) in zip(layer.single_pairs, itertools.combinations(singles, 2), strict=True):
                total = total + weight * (a @ b)
            for i, s in itertools.product(range(M), range(S)):
                total = total + layer.cross_pairs[i, s] * (binary[i] @ singles[s])
            for weights, field in zip(of_pairs, [*binary, *singles], strict=True):
                for weight, other in zip(weights, of_item, strict=True):
                    total = total + weight * (field @ other)
            pairs = list(itertools.combinations(of_item, 2))
            for weight, (a, b) in zip(layer.attribute_pairs if pairs else [], pairs, strict=True):
                total = total + weight * (a @ b)
        out.append(total)
    return torch.stack(out)


def example(M: int, S: int, dtype: torch.dtype, method: str, products: bool = True, T: int = 1):
    torch.manual_seed(1)
    layer = ProductLayer(M, S, T, embedding_size=4, hidden_size=5, products=products, method=method).to(dtype)
    torch.nn.init.normal_(layer.bias)
    active = torch.full((6, 4), -1)
    for slot in range(6):
        count = min(slot, M, 4)
        active[slot, :count] = torch.randperm(M)[:count]
    single = torch.randn(6, S, 4, dtype=dtype, requires_grad=True)
    item = torch.randn(6, 4, T, dtype=dtype, requires_grad=True)
    return layer, active, single, item


def values_and_gradients(function, layer: ProductLayer, active: Tensor, single: Tensor, item: Tensor) -> list[Tensor]:
    out = function(active, single, item)
    leaves = [single, item, *layer.parameters()]
    gradients = torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True)
    return [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))]


@pytest.mark.parametrize("method", ["gram", "closed"])
@pytest.mark.parametrize(("M", "S"), SIZES)
@pytest.mark.parametrize("T", [1, 3])
def test_both_methods_equal_all_pairs_with_gradients(M, S, T, method) -> None:
    layer, active, single, item = example(M, S, torch.float64, method, T=T)
    ours = values_and_gradients(layer, layer, active, single, item)
    theirs = values_and_gradients(lambda *x: naive(layer, *x), layer, active, single, item)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("method", ["gram", "closed"])
def test_both_methods_take_slots_without_a_present_field(method: str) -> None:
    layer, active, single, item = example(7, 3, torch.float64, method)
    active.fill_(-1)
    assert torch.allclose(layer(active, single, item), naive(layer, active, single, item), atol=1e-10)


@pytest.mark.parametrize(("M", "S"), SIZES)
@pytest.mark.parametrize("products", [True, False])
def test_a_folded_layer_equals_all_pairs(M: int, S: int, products: bool) -> None:
    layer, active, single, item = example(M, S, torch.float64, "auto", products, T=2)
    layer.fold()
    assert torch.allclose(layer(active, single, item), naive(layer, active, single, item))


@pytest.mark.parametrize(("M", "S"), SIZES)
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("products", [True, False])
def test_item_weights_of_a_user_give_the_item_terms(M: int, S: int, T: int, products: bool) -> None:
    layer, active, single, item = example(M, S, torch.float64, "auto", products, T)
    layer.fold()
    terms = (item.flatten(1)[:, None] @ layer.item_weights(active, single))[:, 0]
    total = layer.add_attribute_pairs(layer.user_terms(active, single) + terms, item)
    assert torch.allclose(total, naive(layer, active, single, item))


def test_E12_embeddings_of_binary_fields_are_glorot_uniform() -> None:
    """2 M rows of D values: absent and present of every field."""
    bound = (6 / (2 * 500 + 4)) ** 0.5
    assert 0.99 * bound < ProductLayer(500, 0, 1, 4, 2).values.abs().max() <= bound


def test_without_products_only_the_fields_count() -> None:
    layer, active, single, item = example(7, 3, torch.float64, "auto", products=False, T=2)
    assert torch.allclose(layer(active, single, item), naive(layer, active, single, item), atol=1e-12)
    assert not any("pairs" in name for name, _ in layer.named_parameters())


def test_user_terms_do_not_depend_on_the_item() -> None:
    layer, active, single, item = example(7, 3, torch.float64, "closed", T=2)
    whole = layer(active, single, item)
    assert torch.allclose(whole, layer.user_terms(active, single) + layer.item_terms(active, single, item))
    shuffled = layer(active, single, item.flip(0))
    changed = layer.item_terms(active, single, item.flip(0)) - layer.item_terms(active, single, item)
    assert torch.allclose(shuffled - whole, changed)


@pytest.mark.parametrize("method", ["gram", "closed"])
def test_masked_entries_equal_counted_ones(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes every entry and masks padding, since counting entries would be a host sync."""
    layer, active, single, item = example(7, 3, torch.float64, method, T=2)
    counted = values_and_gradients(layer, layer, active, single, item)
    monkeypatch.setattr(product, "_host_sync_is_free", lambda _: False)
    for a, b in zip(counted, values_and_gradients(layer, layer, active, single, item), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
