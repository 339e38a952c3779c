"""fit: task=train from Python, on frames or files. The command line runs in a process of its own."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arnn_lightning.errors import UserError
from arnn_lightning.io import atomic_path
from arnn_lightning.run_folder import METRICS_FILE, locked, quoted, require_new

if TYPE_CHECKING:
    import polars as pl

    from arnn_lightning.serving.predictor import Predictor

log = logging.getLogger(__name__)
# Keys of the command line that fit sets itself.
FIXED_KEYS = {"hydra.run.dir": "set folder instead", "hydra.sweep.dir": "set folder instead", "task": "leave it out"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        results: its metrics.json: metrics of the model, of its encoders and of the baselines, and more.
    """

    folder: Path
    results: dict[str, Any] = field(repr=False)  # pages of text

    @property
    def metrics(self) -> dict[str, float]:
        """The model's test metrics, such as ``recall@20``."""
        metrics: dict[str, float] = self.results["test"]
        return metrics

    def load(self) -> "Predictor":
        """The model, ready to recommend."""
        from arnn_lightning.serving.predictor import load

        return load(self.folder)


def fit(
    events: Any,
    users: Any = None,
    titles: Any = None,
    *,
    model: str = "arnn",
    columns: Mapping[str, str] | None = None,
    contexts: Mapping[str, Sequence[str] | Mapping[str, int | Sequence[float]]] | None = None,
    overrides: Sequence[str] = (),
    folder: str | Path | None = None,
) -> Run:
    """Trains and tests a model on your own tables, as ``task=train data=tabular`` does.

    The output of the run, a line per epoch, is printed while it runs. If logging is enabled for INFO, it is logged
    instead; a higher level of the logger ``arnn_lightning`` silences it.

    Args:
        events: one row per event: a frame of polars, pandas or pyarrow, or the path of CSV or parquet files, or a
            list of paths.
        users: one row per user, as a frame or path; None if the attributes are columns of the events.
        titles: one row per item with its title and attributes, as a frame or path; None: no titles.
        model: a config of the group ``model``.
        columns: the names of columns that differ from user, item, time, ... (docs/data.md), as in ``{"item": "sku"}``.
        contexts: the attributes: ``{"single": [names], "multi": [names], "numeric": {name: number of intervals}}``, or
            the edges of the intervals of a numeric one.
        overrides: settings as on the command line, as in ``["model.epochs=3", "data.gap=1h"]``.
        folder: the run folder; None: a new one below outputs/.

    Returns:
        The finished run.

    Raises:
        UserError: an error that the user can fix, as the command line reports it.
        RuntimeError: any other failure of the run; its output contains the reason.
    """
    _check_arguments(columns, contexts, overrides)
    run_folder = Path(folder or f"outputs/train/tabular/{model}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    run_folder = run_folder.expanduser().absolute()
    arguments = ["data=tabular", f"model={model}", f"hydra.run.dir={_quote(run_folder)}"]
    tables = {"events": events, "users": users, "titles": titles}
    paths = _paths_of({name: table for name, table in tables.items() if table is not None}, run_folder, overrides)
    arguments += [f"data.{name}={_quote(path)}" for name, path in paths.items()]
    arguments += [f"data.columns.{name}={_quote(column)}" for name, column in (columns or {}).items()]
    arguments += [f"data.contexts.{kind}={_quote(names)}" for kind, names in (contexts or {}).items()]
    if not any(override.startswith("logger=") for override in overrides):
        arguments.append("logger=csv")
    _run([*arguments, *overrides])
    return Run(run_folder, json.loads((run_folder / METRICS_FILE).read_text()))


def _check_arguments(columns: Any, contexts: Any, overrides: Any) -> None:
    """Raises UserError for arguments of another form than that of ``fit``; the command checks what they contain."""
    if not isinstance(columns, Mapping | None):
        raise UserError(f'columns={columns!r}: must be a mapping of names to columns, as {{"item": "sku"}}')
    lists = [] if contexts is None else [*contexts.values()] if isinstance(contexts, Mapping) else [None]
    if not all(isinstance(names, list | tuple | Mapping) for names in lists):
        form = '{"single": [names], "multi": [names], "numeric": {name: number of intervals}}'
        raise UserError(f"contexts={contexts!r}: must be a mapping such as {form}")
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r}: must be a list, as [{overrides!r}]")
    for override in overrides:
        key = str(override).partition("=")[0].lstrip("+~")
        if key.startswith("-") or key in FIXED_KEYS:
            raise UserError(f"overrides: {override}: fit runs one task=train; {FIXED_KEYS.get(key, 'leave it out')}")


def _paths_of(tables: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, str | list[str]]:
    """The paths of tables; frames are written below ``folder`` first, unless the command would refuse it."""
    paths: dict[str, str | list[str]] = {}
    frames = {}
    for name, table in tables.items():
        if isinstance(table, str | Path):
            paths[name] = str(table)
        elif isinstance(table, list | tuple):
            paths[name] = [str(path) for path in table]
        else:
            from arnn_lightning.serving.requests import to_polars

            frames[name] = to_polars(table, name)
            paths[name] = str(folder / "raw" / f"{name}.parquet")
    if frames:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _write_frames(frames, folder, any(override.lower() == "resume=true" for override in overrides))
    return paths


def _write_frames(frames: Mapping[str, "pl.DataFrame"], folder: Path, is_resumed: bool) -> None:
    """Writes the frames of a new run; those of a run that is resumed must be the ones that it was started with."""
    if not is_resumed:
        require_new(folder)
    for name, frame in frames.items():
        file = folder / "raw" / f"{name}.parquet"
        if not is_resumed or not file.is_file():
            with atomic_path(file) as path:
                frame.write_parquet(path)
        elif not _contains(file, frame):
            raise UserError(
                f"{name}: {file} contains different rows; resume the run with the rows of that file, or use another "
                "folder"
            )


def _contains(file: Path, frame: "pl.DataFrame") -> bool:
    import polars as pl

    try:
        return pl.read_parquet(file, glob=False).equals(frame)
    except (OSError, pl.exceptions.PolarsError):  # damaged
        return False


def _quote(value: Any) -> str:
    """A value of an override, whatever characters it contains.

    >>> print(_quote(["a,b", "it's"]))
    ["a,b","it's"]
    >>> print(_quote({"an age": 5, "born": [1960, 1990]}))
    {an\\ age:5,born:[1960,1990]}
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_quote, value))}]"
    if isinstance(value, Mapping):
        pairs = (re.sub(r"(\W)", r"\\\1", str(key)) + ":" + _quote(item) for key, item in value.items())
        return f"{{{','.join(pairs)}}}"
    return str(value) if isinstance(value, Real) else quoted(str(value))


def _run(arguments: Sequence[str]) -> None:
    environment = os.environ | {"COLUMNS": str(shutil.get_terminal_size((120, 24)).columns), "PYTHONUNBUFFERED": "1"}
    environment.pop("FORCE_COLOR", None)  # Jupyter sets it; what is piped needs no control codes of a terminal
    process = subprocess.Popen(
        [sys.executable, "-m", "arnn_lightning", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once, in a notebook too
    )
    assert process.stdout is not None
    error = ""
    try:
        for line in process.stdout:
            _show(line)
            error = line.removeprefix("error: ").strip() if line.startswith("error: ") else error
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if process.wait():
        raise UserError(error) if error else RuntimeError("the run failed; see its output above")


def _show(line: str) -> None:
    if logging.getLogger("arnn_lightning").level > logging.INFO:
        return
    if log.hasHandlers() and log.isEnabledFor(logging.INFO):
        log.info(line.rstrip())
    else:
        sys.stdout.write(line)
        sys.stdout.flush()  # it may be a pipe
