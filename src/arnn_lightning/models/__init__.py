"""Models: LightningModules that rank the full catalogue at every event of a session."""

from arnn_lightning.models.arnn import ARNN
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.models.concat import Concat
from arnn_lightning.models.fusion import Fusion
from arnn_lightning.models.gru4rec import GRU4REC
from arnn_lightning.models.itemknn import ItemKNN
from arnn_lightning.models.narm import NARM
from arnn_lightning.models.pnn import PNN
from arnn_lightning.models.pop import POP
from arnn_lightning.models.sasrec import SASRec
from arnn_lightning.models.sknn import SKNN
from arnn_lightning.models.spop import SPOP
from arnn_lightning.models.sr import SR
from arnn_lightning.models.stan import STAN
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.models.vsknn import VSKNN
from arnn_lightning.models.vstan import VSTAN

__all__ = [
    "ARNN",
    "GRU4REC",
    "NARM",
    "PNN",
    "POP",
    "SKNN",
    "SPOP",
    "SR",
    "STAN",
    "VSKNN",
    "VSTAN",
    "Concat",
    "Fusion",
    "ItemKNN",
    "Recommender",
    "RunSettings",
    "SASRec",
    "SessionRecommender",
]
