"""task=export: a checkpoint as a folder of ONNX, weights, ids and a model card."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.config import to_container
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import EvaluationResult, results_of
from arnn_lightning.reporting.runs import find_run_dirs
from arnn_lightning.run_folder import METRICS_FILE, checkpoint_file, stored_config
from arnn_lightning.serving.card import find_evidence, model_card
from arnn_lightning.serving.export import check_output, export_model
from arnn_lightning.serving.predictor import load
from arnn_lightning.training.stage import prediction_metrics


def run(config: DictConfig) -> None:
    """Writes the folder ``output``, and prints what it contains."""
    checkpoint, output = checkpoint_file(config.checkpoint), Path(config.output).expanduser()
    check_output(output)
    predictor = load(checkpoint, config.trusted_modules)
    controls = _controls(config.controls, predictor.name)
    evidence = find_evidence(checkpoint.absolute(), predictor.metadata, Path(config.paths.data), controls)
    card = model_card(
        predictor,
        evidence,
        prediction_metrics(config),
        to_container(config.evaluation.bootstrap),
        config.seed,
        config.license,
    )
    exported = export_model(predictor, checkpoint, output, config.k, card)
    console = Console(markup=False)
    difference = exported["step"]["largest_difference"]
    console.print(
        f"{predictor.name}, {predictor.n_items:,} items; step.onnx differs from the model by {difference:.0e}"
    )
    if evidence.result is None:
        console.print("no test result in the checkpoint's run folder: the model card has no metrics")
    if evidence.prepared is None:
        console.print(f"{predictor.metadata['prepared']} is not in {config.paths.data}: the card has no data hashes")
    console.print(f"exported: {output}", soft_wrap=True)


def _controls(patterns: Any, name: str) -> dict[str, EvaluationResult]:
    """By label, the test results of the same model in runs whose contexts are not the users' own.

    Raises:
        UserError: no such run, or one whose results are missing or damaged.
    """
    if patterns is None:
        return {}
    controls, others = {}, dict[str, None]()
    patterns = list(map(str, patterns)) if OmegaConf.is_list(patterns) else [str(patterns)]
    for folder in find_run_dirs(patterns, "controls"):
        if not (folder / METRICS_FILE).is_file():
            continue
        assignment = OmegaConf.select(stored_config(folder), "data.contexts.assignment", default="own")
        with results_of(folder):
            metrics = json.loads((folder / METRICS_FILE).read_bytes())
            if metrics["model"] == name and assignment != "own" and "test" in metrics:
                label = f"{assignment}, seed {metrics['seed']}"
                controls[label] = EvaluationResult.read(name, folder)
            others[f"{metrics['model']} on {metrics['data']} with {assignment}"] = None
    if not controls:
        found = f"; found: {', '.join(others)}" if others else ""
        raise UserError(f"controls: no finished run of {name} with data.contexts.assignment other than own{found}")
    return controls
