"""GRU4REC (paper 3.4; Hidasi et al. 2016, arXiv 1511.06939): h_t = GRU(y_{t-1}, h_{t-1}).

Known differences from the 2016 code: the GRU variant (the reset gate acts after the matrix product, see nn/gru.py), the
initial weights (Glorot per gate), Adagrad's eps (outside the root), and the end of an epoch, of which no session is
dropped. The dropped-out state is carried to the next step, as in the authors' code, unless
``carry_dropout`` is False (E23).

B batch slots, H hidden, L layers.
"""

import torch
from torch import Tensor, nn

from arnn_lightning.batch import State, StepInput
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.nn.dropout import dropout
from arnn_lightning.nn.gru import GATES, EmbeddingInput, GRUCell, LinearInput, OneHotInput
from arnn_lightning.nn.table import EmbeddingTable


class GRU4RecEncoder(SessionEncoder):
    """Recurrent session encoder (Hidasi et al. 2016, arXiv 1511.06939).

    Args:
        n_items: size of the catalogue.
        hidden_size: H, the width of every layer and of the query.
        layers: number of GRU layers.
        embedding: the table of item embeddings (I, H); None for one-hot input, the paper's.
        dropout_embedding: dropout on the embedded input (E11).
        dropout_hidden: dropout on each layer's hidden state.
        carry_dropout: whether the dropped-out state is carried to the next step.
    """

    n_hidden_states = 1

    def __init__(
        self,
        n_items: int,
        hidden_size: int,
        layers: int,
        embedding: EmbeddingTable | None,
        dropout_embedding: float,
        dropout_hidden: float,
        carry_dropout: bool,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input_sizes = (hidden_size,) * GATES
        self.dropout_hidden = dropout_hidden
        self.carry_dropout = carry_dropout
        first = (
            OneHotInput(n_items, hidden_size)
            if embedding is None
            else EmbeddingInput(embedding, hidden_size, dropout_embedding)
        )
        self.inputs = nn.ModuleList([first, *(LinearInput(hidden_size) for _ in range(layers - 1))])
        self.cells = nn.ModuleList(GRUCell(hidden_size) for _ in range(layers))

    def initial_state(self, batch_size: int) -> State:
        return (next(self.cells.parameters()).new_zeros(len(self.cells), batch_size, self.hidden_size),)

    def encode(self, step: StepInput, state: State) -> tuple[Tensor, State]:
        (hidden_LBH,) = state
        x = step.item
        next_hidden = []
        for to_gates, cell, hidden_BH in zip(self.inputs, self.cells, hidden_LBH.unbind(), strict=True):
            gates_BG = to_gates(x)
            if x is step.item and step.input_term is not None:  # the first layer
                gates_BG = gates_BG + step.input_term
            new_BH = cell(gates_BG, hidden_BH)
            x = dropout(new_BH, self.dropout_hidden, self.training)
            next_hidden.append(x if self.carry_dropout else new_BH)
        return x, (torch.stack(next_hidden) if len(next_hidden) > 1 else next_hidden[0][None],)
