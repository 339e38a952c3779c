"""Recommendations from a checkpoint."""

MAX_SEEN = 1_000  # items that a session keeps for exclude_seen; older ones are dropped
