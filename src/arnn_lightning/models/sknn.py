"""SKNN (Jannach & Ludewig, RecSys 2017; Ludewig & Jannach 2018, UMUAI 28, arXiv 1803.09587)."""

from arnn_lightning.models.neighbours import SessionNeighbours


class SKNN(SessionNeighbours):
    """Similarity is the cosine of the sets of items, and it is added to the score of every item of a neighbour.

    session-rec multiplies by the root of the current session's size instead of dividing by it: the ranking is the same.
    """
