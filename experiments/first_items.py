"""What to list before the first click: the most popular items, or PNN's list for the profile with an average item?

    python experiments/first_items.py RUN ...      # finished runs of model=arnn or arnn_strong

A run stores which of the two lists is better on the first events of the validation sessions
(training/first_items.py). Here, targets are the first events of the test sessions, which no model is trained or
evaluated on. Ranks are conservative, over the full catalogue. Users without a profile are included.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import arnn_lightning as al
from arnn_lightning.batch import Contexts
from arnn_lightning.evaluation.bootstrap import interval
from arnn_lightning.loading.contexts import context_codes
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.training.checkpoint import read_checkpoint


@torch.no_grad()
def reciprocal_ranks(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) of popularity, (N,) of PNN, 0 beyond rank 20, and (N,) users."""
    checkpoint = run / "checkpoints" / "context" / "best.ckpt"
    prepared = PreparedDataset(Path("data/prepared") / read_checkpoint(checkpoint)["metadata"]["prepared"])
    model = al.load(checkpoint).model.eval()
    sessions = prepared.sessions("test")
    first, user = torch.from_numpy(sessions.item[sessions.offset[:-1]]), torch.from_numpy(sessions.user)
    events = torch.from_numpy(prepared.item_popularity()).float()
    codes = context_codes(prepared.users(), prepared.dims["single_sizes"])
    score = model.profile_scorer(events)
    values = []
    for rows in torch.arange(len(user)).split(256):
        score_BI = score(Contexts(codes.single[user[rows]], codes.active[user[rows]]))
        values.append((score_BI >= score_BI.gather(1, first[rows, None])).sum(1))
    ranks = torch.cat(values), (events >= events[first][:, None]).sum(1)
    pnn, popularity = (torch.where(rank <= 20, 1 / rank, 0).numpy() for rank in ranks)
    return popularity, pnn, user.numpy()


for run in map(Path, sys.argv[1:]):
    popularity, pnn, user = reciprocal_ranks(run)
    for name, values in (("popularity", popularity), ("pnn", pnn)):
        print(f"{run.name}: {name:10} Recall@20 {(values > 0).mean():.4f}  MRR@20 {values.mean():.4f}")
    for name, difference in (("Recall@20", (pnn > 0) * 1.0 - (popularity > 0)), ("MRR@20", pnn - popularity)):
        low, high = interval(difference, user, 1000, 0.95, 1)
        shown = f"{name} {difference.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"{run.name}: pnn - popularity, {shown}, {len(user):,} sessions")
