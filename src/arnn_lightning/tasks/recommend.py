"""task=recommend: lists of items for the sessions of a file."""

import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf
from polars.io.plugins import register_io_source
from rich.console import Console

from arnn_lightning.errors import UserError, nearest_file
from arnn_lightning.io import atomic_path
from arnn_lightning.readers.delimited import file_format, read_delimited, read_header
from arnn_lightning.serving.predictor import load
from arnn_lightning.serving.requests import ITEM_ID, SESSION_ID, TIME, USER_ID


def run(config: DictConfig) -> None:
    """Writes the lists of all sessions of ``input`` to ``output``, and prints one line."""
    started = time.perf_counter()
    output = Path(config.output).expanduser()
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"output={output}: must end in .csv or .parquet")
    for key in ("input", "users"):
        if config[key] is not None and output.resolve() == Path(config[key]).expanduser().resolve():
            raise UserError(f"output={output}: is {key}, which it would replace; choose another file")
    if config.performance.threads is not None:
        torch.set_num_threads(int(config.performance.threads))
    sessions = _read(config.input, "input", (SESSION_ID, ITEM_ID, TIME, USER_ID))
    users = None if config.users is None else _read(config.users, "users", None)
    predictor = load(config.checkpoint, OmegaConf.to_container(config.trusted_modules))  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as ignored:
        warnings.simplefilter("always")
        request = predictor.read(sessions, users, config.on_unknown)
    sys.stderr.writelines(f"{warning.message}\n" for warning in ignored)
    n_sessions = len(request.session_id)
    lists = predictor.lists(request, config.k, config.exclude_seen)
    schema = next(lists).schema
    with (
        Console(stderr=True, markup=False).status("recommending") as status,
        atomic_path(output, shared=True) as temporary,
    ):

        def blocks(*_: Any) -> Iterator[pl.DataFrame]:
            done = 0
            for block in lists:
                yield block
                done += block[SESSION_ID].n_unique()
                status.update(f"recommending: {done:,} of {n_sessions:,} sessions")

        # The blocks are written as they come, so that memory does not grow with the number of sessions.
        stream = register_io_source(blocks, schema=schema)
        if output.suffix == ".csv":
            stream.sink_csv(temporary)
        else:
            stream.sink_parquet(temporary)
    unknown = request.unknown
    of_profiles = (
        ("users without a profile", unknown.users),
        ("rows of users without a session", unknown.unmatched),
        ("attributes in input, not used", unknown.columns),
    )
    ignored_rows = "".join(f"{title}: {len(rows):,}; " for title, rows in of_profiles if rows)
    Console(soft_wrap=True, markup=False).print(
        f"sessions: {n_sessions:,} ({unknown.no_click:,} without a known item); events of unknown items: "
        f"{len(unknown.items):,}; unknown attributes and values: {len(unknown.attributes) + len(unknown.values):,}; "
        f"{ignored_rows}{time.perf_counter() - started:.1f} s; {output}"
    )


def _read(path: str, key: str, columns: tuple[str, ...] | None) -> pl.DataFrame:
    """A CSV or parquet file; ids and attributes of a CSV are strings.

    Columns that are not among ``columns`` (None: all are) are null: of them, only the names are used.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}={path}: no such file{nearest_file(file)}")
    if file_format(file) == "parquet":
        try:
            header = [*pl.scan_parquet(file, glob=False).collect_schema()]
            names = [name for name in header if columns is None or name in columns]
            return _with_nulls(pl.read_parquet(file, columns=names, glob=False), header)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    header = read_header(file, columns or (USER_ID, SESSION_ID))
    # Those that are required are looked up by the reader, whose error has the nearest name.
    names = header if columns is None else [*columns[:2], *(name for name in columns[2:] if name in header)]
    required = [SESSION_ID] if columns is not None else []
    types = dict.fromkeys(names, pl.String())
    return _with_nulls(read_delimited(file, types, separator=None, required=required, null_values=[""]), header)


def _with_nulls(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    return frame.with_columns(pl.lit(None).alias(name) for name in dict.fromkeys(names) if name not in frame.columns)
