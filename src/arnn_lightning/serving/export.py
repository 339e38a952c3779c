"""A folder that recommends without this package and without torch: one step as ONNX, ids, item vectors, a model card.

What is exported is one step in primitive operations: exporters write nn.GRU wrongly (pytorch#189225). Every export is
compared with the model over random sessions before it is written.

B batch slots, S single-valued fields, A present binary fields, L layers, H width of a query, I items.
"""

import hashlib
import importlib.metadata
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from arnn_lightning import __version__
from arnn_lightning.batch import Contexts, StepInput
from arnn_lightning.config import install_hint
from arnn_lightning.errors import UserError
from arnn_lightning.io import staging_directory, write_json, write_text
from arnn_lightning.models.trained import SessionRecommender
from arnn_lightning.nn.tracing import tracing
from arnn_lightning.preprocessing.contexts import OTHER, other_code
from arnn_lightning.serving.predictor import Predictor
from arnn_lightning.serving.vocabulary import Vocabulary

FORMAT = 1  # of the folder
CONFIG, STEP, CARD = "config.json", "step.onnx", "README.md"
TOLERANCE = 1e-5  # relative to the largest score or value of a query, or to 1 where that is smaller
CHECKED_EVENTS = 8  # of each random session that the export is compared on
MAX_INLINE_BYTES = 1 << 30  # of weights inside step.onnx, whose limit is 2 GB; larger ones are stored next to it


class ExportedStep(nn.Module):
    """One event of every slot: ids, codes and state -> the best items, their scores, the query and the next state."""

    def __init__(self, model: SessionRecommender, k: int) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.scorer = model.scorer
        self.k = k
        self.n_states = len(model.initial_state(1))
        self.eval()

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """``inputs``: as ``example_inputs`` returns them; returns scores and items (B, k), query (B, H), the state."""
        item_B = inputs["item"]
        contexts = Contexts(
            inputs["single"] if "single" in inputs else item_B.new_zeros(item_B.shape[0], 0),
            inputs["active"] if "active" in inputs else item_B.new_full((item_B.shape[0], 1), -1),
        )
        state = tuple(inputs[f"state_{index}"] for index in range(self.n_states))
        query_BH, state = self.encoder.encode(StepInput(item_B, contexts, None), state)
        score_BK, item_BK = self.scorer(query_BH).topk(self.k, 1)
        return score_BK, item_BK, query_BH, *state


def example_inputs(
    model: SessionRecommender, dims: Mapping[str, Any], batch_size: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Random inputs of a session's first step: item (B,), single (B, S) and active (B, A) where read, state_<i>."""
    inputs = {"item": torch.from_numpy(rng.integers(0, dims["n_items"], batch_size))}
    if model.uses_contexts and dims["single_sizes"]:
        codes_SB = [rng.integers(0, size, batch_size) for size in dims["single_sizes"]]
        offset_S = np.cumsum([0, *dims["single_sizes"]])[:-1]
        inputs["single"] = torch.from_numpy(np.stack(codes_SB, 1) + offset_S)
    if model.uses_contexts and dims["n_binary"]:
        n_active = min(dims["n_binary"], 5)
        codes_BA = np.stack([rng.permutation(dims["n_binary"])[:n_active] for _ in range(batch_size)])
        codes_BA[rng.random(codes_BA.shape) < 0.4] = -1
        inputs["active"] = torch.from_numpy(codes_BA)
    return inputs | {f"state_{index}": part for index, part in enumerate(model.initial_state(batch_size))}


def export_model(predictor: Predictor, checkpoint: Path, output: Path, k: int, card: str) -> dict[str, Any]:
    """Writes the folder ``output``, as a whole; files of an earlier export there are replaced.

    Args:
        predictor: the model and its vocabulary.
        checkpoint: the file that it is from.
        output: the folder.
        k: length of the lists that the step returns.
        card: the text of the model card.

    Returns:
        config.json.

    Raises:
        UserError: a model without item vectors, packages that are not installed, a ``k`` beyond the catalogue, or a
            folder that contains something else.
    """
    model = predictor.model
    if not isinstance(model, SessionRecommender):
        raise UserError(f"{checkpoint}: {model.name} has no encoder to export; export a trained model")
    if k > model.n_items:
        raise UserError(f"k={k}: exceeds the catalogue of {model.n_items} items")
    _require_packages()
    check_output(output)
    dims = predictor.metadata["model"]["dims"]
    step = ExportedStep(model, k)
    with staging_directory(output / CONFIG if output.exists() else output) as folder:
        opset = _write_step(step, model, dims, folder / STEP)
        difference = _compare(step, model, dims, folder / STEP)
        _write_weights(model, folder)
        ids = predictor.vocabulary.items["id"].to_list()
        write_json(folder / "items.json", {"ids": ids, **_titles(predictor.vocabulary)})
        write_json(folder / "contexts.json", _categories(predictor) if model.uses_contexts else {})
        config = {
            "format": FORMAT,
            "library": f"arnn-lightning {__version__}",
            "name": model.name,
            "checkpoint_sha256": _sha256(checkpoint),
            "trained_with": predictor.metadata.get("version"),
            "data": {"name": predictor.metadata["data"]["name"], "prepared": predictor.metadata["prepared"]},
            "seed": predictor.metadata["seed"],
            "model": predictor.metadata["model"],
            "step": {
                "inputs": {name: list(map(str, shape)) for name, shape in _shapes(step, model, dims).items()},
                "outputs": _output_names(step),
                "k": k,
                "query_width": model.encoder.hidden_size,
                "opset": opset,
                "largest_difference": difference,
            },
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
        }
        write_json(folder / CONFIG, config)
        write_text(folder / CARD, card)
        _move(folder, output)
    return config


def check_output(output: Path) -> None:
    """Raises UserError where ``output`` is not a new folder, one without visible files, or an earlier export."""
    if output.is_file() or (output.is_dir() and _visible(output) and not _is_export(output)):
        raise UserError(f"output={output}: exists and is not an exported model; choose another folder")


def _is_export(folder: Path) -> bool:
    try:
        return "checkpoint_sha256" in json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _move(folder: Path, output: Path) -> None:
    """Renames ``folder`` to ``output``; where that exists, as a mount point or the current folder, moves the files."""
    if not output.exists():
        folder.replace(output)
        return
    for name in (CONFIG, f"{STEP}.data"):  # is there in complete exports only; of large models only
        (output / name).unlink(missing_ok=True)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == CONFIG):
        file.replace(output / file.name)


def _require_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f"task=export needs {name}{install_hint('export')}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _output_names(step: ExportedStep) -> list[str]:
    return ["scores", "items", "query", *(f"next_state_{index}" for index in range(step.n_states))]


def _shapes(step: ExportedStep, model: SessionRecommender, dims: Mapping[str, Any]) -> dict[str, list[int | str]]:
    """Shape of every input, dynamic sizes by name."""
    shapes: dict[str, list[int | str]] = {}
    for name, tensor in example_inputs(model, dims, 2, np.random.default_rng(0)).items():
        shapes[name] = list(tensor.shape)
        shapes[name][tensor.dim() - 2 if name.startswith("state") else 0] = "batch"
    if "active" in shapes:
        shapes["active"][1] = "fields"
    return shapes


def _write_step(step: ExportedStep, model: SessionRecommender, dims: Mapping[str, Any], file: Path) -> int:
    """Writes the ONNX graph; returns its opset."""
    # Sizes that no weight has: an equal one could be taken for it.
    inputs = example_inputs(model, dims, 7, np.random.default_rng(0))
    if "active" in inputs:
        inputs["active"] = torch.full((7, 5), -1)
    symbols = {name: torch.export.Dim(name) for name in ("batch", "fields")}
    dynamic = {
        name: {axis: symbols[size] for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in _shapes(step, model, dims).items()
    }
    with _quiet(), tracing(), torch.no_grad():
        program = torch.export.export(step, (inputs,), dynamic_shapes=(dynamic,), strict=False)
        exported = torch.onnx.export(
            program, input_names=list(inputs), output_names=_output_names(step), dynamo=True, verbose=False
        )
        assert exported is not None
        size = sum(weight.nbytes for weight in step.parameters())
        exported.save(file, external_data=size > MAX_INLINE_BYTES)
    return int(exported.model.opset_imports[""])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def _compare(step: ExportedStep, model: SessionRecommender, dims: Mapping[str, Any], file: Path) -> float:
    """The largest difference of a query or score between ONNX Runtime and the model over random sessions.

    Raises:
        RuntimeError: it is not rounding.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    rng, largest = np.random.default_rng(1), 0.0
    for batch_size in (1, 3):
        inputs = example_inputs(model, dims, batch_size, rng)
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        for _ in range(CHECKED_EVENTS):
            item = torch.from_numpy(rng.integers(0, dims["n_items"], batch_size))
            inputs["item"], feed["item"] = item, item.numpy()
            expected = step(inputs)
            outputs = cast(list[np.ndarray], session.run(_output_names(step), feed))
            for index in (0, 2):
                difference = float(np.abs(outputs[index] - expected[index].numpy()).max())
                largest = max(largest, difference / max(1.0, float(expected[index].abs().max())))
            for index, (theirs, ours) in enumerate(zip(outputs[3:], expected[3:], strict=True)):
                feed[f"state_{index}"], inputs[f"state_{index}"] = theirs, ours
    if not largest < TOLERANCE:
        raise RuntimeError(f"the exported step differs from the model by {largest:.1e}")
    return largest


def _write_weights(model: SessionRecommender, folder: Path) -> None:
    """model.safetensors, and item_vectors.npy (I, H + 1): an item's score is its row times [query, 1]."""
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    weight, bias = model.scorer.items.weight, model.scorer.bias.weight
    np.save(folder / "item_vectors.npy", torch.cat([weight, bias[:, None]], 1).detach().numpy())
    shutil.copymode(folder / "item_vectors.npy", folder / "model.safetensors")  # safetensors makes it private


def _titles(vocabulary: Vocabulary) -> dict[str, Any]:
    return {"titles": vocabulary.items["title"].to_list()} if "title" in vocabulary.items.columns else {}


def _categories(predictor: Predictor) -> dict[str, Any]:
    """The inputs ``single`` and ``active`` for a profile.

    single: by attribute, in the order of the columns, the row of every category, of "unknown" (no value) and of "other"
    values; of a numeric one the edges of its intervals, whose rows follow that of "unknown". active: by attribute the
    code of every category and of all "other" ones, null if training has none; "unknown" has no code.
    """
    contexts, sizes = predictor.vocabulary.contexts, predictor.metadata["model"]["dims"]["single_sizes"]
    rows = {name: contexts.filter(pl.col("attribute") == name) for name in predictor.vocabulary.attributes}
    single: dict[str, dict[str, Any]] = {}
    first = 0
    for name, size in zip(predictor.vocabulary.single, sizes, strict=True):
        codes = {category: first + code for category, code in rows[name].select("category", "code").iter_rows()}
        other = codes.pop(OTHER, first)
        # A model that was trained with unknown contexts only has not learnt the others.
        known = {"other": other, "categories": codes} if predictor.uses_contexts else {"other": first, "categories": {}}
        single[name] = {"unknown": first} | known
        if (rows[name]["kind"] == "numeric").any() and predictor.uses_contexts:
            single[name]["edges"] = rows[name].sort("code")["low"][1:].to_list()  # the first is minus infinity
        first += size
    active = {}
    for name in predictor.attributes:
        if name not in predictor.vocabulary.single:
            *popular, _ = rows[name].sort("code").select("category", "code").iter_rows()
            active[name] = {"other": other_code(rows[name]), "categories": dict(popular)}
    return {"single": single, "active": active}
