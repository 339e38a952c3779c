"""Session-based recommenders with user profiles (ARNN, arXiv 1805.02983), on PyTorch Lightning and Hydra.

    import arnn_lightning as al

    run = al.fit(model="arnn", events=clicks, contexts={"single": ["country"]})
    al.load(run.folder).recommend(sessions)

The names of ``__all__`` are imported when they are first used: the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arnn_lightning.encoders import SessionEncoder
    from arnn_lightning.errors import UserError
    from arnn_lightning.losses import RankingLoss
    from arnn_lightning.models import Recommender, SessionRecommender
    from arnn_lightning.serving.live import LiveSession
    from arnn_lightning.serving.predictor import Predictor, load
    from arnn_lightning.tasks.fit import Run, fit

__version__ = "0.2.0"
__all__ = [
    "LiveSession",
    "Predictor",
    "RankingLoss",
    "Recommender",
    "Run",
    "SessionEncoder",
    "SessionRecommender",
    "UserError",
    "fit",
    "load",
]
_MODULES = {
    "LiveSession": "serving.live",
    "Predictor": "serving.predictor",
    "RankingLoss": "losses",
    "Recommender": "models",
    "Run": "tasks.fit",
    "SessionEncoder": "encoders",
    "SessionRecommender": "models",
    "UserError": "errors",
    "fit": "tasks.fit",
    "load": "serving.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
