"""One table: this project's steps beside straightforward PyTorch written for the purpose.

    python benchmarks/reference.py [--rounds 7] [--threads 1] [--items 13259] [--fields 368]

- GRU4REC, H = 100, cross-entropy among the batch's targets, forward, backward and Adagrad; the reference embeds with
  nn.Embedding, runs nn.GRUCell, scores the whole catalogue, picks the batch's columns and has torch.optim.Adagrad move
  every row. The mathematics is the same.
- The PNN's product layer, forward and backward; the reference gathers and multiplies all pairs of fields.
- ARNN's merge, a training step; the reference is a step of the PNN that it has frozen. What the frozen parts say is
  kept from the first epoch on: this is a step of the later ones (`product.py` has both).
- GRU4REC through Lightning, as users run it, on the default data; the reference is the bare loop of the same steps.

Interleaved, medians, milliseconds. `training.py`, `product.py`, `scale.py` and `peers.py` look closer.
"""

import argparse
import os
import platform
import statistics
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from product import ITEMS, SINGLE, USERS, interleaved, layer, model, one_pass, random_window, training_step
from training import contestants

HIDDEN, STEPS = 100, 10


class DenseGRU4REC(nn.Module):
    """GRU4REC as one writes it first."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items, HIDDEN)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, n_items)

    def forward(self, item_B: Tensor, hidden_BH: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BH = self.cell(self.embedding(item_B), hidden_BH)
        return self.output(hidden_BH), hidden_BH


def dense_step(n_items: int, lanes: int) -> Callable[[], None]:
    """As many mini-batches of the reference as ``training_step`` runs of ours, on the same events."""
    made = DenseGRU4REC(n_items)
    optimizer = torch.optim.Adagrad(made.parameters(), 0.05)
    window = random_window(lanes, n_items, USERS, STEPS).window

    def run() -> None:
        hidden_BH = torch.zeros(lanes, HIDDEN)
        for k in range(STEPS):
            hidden_BH = hidden_BH.detach() * ~window.start[k][:, None]
            score_BI, hidden_BH = made(window.item[k], hidden_BH)
            loss = F.cross_entropy(score_BI[:, window.target[k]], torch.arange(lanes))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=3, help="of the race through Lightning; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--fields", type=int, default=368)
    parser.add_argument("--lanes", type=int, nargs="+", default=[50, 500])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    table = Table(title=f"{machine}, {options.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    for column in ("what", "reference", "ours", "reference", "ratio"):
        table.add_column(column, justify="left" if len(table.columns) < 2 else "right")
    n_binary = options.fields - SINGLE - 1

    def race(what: str, against: str, ours: Callable[[], None], reference: Callable[[], None], steps: int) -> None:
        times = interleaved({"ours": ours, "reference": reference}, options.rounds)
        a, b = times["ours"] / steps, times["reference"] / steps
        table.add_row(what, against, f"{a:.2f} ms", f"{b:.2f} ms", f"{b / a:.1f}")

    in_batch = ["model/loss=cross_entropy", "model.loss.accidental_hits=keep", "model.dropout_hidden=0"]
    gru4rec = model(
        "gru4rec", 0, *in_batch, "model.embedding=separate", f"model.hidden_size={HIDDEN}", items=options.items
    )
    merge, pnn = (model(name, n_binary, items=options.items) for name in ("arnn", "pnn"))
    for lanes in options.lanes:
        ours = training_step(gru4rec, lanes, options.items)
        race(f"GRU4REC, B={lanes}", "all items, dense Adagrad", ours, dense_step(options.items, lanes), STEPS)
        layers = [one_pass(layer(name, n_binary), n_binary, lanes) for name in ("auto", "naive")]
        race(f"PNN layer, B={lanes}", "all pairs gathered", *layers, 1)
        steps = [training_step(one, lanes, options.items) for one in (merge, pnn)]
        race(f"ARNN's merge, B={lanes}", "the live PNN", *steps, STEPS)
        if options.epochs:
            through, loop, count = contestants(lanes)
            spent = [(through(), loop()) for _ in range(options.epochs + 1)][1:]  # the first warms up
            a, b = (1e3 * statistics.median(side) / count for side in zip(*spent, strict=True))
            what = f"GRU4REC through Lightning, B={lanes}"
            table.add_row(what, "bare loop", f"{a:.2f} ms", f"{b:.2f} ms", f"{b / a:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
