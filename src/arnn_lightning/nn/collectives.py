"""What the processes of one run tell each other in a training step: sums of gradients and of statistics.

One process per device; each takes its own lanes of the same mini-batch. Nothing here is as wide as the catalogue.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rank_and_world_size() -> tuple[int, int]:
    """(this process, number of processes); (0, 1) for a run on one device."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_gradients(gradients: Sequence[Tensor]) -> None:
    """Sums every gradient over all processes, in place and in one message.

    The rows of a table are those of all processes' slots, so their gradients lie on the same rows everywhere.
    """
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    pieces = flat.split([gradient.numel() for gradient in gradients])
    targets = zip(pieces, gradients, strict=True)
    torch._foreach_copy_(list(gradients), [piece.view_as(gradient) for piece, gradient in targets])


def all_reduce_sum(own: Tensor) -> Tensor:
    """The sum over all processes, in place; without gradients."""
    dist.all_reduce(own)
    return own


def all_gather(own: Tensor) -> Tensor:
    """(...) of every process, all of one shape -> (P, ...)."""
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts)


def all_gather_ragged(own_NC: Tensor) -> Tensor:
    """(N, C) of every process, N its own -> (sum of N, C), process by process."""
    count = torch.tensor([len(own_NC)], device=own_NC.device)
    counts = all_gather(count)[:, 0].tolist()
    padded = own_NC.new_zeros((max(counts), *own_NC.shape[1:]))
    padded[: len(own_NC)] = own_NC
    return torch.cat([part[:many] for part, many in zip(all_gather(padded), counts, strict=True)])


def all_gather_autograd(own: Tensor) -> Tensor:
    """(...) of every process -> (P, ...), with gradients to every process's own."""
    gathered: Tensor = _Gather.apply(own)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        return all_gather(own)

    @staticmethod
    def backward(ctx: FunctionCtx, to_gathered: Tensor) -> Tensor:
        total = to_gathered.contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]
