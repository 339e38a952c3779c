"""Models: LightningModules that rank the full catalogue at every event of a session."""

from arnn_lightning.models.arnn import ARNN
from arnn_lightning.models.base import Recommender, RunSettings
from arnn_lightning.models.concat import Concat
from arnn_lightning.models.gru4rec import GRU4REC
from arnn_lightning.models.itemknn import ItemKNN
from arnn_lightning.models.pnn import PNN
from arnn_lightning.models.pop import POP
from arnn_lightning.models.trained import SessionRecommender

__all__ = ["ARNN", "GRU4REC", "PNN", "POP", "Concat", "ItemKNN", "Recommender", "RunSettings", "SessionRecommender"]
