"""The mathematics a second time, from the papers, in plain loops over slots, negatives and fields, in float64.

Slow, and independent: nothing of arnn_lightning is imported. Weights are dictionaries of tensors under the names of the
project's checkpoints; gradients are torch's, of these loops.

B batch slots, H hidden, D embedding.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Session = tuple[str, list[int]]  # user, items
Weights = dict[str, Tensor]
Slot = tuple[int, int]  # session, position of the input event


def schedule(sessions: Sequence[Session], batch_size: int) -> list[list[Slot | None]]:
    """Every step's slots: a slot whose session has ended takes the next one (Hidasi et al. 2016, 3.1.1)."""
    slots: list[Slot | None] = [None] * batch_size
    waiting, steps = list(range(len(sessions))), []
    while True:
        for b, slot in enumerate(slots):
            if slot is not None and slot[1] + 2 < len(sessions[slot[0]][1]):
                slots[b] = (slot[0], slot[1] + 1)
            else:
                slots[b] = (waiting.pop(0), 0) if waiting else None
        if not any(slots):
            return steps
        steps.append(list(slots))


# Losses of one slot: r_i the positive's score, r the negatives' (Hidasi et al. 2016; Hidasi & Karatzoglou 2018).


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    top = max(score.item() for score in scores)
    exponentials = [torch.exp(score - top) for score in scores]
    total = sum(exponentials, torch.zeros(()))
    return [exponential / total for exponential in exponentials]


def activate(name: str, scores: list[Tensor]) -> list[Tensor]:
    if name == "softmax":
        return softmax(scores)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": torch.tanh,
        "linear": lambda x: x,
        "elu": lambda x: x if x > 0 else 0.5 * (torch.exp(x) - 1),
    }
    return [functions[name](score) for score in scores]


def top1(r_i: Tensor, r: list[Tensor]) -> Tensor:
    return sum((sigmoid(r_j - r_i) + sigmoid(r_j**2) for r_j in r), torch.zeros(())) / len(r)


def bpr(r_i: Tensor, r: list[Tensor]) -> Tensor:
    return sum((-torch.log(sigmoid(r_i - r_j)) for r_j in r), torch.zeros(())) / len(r)


def top1_max(r_i: Tensor, r: list[Tensor]) -> Tensor:
    terms = (s_j * (sigmoid(r_j - r_i) + sigmoid(r_j**2)) for s_j, r_j in zip(softmax(r), r, strict=True))
    return sum(terms, torch.zeros(()))


def bpr_max(r_i: Tensor, r: list[Tensor]) -> Tensor:
    s = softmax(r)
    likelihood = sum((s_j * sigmoid(r_i - r_j) for s_j, r_j in zip(s, r, strict=True)), torch.zeros(()))
    return -torch.log(likelihood + 1e-24) + sum((s_j * r_j**2 for s_j, r_j in zip(s, r, strict=True)), torch.zeros(()))


def cross_entropy(r_i: Tensor, r: list[Tensor]) -> Tensor:
    return -torch.log(softmax([r_i, *r])[0])


LOSSES: Mapping[str, tuple[Callable[[Tensor, list[Tensor]], Tensor], str]] = {
    "top1": (top1, "softmax"),
    "top1_max": (top1_max, "linear"),
    "bpr": (bpr, "linear"),
    "bpr_max": (bpr_max, "elu"),
    "cross_entropy": (cross_entropy, "linear"),
}


def item_vector(w: Weights, table: str, item: int) -> Tensor:
    """A row of a table, plus the vectors of the item's categories (``item_codes``, padded with -1) where it has any."""
    vector = w[f"{table}.weight"][item]
    if f"{table}.attributes.weight" in w:
        for code in w["item_codes"][item].tolist():
            if code >= 0:
                vector = vector + w[f"{table}.attributes.weight"][code]
    return vector


# Encoders: ``encode(weights, slots of a step, training)`` -> a query for every slot.


class GRU4Rec:
    """h' = (1 - z) n + z h, the reset gate after the matrix product; one-hot input is a row of the table."""

    def __init__(self, prefix: str = "encoder.") -> None:
        self.prefix = prefix
        self.hidden: dict[int, Tensor] = {}  # by session

    def encode(self, w: Weights, users: Sequence[str], items: Sequence[int], sessions: Sequence[int]) -> list[Tensor]:
        queries = []
        for item, session in zip(items, sessions, strict=True):
            inputs = item_vector(w, f"{self.prefix}inputs.0.gates", item) + w[f"{self.prefix}inputs.0.bias"]
            size = len(inputs) // 3
            h = self.hidden.get(session, torch.zeros(size)).detach()  # back-propagation has length 1
            gates = w[f"{self.prefix}cells.0.weight"] @ h + w[f"{self.prefix}cells.0.bias"]
            reset = sigmoid(inputs[:size] + gates[:size])
            update = sigmoid(inputs[size : 2 * size] + gates[size : 2 * size])
            new = torch.tanh(inputs[2 * size :] + reset * gates[2 * size :])
            self.hidden[session] = (1 - update) * new + update * h
            queries.append(self.hidden[session])
        return queries


class BatchNorm:
    """Over the events of a step; running statistics weigh a step by its share of valid slots."""

    def __init__(self, prefix: str, batch_size: int) -> None:
        self.prefix, self.batch_size, self.training = prefix, batch_size, True

    def __call__(self, w: Weights, rows: list[Tensor]) -> list[Tensor]:
        mean, variance = w[f"{self.prefix}running_mean"], w[f"{self.prefix}running_var"]
        if self.training and len(rows) > 1:
            n = len(rows)
            mean = sum(rows, torch.zeros(())) / n
            variance = sum(((row - mean) ** 2 for row in rows), torch.zeros(())) / n
            momentum = 0.1 * n / self.batch_size
            for name, value in (("running_mean", mean), ("running_var", variance * n / (n - 1))):
                old = w[f"{self.prefix}{name}"]
                w[f"{self.prefix}{name}"] = ((1 - momentum) * old + momentum * value).detach()
        scale = w[f"{self.prefix}weight"] / torch.sqrt(variance + 1e-5)
        return [(row - mean) * scale + w[f"{self.prefix}bias"] for row in rows]


class PNN:
    """c_t = BatchNorm(ReLU(W [z; p] + b)), z every field's embedding, p every pair's inner product (paper 3.3).

    Where the item's attributes are fields (weights ``item_embedding.fields``), ``item_attributes`` has the number of
    the attribute that each category belongs to.

    Args:
        profiles: user -> codes of the single-valued fields (rows of the table), and the binary fields present.
        n_binary: number of binary fields.
        batch_size: B.
        prefix: of the weights' names.
    """

    def __init__(
        self, profiles: Mapping[str, tuple[list[int], set[int]]], n_binary: int, batch_size: int, prefix: str
    ) -> None:
        self.profiles, self.n_binary, self.prefix = profiles, n_binary, prefix
        self.norm = BatchNorm(f"{prefix}norm.", batch_size)

    def encode(self, w: Weights, users: Sequence[str], items: Sequence[int], sessions: Sequence[int]) -> list[Tensor]:
        rows = [self._products(w, *self.profiles[user], item) for user, item in zip(users, items, strict=True)]
        return self.norm(w, [row.clamp(min=0) for row in rows])

    def _products(self, w: Weights, single: list[int], present: set[int], item: int) -> Tensor:
        p, m, size = f"{self.prefix}product.", self.n_binary, len(w[f"{self.prefix}product.bias"])
        fields = [w[f"{p}values"][i, int(i in present)] for i in range(m)]
        fields += [w[f"{self.prefix}single_embedding.weight"][code] for code in single]
        n_user = len(fields)
        fields += self._item_fields(w, item)
        linear = [*w[f"{p}binary_fields"], *w[f"{p}single_fields"], *w[f"{p}item_field"].split(size, 1)]
        row = w[f"{p}bias"]
        for field, matrix in zip(fields, linear, strict=True):
            row = row + field @ matrix
        pair_numbers = {"binary": 0, "single": 0, "attribute": 0}
        for i in range(len(fields)):
            for j in range(i + 1, len(fields)):
                if i < n_user <= j:
                    weight = w[f"{p}item_pairs"][i].split(size)[j - n_user]
                elif i < m <= j:
                    weight = w[f"{p}cross_pairs"][i, j - m]
                else:
                    kind = "binary" if j < m else "single" if j < n_user else "attribute"
                    weight = w[f"{p}{kind}_pairs"][pair_numbers[kind]]
                    pair_numbers[kind] += 1
                row = row + (fields[i] * fields[j]).sum() * weight
        return row

    def _item_fields(self, w: Weights, item: int) -> list[Tensor]:
        fields = [item_vector(w, f"{self.prefix}item_embedding", item)]
        vectors = w.get(f"{self.prefix}item_embedding.fields.weight")
        if vectors is not None:
            for attribute in range(int(w["item_attributes"].max()) + 1):
                categories = [code for code in w["item_codes"][item].tolist() if code >= 0]
                of_attribute = [vectors[code] for code in categories if w["item_attributes"][code] == attribute]
                fields.append(sum(of_attribute, torch.zeros(len(fields[0]))))
        return fields


class ARNN:
    """BatchNorm(ReLU(W [c_t; h_t] + b)) over frozen encoders (paper 3.5)."""

    def __init__(self, session: GRU4Rec, context: PNN, batch_size: int) -> None:
        self.session, self.context = session, context
        context.norm.training = False
        self.norm = BatchNorm("encoder.norm.", batch_size)

    def encode(self, w: Weights, *step: Any) -> list[Tensor]:
        parts = zip(self.context.encode(w, *step), self.session.encode(w, *step), strict=True)
        merged = [
            w["encoder.merge_layer.weight"] @ torch.cat(part).detach() + w["encoder.merge_layer.bias"] for part in parts
        ]
        return self.norm(w, [row.clamp(min=0) for row in merged])


def train(
    w: Weights,
    trained: Sequence[str],
    encoder: Any,
    sessions: Sequence[Session],
    batch_size: int,
    loss: str,
    lr: float,
    eps: float,
    extra: Callable[[int], list[int]] = lambda step: [],
) -> list[float]:
    """One epoch with dense Adagrad, in place; the mean loss per event of every step.

    Args:
        w: all weights.
        trained: names of those that are trained.
        encoder: an encoder from above.
        sessions: the training sessions.
        batch_size: B.
        loss: a name of ``LOSSES``.
        lr: learning rate.
        eps: added to the root.
        extra: the extra negatives of a step.
    """
    function, activation = LOSSES[loss]
    accumulators = {name: torch.zeros_like(w[name]) for name in trained}
    losses = []
    for number, slots in enumerate(schedule(sessions, batch_size)):
        for name in trained:
            w[name] = w[name].detach().requires_grad_()
        valid = [slot for slot in slots if slot is not None]
        items = [sessions[session][1][place] for session, place in valid]
        targets = [sessions[session][1][place + 1] for session, place in valid]
        queries = encoder.encode(w, [sessions[session][0] for session, _ in valid], items, [s for s, _ in valid])
        total = torch.zeros(())
        for b, (query, target) in enumerate(zip(queries, targets, strict=True)):
            negatives = [*targets[:b], *targets[b + 1 :], *extra(number)]
            columns = [target, *(item for item in negatives if item != target)]
            if len(columns) > 1:
                logits = [item_vector(w, "scorer.items", c) @ query + w["scorer.bias.weight"][c] for c in columns]
                scores = activate(activation, logits)
                total = total + function(scores[0], scores[1:])
        if total.requires_grad:
            gradients = torch.autograd.grad(total / batch_size, [w[name] for name in trained], allow_unused=True)
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    accumulators[name] += gradient**2
                    w[name] = w[name].detach() - lr * gradient / (torch.sqrt(accumulators[name]) + eps)
        losses.append(total.item() / len(valid))
    for name in trained:
        w[name] = w[name].detach()
    return losses


def ranks(w: Weights, encoder: Any, sessions: Sequence[Session]) -> list[int]:
    """The rank of every next item, each session run alone; items that tie with the target rank before it."""
    result = []
    for number, (user, items) in enumerate(sessions):
        for item, target in itertools.pairwise(items):
            (query,) = encoder.encode(w, [user], [item], [-1 - number])
            scores = [
                (row @ query + bias).item()
                for row, bias in zip(w["scorer.items.weight"], w["scorer.bias.weight"], strict=True)
            ]
            result.append(sum(score >= scores[target] or math.isnan(score) for score in scores))
    return result
