"""What the processes of one run tell each other in a training step: sums of gradients and of statistics.

One process per device; each takes its own lanes of the same mini-batch. Nothing here is as wide as the catalogue.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def world() -> tuple[int, int]:
    """(this process, number of processes); (0, 1) for a run on one device."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Adds every weight's gradient up over all processes, in place: one message for all of them.

    The gradient of a table that was read by unique rows lies on the same rows everywhere (a Lookup's rows are those of
    all lanes, data/datamodule.py), so that its values alone travel. One that was read by ids brings its ids along.
    """
    parts: list[Tensor] = []
    for weight in weights:
        gradient = weight.grad
        if gradient is None:
            continue
        if not gradient.is_sparse:
            parts.append(gradient)
        elif getattr(weight, "read_by_ids", False):  # nn/table.py
            ids, values = gather(gradient._indices()[0]), gather(gradient._values())
            weight.grad = torch.sparse_coo_tensor(
                ids.flatten()[None], values.flatten(0, 1), gradient.shape, check_invariants=False
            )
        else:
            parts.append(gradient._values())
    if not parts:
        return
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat)
    pieces = flat.split([part.numel() for part in parts])
    torch._foreach_copy_(parts, [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)])


def sum_over_devices(own: Tensor) -> Tensor:
    """The sum over all processes, in place; without gradients."""
    dist.all_reduce(own)
    return own


def gather(own: Tensor) -> Tensor:
    """(...) of every process, all of one shape -> (P, ...)."""
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts)


def gather_rows(own_NC: Tensor) -> Tensor:
    """(N, C) of every process, N its own -> (sum of N, C), process by process."""
    count = torch.tensor([len(own_NC)], device=own_NC.device)
    counts = gather(count)[:, 0].tolist()
    padded = own_NC.new_zeros((max(counts), *own_NC.shape[1:]))
    padded[: len(own_NC)] = own_NC
    return torch.cat([part[:many] for part, many in zip(gather(padded), counts, strict=True)])


def gather_with_gradients(own: Tensor) -> Tensor:
    """(...) of every process -> (P, ...), with gradients to every process's own."""
    gathered: Tensor = _Gather.apply(own)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        return gather(own)

    @staticmethod
    def backward(ctx: FunctionCtx, to_gathered: Tensor) -> Tensor:
        total = to_gathered.contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]
