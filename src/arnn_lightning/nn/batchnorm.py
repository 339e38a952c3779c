"""Batch normalisation over the lanes alive."""

import torch
from torch import Tensor, nn

from arnn_lightning.nn.collectives import all_gather_autograd, rank_and_world_size


class MaskedBatchNorm(nn.BatchNorm1d):
    """torch's BatchNorm1d with statistics over alive lanes only (E26).

    With fewer than two lanes alive there is no variance to speak of: the running statistics serve, and are not
    updated. The momentum shrinks with the share of lanes alive: an epoch ends with steps of ever fewer lanes, whose
    noisy statistics would otherwise be the ones that validation sees. Dead lanes get some value that nobody reads.

    On many devices the statistics are those of all their lanes, a device without a lane alive included.
    """

    def forward(self, x_BH: Tensor, alive_B: Tensor | None = None) -> Tensor:
        """(B, H), (B,) -> (B, H). ``alive_B`` None means that all lanes are alive."""
        processes = rank_and_world_size()[1] if self.training else 1
        if not self.training or (alive_B is None and len(x_BH) > 1 and processes == 1):
            return super().forward(x_BH)
        if alive_B is None:
            alive_B = x_BH.new_ones(len(x_BH), dtype=torch.bool)
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None
        assert running_var is not None
        x_BH = x_BH.to(running_mean.dtype)  # products may come in bfloat16, which cannot even count lanes beyond 256
        weight_B1 = alive_B.to(x_BH.dtype)[:, None]
        count = weight_B1.sum()
        divisor = count.clamp(min=1)
        mean_H = (x_BH * weight_B1).sum(0) / divisor
        variance_H = ((x_BH - mean_H).square() * weight_B1).sum(0) / divisor
        if processes > 1:
            count, mean_H, variance_H = _joined(count, mean_H, variance_H)
        enough = count >= 2
        assert self.momentum is not None
        used_mean_H = torch.where(enough, mean_H, running_mean)
        used_variance_H = torch.where(enough, variance_H, running_var)
        with torch.no_grad():
            # No branch on a tensor's value, so that a GPU need not wait: the momentum is 0 where too few are alive.
            momentum = enough * self.momentum * count / (processes * len(x_BH))
            running_mean.lerp_(mean_H, momentum)
            running_var.lerp_(variance_H * count / (count - 1).clamp(min=1), momentum)
        return torch.addcmul(self.bias, (x_BH - used_mean_H) * torch.rsqrt(used_variance_H + self.eps), self.weight)


def _joined(count: Tensor, mean_H: Tensor, variance_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance over all processes from each one's own (Chan et al. 1979), in one message."""
    all_PN = all_gather_autograd(torch.cat([count[None], mean_H, variance_H]))
    count_P1, mean_PH, variance_PH = all_PN.split([1, len(mean_H), len(mean_H)], 1)
    total = count_P1.detach().sum()
    share_P1 = count_P1.detach() / total.clamp(min=1)
    mean_H = (mean_PH * share_P1).sum(0)
    return total, mean_H, ((variance_PH + (mean_PH - mean_H).square()) * share_P1).sum(0)
