"""Encoders: one event per batch slot and a state -> a query and the next state."""

from arnn_lightning.encoders.arnn import ARNNEncoder
from arnn_lightning.encoders.base import SessionEncoder
from arnn_lightning.encoders.concat import ConcatEncoder
from arnn_lightning.encoders.fusion import FusionEncoder
from arnn_lightning.encoders.gru4rec import GRU4RecEncoder
from arnn_lightning.encoders.init_state import InitStateEncoder
from arnn_lightning.encoders.input_concat import InputConcatEncoder
from arnn_lightning.encoders.latent_cross import LatentCrossEncoder
from arnn_lightning.encoders.narm import NARMEncoder
from arnn_lightning.encoders.pnn import PNNEncoder
from arnn_lightning.encoders.prefix import PrefixEncoder
from arnn_lightning.encoders.sasrec import SASRecEncoder
from arnn_lightning.encoders.window import WindowEncoder

__all__ = [
    "ARNNEncoder",
    "ConcatEncoder",
    "FusionEncoder",
    "GRU4RecEncoder",
    "InitStateEncoder",
    "InputConcatEncoder",
    "LatentCrossEncoder",
    "NARMEncoder",
    "PNNEncoder",
    "PrefixEncoder",
    "SASRecEncoder",
    "SessionEncoder",
    "WindowEncoder",
]
