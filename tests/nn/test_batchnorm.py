"""E26: batch normalisation over the valid slots."""

import torch

from arnn_lightning.nn.batchnorm import MaskedBatchNorm


def norms(width: int = 3) -> tuple[MaskedBatchNorm, torch.nn.BatchNorm1d]:
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(width).double(), torch.nn.BatchNorm1d(width).double()
    torch.nn.init.uniform_(ours.weight)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def test_E26_all_valid_slots_equal_torchs_batch_norm() -> None:
    for valid in (torch.ones(8, dtype=torch.bool), None):
        ours, theirs = norms()
        x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        out, expected = ours(x, valid), theirs(y)
        out.cos().sum().backward()
        expected.cos().sum().backward()
        assert torch.allclose(out, expected, atol=1e-12)
        assert torch.allclose(x.grad, y.grad, atol=1e-12)
        assert torch.allclose(ours.running_mean, theirs.running_mean)
        assert torch.allclose(ours.running_var, theirs.running_var)


def test_E26_empty_slots_change_nothing_for_the_valid_ones() -> None:
    ours, theirs = norms()
    valid = torch.tensor([True, False, True, True, False, True])
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = theirs(x[valid])
    assert torch.allclose(ours(x, valid)[valid], expected, atol=1e-12)
    other = torch.where(valid[:, None], x, 1e3)
    assert torch.allclose(norms()[0](other, valid)[valid], expected, atol=1e-12)


def test_E26_the_momentum_shrinks_with_the_share_of_valid_slots() -> None:
    ours, _ = norms()
    x = torch.randn(8, 3, dtype=torch.float64)
    valid = torch.arange(8) < 4
    ours(x, valid)
    assert torch.allclose(ours.running_mean, 0.1 * 0.5 * x[:4].mean(0))
    assert torch.allclose(ours.running_var, torch.lerp(torch.ones(3).double(), x[:4].var(0), 0.05))


def test_E26_fewer_than_two_slots_use_the_running_statistics() -> None:
    for count in (0, 1):
        ours, theirs = norms()
        ours.running_mean += 2
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        x = torch.randn(4, 3, dtype=torch.float64)
        out = ours(x, torch.arange(4) < count)
        theirs.load_state_dict(ours.state_dict(), strict=False)
        assert torch.allclose(out, theirs.eval()(x))
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_E26_a_batch_of_one_slot_uses_the_running_statistics() -> None:
    ours, theirs = norms()
    x = torch.randn(1, 3, dtype=torch.float64)
    assert torch.allclose(ours(x, None), theirs.eval()(x))
    assert not ours.running_mean.any()


def test_in_evaluation_it_is_torchs_batch_norm() -> None:
    ours, theirs = norms()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(ours.eval()(x, torch.zeros(5, dtype=torch.bool)), theirs.eval()(x))


def test_folded_it_is_torchs_batch_norm_in_evaluation() -> None:
    ours, theirs = norms()
    x = torch.randn(4, 3, dtype=torch.float64)
    for norm in (ours, theirs):
        torch.manual_seed(1)
        norm(torch.randn(16, 3, dtype=torch.float64))
        norm.eval()
    ours.fold()
    torch.testing.assert_close(ours(x), theirs(x))


def test_statistics_of_bfloat16_are_computed_in_float32() -> None:
    x, valid = torch.randn(600, 3).bfloat16(), torch.arange(600) < 500
    ours, theirs = MaskedBatchNorm(3), MaskedBatchNorm(3)
    assert torch.equal(ours(x, valid), theirs(x.float(), valid))
    assert torch.equal(ours.running_mean, theirs.running_mean)
