"""Recommendations without a profile: every model of a run, tested with each user's own contexts and with none.

python experiments/without_profiles.py RUN [RUN ...]

The third column has the vectors of unknown attributes at a random start, where they stood before E28.
"""

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from arnn_lightning.models import SessionRecommender
from arnn_lightning.nn.table import EmbeddingTable
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.checkpoint import build_model, load_weights, read_checkpoint
from arnn_lightning.training.stage import evaluate_model, headline_metrics, run_settings

ROLES = ("session", "context", "")


def main(folders: list[str]) -> None:
    print("| run | model | own profile | no profile | unknown at a random start |\n|---|---|---|---|---|")
    for folder in map(Path, folders):
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        assert isinstance(config, DictConfig)
        for path in (folder / "checkpoints" / role / "best.ckpt" for role in ROLES):
            checkpoint = read_checkpoint(path)
            prepared = PreparedDataset(Path(config.paths.data) / "prepared" / checkpoint["metadata"]["prepared"])
            model = build_model(checkpoint["metadata"]["model"], run_settings(config))
            load_weights(model, checkpoint, path)
            assert isinstance(model, SessionRecommender)
            cells = [figures(model, prepared, config, assignment) for assignment in ("own", "unknown")]
            randomize_unknown(model, prepared.dims["single_sizes"])
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
    main(sys.argv[1:])
