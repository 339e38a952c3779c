"""Batch normalisation over the valid slots."""

import torch
from torch import Tensor, nn

from arnn_lightning.nn.collectives import all_gather_autograd, rank_and_world_size


class MaskedBatchNorm(nn.BatchNorm1d):
    """torch's BatchNorm1d with statistics over valid slots only (E26).

    With fewer than two valid slots the variance is undefined: the running statistics are used and not updated. The
    momentum shrinks with the share of valid slots: an epoch ends with steps of ever fewer valid slots, whose noisy
    statistics would otherwise be those of the validation. Outputs of empty slots are arbitrary and masked later.

    On many devices the statistics are those of all their slots, also for a device without a valid slot.
    """

    _folded: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def fold(self) -> None:
        """Computes scale and shift from the running statistics once: for a layer that serves, not trained."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale_H = self.weight * torch.rsqrt(self.running_var + self.eps)
        self._folded = scale_H, torch.addcmul(self.bias, self.running_mean, scale_H, value=-1)

    def forward(self, x_BH: Tensor, valid_B: Tensor | None = None) -> Tensor:
        """(B, H), (B,) -> (B, H). ``valid_B`` None: all slots are valid."""
        if self._folded is not None:
            scale_H, shift_H = self._folded
            return torch.addcmul(shift_H, x_BH, scale_H)
        world_size = rank_and_world_size()[1] if self.training else 1
        if not self.training or (valid_B is None and len(x_BH) > 1 and world_size == 1):
            return super().forward(x_BH)
        if valid_B is None:
            valid_B = x_BH.new_ones(len(x_BH), dtype=torch.bool)
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None
        assert running_var is not None
        x_BH = x_BH.to(running_mean.dtype)  # bfloat16 cannot represent counts beyond 256
        weight_B1 = valid_B.to(x_BH.dtype)[:, None]
        count = weight_B1.sum()
        divisor = count.clamp(min=1)
        mean_H = (x_BH * weight_B1).sum(0) / divisor
        variance_H = ((x_BH - mean_H).square() * weight_B1).sum(0) / divisor
        if world_size > 1:
            count, mean_H, variance_H = _merge_statistics(count, mean_H, variance_H)
        has_variance = count >= 2
        assert self.momentum is not None
        used_mean_H = torch.where(has_variance, mean_H, running_mean)
        used_variance_H = torch.where(has_variance, variance_H, running_var)
        with torch.no_grad():
            # No branch on a tensor's value, which would be a host sync: the momentum is 0 without a variance.
            momentum = has_variance * (self.momentum * count / (world_size * len(x_BH)))
            running_mean.lerp_(mean_H, momentum)
            running_var.lerp_(variance_H * count / (count - 1).clamp(min=1), momentum)
        return torch.addcmul(self.bias, (x_BH - used_mean_H) * torch.rsqrt(used_variance_H + self.eps), self.weight)


def _merge_statistics(count: Tensor, mean_H: Tensor, variance_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance over all processes from those of each (Chan et al. 1979), in one message."""
    all_PN = all_gather_autograd(torch.cat([count[None], mean_H, variance_H]))
    count_P1, mean_PH, variance_PH = all_PN.split([1, len(mean_H), len(mean_H)], 1)
    total = count_P1.detach().sum()
    share_P1 = count_P1.detach() / total.clamp(min=1)
    mean_H = (mean_PH * share_P1).sum(0)
    return total, mean_H, ((variance_PH + (mean_PH - mean_H).square()) * share_P1).sum(0)
