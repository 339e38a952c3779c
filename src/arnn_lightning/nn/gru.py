"""One step of a GRU, given what the input contributes to its gates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.nn.table import glorot_

GATES = 3  # reset, update, new: torch's order


class GRUStep(nn.Module):
    """The recurrent half of a GRU layer; the input half, (B, 3H), comes from outside (a row of a table, or a matmul).

    torch's and cuDNN's variant: the reset gate acts after the matrix product (E22):
    n = tanh(x_n + r * (W_hn h + b_hn)), h' = (1 - z) n + z h.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(GATES * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(GATES * hidden_size))
        for block in self.weight.data.chunk(GATES):
            glorot_(block, hidden_size, hidden_size)

    def forward(self, input_BG: Tensor, hidden_BH: Tensor) -> Tensor:
        # Products may come in bfloat16; the gates and the state do not.
        precise = hidden_BH.dtype
        reset_x, update_x, new_x = input_BG.to(precise).chunk(GATES, 1)
        reset_h, update_h, new_h = F.linear(hidden_BH, self.weight, self.bias).to(precise).chunk(GATES, 1)
        reset = torch.sigmoid(reset_x + reset_h)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(torch.addcmul(new_x, reset, new_h))
        return torch.lerp(new, hidden_BH, update)
