"""Recommendations without a profile: the trained models of runs, tested with each user's own contexts and with none.

python experiments/without_profiles.py RUN [RUN ...]

A run has its main model and the encoders that were trained for it, of ARNN the session and the context encoder. Those
without contexts have equal figures in all columns. The third column has the vectors of unknown attributes at a random
start, where they stood before E28.
"""

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from arnn_lightning.errors import UserError
from arnn_lightning.models import SessionRecommender
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import checkpoint_file, stored_config
from arnn_lightning.training.checkpoint import build_model, load_weights, read_checkpoint
from arnn_lightning.training.stage import evaluate_model, headline_metrics, run_settings

ROLES = ("session", "context", "")


def main(folders: list[str]) -> None:
    print("| run | model | own profile | no profile | unknown at a random start |\n|---|---|---|---|---|")
    for folder in map(Path, folders):
        config = stored_config(folder)
        paths = [folder / "checkpoints" / role / "best.ckpt" for role in ROLES]
        for path in [path for path in paths if path.is_file()] or [checkpoint_file(folder)]:
            checkpoint = read_checkpoint(path)
            prepared = PreparedDataset(Path(config.paths.data) / "prepared" / checkpoint["metadata"]["prepared"])
            model = build_model(checkpoint["metadata"]["model"], run_settings(config))
            load_weights(model, checkpoint, path)
            if not isinstance(model, SessionRecommender):
                raise UserError(f"{folder}: {model.name} is not trained; give runs of models that are")
            cells = [figures(model, prepared, config, assignment) for assignment in ("own", "unknown")]
            randomize_unknown(model, checkpoint["metadata"]["model"]["dims"]["single_sizes"])
            cells.append(figures(model, prepared, config, "unknown"))
            print(f"| {folder.name} | {model.name} | {' | '.join(cells)} |", flush=True)


def figures(model: SessionRecommender, prepared: PreparedDataset, config: DictConfig, assignment: str) -> str:
    config.data.contexts.assignment = assignment
    names = headline_metrics(config)
    metrics = evaluate_model(model, prepared, config).metrics(names)
    return " / ".join(f"{metrics[name]:.4f}" for name in names)


@torch.no_grad()
def randomize_unknown(model: SessionRecommender, single_sizes: list[int]) -> None:
    unknown = torch.tensor([0, *single_sizes]).cumsum(0)[:-1]
    torch.manual_seed(1)
    for table in model.encoder.modules():
        if isinstance(table, EmbeddingTable) and table.ids == "single":
            table.weight[unknown] = nn.init.xavier_uniform_(torch.empty_like(table.weight))[unknown]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
