"""A GRU layer, one time step at a time. B batch slots, H hidden, G = 3H gates, I items."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.nn.dropout import dropout
from arnn_lightning.nn.table import EmbeddingTable

GATES = 3  # reset, update, new: torch's order


def _xavier_per_gate(weight: Tensor, dim: int) -> None:
    """Glorot uniform for each gate's block (E12)."""
    for block in weight.data.chunk(GATES, dim):
        nn.init.xavier_uniform_(block)


class OneHotInput(nn.Module):
    """(B,) items -> gates (B, G): the product with a one-hot vector is a row of the table (paper 3.4)."""

    def __init__(self, n_items: int, hidden_size: int) -> None:
        super().__init__()
        self.gates = EmbeddingTable(n_items, GATES * hidden_size)
        self.bias = nn.Parameter(torch.zeros(GATES * hidden_size))
        _xavier_per_gate(self.gates.weight, 1)

    def forward(self, item_B: Tensor) -> Tensor:
        gates_BG: Tensor = self.gates(item_B)
        return gates_BG + self.bias


class LinearInput(nn.Module):
    """(..., H) -> gates (..., G)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(GATES * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(GATES * hidden_size))
        _xavier_per_gate(self.weight, 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class EmbeddingInput(nn.Module):
    """(...,) items -> gates (..., G), through an embedding, with dropout on it (E11)."""

    def __init__(self, table: EmbeddingTable, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding = table
        self.dropout = dropout
        self.linear = LinearInput(hidden_size)

    def forward(self, item: Tensor) -> Tensor:
        gates: Tensor = self.linear(dropout(self.embedding(item), self.dropout, self.training))
        return gates


class GRUCell(nn.Module):
    """The recurrent half of a GRU layer; the input's half of the gates (B, G) comes from outside.

    torch's and cuDNN's variant: the reset gate acts after the matrix product (E22):
    n = tanh(x_n + r * (W_hn h + b_hn)), h' = (1 - z) n + z h.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(GATES * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(GATES * hidden_size))
        _xavier_per_gate(self.weight, 0)

    def forward(self, input_BG: Tensor, hidden_BH: Tensor) -> Tensor:
        # Matrix products may be in bfloat16; the gates and the state keep the state's precision.
        state_dtype = hidden_BH.dtype
        reset_x, update_x, new_x = input_BG.to(state_dtype).chunk(GATES, 1)
        reset_h, update_h, new_h = F.linear(hidden_BH, self.weight, self.bias).to(state_dtype).chunk(GATES, 1)
        reset = torch.sigmoid(reset_x + reset_h)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(torch.addcmul(new_x, reset, new_h))
        return torch.lerp(new, hidden_BH, update)
