"""What is listed before the first click of a session: the most popular items, or those for the user's profile.

Which of them is better depends on the log. Therefore a run compares them on the first events of its validation
sessions, and the checkpoint stores the better one. The list for a profile is that of an encoder with
``profile_encoder``, such as PNN's, in the model itself or as ARNN's context encoder with its scorer.

N sessions, I items.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arnn_lightning.batch import Contexts
from arnn_lightning.evaluation.metrics import per_prediction, rank
from arnn_lightning.evaluation.ranking import count_higher_and_tied
from arnn_lightning.loading.contexts import has_profile
from arnn_lightning.loading.datamodule import SessionDataModule
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.training.checkpoint import FIRST_ITEMS, write_checkpoint

METRIC = "mrr@20"
MAX_SESSIONS = 10_000


@torch.no_grad()
def compare_first_items(model: SessionRecommender, data: SessionDataModule) -> dict[str, Any] | None:
    """Compares both lists on the first events of the validation sessions whose user has a profile.

    Of more than ``MAX_SESSIONS`` such sessions, so many are used, at equal distances.

    Returns:
        ``popularity`` and ``pnn``, the values of ``metric``; the number of ``sessions``; ``encoder``, the name of what
        encodes profiles, which may be another encoder than PNN; and ``answer``, the better one, popularity where they
        are equal. None: no encoder of the model encodes profiles alone, or there is no such session.
    """
    profile_model = model.profile_model.to(model.device, model.dtype)  # a stage's scorer is not moved with ARNN
    if not (data.has_validation and profile_model.uses_contexts):
        return None
    with _evaluation_mode(profile_model):
        profile_model.set_contexts(data)
        item_events_I = data.item_events().to(profile_model.device)
        score = profile_model.profile_scorer(item_events_I)
        if score is None:
            return None
        sessions = data.sessions("val")
        user_N = torch.from_numpy(sessions.user).to(profile_model.device)
        first_N = torch.from_numpy(sessions.item[sessions.offset[:-1]]).to(profile_model.device)
        users = Contexts(profile_model.user_single, profile_model.user_active)
        (known,) = has_profile(users, users.single[-1])[user_N].nonzero(as_tuple=True)
        n_sessions = min(len(known), MAX_SESSIONS)
        if not n_sessions:
            return None
        chosen = known[torch.arange(n_sessions, device=known.device) * len(known) // n_sessions]
        scores: dict[str, Callable[[Tensor], Tensor]] = {
            "popularity": lambda user_M: item_events_I.float().repeat(len(user_M), 1),
            "pnn": lambda user_M: score(profile_model.contexts_of(user_M)),
        }
        values = {}
        for name, score_users in scores.items():
            counts = count_higher_and_tied(score_users, user_N[chosen], first_N[chosen], model.n_items).cpu().numpy()
            ranks = rank(counts[:, 0], counts[:, 1], model.settings.tie_mode)
            values[name] = float(per_prediction(ranks, METRIC).mean())
    answer = "pnn" if values["pnn"] > values["popularity"] else "popularity"
    encoder = type(profile_model.encoder).__name__.removesuffix("Encoder")
    return {"answer": answer, "encoder": encoder, "metric": METRIC, "sessions": n_sessions, **values}


def store_first_items(
    model: SessionRecommender, data: SessionDataModule, checkpoint: Mapping[str, Any], path: Path
) -> None:
    """Adds the comparison to a checkpoint of the model's weights; and the scorer for profiles, which ARNN's lack."""
    compared = compare_first_items(model, data)
    if compared is None:
        return
    stored = dict(compared)
    if compared["answer"] == "pnn" and model.profile_model is not model:
        stored["scorer"] = model.profile_model.scorer.state_dict()
    write_checkpoint({**checkpoint, FIRST_ITEMS: stored}, path)
    model.first_items = compared


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every module has its mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
