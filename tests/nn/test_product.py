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
        total = layer.bias + item[slot] @ layer.item_field
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
            for weight, field in zip(layer.item_pairs, [*binary, *singles], strict=True):
                total = total + weight * (field @ item[slot])
        out.append(total)
    return torch.stack(out)


def example(M: int, S: int, dtype: torch.dtype, method: str, products: bool = True):
    torch.manual_seed(1)
    layer = ProductLayer(M, S, embedding_size=4, hidden_size=5, products=products, method=method).to(dtype)
    torch.nn.init.normal_(layer.bias)
    active = torch.full((6, 4), -1)
    for slot in range(6):
        count = min(slot, M, 4)
        active[slot, :count] = torch.randperm(M)[:count]
    single = torch.randn(6, S, 4, dtype=dtype, requires_grad=True)
    item = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    return layer, active, single, item


def values_and_gradients(function, layer: ProductLayer, active: Tensor, single: Tensor, item: Tensor) -> list[Tensor]:
    out = function(active, single, item)
    leaves = [single, item, *layer.parameters()]
    gradients = torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True)
    return [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))]


@pytest.mark.parametrize("method", ["gram", "closed"])
@pytest.mark.parametrize(("M", "S"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_both_methods_equal_all_pairs_with_gradients(M, S, method, dtype, tolerance) -> None:
    layer, active, single, item = example(M, S, dtype, method)
    ours = values_and_gradients(layer, layer, active, single, item)
    theirs = values_and_gradients(lambda *x: naive(layer, *x), layer, active, single, item)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("method", ["gram", "closed"])
def test_both_methods_take_slots_without_a_present_field(method: str) -> None:
    layer, active, single, item = example(7, 3, torch.float64, method)
    active.fill_(-1)
    assert torch.allclose(layer(active, single, item), naive(layer, active, single, item), atol=1e-10)


@pytest.mark.parametrize(("M", "S"), SIZES)
@pytest.mark.parametrize("products", [True, False])
def test_a_folded_layer_equals_all_pairs(M: int, S: int, products: bool) -> None:
    layer, active, single, item = example(M, S, torch.float64, "auto", products)
    layer.fold()
    assert torch.allclose(layer(active, single, item), naive(layer, active, single, item))


def test_without_products_only_the_fields_count() -> None:
    layer, active, single, item = example(7, 3, torch.float64, "auto", products=False)
    assert torch.allclose(layer(active, single, item), naive(layer, active, single, item), atol=1e-12)
    assert not any("pairs" in name for name, _ in layer.named_parameters())


def test_user_terms_do_not_depend_on_the_item() -> None:
    layer, active, single, item = example(7, 3, torch.float64, "closed")
    whole = layer(active, single, item)
    assert torch.allclose(whole, layer.user_terms(active, single) + layer.item_terms(active, single, item))
    shuffled = layer(active, single, item.flip(0))
    changed = layer.item_terms(active, single, item.flip(0)) - layer.item_terms(active, single, item)
    assert torch.allclose(shuffled - whole, changed)


@pytest.mark.parametrize("method", ["gram", "closed"])
def test_masked_entries_equal_counted_ones(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes every entry and masks padding, since counting entries would be a host sync."""
    layer, active, single, item = example(7, 3, torch.float64, method)
    counted = values_and_gradients(layer, layer, active, single, item)
    monkeypatch.setattr(product, "_host_sync_is_free", lambda _: False)
    for a, b in zip(counted, values_and_gradients(layer, layer, active, single, item), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
