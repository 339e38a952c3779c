"""GRU4REC (paper 3.4): h_t = GRU(y_{t-1}, h_{t-1}), scores = W h_t + b.

The paper's input is the one-hot previous item, which makes the input layer a row of a table. Differs from the 2016
code in the GRU variant only (the reset gate acts after the matrix product, see nn/gru.py).
The dropped-out state is what the next step receives, as in the authors' code, unless ``carry_dropout`` is false (E23).

B lanes, H hidden, G = 3H gates, L layers.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.batch import Step
from arnn_lightning.errors import UserError
from arnn_lightning.losses.losses import Objective
from arnn_lightning.models.base import OptimizerFactory, SessionModel, State
from arnn_lightning.nn.gru import GATES, GRUStep
from arnn_lightning.nn.table import ItemScorer, RowTable, glorot_


class GRU4REC(SessionModel):
    """Recurrent session model.

    Args:
        name: the model's name.
        dims: ``n_items``.
        hidden_size: H.
        layers: GRU layers.
        embedding: ``onehot`` (the paper's), ``separate`` (an embedding of size H of its own) or ``tied`` (the
            scorer's item weights).
        dropout_embedding: dropout on the embedded input (E11).
        dropout_hidden: dropout on each layer's hidden state.
        carry_dropout: whether the dropped-out state is carried to the next step.
        optimizer: makes the optimizer.
        loss: the objective.
    """

    def __init__(
        self,
        name: str,
        dims: dict[str, Any],
        hidden_size: int,
        layers: int,
        embedding: Literal["onehot", "separate", "tied"],
        dropout_embedding: float,
        dropout_hidden: float,
        carry_dropout: bool,
        optimizer: OptimizerFactory,
        loss: Objective,
    ) -> None:
        super().__init__(name, dims["n_items"], optimizer, loss)
        if embedding not in ("onehot", "separate", "tied"):
            raise UserError(f"model.embedding={embedding}: choose onehot, separate or tied")
        if layers < 1:
            raise UserError(f"model.layers={layers}: at least 1")
        self.hidden_size = hidden_size
        self.embedding = embedding
        self.dropout_embedding = dropout_embedding
        self.dropout_hidden = dropout_hidden
        self.carry_dropout = carry_dropout
        self.scorer = ItemScorer(self.n_items, hidden_size)
        if embedding == "onehot":
            self.item_gates = RowTable(self.n_items, GATES * hidden_size)
            for block in self.item_gates.weight.data.chunk(GATES, 1):
                glorot_(block, self.n_items, hidden_size)
        elif embedding == "separate":
            self.item_embedding = RowTable(self.n_items, hidden_size)
            glorot_(self.item_embedding.weight, self.n_items, hidden_size)
        else:
            self.item_embedding = self.scorer.items  # stays when ARNN takes the scorer off
        inputs = layers - (embedding == "onehot")
        self.input_weights = nn.ParameterList(torch.empty(GATES * hidden_size, hidden_size) for _ in range(inputs))
        for weight in self.input_weights:
            for block in weight.data.chunk(GATES):
                glorot_(block, hidden_size, hidden_size)
        self.input_biases = nn.ParameterList(torch.zeros(GATES * hidden_size) for _ in range(layers))
        self.cells = nn.ModuleList(GRUStep(hidden_size) for _ in range(layers))

    def initial_state(self, lanes: int) -> State:
        return (torch.zeros(len(self.cells), lanes, self.hidden_size, device=self.device),)

    def represent(self, step: Step, state: State) -> tuple[Tensor, State]:
        (hidden_LBH,) = state
        weights = list(self.input_weights)
        if self.embedding == "onehot":
            gates_BG = self.item_gates(step.item, step.rows) + self.input_biases[0]
        else:
            x_BH = F.dropout(self.item_embedding(step.item, step.rows), self.dropout_embedding, self.training)
            gates_BG = F.linear(x_BH, weights.pop(0), self.input_biases[0])
        carried = []
        hidden_BH = hidden_LBH[0]
        for layer, cell in enumerate(self.cells):
            if layer:
                gates_BG = F.linear(hidden_BH, weights.pop(0), self.input_biases[layer])
            fresh_BH = cell(gates_BG, hidden_LBH[layer])
            hidden_BH = F.dropout(fresh_BH, self.dropout_hidden, self.training)
            carried.append(hidden_BH if self.carry_dropout else fresh_BH)
        return hidden_BH, (torch.stack(carried) if len(carried) > 1 else carried[0][None],)
