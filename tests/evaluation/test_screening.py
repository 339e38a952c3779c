"""Lists of one query by screening equal those of all scores."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arnn_lightning.evaluation.ranking import top_items
from arnn_lightning.evaluation.screening import ItemScreen

N_ITEMS, WIDTH = 3_001, 24
World = Callable[[], tuple[Tensor, Tensor, Tensor]]  # weights, biases, query


def integers(low: int, high: int, *shape: int) -> Tensor:
    """Products of small integers are exact in float32, so that equal scores are equal however they are computed."""
    return torch.randint(low, high, shape).float()


def many_ties() -> tuple[Tensor, Tensor, Tensor]:
    few = integers(-2, 3, 40, WIDTH)  # seventy-five items of each row
    return few[torch.randint(0, 40, (N_ITEMS,))], torch.zeros(N_ITEMS), integers(-2, 3, WIDTH)


def one_huge_norm() -> tuple[Tensor, Tensor, Tensor]:
    weight = integers(-9, 10, N_ITEMS, WIDTH)
    weight[17] *= 2**14
    weight[18] = 0
    return weight, integers(-5, 6, N_ITEMS), integers(-9, 10, WIDTH)


def huge_biases() -> tuple[Tensor, Tensor, Tensor]:
    """The product matters among equal biases alone, of which the largest are those of a hundred items."""
    bias = 2.0**12 * integers(0, 9, N_ITEMS)
    return integers(-9, 10, N_ITEMS, WIDTH), bias, integers(-9, 10, WIDTH)


def worlds_apart(usual: list[float], best: list[float], query: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Thirty items are best, but not by the product of integers: first and other coordinates of weights and query."""
    rows = torch.tensor([usual, best, query]).repeat_interleave(torch.tensor([1, WIDTH - 1]), 1)
    weight = rows[0].repeat(N_ITEMS, 1)
    weight[torch.randperm(N_ITEMS)[:30]] = rows[1]
    return weight, torch.zeros(N_ITEMS), rows[2]


def rounded_query() -> tuple[Tensor, Tensor, Tensor]:
    return worlds_apart(usual=[512, 0], best=[511, 9], query=[2048, 12])  # 12 is rounded to 0


def rounded_weights() -> tuple[Tensor, Tensor, Tensor]:
    return worlds_apart(usual=[512, 0], best=[511, 3], query=[79 * 26, 4 * 26])  # 3 is rounded to 0


def opposite_errors() -> tuple[Tensor, Tensor, Tensor]:
    """Nearly as large as the bound: the product is too high for the usual items and too low for the best."""
    return worlds_apart(usual=[79, -79], best=[67, 79], query=[79 * 64, 31])


def random() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(N_ITEMS, WIDTH), torch.randn(N_ITEMS), torch.randn(WIDTH)


def tiny() -> tuple[Tensor, Tensor, Tensor]:
    return 1e-32 * torch.randn(N_ITEMS, WIDTH), torch.zeros(N_ITEMS), torch.randn(WIDTH)


def zero_query() -> tuple[Tensor, Tensor, Tensor]:
    return integers(-9, 10, N_ITEMS, WIDTH), torch.arange(N_ITEMS).float(), torch.zeros(WIDTH)


as_integers = pytest.mark.parametrize("as_integers", [True, False], ids=["integers", "floats"])


@as_integers
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "world",
    [many_ties, one_huge_norm, huge_biases, rounded_query, rounded_weights, opposite_errors, random, tiny, zero_query],
)
def test_V18_screened_lists_equal_those_of_all_scores(
    world: World, seed: int, as_integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arnn_lightning.evaluation.screening.MAX_SHARE", 1)
    monkeypatch.setattr("arnn_lightning.evaluation.screening.BLOCK_ROWS", 700)
    torch.manual_seed(seed)
    weight, bias, query = world()
    screen = ItemScreen(weight, bias, as_integers)
    left_out = torch.randperm(N_ITEMS)[: N_ITEMS // 2]

    def exclude(score: Tensor) -> None:
        score[:, left_out] = -torch.inf

    score = (weight.double() @ query.double() + bias).float()[None]
    for k in (1, 20, 100):
        for call in (lambda _: None, exclude):
            expected = score.clone()
            call(expected)
            lists = screen.top(query, k, call)
            assert lists is not None
            assert lists[1].tolist() == top_items(expected, k)[1][0].tolist()
            assert lists[0].tolist() == top_items(expected, k)[0][0].tolist()


@as_integers
def test_screening_computes_the_scores_of_few_items(as_integers: bool) -> None:
    torch.manual_seed(0)
    screen = ItemScreen(torch.randn(N_ITEMS, WIDTH), torch.randn(N_ITEMS), as_integers)
    assert screen.top(torch.randn(WIDTH), 20, lambda _: None) is not None  # at most one in sixteen


@as_integers
def test_a_screened_list_is_shorter_where_few_items_are_left(as_integers: bool) -> None:
    weight, bias, query = random()

    def exclude(score: Tensor) -> None:
        score[:, 3:] = -torch.inf

    lists = ItemScreen(weight, bias, as_integers).top(query, 5, exclude)
    assert lists is not None
    assert len(lists[0]) == 3
    assert {*lists[1].tolist()} == {0, 1, 2}


@as_integers
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, 3e38])
@pytest.mark.parametrize("part", ["weight", "bias", "query"])
def test_V8_screening_refuses_scores_that_may_be_infinite(part: str, value: float, as_integers: bool) -> None:
    tensors = dict(zip(("weight", "bias", "query"), random(), strict=True))
    tensors[part].view(-1)[5] = value
    screen = ItemScreen(tensors["weight"], tensors["bias"], as_integers)
    assert screen.top(tensors["query"], 20, lambda _: None) is None


@as_integers
def test_screening_refuses_where_many_items_may_be_best(as_integers: bool) -> None:
    screen = ItemScreen(torch.ones(N_ITEMS, WIDTH), torch.zeros(N_ITEMS), as_integers)
    assert screen.top(torch.ones(WIDTH), 20, lambda _: None) is None
    assert screen.top(torch.ones(WIDTH), N_ITEMS, lambda _: None) is None


def test_screening_by_floats_bounds_the_rounding_of_a_product() -> None:
    """The scores of thirty items are 0 to 29; beside 2e8, half of them are rounded to multiples of 16."""
    weight = torch.tensor([[2e8, 0, -2e8, -1e6]]).repeat(N_ITEMS, 1)
    bias, query = torch.zeros(N_ITEMS), torch.ones(4)
    best = torch.randperm(N_ITEMS)[:30]
    weight[best, 3] = 0
    weight[best[::2], 1], weight[best[1::2], 3] = torch.arange(0.0, 30, 2), torch.arange(1.0, 30, 2)
    weight[best[1::2, None], torch.tensor([0, 2])] = 0
    lists = ItemScreen(weight, bias, as_integers=False).top(query, 10, None)
    assert lists is not None
    assert lists[1].tolist() == best.flip(0)[:10].tolist()
    assert lists[0].tolist() == [*range(29, 19, -1)]


def test_screening_by_floats_bounds_the_rounding_of_sums_with_a_bias() -> None:
    """A sum that starts with 2e8 loses each 7; 28 at once become 32."""
    weight, bias = torch.zeros(N_ITEMS, 4), torch.zeros(N_ITEMS)
    best, good = torch.randperm(N_ITEMS)[:60].split(30)
    bias[best], bias[good] = 2e8, 2e8
    weight[best], weight[good, 0] = 7, 20
    lists = ItemScreen(weight, bias, as_integers=False).top(torch.ones(4), 20, None)
    assert lists is not None
    assert lists[1].tolist() == best.sort()[0][:20].tolist()
    assert lists[0].tolist() == [200_000_032] * 20
