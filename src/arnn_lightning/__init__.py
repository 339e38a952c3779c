"""Session-based recommenders that know who is clicking (ARNN, arXiv 1805.02983), for PyTorch Lightning and Hydra."""

__version__ = "0.1.0"
