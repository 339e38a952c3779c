"""A live session as bytes of bounded size: what another process needs to continue it."""

import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from arnn_lightning.batch import Contexts, State
from arnn_lightning.errors import UserError
from arnn_lightning.serving import MAX_SEEN

MAGIC, VERSION = b"ARNN", 2
_HEADER = struct.Struct("<4sB8sI")  # magic, version, model, checksum
_SIZES = struct.Struct("<IIII")  # clicks, active fields, seen items, width of the query


class SessionState(NamedTuple):
    """The contents of a session.

    Attributes:
        contexts: context codes of the user, (1, S) and (1, A).
        seen: item codes, the latest last.
        clicks: number of clicks on items of the catalogue.
        query: (1, H) after the last click; None before the first.
        hidden: the encoder's state.
    """

    contexts: Contexts
    seen: list[int]
    clicks: int
    query: Tensor | None
    hidden: State


class StateFormat:
    """Header, sizes, codes (single, active, seen), the query if clicked, the encoder's state.

    Args:
        model_id: of the model, which a state must be of.
        n_items: size of its catalogue.
        dims: sizes of its data.
        example: a state of the model after a click, whose widths and types all states have.
    """

    def __init__(self, model_id: str, n_items: int, dims: Mapping[str, Any], example: SessionState) -> None:
        self.model_id = model_id
        self._example = example
        n_single, self._n_binary = sum(dims["single_sizes"]), dims["n_binary"]
        self._limits = {"single": (0, n_single), "active": (-1, self._n_binary), "seen": (0, n_items)}
        # Integers are item codes plus one; in a query of a neighbourhood model categories, too.
        self._limits |= {"hidden": (0, 1 + n_items), "query": (0, 1 + max(n_items, n_single + self._n_binary))}

    def pack(self, state: SessionState) -> bytes:
        codes = [state.contexts.single[0], state.contexts.active[0], torch.tensor(state.seen, dtype=torch.int64)]
        body = b"".join(part.numpy().astype("<i4").tobytes() for part in codes)
        tensors = state.hidden if state.query is None else (state.query, *state.hidden)
        body += b"".join(part.contiguous().numpy().tobytes() for part in tensors)
        width = 0 if state.query is None else state.query.shape[1]
        body = _SIZES.pack(state.clicks, state.contexts.active.shape[1], len(state.seen), width) + body
        return _HEADER.pack(MAGIC, VERSION, bytes.fromhex(self.model_id), zlib.crc32(body)) + body

    def unpack(self, packed: bytes) -> SessionState:
        """Raises UserError for what is no state, is damaged or of another model."""
        if not isinstance(packed, bytes | bytearray | memoryview):
            raise UserError(f"state: must be the bytes that state() returned, not {type(packed).__name__}")
        packed = bytes(packed)
        damaged = UserError("state: damaged or truncated; start a new session")
        if len(packed) < _HEADER.size + _SIZES.size:
            raise damaged
        magic, version, model_id, checksum = _HEADER.unpack_from(packed)
        body = packed[_HEADER.size :]
        if magic != MAGIC or zlib.crc32(body) != checksum:
            raise damaged
        if version != VERSION:
            raise UserError(f"state: has format {version}, not {VERSION}; start a new session")
        if model_id.hex() != self.model_id:
            raise UserError(
                f"state: belongs to another model ({model_id.hex()}, not {self.model_id}); start a new session"
            )
        clicks, n_active, n_seen, width = _SIZES.unpack_from(body)
        example = self._example
        templates = [("hidden", part) for part in example.hidden]
        if clicks:
            assert example.query is not None
            usual = example.query.shape[1]
            if not usual <= width <= usual + self._n_binary:  # VSTAN's has the active fields
                raise damaged
            templates.insert(0, ("query", example.query.new_empty(1, width)))
        n_codes = example.contexts.single.shape[1] + n_active + n_seen
        sizes = _SIZES.size + 4 * n_codes, *(part.nbytes for _, part in templates)
        if n_seen > MAX_SEEN or len(body) != sum(sizes):
            raise damaged
        codes = torch.from_numpy(np.frombuffer(body, "<i4", n_codes, _SIZES.size).astype(np.int64))
        single, active, seen = codes.split([n_codes - n_active - n_seen, n_active, n_seen])
        starts = np.cumsum(sizes).tolist()
        tensors = [
            torch.frombuffer(bytearray(body[start : start + part.nbytes]), dtype=part.dtype).view(part.shape)
            for start, (_, part) in zip(starts, templates, strict=False)
        ]
        named = [("single", single), ("active", active), ("seen", seen)]
        named += [(name, part) for (name, _), part in zip(templates, tensors, strict=True)]
        for name, part in named:
            low, high = self._limits[name]
            is_valid = part.isfinite() if part.is_floating_point() else (low <= part) & (part < high)
            if not is_valid.all():
                raise damaged
        query = tensors.pop(0) if clicks else None
        return SessionState(Contexts(single[None], active[None]), seen.tolist(), clicks, query, tuple(tensors))
