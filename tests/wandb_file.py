"""Reads a run of Weights & Biases back from its offline file: LevelDB's record framing around wandb's protobuf."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 1 << 15  # bytes: of the file and of each piece; of a block


@dataclass
class Read:
    """What an offline run holds."""

    run: Any = None
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    text: bytes = b""


def records(file: Path) -> Iterator[Any]:
    data, at, piece = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(piece)
            piece = b""


def read(folder: Path) -> Read:
    """The one run below ``folder``/wandb."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    found = Read(text=file.read_bytes())
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            update(found.config, record.run.config)
        elif kind == "config":
            update(found.config, record.config)
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.history.append(items)
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(record.request.log_artifact.artifact.name)
        elif kind == "artifact":
            found.artifacts.append(record.artifact.name)
    return found


def update(config: dict[str, Any], record: Any) -> None:
    for one in record.update:
        config["/".join(one.nested_key) or one.key] = json.loads(one.value_json)
