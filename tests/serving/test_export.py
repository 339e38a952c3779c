"""Exported models: ONNX Runtime gives the model's scores and the evaluation's ranks; folders are whole or not there."""

import ast
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from arnn_lightning.batch import Contexts, StepInput
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.loading.contexts import context_codes
from arnn_lightning.preprocessing.contexts import VOCABULARY
from arnn_lightning.preprocessing.dataset import PreparedDataset
from arnn_lightning.serving.card import Evidence, find_evidence, model_card
from arnn_lightning.serving.export import ExportedStep, _write_weights, export_model
from arnn_lightning.serving.predictor import Predictor, load
from arnn_lightning.serving.vocabulary import Vocabulary
from commandline import arnn_here
from helpers import make_model, model_config, python_block
from models import BY_NAME, MODELS, TRAINED, ModelCase, slow

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXPORTED = tuple(case.name for case in TRAINED if case.name != "arnn_sasrec")  # its parts are exported in others
Checkpoints = Callable[[ModelCase], Path]


def export(run: Path, output: Path, k: int = 20) -> tuple[Predictor, dict[str, Any]]:
    predictor = load(run)
    return predictor, export_model(predictor, run / "checkpoints" / "best.ckpt", output, k, "# card\n")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def exported(
    checkpoints: Checkpoints, prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Exports a model with random weights once, by ``task=export``; returns the folder."""
    root = tmp_path_factory.mktemp("exported")

    def make(name: str) -> Path:
        if not (root / name).exists():
            task = ["task=export", f"checkpoint={checkpoints(BY_NAME[name])}", f"output={name}", "license=mit"]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                assert arnn_here([*task, f"paths.data={prepared.folder.parents[1]}", "hydra.run.dir=here"], patch) == 0
        return root / name

    return make


# Torch's exporter takes seconds for each model: in make test, the one that has a session and a context encoder.
@pytest.mark.parametrize("name", [name if name == "arnn" else slow(name) for name in EXPORTED])
@torch.no_grad()
def test_V18_onnx_runtime_ranks_test_sessions_like_the_evaluation(
    name: str, exported: Callable[[str], Path], checkpoints: Checkpoints, prepared: PreparedDataset
) -> None:
    """Whole test sessions of real profiles, all at once and one by one: queries to 1e-5, ranks exactly."""
    folder = exported(name)
    run = checkpoints(BY_NAME[name])
    model: Any = load(run).model
    session = onnxruntime.InferenceSession(folder / "step.onnx")
    vectors = np.load(folder / "item_vectors.npy")
    n_sessions = 40
    sessions = prepared.sessions("test")
    codes = context_codes(prepared.users(), prepared.dims["single_sizes"])
    user = torch.from_numpy(sessions.user[:n_sessions])
    single, active = codes.single[user].numpy(), codes.active[user].numpy()
    ranks = pl.read_parquet(run / "test_ranks.parquet")
    checked = 0
    for slots in (range(n_sessions), range(3, 4)):  # a batch, and one session alone
        slots = list(slots)
        state = [part.numpy() for part in model.initial_state(len(slots))]
        torch_state = model.initial_state(len(slots))
        lengths = sessions.lengths[slots]
        for place in range(int(lengths.max()) - 1):
            event = sessions.offset[slots] + np.minimum(place, lengths - 1)
            feed = {"item": sessions.item[event]} | {f"state_{index}": part for index, part in enumerate(state)}
            if model.uses_contexts:
                feed |= {"single": single[slots], "active": active[slots]}
            scores, items, query, *state = session.run(None, feed)
            contexts = Contexts(codes.single[user[slots]], codes.active[user[slots]])
            step = StepInput(torch.from_numpy(sessions.item[event]), contexts, None)
            expected, torch_state = model.encode(step, torch_state)
            np.testing.assert_allclose(query, expected.numpy(), rtol=1e-5, atol=1e-5)
            all_scores = np.append(query, np.ones((len(query), 1), np.float32), 1) @ vectors.T
            np.testing.assert_allclose(np.take_along_axis(all_scores, items, 1), scores, rtol=1e-5, atol=1e-5)
            for slot, number in enumerate(slots):
                if place < lengths[slot] - 1:
                    code = int(sessions.session[number])
                    rank = ranks.filter((pl.col("session") == code) & (pl.col("position") == place + 1)).row(
                        0, named=True
                    )
                    found = np.flatnonzero(items[slot] == rank["item"])
                    assert (found[0] + 1 == rank["rank"]) if len(found) else rank["rank"] > items.shape[1]
                    checked += 1
    assert checked > 80


@pytest.mark.parametrize(("single", "multi"), [slow([], []), (["level"], []), slow([], ["tags"])])
def test_models_of_one_kind_of_attributes_are_exported(single: list[str], multi: list[str], tmp_path: Path) -> None:
    """ONNX Runtime and the model agree: ``export_model`` compares them."""
    case = BY_NAME["concat"]
    dims = {"n_items": 9, "single_sizes": [3 for _ in single], "n_binary": 4 if multi else 0}
    contexts = [(name, "single", code, f"{name}{code}", 1, None) for name in single for code in (1, 2)]
    contexts += [(name, "multi", code, f"{name}{code}", 1, None) for name in multi for code in range(4)]
    tables = {
        "items": pl.DataFrame({"id": range(9), "events": range(9)}),
        "contexts": pl.DataFrame(contexts, VOCABULARY, orient="row"),
        "single": pl.DataFrame({"attribute": single}, {"attribute": pl.String}),
        "item_contexts": pl.DataFrame(schema=VOCABULARY),
    }
    stored = {name: torch.frombuffer(bytearray(as_parquet(table)), dtype=torch.uint8) for name, table in tables.items()}
    data = {"name": "small", "contexts": {"assignment": "own"}}
    metadata = {"model": model_config(case.preset, dims, *case.overrides), "data": data, "prepared": "none", "seed": 1}
    predictor = Predictor(make_model(case.preset, dims, *case.overrides), Vocabulary(stored, "here"), metadata)
    (tmp_path / "best.ckpt").write_bytes(b"")
    config = export_model(predictor, tmp_path / "best.ckpt", tmp_path / "exported", 5, "")
    assert {"single", "active"} & {*config["step"]["inputs"]} == {
        *(["single"] if single else []),
        *(["active"] if multi else []),
    }
    categories = json.loads((tmp_path / "exported" / "contexts.json").read_text())
    assert [*categories["single"]] == single
    assert [*categories["active"]] == multi


def as_parquet(table: pl.DataFrame) -> bytes:
    table.write_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


def test_a_batch_may_have_any_number_of_fields(exported: Callable[[str], Path]) -> None:
    """Padding changes nothing: no field present, as one column or as many."""
    session = onnxruntime.InferenceSession(exported("arnn") / "step.onnx")
    config = json.loads((exported("arnn") / "config.json").read_text())
    n_single = int(config["step"]["inputs"]["single"][1])
    feed: dict[str, Any] = {"item": np.array([3, 4]), "single": np.zeros((2, n_single), np.int64)}
    layers, _, width = config["step"]["inputs"]["state_0"]
    feed["state_0"] = np.zeros((int(layers), 2, int(width)), np.float32)
    queries = []
    for n_fields in (0, 1, 40):
        queries.append(session.run(["query"], feed | {"active": np.full((2, n_fields), -1)})[0])
    np.testing.assert_allclose(queries[0], queries[1], atol=1e-6)
    np.testing.assert_allclose(queries[0], queries[2], atol=1e-6)


@pytest.mark.parametrize(("name", "n_tied"), [("arnn", 0), ("gru4rec_tied", 1)])
def test_weights_are_complete_and_tied_ones_stored_once(
    name: str, n_tied: int, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    model: Any = load(checkpoints(BY_NAME[name])).model
    _write_weights(model, tmp_path)
    weights, state = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert len(state) - len(weights) == n_tied
    stored_as = {tensor.data_ptr(): key for key, tensor in state.items() if key in weights and tensor.numel()}
    for key, tensor in state.items():
        assert torch.equal(weights[key if key in weights else stored_as[tensor.data_ptr()]], tensor)
    vectors = np.load(tmp_path / "item_vectors.npy")
    assert np.array_equal(
        vectors, np.column_stack([model.scorer.items.weight.detach(), model.scorer.bias.weight.detach()])
    )


def test_an_export_replaces_an_earlier_one_and_nothing_else(
    checkpoints: Checkpoints, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    run = checkpoints(BY_NAME["concat"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match="exists and is not an exported model"):
        export(run, tmp_path / "mine")
    assert names_in(tmp_path) == ["mine"]
    shutil.copytree(exported("arnn"), tmp_path / "out")
    for name in ("notes.txt", "step.onnx.data"):  # the latter of a larger model
        (tmp_path / "out" / name).touch()
    _, config = export(run, tmp_path / "out", k=7)
    assert names_in(tmp_path) == ["mine", "out"]
    assert "notes.txt" in names_in(tmp_path / "out")
    assert "step.onnx.data" not in names_in(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert config["step"]["k"] == 7
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
    assert config["step"]["largest_difference"] < 1e-5


def test_a_folder_that_is_there_is_filled_and_hidden_files_stay(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a mount point, which cannot be renamed, or the current folder."""
    folder = tmp_path / "out"
    (folder / ".git").mkdir(parents=True)
    (folder / ".config.json.tmp").mkdir()  # of an export that was killed
    monkeypatch.chdir(folder)
    moved, place, usual = [], folder.stat().st_ino, Path.replace

    def replace(path: Path, target: Path) -> Path:
        moved.append(target.name)
        return usual(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    export(checkpoints(BY_NAME["gru4rec"]), Path())
    assert moved[-1] == "config.json"
    assert {".git", "config.json", "step.onnx"} < {*names_in(folder)}
    assert ".config.json.tmp" not in names_in(folder)
    assert folder.stat().st_ino == place
    assert names_in(tmp_path) == ["out"]


def test_what_cannot_be_exported_is_one_line(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name in (case.name for case in MODELS if not case.is_trained):
        with pytest.raises(UserError, match=f"{name} has no encoder to export"):
            export(checkpoints(BY_NAME[name]), tmp_path / "out")
    with pytest.raises(UserError, match=r"^k=100000: exceeds the catalogue of \d+ items"):
        export(checkpoints(BY_NAME["gru4rec"]), tmp_path / "out", k=100_000)
    assert not names_in(tmp_path)


def test_a_wrong_export_is_not_written(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the exporter had changed the GRU: the written graph and the compared step are two models."""
    forward = ExportedStep.forward

    def changed(self: ExportedStep, inputs: Any) -> Any:
        scores, items, query, *state = forward(self, inputs)
        return scores, items, query, *(part if torch.compiler.is_exporting() else 0.9 * part for part in state)

    monkeypatch.setattr(ExportedStep, "forward", changed)
    with pytest.raises(RuntimeError, match="the exported step differs from the model by"):
        export(checkpoints(BY_NAME["gru4rec"]), tmp_path / "out")
    assert not names_in(tmp_path)


@pytest.mark.parametrize("name", [slow("sasrec"), "arnn"])
def test_the_documents_example_needs_numpy_and_onnxruntime_only(
    name: str, checkpoints: Checkpoints, exported: Callable[[str], Path]
) -> None:
    """The block of docs/export.md, which is the model card's, with a profile; compared with the package's answer."""
    run, folder = checkpoints(BY_NAME[name]), exported(name)
    card = (folder / "README.md").read_text()
    document = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert python_block(card) == python_block(document)
    profile = {"country": "de", "career_level": "3", "jobroles": ["1", "no such role"]}
    code = python_block(card).replace("profile = {}", f"profile = {profile}")
    assert code != python_block(card)
    blocked = "import sys; sys.modules.update(torch=None, arnn_lightning=None, polars=None)\n"
    script = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True, check=True
    )
    answer = ast.literal_eval(script.stdout)
    predictor = load(run)
    clicks = predictor.vocabulary.items["id"][:3].to_list()
    sessions = pl.DataFrame({"session_id": [0, 0, 0], "item_id": clicks})
    users = pl.DataFrame({"session_id": [0], **{key: [value] for key, value in profile.items()}})
    expected = predictor.recommend(sessions, users=users, on_unknown="ignore")
    assert answer == expected["item_id"].to_list()


def test_a_model_card_has_the_runs_figures_and_no_others(
    checkpoints: Checkpoints, prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = checkpoints(BY_NAME["concat"])
    result = EvaluationResult.read("concat", run)
    worse = EvaluationResult("pop", result.ranks.with_columns(pl.col("rank") + 5))
    worse.write(run, "pop")
    metrics = {"model": "concat", "test": {}, "encoders": {}, "baselines": {"pop": {"model": "pop"}}}
    checkpoint, predictor = run / "checkpoints" / "best.ckpt", load(run)
    arguments: dict[str, Any] = {
        "metrics": ["recall@20", "mrr@20"],
        "bootstrap": {"resamples": 50, "confidence": 0.9, "unit": "user"},
        "seed": 1,
    }
    root = prepared.folder.parents[1]
    unknown = find_evidence(checkpoint, predictor.metadata, tmp_path, {})
    card = model_card(predictor, unknown, license_name=None, **arguments)
    head = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in head
    assert "model-index" not in head
    assert "No test result is known" in card
    assert "Test results" not in card
    assert "Before the first one, arnn-lightning recommends the most popular items.\n- " in card
    answer = {
        "answer": "pnn",
        "encoder": "Tower",
        "metric": "mrr@20",
        "sessions": 1234,
        "popularity": 0.25,
        "pnn": 0.5,
    }
    monkeypatch.setattr(predictor.model, "first_items", answer)
    card = model_card(predictor, unknown, license_name=None, **arguments)
    assert "arnn-lightning recommends the items of Tower for the user's profile.\n  MRR@20 on the first events" in card
    assert "1,234 validation sessions: popularity\n  0.2500, Tower 0.5000.\n- " in card
    (run / "metrics.json").write_text(json.dumps(metrics))
    try:
        evidence = find_evidence(checkpoint, predictor.metadata, root, {"permuted, seed 1": worse})
        card = model_card(predictor, evidence, license_name="mit", **arguments)
        last = find_evidence(checkpoint.with_name("last.ckpt"), predictor.metadata, root, {})
    finally:
        (run / "metrics.json").unlink()
    assert last.result is None  # the test was of the best weights
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "mit"
    (entry,) = head["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in entry["metrics"]}
    expected = result.metrics(arguments["metrics"])
    assert values == {name: expected[name] for name in arguments["metrics"]}
    lines = card.splitlines()
    (main,) = [line for line in lines if line.startswith("| **concat** |")]
    assert f"{expected['recall@20']:.4f} (" in main
    mean, low, high = result.paired_difference(worse, "recall@20", arguments["bootstrap"], 1)
    assert sum(f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" in line for line in lines) == 2  # to POP, to the control
    assert prepared.manifest_sha256 in card
    for group in (
        "preceding events",
        "known attributes of the user",
        "user in training",
        "popularity of the next item",
    ):
        assert f"| {group} | predictions | Recall@20 |" in card
    (row,) = re.findall(r"\| preceding events \| .*\n\|.*\n(\| 1 \| .*)", card)
    is_first = (result.ranks["position"] == 1).to_numpy()
    assert f"| {result.per_prediction('recall@20')[is_first].mean():.4f} " in row
    assert "\n\n\n" not in card


def test_a_card_compares_equal_predictions_only(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    run = checkpoints(BY_NAME["concat"])
    predictor, result = load(run), EvaluationResult.read("concat", run)
    others = {"pop": EvaluationResult("pop", result.ranks)}
    others |= {"itemknn": EvaluationResult("itemknn", result.ranks.with_columns(pl.col("item") + 1))}
    bootstrap = {"resamples": 5, "confidence": 0.9, "unit": "user"}
    for has_users in (False, True):
        if has_users:
            monkeypatch.setattr(Predictor, "attributes", ("user",))
        card = model_card(predictor, Evidence(result, others, {}, None), ["recall@20"], bootstrap, 1, None)
        assert "| pop" in card
        assert "itemknn" not in card
        assert ("contains ids of users" in card) == has_users


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ({}, "test is the last 1 day(s), validation the 2 day(s) before."),
        (
            {"test_days": None, "val_days": None, "test_share": 0.2, "val_share": 0.1},
            "the share 0.2 that starts last is for testing, the share\n0.1 before it for validation.",
        ),
    ],
)
def test_a_card_states_how_the_log_was_split(checkpoints: Checkpoints, split: dict[str, Any], sentence: str) -> None:
    predictor = load(checkpoints(BY_NAME["concat"]))
    data = predictor.metadata["data"]
    data["split"] = {"test_days": 1, "val_days": 2, "test_share": None, "val_share": None} | split
    bootstrap = {"resamples": 5, "confidence": 0.9, "unit": "user"}
    assert sentence in model_card(predictor, Evidence(None, {}, {}, None), ["recall@20"], bootstrap, 1, None)


def test_a_part_of_a_run_has_its_own_results(checkpoints: Checkpoints, tmp_path: Path) -> None:
    result = EvaluationResult.read("concat", checkpoints(BY_NAME["concat"]))
    metrics: dict[str, Any] = {"model": "arnn", "test": {}, "baselines": {"pop": {"model": "pop"}}}
    metrics["encoders"] = {"session": {"model": "gru4rec"}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    for role in ("session", "pop"):
        result.write(tmp_path, role)
    part = find_evidence(tmp_path / "checkpoints" / "session" / "best.ckpt", {"prepared": "log"}, tmp_path, {})
    assert part.result is not None
    assert part.result.name == "gru4rec"
    assert [*part.others] == ["pop"]


def test_the_card_of_a_trial_has_no_figures(tmp_path: Path) -> None:
    """A trial is not tested: its metrics.json has the validation metrics alone."""
    file = tmp_path / "metrics.json"
    for checkpoint in ("best.ckpt", "session/best.ckpt"):
        file.write_text(json.dumps({"data": "log", "model": "concat", "seed": 1, "val": {}}))
        path, metadata = tmp_path / "checkpoints" / checkpoint, {"prepared": "log"}
        assert find_evidence(path, metadata, tmp_path, {}) == Evidence(None, {}, {}, None)
        for damage in ("", '{"test": {}}'):
            file.write_text(damage)
            with pytest.raises(UserError, match="its results are missing or damaged"):
                find_evidence(path, metadata, tmp_path, {})


def test_controls_are_the_runs_with_other_contexts(
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = checkpoints(BY_NAME["concat"])
    result = EvaluationResult.read("concat", run)
    worse = EvaluationResult("concat", result.ranks.with_columns(pl.col("rank") + 5))

    def write_run(folder: Path, ranks: EvaluationResult, model: str, assignment: str) -> None:
        (folder / ".hydra").mkdir(parents=True)
        task = {"_target_": "arnn_lightning.tasks.train.run"}
        settings = {"task": task, "data": {"contexts": {"assignment": assignment}}}
        OmegaConf.save(settings, folder / ".hydra" / "config.yaml")
        metrics = {"data": "log", "model": model, "seed": 1, "test": {}, "encoders": {}, "baselines": {}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        ranks.write(folder)

    write_run(tmp_path / "run", result, "concat", "own")
    (tmp_path / "run" / "checkpoints").symlink_to(run / "checkpoints")
    write_run(tmp_path / "same" / "own", worse, "concat", "own")
    write_run(tmp_path / "same" / "gru4rec", worse, "gru4rec", "permuted")
    write_run(tmp_path / "same" / "permuted", worse, "concat", "permuted")
    (tmp_path / "same" / "unfinished" / ".hydra").mkdir(parents=True)
    (tmp_path / "same" / "unfinished" / ".hydra" / "config.yaml").touch()
    write_run(tmp_path / "other", EvaluationResult("concat", worse.ranks.tail(-1)), "concat", "unknown")
    monkeypatch.chdir(tmp_path)
    task = ["task=export", "checkpoint=run", "output=out", "evaluation.bootstrap.resamples=20", "hydra.run.dir=here"]
    for controls, message in (
        ("nowhere", "controls: no folder matches nowhere"),
        (
            "[same/own,same/gru4rec]",
            "controls: no finished run of concat with data.contexts.assignment other than own; "
            "found: concat on log with own, gru4rec on log with permuted",
        ),
        ("[same,other]", "controls: unknown, seed 1: its test split is not that of "),
    ):
        assert arnn_here([*task, f"controls={controls}"], monkeypatch) == 2
        assert f"error: {message}" in capsys.readouterr().err
    file = tmp_path / "same" / "permuted" / "metrics.json"
    content = file.read_text()
    file.write_text(content[:9])
    assert arnn_here([*task, "controls=same"], monkeypatch) == 2
    assert "permuted: its results are missing or damaged (JSONDecodeError" in capsys.readouterr().err
    file.write_text(content)
    assert not (tmp_path / "out").exists()
    assert arnn_here([*task, "controls=same"], monkeypatch) == 0
    assert "step.onnx differs from the model by" in capsys.readouterr().out
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if ", seed 1 |" in line] == ["permuted, seed 1"]
