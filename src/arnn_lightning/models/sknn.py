"""SKNN (Jannach & Ludewig, RecSys 2017; Ludewig & Jannach 2018, UMUAI 28, arXiv 1803.09587)."""

from arnn_lightning.models.neighbours import SessionNeighbours


class SKNN(SessionNeighbours):
    """Cosine of the sets of items; a neighbour's items all score its similarity.

    session-rec multiplies by the root of the current session's size instead of dividing by it: the ranking is the same.
    """
