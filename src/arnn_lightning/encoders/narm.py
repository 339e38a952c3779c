"""NARM (Li et al. 2017, arXiv 1711.04725): a GRU over the session and attention over its hidden states.

    h_j = GRU(x_j, h_{j-1}),  alpha_j = v^T sigmoid(A_1 h_t + A_2 h_j),  query = W [h_t; sum_j alpha_j h_j]

h_t is the global encoder's summary and the weighted sum the local encoder's. Scores are products of the query with the
embedded item vectors (the paper's bilinear decoder).

Known differences: one GRU is both encoders, as in the authors' code and RecBole; the weights alpha are not normalised,
as in the paper and RecBole (that code applies a softmax); embedding and GRU have one size (the paper's have 50 and
100); the GRU is the one of nn/gru.py; scores have a bias per item.

B batch slots, L events of a window and the tokens before it, H hidden, G = 3 H of the gates, E = 2 H of both encoders.
"""

import torch
from torch import Tensor, nn

from arnn_lightning.encoders.window import WindowEncoder
from arnn_lightning.nn.dropout import dropout
from arnn_lightning.nn.gru import GRUCell, LinearInput
from arnn_lightning.nn.table import EmbeddingTable


class NARMEncoder(WindowEncoder):
    """GRU with attention over the last L events (Li et al. 2017, arXiv 1711.04725).

    Args:
        items: the item vectors (I, H).
        last_n_events: L.
        dropout_embedding: on the embedded items.
        dropout_hidden: on the hybrid representation [h_t; sum_j alpha_j h_j].
    """

    def __init__(
        self, items: EmbeddingTable, last_n_events: int, dropout_embedding: float, dropout_hidden: float
    ) -> None:
        hidden_size = items.weight.shape[1]
        super().__init__(hidden_size, last_n_events)
        self.dropout_embedding = dropout_embedding
        self.dropout_hidden = dropout_hidden
        self.items = items
        self.to_gates = LinearInput(hidden_size)
        self.cell = GRUCell(hidden_size)
        self.attend_last = nn.Linear(hidden_size, hidden_size, bias=False)  # A_1
        self.attend_all = nn.Linear(hidden_size, hidden_size, bias=False)  # A_2
        self.attention = nn.Linear(hidden_size, 1, bias=False)  # v
        self.to_query = nn.Linear(2 * hidden_size, hidden_size, bias=False)  # W
        for linear in (self.attend_last, self.attend_all, self.attention, self.to_query):
            nn.init.xavier_uniform_(linear.weight)

    def embed(self, item_BL: Tensor) -> Tensor:
        vector_BLH: Tensor = self.items(item_BL)
        return vector_BLH

    def encode_window(self, vector_BLH: Tensor, is_input_BL: Tensor) -> Tensor:
        gates_BLG = self.to_gates(dropout(vector_BLH, self.dropout_embedding, self.training))
        hidden_BH = self.cell.weight.new_zeros(vector_BLH.shape[0], self.hidden_size)
        hidden = []
        for gates_BG, is_input_B in zip(gates_BLG.unbind(1), is_input_BL.unbind(1), strict=True):
            hidden_BH = torch.where(is_input_B[:, None], self.cell(gates_BG, hidden_BH), hidden_BH)
            hidden.append(hidden_BH)
        hidden_BLH = torch.stack(hidden, 1) * is_input_BL[:, :, None]  # padding adds nothing to the sum
        weight_BL1 = self.attention(torch.sigmoid(self.attend_last(hidden_BH)[:, None] + self.attend_all(hidden_BLH)))
        hybrid_BE = torch.cat([hidden_BH, (weight_BL1 * hidden_BLH).sum(1)], 1)
        query_BH: Tensor = self.to_query(dropout(hybrid_BE, self.dropout_hidden, self.training))
        return query_BH
