"""The model card of an exported model, in the form of the Hugging Face hub; what is not known is left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import yaml

from arnn_lightning import __version__
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.groups import by_known_attributes, by_popularity, by_position, by_seen, group_metrics
from arnn_lightning.evaluation.metrics import interval_text, metric_label
from arnn_lightning.evaluation.result import EvaluationResult, results_of
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.run_folder import BEST, CHECKPOINTS, METRICS_FILE
from arnn_lightning.serving.predictor import Predictor


@dataclass(frozen=True)
class Evidence:
    """The known results of a checkpoint.

    Attributes:
        result: its ranks on the test split; None where its run did not evaluate it.
        others: the other models of its run, by what they are.
        controls: by label, the results of runs in which contexts are not those of the users.
        prepared: the data set; None where it is not on this machine.
    """

    result: EvaluationResult | None
    others: Mapping[str, EvaluationResult]
    controls: Mapping[str, EvaluationResult]
    prepared: PreparedDataset | None


def find_evidence(
    checkpoint: Path, metadata: Mapping[str, Any], data_root: Path, controls: Mapping[str, EvaluationResult]
) -> Evidence:
    """Reads the run folder of a checkpoint, RUN/checkpoints/best.ckpt or RUN/checkpoints/ROLE/best.ckpt.

    Raises:
        UserError: a control whose predictions are not those of the run, or results that are missing or damaged.
    """
    folder = data_root / "prepared" / metadata["prepared"]
    prepared = PreparedDataset(folder) if (folder / "manifest.json").is_file() else None
    role = "" if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent.name
    run = checkpoint.parents[2 if role else 1] if len(checkpoint.parents) > 2 else Path()
    if checkpoint.name != BEST or not (run / METRICS_FILE).is_file():
        return Evidence(None, {}, {}, prepared)  # only the best weights are tested
    with results_of(run):
        return _read_results(run, role, controls, prepared)


def _read_results(
    run: Path, role: str, controls: Mapping[str, EvaluationResult], prepared: PreparedDataset | None
) -> Evidence:
    metrics = json.loads((run / METRICS_FILE).read_bytes())
    if "test" not in metrics:  # of a trial
        return Evidence(None, {}, {}, prepared)
    names = {key: entry["model"] for kind in ("baselines", "encoders") for key, entry in metrics.get(kind, {}).items()}
    results = {key: EvaluationResult.read(name, run, key) for key, name in names.items()}
    if not role:
        result = EvaluationResult.read(metrics["model"], run)
        for label, control in controls.items():
            if not _same_predictions(result, control):
                raise UserError(f"controls: {label}: its test split is not that of {run}; give runs on the same data")
        return Evidence(result, results, controls, prepared)
    baselines = {key: results[key] for key in metrics["baselines"]}
    return Evidence(results.get(role), baselines, {}, prepared)


def model_card(
    predictor: Predictor,
    evidence: Evidence,
    metrics: Sequence[str],
    bootstrap: Mapping[str, Any],
    seed: int,
    license_name: str | None,
) -> str:
    """The text of README.md.

    Args:
        predictor: the model.
        evidence: from ``find_evidence``.
        metrics: shown, such as ``recall@20``.
        bootstrap: ``resamples``, ``confidence`` and ``unit``.
        seed: of the resampling.
        license_name: an identifier such as ``mit``; None: not stated.
    """
    metadata, result = predictor.metadata, evidence.result
    name, data = predictor.name, metadata["data"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )

    def interval(measured: EvaluationResult, metric: str) -> str:
        low, high = measured.interval(metric, bootstrap, seed)
        return _with_interval(measured.metrics([metric])[metric], low, high, ".4f")

    def gain(other: EvaluationResult, metric: str) -> str:
        assert result is not None
        mean, low, high = result.paired_difference(other, metric, bootstrap, seed)
        return _with_interval(mean, low, high, "+.4f")

    groups = _groups(result, evidence.prepared, metrics[0], bootstrap, seed) if result is not None else {}
    return environment.get_template("card.md.j2").render(
        head=_head(name, data["name"], result, metrics, license_name),
        name=name,
        data=data,
        metadata=metadata,
        manifest=evidence.prepared.manifest if evidence.prepared is not None else None,
        manifest_sha256=evidence.prepared.manifest_sha256 if evidence.prepared is not None else None,
        n_items=predictor.n_items,
        first_items=predictor.model.first_items,
        attributes=predictor.attributes,
        stores_users="user" in predictor.attributes,
        result=result,
        others={key: other for key, other in evidence.others.items() if _same_predictions(result, other)},
        controls=evidence.controls,
        metrics=metrics,
        metric_label=metric_label,
        labels=[metric_label(metric) for metric in metrics],
        interval=interval,
        gain=gain,
        groups=groups,
        confidence=f"{100 * bootstrap['confidence']:g} %",
        unit=bootstrap["unit"],
        version=__version__,
    )


def _with_interval(mean: float, low: float, high: float, form: str) -> str:
    interval = interval_text(low, high, form)
    return f"{mean:{form}}" + (f" ({interval})" if interval else "")


def _head(
    name: str, data: str, result: EvaluationResult | None, metrics: Sequence[str], license_name: str | None
) -> str:
    """The YAML that the hub reads."""
    head: dict[str, Any] = {} if license_name is None else {"license": license_name}
    head |= {
        "library_name": "arnn-lightning",
        "tags": ["recommender-system", "session-based-recommendation", "onnx", name],
        "datasets": [data],
    }
    if result is not None:
        values = result.metrics(metrics)
        entry = {
            "task": {"type": "recommendation", "name": "next-item recommendation"},
            "dataset": {"type": data, "name": data, "split": "test"},
            "metrics": [{"type": key, "name": metric_label(key), "value": values[key]} for key in metrics],
        }
        head |= {"metrics": list(metrics), "model-index": [{"name": name, "results": [entry]}]}
    return str(yaml.safe_dump(head, sort_keys=False, allow_unicode=True)).strip()


def _same_predictions(result: EvaluationResult | None, other: EvaluationResult) -> bool:
    keys = ["session", "position", "item"]
    return result is not None and result.ranks.select(keys).equals(other.ranks.select(keys))


def _groups(
    result: EvaluationResult, prepared: PreparedDataset | None, metric: str, bootstrap: Mapping[str, Any], seed: int
) -> dict[str, pl.DataFrame]:
    """Groups of predictions -> their table; those that need the data set only where it is there."""
    ranks = result.ranks
    labels = {"preceding events": by_position(ranks["position"])}
    if prepared is not None:
        train = pl.read_parquet(prepared.folder / "train.parquet", columns=["user", "item"], glob=False)
        labels |= {
            "known attributes of the user": by_known_attributes(ranks["user"], prepared.users()),
            "user in training": by_seen(ranks["user"], train),
            "popularity of the next item": by_popularity(ranks["item"], train, prepared.dims["n_items"]),
        }
    value, cluster = result.per_prediction(metric), ranks[str(bootstrap["unit"])].to_numpy()
    return {by: group_metrics({"mean": [value]}, label, cluster, bootstrap, seed) for by, label in labels.items()}
