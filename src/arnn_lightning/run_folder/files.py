"""Names of the files in a run folder, and the checkpoint in it."""

from pathlib import Path

from arnn_lightning.errors import UserError, nearest_file

CHECKPOINTS = "checkpoints"  # the folder of the main model's checkpoints, which has one for each of its encoders
BEST = "best.ckpt"  # of the epoch with the best validation metric
BEST_OF_RUN = Path(CHECKPOINTS, BEST)
METRICS_FILE = "metrics.json"  # written last: where it exists, the run is finished


def checkpoint_file(path: str | Path) -> Path:
    """A checkpoint itself, or the best one of a run folder or of its folder of checkpoints.

    Raises:
        UserError: there is none; names the newest run folders below ``path``, as of a multirun or a verdict.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}{nearest_file(path)} (runs save theirs to RUN/{BEST_OF_RUN})")
    for best in (path / BEST_OF_RUN, path / BEST):
        if best.is_file():
            return best
    below = [file for depth in range(1, 6) for file in path.glob("*/" * depth + str(BEST_OF_RUN))]
    below.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    if not below:
        raise UserError(f"no checkpoint at {path / BEST_OF_RUN} (runs save theirs to RUN/{BEST_OF_RUN})")
    runs = [str(file.parents[1]) for file in below[:5]] + ["..."] * (len(below) > 5)
    count = "1 run" if len(below) == 1 else f"{len(below)} runs"
    raise UserError(f"{path} is a folder of {count}, not a run or a checkpoint; choose one: {', '.join(runs)}")
