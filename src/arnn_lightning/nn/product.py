"""The PNN's product layer (paper 3.3; Qu et al. 2016): FC([z; p]), z all field embeddings, p all inner products.

Shapes: B batch slots; the fields are M binary and S single-valued ones of the user, and T of the previous item: the
item itself and, where they are fields, its attributes; N = M + S + T; D embedding, H hidden; A binary fields that are
present in a slot, n in all slots; P pairs of fields.

Two exact ways to compute it:

- **Gram**: directly, all inner products by one batched matrix product.
- **Closed form**: a binary field is f_i = a_i + u_i d_i with u_i in {0, 1} (absent: a_i, present: a_i + d_i), so

      sum_{i<j} w_ij <f_i, f_j> = sum_{i<j} w_ij <a_i, a_j>  +  sum_i u_i sum_{j!=i} w_ij <d_i, a_j>
                                  + sum_{i<j, both present} w_ij <d_i, d_j>

  The first two sums do not depend on the slot, and few fields are present: the cost hardly grows with B. The pairs of
  binary fields with any other field are split likewise.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arnn_lightning.nn.tracing import is_tracing

Method = Literal["auto", "gram", "closed"]
# B x M x M from which the closed form is faster: Gram matrices cost B x M x M, sums over weights M x M. Measured: from
# B = 500 with M = 30, 150 with 41, 50 with 70, 30 with 100, 10 with 200.
CLOSED_FORM_MIN_SIZE = 300_000


class FoldedWeights(NamedTuple):
    """The closed form's sums over weights, which ``fold`` computes once.

    Attributes:
        item: (D, T H) what the item's embeddings are multiplied with, whoever the user is.
        single: (S, D, H) what the embeddings of the single-valued fields are multiplied with.
        constant: (H,) the bias, and all terms of absent binary fields with each other.
        linear: (M, H) what a present binary field adds, in addition to its pairs with other present ones.
        delta: (M, D) present minus absent.
        item_linear: (M, D T H) what a present binary field adds to ``item``.
    """

    item: Tensor
    single: Tensor
    constant: Tensor
    linear: Tensor
    delta: Tensor
    item_linear: Tensor


class ProductLayer(nn.Module):
    """Field embeddings -> (B, H), before any non-linearity.

    The weights are those of one fully connected layer from [z; p], stored by kind of field; pairs (i < j) of one kind
    are stored row by row; rows for the item have one block of H columns for each of its fields. In closed form
    the output is ``user_terms`` + ``item_terms``; the first does not depend on the item, so that it can be computed
    once per user where the layer is frozen.

    Args:
        n_binary: M.
        n_single: S.
        n_item_fields: T.
        embedding_size: D.
        hidden_size: H.
        products: False leaves p out (an ablation).
        method: ``auto`` chooses by size.
    """

    def __init__(
        self,
        n_binary: int,
        n_single: int,
        n_item_fields: int,
        embedding_size: int,
        hidden_size: int,
        products: bool = True,
        method: Method = "auto",
    ) -> None:
        super().__init__()
        M, S, T, D, H = n_binary, n_single, n_item_fields, embedding_size, hidden_size
        self.products = products
        self.method: Method = method
        self.values = nn.Parameter(torch.empty(M, 2, D))  # embeddings of absent, present
        _glorot(self.values, 2 * M, D)
        self.bias = nn.Parameter(torch.zeros(H))
        self.binary_fields = nn.Parameter(torch.empty(M, D, H))
        self.single_fields = nn.Parameter(torch.empty(S, D, H))
        self.item_field = nn.Parameter(torch.empty(D, T * H))
        weights = [self.binary_fields, self.single_fields, self.item_field]
        fan_in = (M + S + T) * D
        if products:
            self.binary_pairs = nn.Parameter(torch.empty(M * (M - 1) // 2, H))
            self.cross_pairs = nn.Parameter(torch.empty(M, S, H))
            self.single_pairs = nn.Parameter(torch.empty(S * (S - 1) // 2, H))
            self.item_pairs = nn.Parameter(torch.empty(M + S, T * H))  # with the user's: first the binary fields
            weights += [self.binary_pairs, self.cross_pairs, self.single_pairs, self.item_pairs]
            if T > 1:
                self.attribute_pairs = nn.Parameter(torch.empty(T * (T - 1) // 2, H))  # of the item's fields
                weights.append(self.attribute_pairs)
            fan_in += (M + S + T) * (M + S + T - 1) // 2
        for weight in weights:
            _glorot(weight, fan_in, H)
        upper_M, upper_S, upper_T = (torch.triu_indices(n, n, 1) for n in (M, S, T))
        row_MM = torch.zeros(M, M, dtype=torch.int64)
        row_MM[upper_M[0], upper_M[1]] = torch.arange(M * (M - 1) // 2)
        row_MM += row_MM.T.clone()
        place_NN = torch.arange((M + S + T) ** 2).view(M + S + T, M + S + T)
        pairs = [
            place_NN[upper_M[0], upper_M[1]],
            place_NN[:M, M : M + S].flatten(),
            place_NN[M + upper_S[0], M + upper_S[1]],
            place_NN[: M + S, M + S :].flatten(),
            place_NN[M + S + upper_T[0], M + S + upper_T[1]],
        ]
        # Rows of binary_pairs: (M, M) of two fields, (M, M - 1) of one with each other; (P, 3) a row's fields, and M.
        self.register_buffer("row_of_pair", row_MM, persistent=False)
        self.register_buffer("rows_of_field", _off_diagonal(row_MM), persistent=False)
        self.register_buffer("terms_of_row", F.pad(upper_M.T, (0, 1), value=M), persistent=False)
        # Places of pairs in flattened Gram matrices: (N, N), in the order of the weights; (S, S); (T, T).
        self.register_buffer("gram_places", torch.cat(pairs), persistent=False)
        self.register_buffer("single_places", upper_S[0] * S + upper_S[1], persistent=False)
        self.register_buffer("attribute_places", upper_T[0] * T + upper_T[1], persistent=False)
        self.register_buffer("item_columns", torch.arange(T), persistent=False)
        self.row_of_pair: Tensor
        self.rows_of_field: Tensor
        self.terms_of_row: Tensor
        self.gram_places: Tensor
        self.single_places: Tensor
        self.attribute_places: Tensor
        self.item_columns: Tensor
        self._folded: FoldedWeights | None = None

    def forward(self, active_BA: Tensor, single_BSD: Tensor, item_BDT: Tensor) -> Tensor:
        """(B, H). ``active_BA``: indices of the binary fields that are present, padded with -1."""
        if self._folded is None:
            is_small = len(active_BA) * len(self.values) ** 2 < CLOSED_FORM_MIN_SIZE
            if self.method == "gram" or (self.method == "auto" and is_small):
                return self._gram(active_BA, single_BSD, item_BDT)
        return self.user_terms(active_BA, single_BSD) + self.item_terms(active_BA, single_BSD, item_BDT)

    def _gram(self, active_BA: Tensor, single_BSD: Tensor, item_BDT: Tensor) -> Tensor:
        """FC([z; p]); N fields."""
        D, T, H = item_BDT.shape[1], item_BDT.shape[2], len(self.bias)
        value_BMD = torch.addcmul(self.values[:, 0], self._is_present(active_BA)[:, :, None], self._delta())
        field_BND = torch.cat([value_BMD, single_BSD, item_BDT.transpose(1, 2)], 1)
        inputs = [field_BND.flatten(1)]
        item_weight = self.item_field.view(D, T, H).transpose(0, 1).flatten(0, 1)
        weights = [self.binary_fields.flatten(0, 1), self.single_fields.flatten(0, 1), item_weight]
        if self.products:
            gram_BNN = field_BND @ field_BND.transpose(1, 2)
            inputs.append(gram_BNN.flatten(1).index_select(1, self.gram_places))
            item_pairs = self.item_pairs.view(-1, H)
            weights += [self.binary_pairs, self.cross_pairs.flatten(0, 1), self.single_pairs, item_pairs]
            weights += [self.attribute_pairs] if T > 1 else []
        return torch.addmm(self.bias, torch.cat(inputs, 1), torch.cat(weights))

    def _is_present(self, active_BA: Tensor) -> Tensor:
        """(B, M): 1 for binary fields that are present, 0 for the others."""
        M, batch_size = len(self.values), active_BA.shape[0]  # len() would fix the size of an exported graph
        is_present_BM = self.values.new_zeros(batch_size, M + 1)
        return is_present_BM.scatter_(1, torch.where(active_BA < 0, M, active_BA), 1.0)[:, :M]

    def user_terms(self, active_BA: Tensor, single_BSD: Tensor) -> Tensor:
        """(B, H): the bias, and the terms of all fields but the item, alone and in pairs."""
        active_BA = without_padding(active_BA)
        M, S = len(self.values), single_BSD.shape[1]
        out_BH = self._binary(active_BA)
        if not S:
            return out_BH
        weight_SDH = self._single_weight() if self._folded is None else self._folded.single
        out_BH = torch.addmm(out_BH, single_BSD.flatten(1), weight_SDH.flatten(0, 1))
        if self.products and S > 1:
            gram_BP = (single_BSD @ single_BSD.transpose(1, 2)).flatten(1).index_select(1, self.single_places)
            out_BH = torch.addmm(out_BH, gram_BP, self.single_pairs)
        if self.products and M:
            slot, field, mask_n1 = _active_entries(active_BA)
            delta_nD1 = self._delta().index_select(0, field)[:, :, None]
            product_nS = (single_BSD.index_select(0, slot) @ delta_nD1)[:, :, 0]
            weighted_nH = (product_nS[:, None] @ self.cross_pairs.index_select(0, field))[:, 0]
            out_BH = out_BH.index_add(0, slot, weighted_nH if mask_n1 is None else weighted_nH * mask_n1)
        return out_BH

    def item_terms(self, active_BA: Tensor, single_BSD: Tensor, item_BDT: Tensor) -> Tensor:
        """(B, H): the terms of the item's fields, alone, with each other and with every field of the user."""
        M, S, T, H = len(self.values), single_BSD.shape[1], item_BDT.shape[2], len(self.bias)
        item_weight = self._item_weight() if self._folded is None else self._folded.item
        out_BH = item_BDT.flatten(1) @ item_weight.view(-1, H)
        if not self.products:
            return out_BH
        with_binary, with_single = self.item_pairs[:M], self.item_pairs[M:]
        if S:  # ONNX cannot reshape what has no element
            out_BH = torch.addmm(out_BH, (single_BSD @ item_BDT).flatten(1), with_single.view(-1, H))
        out_BH = self.add_attribute_pairs(out_BH, item_BDT)
        if M:
            field_BA = active_BA.clamp(min=0)
            product_BAT = (F.embedding(field_BA, self._delta()) @ item_BDT) * (active_BA >= 0)[:, :, None]
            weight, row, product = with_binary.view(-1, H), field_BA, product_BAT.flatten(1)
            if T > 1:
                row = (field_BA[:, :, None] * T + self.item_columns).flatten(1)
            if is_tracing():  # a loop over the slots in ONNX
                out_BH = out_BH + (F.embedding(row, weight) * product[:, :, None]).sum(1)
            else:
                out_BH = out_BH + F.embedding_bag(row, weight, mode="sum", per_sample_weights=product)
        return out_BH

    def add_attribute_pairs(self, out_BH: Tensor, item_BDT: Tensor) -> Tensor:
        """``out_BH`` plus the terms of the item's fields with each other."""
        if not self.products or item_BDT.shape[2] == 1:
            return out_BH
        gram_BP = (item_BDT.transpose(1, 2) @ item_BDT).flatten(1).index_select(1, self.attribute_places)
        return torch.addmm(out_BH, gram_BP, self.attribute_pairs)

    def item_weights(self, active_BA: Tensor, single_BSD: Tensor) -> Tensor:
        """(B, D T, H): what the embeddings of the item's fields are multiplied with, once per user of a folded layer.

        With ``add_attribute_pairs`` the product is ``item_terms``.
        """
        assert self._folded is not None
        M, H, item = len(self.values), len(self.bias), self._folded.item
        weights = torch.addmm(item.flatten(), self._is_present(active_BA), self._folded.item_linear)
        weights = weights.view(-1, *item.shape)
        if self.products:
            weights = weights + single_BSD.transpose(1, 2) @ self.item_pairs[M:]
        return weights.view(len(weights), -1, H)

    def _delta(self) -> Tensor:
        return self.values[:, 1] - self.values[:, 0] if self._folded is None else self._folded.delta

    def _item_weight(self) -> Tensor:
        if not self.products:
            return self.item_field
        return torch.addmm(self.item_field, self.values[:, 0].T, self.item_pairs[: len(self.values)])

    def _single_weight(self) -> Tensor:
        if not self.products or not len(self.values):
            return self.single_fields
        # sum_i w_is a_i is the same for all slots: it acts on field s like one more weight of z.
        absent_DSH = (self.values[:, 0].T @ self.cross_pairs.flatten(1)).unflatten(1, self.cross_pairs.shape[1:])
        weight_SDH: Tensor = self.single_fields + absent_DSH.transpose(0, 1)
        return weight_SDH

    def _binary_field_sums(self) -> tuple[Tensor, Tensor]:
        """constant (H) and linear (M, H) of the binary fields alone."""
        constant_H = self.bias + torch.einsum("md,mdh->h", self.values[:, 0], self.binary_fields)
        return constant_H, (self._delta()[:, None] @ self.binary_fields)[:, 0]

    def _binary(self, active_BA: Tensor) -> Tensor:
        """(B, H): the bias, and the terms of the binary fields, alone and with each other."""
        M = len(self.values)
        if not M:
            return self.bias.expand(active_BA.shape[0], -1)
        present_BM = self._is_present(active_BA)
        if self._folded is not None:
            out_BH = torch.addmm(self._folded.constant, present_BM, self._folded.linear)
            return self._add_present_pairs(out_BH, active_BA) if self.products and M > 1 else out_BH
        constant_H, linear_MH = self._binary_field_sums()
        out_BH = torch.addmm(constant_H, present_BM, linear_MH)
        if not self.products or M < 2:
            return out_BH
        return out_BH + self._binary_pair_terms(active_BA, present_BM)

    def _binary_pair_terms(self, active_BA: Tensor, present_BM: Tensor) -> Tensor:
        absent_MD, delta_MD = self.values[:, 0], self._delta()
        slot, first, second, mask_n1 = _active_pairs(active_BA)
        linear_MH, constant_H, weight_nH = self._pair_sums(absent_MD, delta_MD, self.row_of_pair[first, second])
        out_BH = torch.addmm(constant_H, present_BM, linear_MH)
        return out_BH.index_add(0, slot, weight_nH * _pair_products(delta_MD, first, second, mask_n1))

    def _add_present_pairs(self, out_BH: Tensor, active_BA: Tensor) -> Tensor:
        """``out_BH`` with the pairs of binary fields that are both present."""
        slot, first, second, mask_n1 = _active_pairs(active_BA)
        weight_nH = self.binary_pairs.index_select(0, self.row_of_pair[first, second])
        return out_BH.index_add(0, slot, weight_nH * _pair_products(self._delta(), first, second, mask_n1))

    def _pair_sums(self, absent_MD: Tensor, delta_MD: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factors = delta_MD @ absent_MD.T, absent_MD @ absent_MD.T
        sums: tuple[Tensor, Tensor, Tensor] = _PairSums.apply(  # type: ignore[no-untyped-call]
            self.binary_pairs, *factors, rows, self.terms_of_row, self.rows_of_field
        )
        return sums

    @property
    def is_folded(self) -> bool:
        return self._folded is not None

    @torch.no_grad()
    def fold(self) -> None:
        """Computes the closed form's sums over weights once: for a layer that serves or is exported, not trained."""
        constant_H, linear_MH = self._binary_field_sums()
        if self.products and len(self.values) > 1:
            pairs_MH, pairs_H, _ = self._pair_sums(self.values[:, 0], self._delta(), self.row_of_pair.new_zeros(0))
            constant_H, linear_MH = constant_H + pairs_H, linear_MH + pairs_MH
        delta_MD, item_weight = self._delta(), self._item_weight()
        pairs = self.item_pairs[: len(delta_MD)] if self.products else item_weight.new_zeros(1, item_weight.shape[1])
        item_linear = (delta_MD[:, :, None] * pairs[:, None]).flatten(1)
        self._folded = FoldedWeights(item_weight, self._single_weight(), constant_H, linear_MH, delta_MD, item_linear)


def _pair_products(delta_MD: Tensor, first: Tensor, second: Tensor, mask_n1: Tensor | None) -> Tensor:
    product_n1 = (delta_MD.index_select(0, first) * delta_MD.index_select(0, second)).sum(1, keepdim=True)
    return product_n1 if mask_n1 is None else product_n1 * mask_n1


class _PairSums(torch.autograd.Function):
    """The sums over pairs i < j of the closed form.

    (w (P, H), c (M, M), a (M, M), rows (n,), terms_of_row (P, 3), rows_of_field (M, M - 1)) ->
    linear (M, H): sum_{j != i} w_ij c_ij;  constant (H): sum_{i<j} w_ij a_ij;  w[rows] (n, H).
    The backward pass is written out, since that of an embedding bag sorts its indices in every step.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        weight_PH: Tensor,
        c_MM: Tensor,
        a_MM: Tensor,
        rows: Tensor,
        terms_of_row: Tensor,
        rows_of_field: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(weight_PH, c_MM, a_MM, rows, terms_of_row)
        linear_MH = F.embedding_bag(rows_of_field, weight_PH, mode="sum", per_sample_weights=_off_diagonal(c_MM))
        i, j, _ = terms_of_row.unbind(1)
        return linear_MH, a_MM[i, j] @ weight_PH, weight_PH.index_select(0, rows)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_linear_MH: Tensor, grad_constant_H: Tensor, grad_rows_nH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        weight_PH, c_MM, a_MM, rows, terms_of_row = ctx.saved_tensors  # type: ignore[attr-defined]
        i, j, _ = terms_of_row.unbind(1)
        # The gradient of w_ij is c_ij G_i + c_ji G_j + a_ij g, G and g those of linear and constant: a bag of three
        # rows. Those of c_ij, c_ji and a_ij are the products of the three rows with w_ij: the bag's own gradients.
        factor_P3 = torch.stack([c_MM[i, j], c_MM[j, i], a_MM[i, j]], 1)
        with torch.enable_grad():
            bag_PH = F.embedding_bag(
                terms_of_row,
                torch.cat([grad_linear_MH, grad_constant_H[None]]),
                mode="sum",
                per_sample_weights=factor_P3.requires_grad_(),
            )
            (grad_P3,) = torch.autograd.grad(bag_PH, factor_P3, weight_PH)
        grad_c_MM, grad_a_MM = torch.zeros_like(c_MM), torch.zeros_like(a_MM)
        grad_c_MM[i, j], grad_c_MM[j, i], grad_a_MM[i, j] = grad_P3.unbind(1)
        return bag_PH.detach().index_add_(0, rows, grad_rows_nH), grad_c_MM, grad_a_MM, None, None, None


def _off_diagonal(square_MM: Tensor) -> Tensor:
    """(M, M - 1): each row without its entry on the diagonal."""
    M = len(square_MM)
    if M < 2:
        return square_MM.new_zeros(M, 0)
    return square_MM.flatten()[1:].view(M - 1, M + 1)[:, :-1].reshape(M, M - 1)


def _glorot(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Glorot uniform with the fans of the fully connected layer that the weight is a part of (E12)."""
    bound = (6.0 / (fan_in + fan_out)) ** 0.5
    with torch.no_grad():
        weight.uniform_(-bound, bound)


def _host_sync_is_free(tensor: Tensor) -> bool:
    """Whether reading values on the host costs nothing; a GPU would have to finish all work queued before."""
    return tensor.device.type == "cpu" and not is_tracing()


def without_padding(active_BA: Tensor) -> Tensor:
    """Leaves out the columns that are padding in all slots: the longest of all profiles is far longer than most.

    All columns stay where choosing them would need a host sync.
    """
    return active_BA[:, (active_BA >= 0).any(0)] if _host_sync_is_free(active_BA) else active_BA


def _active_entries(active_BA: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(slot, field, mask) of every binary field that is present.

    Where counting them would need a host sync: of every entry of ``active_BA``, with ``mask`` (n, 1) 0 for padding.
    """
    mask_BA = active_BA >= 0
    if _host_sync_is_free(active_BA):
        slot, column = mask_BA.nonzero(as_tuple=True)
        return slot, active_BA[slot, column], None
    slot_BA = torch.arange(active_BA.shape[0], device=active_BA.device)[:, None] + torch.zeros_like(active_BA)
    return slot_BA.flatten(), active_BA.clamp(min=0).flatten(), mask_BA.flatten()[:, None]


def _active_pairs(active_BA: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(slot, field, field, mask) of every pair of binary fields present together; as ``_active_entries``."""
    n = active_BA.shape[1]
    if isinstance(n, torch.SymInt):  # exported for any number of fields: all n * n pairs, those of i < j valid
        column, square = torch.arange(n), torch.zeros(n, n, dtype=torch.int64)
        first, second = (column[:, None] + square).flatten(), (column + square).flatten()
    else:
        first, second = torch.triu_indices(n, n, 1, device=active_BA.device)
    first_BP, second_BP = active_BA[:, first], active_BA[:, second]
    mask_BP = (first_BP >= 0) & (second_BP >= 0) & (first < second)
    if _host_sync_is_free(active_BA):
        slot, pair = mask_BP.nonzero(as_tuple=True)
        return slot, first_BP[slot, pair], second_BP[slot, pair], None
    slot_BP = torch.arange(active_BA.shape[0], device=active_BA.device)[:, None] + torch.zeros_like(first_BP)
    first_n, second_n = first_BP.clamp(min=0).flatten(), second_BP.clamp(min=0).flatten()
    return slot_BP.flatten(), first_n, second_n, mask_BP.flatten()[:, None]
