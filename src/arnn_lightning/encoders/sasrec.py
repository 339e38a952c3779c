"""SASRec (Kang & McAuley 2018, arXiv 1808.09781): causal self-attention over a session's last events.

Section III: item vectors, times sqrt(H) as in the authors' code, plus learned positions; blocks of self-attention and
of a point-wise feed-forward network, each as x + g(LayerNorm(x)); a last layer norm. The most recent event has the last
position, as in the paper's left-padded sequences. Training has one step per event, so it does there too; the paper
trains on all events of a sequence at once, of which only the last has that position.

Known differences: scores are products with the embedded item vectors as in the paper, and have a bias per item. Dropout
is where the authors' code has it: on the embedding, the attention weights and both feed-forward layers (in the paper,
on g). That code normalises the attention's queries but not its keys, and adds the normalised x.

B batch slots, L events of a window and the tokens before it, Q queries of a block, H hidden, N heads, D = H / N.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.encoders.window import WindowEncoder
from arnn_lightning.nn.dropout import dropout
from arnn_lightning.nn.table import EmbeddingTable

_EPS = 1e-8  # of the layer norms, as in the authors' code


class SASRecEncoder(WindowEncoder):
    """Self-attention over the last L events (Kang & McAuley 2018, arXiv 1808.09781).

    Args:
        items: the item vectors (I, H).
        last_n_events: L.
        blocks: number of self-attention blocks.
        heads: N, which divides H.
        dropout: on the embedding, the attention weights and the feed-forward layers.
    """

    def __init__(self, items: EmbeddingTable, last_n_events: int, blocks: int, heads: int, dropout: float) -> None:
        hidden_size = items.weight.shape[1]
        super().__init__(hidden_size, last_n_events)
        self.dropout = dropout
        self.items = items
        self.position = nn.Parameter(torch.empty(last_n_events, hidden_size))
        nn.init.xavier_uniform_(self.position)
        self.blocks = nn.ModuleList(SelfAttentionBlock(hidden_size, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_size, _EPS)

    def embed(self, item_BL: Tensor) -> Tensor:
        vector_BLH: Tensor = self.items(item_BL) * math.sqrt(self.hidden_size) + self.position
        return vector_BLH

    def encode_window(self, vector_BLH: Tensor, is_input_BL: Tensor) -> Tensor:
        x_BLH = dropout(vector_BLH, self.dropout, self.training)
        # No input attends to padding. Padding does: a softmax over no key would be NaN.
        is_key_BLL = (is_input_BL[:, None] | ~is_input_BL[:, :, None]).tril()
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            # Only the query of the last event leaves the last block.
            x_BLH = block(x_BLH, is_key_BLL[:, -1:] if number == last else is_key_BLL)
        query_BH: Tensor = self.norm(x_BLH[:, -1])
        return query_BH


class SelfAttentionBlock(nn.Module):
    """Self-attention and a point-wise feed-forward network.

    Args:
        hidden_size: H.
        heads: N.
        dropout: on the attention weights and the feed-forward layers.
    """

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(hidden_size, _EPS)
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3))
        self.feed_forward_norm = nn.LayerNorm(hidden_size, _EPS)
        self.inner, self.outer = (nn.Linear(hidden_size, hidden_size) for _ in range(2))
        for linear in (self.query, self.key, self.value, self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.inner, self.outer):
            nn.init.zeros_(linear.bias)

    def forward(self, x_BLH: Tensor, is_key_BQL: Tensor) -> Tensor:
        """(B, L, H) -> (B, Q, H), the last Q events; ``is_key_BQL``: which events each of them attends to."""
        n_queries = is_key_BQL.shape[1]
        norm_BLH = self.attention_norm(x_BLH)
        query_BNQD = self._split(self.query(norm_BLH[:, -n_queries:]))
        key_BNLD, value_BNLD = self._split(self.key(norm_BLH)), self._split(self.value(norm_BLH))
        logits_BNQL = query_BNQD @ key_BNLD.transpose(2, 3) / math.sqrt(key_BNLD.shape[3])
        weight_BNQL = logits_BNQL.masked_fill(~is_key_BQL[:, None], -torch.inf).softmax(3)
        weight_BNQL = dropout(weight_BNQL, self.dropout, self.training)
        attended_BQH = (weight_BNQL @ value_BNLD).transpose(1, 2).flatten(2)
        x_BQH = x_BLH[:, -n_queries:] + attended_BQH
        inner_BQH = dropout(F.relu(self.inner(self.feed_forward_norm(x_BQH))), self.dropout, self.training)
        return x_BQH + dropout(self.outer(inner_BQH), self.dropout, self.training)

    def _split(self, x_BLH: Tensor) -> Tensor:
        """(B, L, H) -> (B, N, L, D)."""
        batch_size, n_events, hidden_size = x_BLH.shape
        return x_BLH.view(batch_size, n_events, self.heads, hidden_size // self.heads).transpose(1, 2)
