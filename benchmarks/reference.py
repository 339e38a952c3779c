"""Compares this project's steps with straightforward PyTorch code, in one table.

    python benchmarks/reference.py [--rounds 7] [--threads 1] [--batch-size 50 500] [--quick]        (make bench)

- GRU4REC, H = 100, cross-entropy among the batch's targets, forward, backward and Adagrad; the reference embeds with
  nn.Embedding, runs nn.GRUCell, scores the whole catalogue, picks the batch's columns and updates every row with
  torch.optim.Adagrad. Its losses are the same (a test compares them).
- A training step of every other session encoder and fusion; the reference is one of GRU4REC with the same loss and tied
  vectors. A fusion has TMALL's contexts: user, age and gender.
- The PNN's product layer, forward and backward; the reference gathers and multiplies all pairs of fields.
- ARNN's merging stage, a training step; the reference is a step of the PNN that it has frozen. The first epoch caches
  the outputs of the frozen encoders: this is a step of the later ones (`product.py` has both).
- GRU4REC through Lightning, as users run it, on the default data; the reference is the bare loop of the same steps.

Interleaved, medians, milliseconds. `training.py`, `product.py`, `scale.py` and `peers.py` measure more of each.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from arnn_lightning.models import GRU4REC
from product import layer_pass
from training import QUICK_DATA, contestants
from workloads import (
    ITEMS,
    SINGLE,
    STEPS,
    USERS,
    chunk_training,
    interleave,
    machine,
    make_model,
    make_parser,
    median_ms,
    parse,
    random_chunks,
)

LEARNING_RATE, STRONG = 0.05, "gru4rec_strong"
BESIDE_STRONG = ("narm", "sasrec", "latent_cross", "init_state", "input_concat", "prefix")


class DenseGRU4REC(nn.Module):
    """GRU4REC as one writes it first, with the weights of ``model``."""

    def __init__(self, model: GRU4REC) -> None:
        super().__init__()
        n_items, hidden_size = model.scorer.items.weight.shape
        self.embedding = nn.Embedding(n_items, hidden_size)
        self.cell = nn.GRUCell(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, n_items)
        (inputs,), (cell,) = model.encoder.inputs, model.encoder.cells
        with torch.no_grad():
            self.embedding.weight.copy_(inputs.embedding.weight)
            self.cell.weight_ih.copy_(inputs.linear.weight)
            self.cell.weight_hh.copy_(cell.weight)
            self.output.weight.copy_(model.scorer.items.weight)
            for bias in (self.cell.bias_ih, self.cell.bias_hh, self.output.bias):
                bias.zero_()

    def forward(self, item_B: Tensor, hidden_BH: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BH = self.cell(self.embedding(item_B), hidden_BH)
        return self.output(hidden_BH), hidden_BH


def gru4rec(n_items: int) -> GRU4REC:
    """This project's contestant, with the reference's mathematics."""
    settings = ["model/loss=cross_entropy", "model.loss.accidental_hits=keep", "model.embedding=separate"]
    settings += ["model.dropout_hidden=0", "model.hidden_size=100", f"model.optimizer.lr={LEARNING_RATE}"]
    return make_model("gru4rec", *settings, n_items=n_items)


def dense_training(model: GRU4REC, batch_size: int) -> Callable[[], Tensor]:
    """Trains the reference, from the weights of ``model``, on the events of ``chunk_training``; returns the losses."""
    reference = DenseGRU4REC(model)
    optimizer = torch.optim.Adagrad(reference.parameters(), LEARNING_RATE)
    chunk = random_chunks(batch_size, model.n_items, USERS)[0, 0]

    def run() -> Tensor:
        hidden_BH = torch.zeros(batch_size, reference.cell.hidden_size)
        losses = []
        for k in range(STEPS):
            hidden_BH = hidden_BH.detach() * ~chunk.is_session_start[k][:, None]
            score_BI, hidden_BH = reference(chunk.item[k], hidden_BH)
            loss = F.cross_entropy(score_BI[:, chunk.target[k]], torch.arange(batch_size))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    return run


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--epochs", type=int, default=3, help="of the race through Lightning; 0 leaves it out")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--fields", type=int, default=368)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--overrides", nargs="*", default=[], help="of the config of the race through Lightning")
    quick = {"epochs": 1, "items": 50, "fields": 20, "batch_size": [4], "overrides": QUICK_DATA}
    options = parse(parser, arguments, **quick)
    table = Table(title=machine())
    for column in ("what", "reference", "ours", "reference", "ratio"):
        table.add_column(column, justify="left" if len(table.columns) < 2 else "right")

    def add_row(what: str, reference: str, ms: float, reference_ms: float) -> None:
        table.add_row(what, reference, f"{ms:.2f} ms", f"{reference_ms:.2f} ms", f"{reference_ms / ms:.2f}")

    def race(what: str, reference: str, n_steps: int, *runs: Callable[[], Any]) -> None:
        times = median_ms(dict(zip(("ours", "reference"), runs, strict=True)), options.rounds)
        add_row(what, reference, times["ours"] / n_steps, times["reference"] / n_steps)

    n_binary = options.fields - SINGLE - 1
    arnn, pnn = (make_model(name, n_binary=n_binary, n_items=options.items) for name in ("arnn", "pnn"))
    for batch_size in options.batch_size:
        model = gru4rec(options.items)
        sides = chunk_training(model, batch_size), dense_training(model, batch_size)
        race(f"GRU4REC, B={batch_size}", "all items, dense Adagrad", STEPS, *sides)
        strong = chunk_training(make_model(STRONG, n_items=options.items), batch_size)
        for name in BESIDE_STRONG:
            encoder = chunk_training(make_model(name, n_items=options.items), batch_size)
            race(f"{name}, B={batch_size}", STRONG, STEPS, encoder, strong)
        sides = layer_pass("auto", n_binary, batch_size), layer_pass(None, n_binary, batch_size)
        race(f"PNN layer, B={batch_size}", "all pairs gathered", 1, *sides)
        sides = chunk_training(arnn, batch_size), chunk_training(pnn, batch_size)
        race(f"ARNN's merging stage, B={batch_size}", "the live PNN", STEPS, *sides)
        if options.epochs:
            epochs, n_steps = contestants(batch_size, options.overrides)
            seconds = interleave(epochs, options.epochs)
            ms = {name: 1e3 * statistics.median(values) / n_steps for name, values in seconds.items()}
            add_row(f"GRU4REC through Lightning, B={batch_size}", "bare loop", ms["Lightning"], ms["bare loop"])
    Console().print(table)


if __name__ == "__main__":
    main()
