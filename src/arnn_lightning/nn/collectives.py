"""Collectives of a training step: gradients, batch-norm statistics, evaluation counts.

One process per device; each takes its local slots of the same mini-batch. Nothing here is as wide as the catalogue.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rank_and_world_size() -> tuple[int, int]:
    """(global rank, number of processes) by the process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_rank_zero() -> bool:
    """Whether this process is the one that writes files and the console."""
    return rank_and_world_size()[0] == 0


def all_reduce_gradients(gradients: list[Tensor]) -> None:
    """Sums dense gradients over all processes, in place, in one flat all-reduce.

    Args:
        gradients: of the same shapes in all processes, all of one dtype and device.
    """
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    pieces = flat.split([gradient.numel() for gradient in gradients])
    summed = [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]
    torch._foreach_copy_(gradients, summed)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; without gradients."""
    dist.all_reduce(tensor)
    return tensor


def all_gather(local: Tensor) -> Tensor:
    """(...) of every process, of equal shapes -> (P, ...)."""
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.stack(parts)


def all_gather_ragged(local_NC: Tensor) -> Tensor:
    """(N, C) of every process, N of its own -> (sum of N, C), in the order of ranks."""
    counts = all_gather(torch.tensor([len(local_NC)], device=local_NC.device))[:, 0].tolist()
    padded = local_NC.new_zeros((max(counts), *local_NC.shape[1:]))
    padded[: len(local_NC)] = local_NC
    return torch.cat([part[:n_rows] for part, n_rows in zip(all_gather(padded), counts, strict=True)])


def all_gather_autograd(local: Tensor) -> Tensor:
    """(...) of every process -> (P, ...), differentiable with respect to every process's ``local``."""
    gathered: Tensor = _AllGather.apply(local)  # type: ignore[no-untyped-call]
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:
        return all_gather(local)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> Tensor:
        return all_reduce_sum(grad_output.clone(memory_format=torch.contiguous_format))[dist.get_rank()]
