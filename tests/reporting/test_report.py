"""task=report: averages over seeds only, damaged runs, and a page that is complete, safe and legible."""

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.reporting import charts, figures
from arnn_lightning.reporting.charts import assign_styles
from arnn_lightning.reporting.comparison import Settings, compare, group_runs
from arnn_lightning.reporting.console import first_items_line
from arnn_lightning.reporting.figures import _shown
from arnn_lightning.reporting.results_table import csv_text
from arnn_lightning.reporting.runs import Run, SkippedRun, find_run_dirs, load_data_sets, load_run
from arnn_lightning.reporting.sections import Report, _same_ranks, _section_order, build_report
from arnn_lightning.tasks.report import _require_below_catalogue, _settings
from commandline import arnn_here
from helpers import compose_config
from models import slow

ITEMS, USERS, SESSIONS = 60, 30, 80
SETTINGS = Settings(
    metrics=["recall@20", "mrr@20"],
    base="gru4rec",
    cutoffs=[1, 5, 20],
    groups=[],
    ties="conservative",
    bootstrap={"unit": "user", "resamples": 50, "confidence": 0.95},
    seed=1,
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_data(folder: Path, seed: int = 0, machine: int = 1) -> str:
    """A prepared data set; returns its manifest's sha256. ``machine``: how long the preparation took."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lengths = rng.integers(2, 8, SESSIONS)
    users = rng.integers(0, USERS, SESSIONS)
    session = np.repeat(np.arange(SESSIONS), lengths)
    table = {"session": session, "user": np.repeat(users, lengths), "item": rng.integers(0, ITEMS, len(session))}
    pl.DataFrame(table | {"time": 0 * session}).write_parquet(folder / "test.parquet")
    train = {"user": rng.integers(0, USERS // 2, 400), "item": rng.integers(0, ITEMS, 400)}
    pl.DataFrame(train).write_parquet(folder / "train.parquet")
    users = pl.DataFrame({"user": range(USERS), "n_known": rng.integers(0, 4, USERS)})
    users.with_columns(pl.Series("context.age", rng.integers(1, 3, USERS))).write_parquet(folder / "users.parquet")
    ages = {"attribute": "age", "kind": "single", "code": [1, 2], "category": ["<30", "30+"]}
    pl.DataFrame(ages).write_parquet(folder / "contexts.parquet")
    counts = {"events": 400, "sessions": 90, "users": USERS, "items": ITEMS}
    manifest = {
        "name": "xing",
        "raw": {f"interactions{machine}.csv": f"sha-{seed}"},
        "config": {"contexts": {"single": ["age", "zip"], "multi": ["roles"]}},
        "seconds": {"prepare": machine},
        "funnel": [{"step": "<i>all</i>", **counts}],
        "splits": dict.fromkeys(("train", "val", "test"), counts),
        "dims": {"n_items": ITEMS, "single_sizes": [3, 3], "n_binary": 2},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def write_run(folder: Path, prepared: Path, seed: int, *overrides: str, skill: float = 3.0) -> Path:
    """A run folder as task=train writes it; the higher ``skill``, the better the ranks of its main model."""
    config = compose_config("data=xing", f"seed={seed}", *overrides)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create([f"seed={seed}", *overrides]), folder / ".hydra" / "overrides.yaml")
    test = pl.read_parquet(prepared / "test.parquet")
    roles = {"session": "gru4rec", "context": "pnn", "itemknn": "itemknn", "": config.model.name}
    metrics_of: dict[str, dict[str, Any]] = {}
    for index, (role, name) in enumerate(roles.items()):
        power = 1 + (role == "") * skill + index / 9
        counts = evaluated(test, seed if name != "itemknn" else 0, power)
        result = EvaluationResult.from_counts(name, counts, test, "conservative", torch.arange(ITEMS))
        result.write(folder, role)
        metrics_of[role] = {"model": name} | result.metrics(["recall@20", "mrr@20"])
    metrics = {
        "data": "xing",
        "model": config.model.name,
        "seed": seed,
        "test": {key: value for key, value in metrics_of[""].items() if key != "model"},
        "val": {},
        "encoders": {role: metrics_of[role] for role in ("session", "context") if role in config.model},
        "baselines": {"itemknn": metrics_of["itemknn"]},
        "manifest": hashlib.sha256((prepared / "manifest.json").read_bytes()).hexdigest(),
        "seconds": {"prepare": 1.0, "train": 20.0},
        "train_events_per_second": 1000.0,
        "first_items": {
            **{"answer": "popularity" if seed == 2 else "pnn", "encoder": "PNN", "metric": "mrr@20"},
            **{"sessions": 1234, "popularity": 0.25, "pnn": [0.5, 0.125, 0.35][(seed - 1) % 3]},
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    curve = ["epoch,chunk,metric,value", "0,1,train/loss,2", "0,1,val/mrr@20,.1", "1,2,val/mrr@20,.2"]
    (folder / "metrics.csv").write_text("\n".join(curve) + "\n")
    return folder


def write_lists(folder: Path, prepared: Path, name: str) -> Path:
    """A run folder as task=evaluate writes it for lists of another program."""
    given = ["task=evaluate", "data=xing", "lists=theirs.csv", f"name={name}"]
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(compose_config(*given, "seed=1"), folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(given), folder / ".hydra" / "overrides.yaml")
    test = pl.read_parquet(prepared / "test.parquet")
    result = EvaluationResult.from_counts(name, evaluated(test, 77, 1.5), test, "conservative", torch.arange(ITEMS))
    result.write(folder)
    metrics = {
        **{"data": "xing", "model": name, "lists": {"file": "theirs.csv", "sha256": "x"}, "seed": 1, "val": {}},
        **{"test": result.metrics(["recall@20"]), "encoders": {}, "baselines": {}, "groups": {}, "seconds": {}},
        "manifest": hashlib.sha256((prepared / "manifest.json").read_bytes()).hexdigest(),
        "train_events_per_second": None,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def evaluated(test: pl.DataFrame, seed: int, skill: float) -> dict[str, torch.Tensor]:
    """Random counts of a model whose targets have higher scores the larger ``skill`` is."""
    targets = test.with_columns(position=pl.int_range(pl.len()).over("session")).filter(pl.col("position") > 0)
    chance = np.random.default_rng(seed).random(targets.height)
    higher = torch.from_numpy((ITEMS * chance**skill).astype(np.int64))
    columns = {name: torch.from_numpy(targets[name].to_numpy().astype(np.int64)) for name in ("session", "position")}
    return columns | {"higher": higher, "equal": 1 + (higher % 7 == 0).long()}


def load_runs(run_dirs: list[Path], *data_dirs: Path) -> tuple[list[Run], list[SkippedRun]]:
    """The runs in ``run_dirs``, with the prepared data sets below ``data_dirs``, and what is damaged."""
    data_sets, skipped = {}, []
    for data_dir in data_dirs:
        readable, damaged = load_data_sets(data_dir, [])
        data_sets |= readable
        skipped += damaged
    loaded = [load_run(folder, data_sets) for folder in run_dirs]
    skipped += [run for run in loaded if isinstance(run, SkippedRun)]
    return [run for run in loaded if isinstance(run, Run)], skipped


def report_of(run_dirs: list[Path], *data_dirs: Path, settings: Settings = SETTINGS) -> Report:
    return build_report(*load_runs(run_dirs, *data_dirs), settings)


def undrawn(run_dirs: list[Path], *data_dirs: Path, settings: Settings = SETTINGS) -> Report:
    """Their report with empty charts: to draw them takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "_to_svg", lambda *_, **__: "<svg></svg>")
        return report_of(run_dirs, *data_dirs, settings=settings)


def lines(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.csv)))


def rows_of(run_dirs: list[Path], *data_dirs: Path) -> list[dict[str, str]]:
    """The lines of their report, without its page, whose charts take longer than all else."""
    runs, _ = load_runs(run_dirs, *data_dirs)
    views = [compare(section, SETTINGS) for section in group_runs(runs, SETTINGS.ties)]
    return list(csv.DictReader(io.StringIO(csv_text([(view.section, view.rows) for view in views], SETTINGS.metrics))))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set, three seeds of a multirun, and a run of other settings."""
    folder = tmp_path_factory.mktemp("report")
    write_data(folder / "prepared" / "one")
    for seed in (1, 2, 3):
        write_run(folder / "multirun" / "now" / str(seed - 1), folder / "prepared" / "one", seed)
    write_run(folder / "per_session", folder / "prepared" / "one", 1, "data.contexts.assignment=per_session", skill=0.5)
    return folder


def seed_runs(workspace: Path) -> list[Path]:
    return find_run_dirs([str(workspace / "multirun")])


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Report:
    """The report of the three seeds."""
    return report_of(seed_runs(workspace), workspace)


def test_V14_means_stds_and_paired_differences_over_seeds(workspace: Path, whole: Report) -> None:
    table = {row["model"]: row for row in lines(whole)}
    assert list(table) == ["itemknn", "gru4rec", "pnn", "arnn"]  # the order of the paper's Table 2
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in seed_runs(workspace)]
    for metric in ("recall@20", "mrr@20"):
        ours = [run["test"][metric] for run in metrics]
        base = [run["encoders"]["session"][metric] for run in metrics]
        assert float(table["arnn"][metric]) == pytest.approx(np.mean(ours), abs=1e-12)
        assert float(table["arnn"][f"{metric}_std"]) == pytest.approx(np.std(ours, ddof=1), abs=1e-12)
        gain = np.subtract(ours, base)
        assert float(table["arnn"][f"{metric}_gain"]) == pytest.approx(gain.mean(), abs=1e-12)
        assert float(table["arnn"][f"{metric}_gain_std"]) == pytest.approx(np.std(gain, ddof=1), abs=1e-12)
        low, high = (float(table["arnn"][f"{metric}_gain_{end}"]) for end in ("low", "high"))
        assert low < gain.mean() < high
    # The interval is that of the mean over the seeds: users are resampled, and trainings vary with t of 2 degrees.
    ranks = [EvaluationResult.read("arnn", folder).ranks for folder in seed_runs(workspace)]
    of_user = {user: np.flatnonzero(ranks[0]["user"] == user) for user in sorted(ranks[0]["user"].unique())}
    hits = np.mean([(table["rank"] <= 20).to_numpy() for table in ranks], axis=0)
    rng, users = np.random.default_rng(1), list(of_user)
    resamples = [
        np.concatenate([of_user[users[i]] for i in rng.integers(0, len(users), len(users))]) for _ in range(50)
    ]
    by_seed = [(table["rank"] <= 20).to_numpy().mean() for table in ranks]
    t = stats.t(2).ppf((np.arange(50) + 0.5) / 50) * np.std(by_seed, ddof=1) / np.sqrt(3)
    means = [hits[resample].mean() for resample in resamples] + np.random.default_rng([1, 3]).permutation(t)
    expected = np.quantile(means, [0.025, 0.975])
    interval = [float(table["arnn"][f"recall@20_{end}"]) for end in ("low", "high")]
    assert interval == pytest.approx(expected.tolist(), abs=1e-9)
    (means,) = re.findall(r"Recall@20 (\d\.\d{4}) and (\d\.\d{4}), paired difference", whole.html)
    assert means == tuple(f"{float(table[model]['recall@20']):.4f}" for model in ("arnn", "gru4rec"))
    assert {row["predictions"] for row in table.values()} == {f"{len(ranks[0])}"}
    assert table["itemknn"]["seeds"] == "1"  # it has no randomness: three equal results are one
    assert table["gru4rec"]["recall@20_gain"] == ""
    assert float(table["arnn"]["recall@20_paper"]) == 0.3106


def test_a_model_without_training_is_paired_with_every_seed(workspace: Path, tmp_path: Path) -> None:
    """Though only the run of one seed has it."""
    for folder in seed_runs(workspace):
        copied = tmp_path / folder.name
        shutil.copytree(folder, copied)
        metrics = json.loads((copied / "metrics.json").read_text())
        if metrics["seed"] > 1:
            (copied / "metrics.json").write_text(json.dumps(metrics | {"baselines": {}}))
    runs, _ = load_runs(find_run_dirs([str(tmp_path)]), workspace)
    assert [[entry.result.name for entry in run.entries].count("itemknn") for run in runs] == [1, 0, 0]
    gains = {}
    for of_all, name in ((load_runs(seed_runs(workspace), workspace)[0], "all"), (runs, "one")):
        (section,) = group_runs(of_all, SETTINGS.ties)
        rows = compare(section, replace(SETTINGS, base="itemknn")).rows
        gains[name] = {row.variant.name: row.gains.get("itemknn") for row in rows}
        assert [len(row.variant.seeds) for row in rows if row.variant.name == "itemknn"] == [1]
    assert gains["one"] == gains["all"]
    assert len(gains["one"]["arnn"]["recall@20"].by_seed) == 3


def test_a_share_is_of_the_references_mean_over_common_seeds(workspace: Path) -> None:
    runs, _ = load_runs(seed_runs(workspace), workspace)
    for run in runs[1:]:  # PNN has one seed, the reference has three
        run.entries[:] = [entry for entry in run.entries if entry.result.name != "pnn"]
    (section,) = group_runs(runs, SETTINGS.ties)
    (row,) = [row for row in compare(section, SETTINGS).rows if row.variant.name == "pnn"]
    (base,) = [entry.result for entry in runs[0].entries if entry.result.name == "gru4rec"]
    expected = row.gains["gru4rec"]["mrr@20"].mean / base.per_prediction("mrr@20").mean()
    assert row.shares["gru4rec"]["mrr@20"] == pytest.approx(expected)


@pytest.mark.parametrize("assignment", ["permuted", "per_session"])
def test_random_contexts_of_one_seed_are_no_result_of_others(assignment: str, workspace: Path, tmp_path: Path) -> None:
    """Of a non-neural model, too."""
    prepared, override = workspace / "prepared" / "one", f"data.contexts.assignment={assignment}"
    runs, _ = load_runs([write_run(tmp_path / str(seed), prepared, seed, override) for seed in (1, 2)], workspace)
    runs[1].entries[:] = [entry for entry in runs[1].entries if entry.result.name != "itemknn"]
    (section,) = group_runs(runs, SETTINGS.ties)
    seeds = {variant.name: [*variant.results] for variant in section.variants}
    assert seeds == {"itemknn": [1], "gru4rec": [1, 2], "pnn": [1, 2], "arnn": [1, 2]}


def test_markdown_and_page_show_the_same_table(whole: Report) -> None:
    report = whole
    arnn = next(row for row in lines(report) if row["model"] == "arnn")
    mean = f"{float(arnn['recall@20']):.4f}"
    assert f"| arnn | **{mean} ± " in report.markdown
    assert f"<b>{mean}</b>" in report.html
    assert "0.3106" in report.markdown
    assert "0.3106" in report.html
    assert re.findall(r"Coverage@\d+", report.html) == ["Coverage@20"]  # of evaluation.cutoffs the largest


def test_damaged_runs_are_skipped_with_a_reason(workspace: Path, whole: Report, tmp_path: Path) -> None:
    broken = {"in progress": "metrics.json", "no ranks": "test_ranks.parquet", "no part": "test_ranks_session.parquet"}
    for name, file in broken.items():
        shutil.copytree(seed_runs(workspace)[0], tmp_path / name)
        (tmp_path / name / file).unlink()
    shutil.copytree(seed_runs(workspace)[0], tmp_path / "half")
    (tmp_path / "half" / "metrics.json").write_text('{"data": "xing", "mod')
    shutil.copytree(seed_runs(workspace)[0], tmp_path / "torn")
    (tmp_path / "torn" / "test_ranks.parquet").write_bytes(b"PAR1 torn")
    shutil.copytree(seed_runs(workspace)[0], tmp_path / "old")
    old = json.loads((tmp_path / "old" / "metrics.json").read_text())
    (tmp_path / "old" / "metrics.json").write_text(json.dumps({key: old[key] for key in old if key != "seconds"}))
    shutil.copytree(seed_runs(workspace)[0], tmp_path / "cut")
    curve = (tmp_path / "cut" / "metrics.csv").read_text()
    (tmp_path / "cut" / "metrics.csv").write_text(curve[: curve.rindex(",")])
    report = undrawn([*seed_runs(workspace), *find_run_dirs([str(tmp_path)])], workspace)
    assert report.csv == whole.csv
    assert report.markdown == whole.markdown
    for name in (*broken, "half", "torn", "old", "cut"):
        assert f"skipped: {tmp_path / name}: incomplete" in report.html
    assert "metrics.csv, line 4, is cut" in report.html


RUN_FILES = (
    ".hydra/config.yaml",
    ".hydra/overrides.yaml",
    "metrics.json",
    "metrics.csv",
    "test_ranks.parquet",
    slow("test_lists.parquet"),
    *(
        slow(f"test_{kind}_{stage}.parquet")  # read as one of those above
        for kind in ("ranks", "lists")
        for stage in ("itemknn", "session", "context")
    ),
)


def damaged(file: Path) -> list[bytes | None]:
    """What may be left of a file: nothing, no bytes, half of them, others, or a valid file with other content."""
    content = file.read_bytes()
    damages = [None, b"", content[: len(content) // 2], b"\xff\x00" + content[2:]]
    if file.suffix == ".parquet":
        for table in (pl.read_parquet(file).head(5), pl.read_parquet(file).head(0), pl.DataFrame({"a": ["b"]})):
            buffer = io.BytesIO()
            table.write_parquet(buffer)
            damages.append(buffer.getvalue())
        return damages
    damages += [b"[]", b"[3, null]", b"null", b"{a: [}", b"a,b\n1,2\n", content.replace(b"1", b"x")]
    return [*damages, *(json.dumps(values).encode() for values in wrong_values(content) if file.suffix == ".json")]


def wrong_values(content: bytes) -> list[dict[str, Any]]:
    """Valid JSON with one value of another type."""
    values = json.loads(content) if content.startswith(b"{") else {}
    others = ("text", None, [1], {"a": "b"})
    return [values | {key: other} for key in values for other in others if not isinstance(values[key], type(other))]


@pytest.mark.parametrize("file", RUN_FILES)
def test_a_damaged_file_of_a_run_ends_no_report_of_others(
    file: str, workspace: Path, whole: Report, tmp_path: Path
) -> None:
    for number, content in enumerate(damaged(seed_runs(workspace)[0] / file)):
        shutil.copytree(seed_runs(workspace)[0], tmp_path / str(number))
        (tmp_path / str(number) / file).unlink()
        if content is not None:
            (tmp_path / str(number) / file).write_bytes(content)
    damaged_runs = find_run_dirs(
        [str(tmp_path), str(workspace / "multirun")]
    )  # without config.yaml it is no run folder
    report = undrawn(damaged_runs, workspace)
    ours = [row for row in lines(report) if row["seeds"] == "1 2 3"]
    assert ours == [row for row in lines(whole) if row["seeds"] == "1 2 3"]


@pytest.mark.parametrize("file", ["manifest.json", "users.parquet", "train.parquet"])
def test_a_damaged_file_of_a_data_set_ends_no_report(file: str, workspace: Path, tmp_path: Path) -> None:
    for number, content in enumerate(damaged(workspace / "prepared" / "one" / file)):
        shutil.copytree(workspace / "prepared" / "one", tmp_path / "prepared" / str(number))
        (tmp_path / "prepared" / str(number) / file).unlink()
        if content is not None:
            (tmp_path / "prepared" / str(number) / file).write_bytes(content)
    other = write_run(tmp_path / "other", workspace / "prepared" / "one", 4)
    rows = [row for row in lines(undrawn([*seed_runs(workspace), other], tmp_path)) if row["model"] == "arnn"]
    assert {row["seeds"] for row in rows} == {"1 2 3 4"}


def test_runs_on_different_data_are_not_averaged(workspace: Path, whole: Report, tmp_path: Path) -> None:
    write_data(tmp_path / "prepared" / "two", seed=9)
    other = write_run(tmp_path / "other", tmp_path / "prepared" / "two", 2)
    alone = {row["model"]: row for row in lines(whole)}
    report = undrawn([*seed_runs(workspace), other], workspace, tmp_path)
    keys = {row["data_key"] for row in lines(report)}
    assert len(keys) == 2
    assert "results on different data are not averaged" in report.html
    mixed = [row for row in lines(report) if row["seeds"] == "1 2 3"]
    assert {row["model"]: row["recall@20"] for row in mixed} == {
        name: row["recall@20"] for name, row in alone.items() if name != "itemknn"
    }


def test_V17_equal_manifests_are_the_same_data(workspace: Path, tmp_path: Path) -> None:
    """The seconds that the preparation took and the names of equal raw files do not matter."""
    write_data(tmp_path / "prepared" / "one", machine=77)
    other = write_run(tmp_path / "other", tmp_path / "prepared" / "one", 4)
    rows = rows_of([*seed_runs(workspace), other], workspace, tmp_path)
    assert {row["seeds"] for row in rows if row["model"] == "arnn"} == {"1 2 3 4"}


def test_runs_with_other_settings_are_not_averaged(workspace: Path, tmp_path: Path) -> None:
    faster = write_run(tmp_path / "faster", workspace / "prepared" / "one", 1, "model.optimizer.lr=0.5")
    report = undrawn([*seed_runs(workspace), faster, workspace / "per_session"], workspace)
    rows = [(row["setting"], row["model"], row["seeds"]) for row in lines(report) if row["model"].startswith("arnn")]
    assert rows == [
        ("data.contexts.assignment=own", "arnn", "1 2 3"),
        ("data.contexts.assignment=own", "arnn (optimizer.lr=0.5)", "1"),
        ("data.contexts.assignment=per_session", "arnn", "1"),
    ]
    assert "data.contexts.assignment=per_session" in report.html


def rows_of_page(page: str) -> list[list[str]]:
    """The cells of all rows of its tables."""
    page = page.replace("<wbr>", "")
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in page.split("<tr>")]


def cells_of(page: str, *texts: str) -> list[str]:
    """The cells of the only row of a table that contains ``texts``."""
    (cells,) = [row for row in rows_of_page(page) if all(any(text in cell for cell in row) for text in texts)]
    return cells


def test_a_model_is_compared_with_its_equal_under_the_first_setting(workspace: Path, tmp_path: Path) -> None:
    """Those that the setting does not affect are left out."""
    other = write_run(tmp_path / "other", workspace / "prepared" / "one", 1, "model.hidden_size=7", skill=0.1)
    cells = {}
    for name, folders in (("with", [*seed_runs(workspace), other]), ("without", seed_runs(workspace))):
        page = undrawn([*folders, workspace / "per_session"], workspace).html.split('<h2 id="speed">')[0]
        assert [row[1] for row in rows_of_page(page) if row[:1] == ["assignment=per_session"]] == ["arnn"]
        cells[name] = cells_of(page, "assignment=per_session", "arnn")[-2]
    assert cells["with"] == cells["without"] != ""
    folders = workspace / "per_session", seed_runs(workspace)[0]
    other, own = (json.loads((folder / "metrics.json").read_text())["test"]["recall@20"] for folder in folders)
    assert f"{other - own:+.4f}" in cells["with"]


def test_values_of_a_run_are_those_of_the_role_that_a_model_has_in_it(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRU4REC is trained alone with seed 1, and is the session encoder of an ARNN with seed 2."""
    alone = write_run(tmp_path / "alone", workspace / "prepared" / "one", 1, "model=gru4rec")
    metrics = json.loads((alone / "metrics.json").read_text()) | {"encoders": {}}
    del metrics["first_items"]
    (alone / "metrics.json").write_text(json.dumps(metrics))
    with (alone / "metrics.csv").open("a") as file:
        file.write("2,3,val/mrr@20,.4\n")
    part = write_run(tmp_path / "part", workspace / "prepared" / "one", 2)
    with (part / "metrics.csv").open("a") as file:
        file.write("0,1,session/val/mrr@20,.3\n2,3,session/val/mrr@20,.5\n")
    drawn = {}

    def draw(title: str, x_label: str, y_label: str, series: list[charts.Series], *_: Any, **__: Any) -> str:
        drawn[title] = {line.name: (list(line.x), pytest.approx(line.mean)) for line in series}
        return ""

    monkeypatch.setattr(charts, "lines", draw)
    page = undrawn([alone, part], workspace).html
    assert drawn["Learning curves"]["gru4rec"] == ([1, 3], [0.2, 0.45])  # validated after every second epoch
    assert cells_of(page, "xing: gru4rec", "20.0")[1] == "1"
    assert page.count("1,234") == 1  # what is listed before the first click: ARNN's alone


@pytest.mark.parametrize(("cutoffs", "drawn"), [([ITEMS], []), ([5, ITEMS - 1, ITEMS], [5, ITEMS - 1])])
def test_recall_by_k_ends_before_the_size_of_the_catalogue(
    cutoffs: list[int], drawn: list[int], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, misses of other programs' lists would be hits."""
    ticks: list[int] = []
    original = charts.lines

    def draw(title: str, x: str, y: str, series: Any, shown: list[int], *arguments: Any, **options: Any) -> str:
        ticks.extend(shown if title == "Recall by K" else [])
        return original(title, x, y, series, shown, *arguments, **options)

    monkeypatch.setattr(charts, "lines", draw)
    undrawn(seed_runs(workspace), workspace, settings=replace(SETTINGS, cutoffs=cutoffs))
    assert ticks == drawn


def test_search_space_and_speed_are_not_settings(workspace: Path, tmp_path: Path) -> None:
    prepared = workspace / "prepared" / "one"
    grid = [write_run(tmp_path / model, prepared, 1, f"model={model}") for model in ("arnn", "pnn")]
    spaces = [OmegaConf.load(folder / ".hydra" / "config.yaml").search for folder in grid]
    assert spaces[0] != spaces[1]
    fast = write_run(tmp_path / "fast", prepared, 2, "performance.cache_mb=1", "performance.steps_per_execution=7")
    rows = rows_of([*grid, fast], workspace)
    assert len({row["setting"] for row in rows}) == 1
    assert {row["seeds"] for row in rows if row["model"] == "arnn"} == {"1 2"}


@pytest.mark.parametrize("override", ["performance.compile=true", "performance.threads=2"])
def test_runs_rounded_otherwise_are_not_averaged(override: str, workspace: Path, tmp_path: Path) -> None:
    prepared = workspace / "prepared" / "one"
    runs = [write_run(tmp_path / "one", prepared, 1), write_run(tmp_path / "two", prepared, 2, override)]
    assert [row["seeds"] for row in rows_of(runs, workspace) if row["model"] == "arnn"] == ["1", "2"]


def test_conflicting_duplicate_run_is_counted_once_with_note(workspace: Path, whole: Report, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", workspace / "prepared" / "one", 1, skill=1.0)
    report = undrawn([*seed_runs(workspace), again], workspace)
    assert report.csv == whole.csv
    assert "have the same configuration but different ranks; the first is used" in report.html


def test_a_run_with_fewer_predictions_than_most_is_skipped(workspace: Path) -> None:
    """Though it is the first."""
    runs, _ = load_runs(seed_runs(workspace), workspace)
    main = runs[0].main
    runs[0].entries[:] = [replace(main, result=replace(main.result, ranks=main.result.ranks.head(5)))]
    (section,) = group_runs(runs, SETTINGS.ties)
    assert section.runs == runs[1:]
    (note,) = section.notes
    assert note == f"{runs[0].folder}: other predictions than {runs[1].folder}; skipped"


def test_missing_prepared_data_omits_user_and_item_groups(workspace: Path) -> None:
    report = report_of(seed_runs(workspace))
    assert "is not under paths.data" in report.html
    assert "by position" in report.html
    assert "by known attributes" not in report.html


def test_run_dirs_come_from_folders_and_globs_each_once(workspace: Path) -> None:
    assert [folder.name for folder in find_run_dirs([str(workspace / "multirun")])] == ["0", "1", "2"]
    assert find_run_dirs([str(workspace / "multi*" / "*" / "1"), str(workspace / "multirun" / "now")])[0].name == "1"
    assert len(find_run_dirs([str(workspace / "multirun"), str(workspace / "multirun" / "*")])) == 3
    with pytest.raises(UserError, match="no folder matches"):
        find_run_dirs([str(workspace / "nowhere*")])
    with pytest.raises(UserError, match="no run folder"):
        find_run_dirs([str(workspace / "prepared")])


def test_text_from_configs_is_escaped(workspace: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>$x^{$&\"'|"
    run = write_run(tmp_path / "evil", workspace / "prepared" / "one", 1)
    for file, key in ((".hydra/config.yaml", "name"), ("metrics.json", "model")):
        text = (run / file).read_text()
        config: Any = OmegaConf.create(json.loads(text)) if key == "model" else OmegaConf.load(run / file)
        if key == "model":
            config.model = evil
            (run / file).write_text(json.dumps(OmegaConf.to_container(config)))
        else:
            config.model.name = evil
            OmegaConf.save(config, run / file)
    OmegaConf.save(OmegaConf.create([f"model.name='{evil}'"]), run / ".hydra" / "overrides.yaml")
    report = report_of([run, *seed_runs(workspace)], workspace)
    assert "<script" not in report.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report.html
    assert "<i>all</i>" not in report.html
    row = next(line for line in report.markdown.splitlines() if "alert(1)" in line)
    assert "<script" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"\|", report.markdown.splitlines()[2]))


def test_page_needs_no_network_and_is_small(whole: Report) -> None:
    html = whole.html
    assert len(html.encode()) < 3_000_000
    assert html.count("<svg") >= 5
    fetched = re.findall(r"""(?:\ssrc=|<link[^>]*\shref=|url\(|@import)\s*["']?([^"')\s>]*)""", html)
    assert all(place.startswith(("data:", "#")) for place in fetched), fetched
    assert "<script" not in html
    assert "python -m arnn_lightning seed=2" in html


def test_reports_are_deterministic(workspace: Path, whole: Report) -> None:
    assert report_of(seed_runs(workspace), workspace) == whole


def test_task_report_writes_three_files(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "evaluation.bootstrap.resamples=20"
    runs = f"runs=[{workspace}/multirun/now,{workspace}/per_session]"
    assert arnn_here(["task=report", runs, f"paths.data={workspace}", small, "hydra.run.dir=out"], monkeypatch) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"table2.md", "table2.csv", "report.html"}
    assert "| arnn |" in capsys.readouterr().out
    assert "Gain of arnn by position" in (tmp_path / "out" / "report.html").read_text()
    assert arnn_here(["task=report", runs, "report.metrics=[recal@20]"], monkeypatch) == 2
    assert 'error: "recal@20" is not a metric (did you mean "recall"?)' in capsys.readouterr().err
    for setting, message in (
        ("report.base=gru4rek", 'did you mean "gru4rec"?'),
        (
            "evaluation.groups=[shoe]",
            "shoe is not a single-valued or numeric attribute of any run's data set; they have age, zip",
        ),
    ):
        assert arnn_here(["task=report", runs, f"paths.data={workspace}", setting], monkeypatch) == 2
        assert re.search(f"error: {setting.partition('=')[0]}.*{re.escape(message)}", capsys.readouterr().err)
    assert arnn_here(["task=report", "runs=nowhere"], monkeypatch) == 2
    assert "error: runs: no folder matches nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")

    def open_page(html: str) -> tuple[str, str]:
        """The document after loading, and the lines of the console."""
        file = tmp_path_factory.mktemp("page") / "page.html"
        file.write_text(html)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
        done = subprocess.run(
            [CHROMIUM, *flags, "--window-size=1200,900", "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)

    return open_page


def test_page_renders_without_errors_and_fits_a_phone(
    workspace: Path, browse: Callable[[str], tuple[str, str]]
) -> None:
    html = report_of([*seed_runs(workspace), workspace / "per_session"], workspace).html
    shown, console = browse(html)
    assert console == ""
    assert shown.count("</svg>") == html.count("<svg")
    # The same page in a frame as wide as a phone: nothing but tables may be wider, and those scroll by themselves.
    inside = html.replace("&", "&amp;").replace('"', "&quot;")
    probe = """<iframe id=phone width=375 height=800 srcdoc="PAGE"></iframe><script>onload = () => {
        const page = document.getElementById('phone').contentDocument, text = page.querySelector('svg text');
        const touching = [...page.querySelectorAll('svg')].flatMap(svg => {
            const boxes = [...svg.querySelectorAll('[id^=xtick] text')].map(label => label.getBoundingClientRect());
            return boxes.slice(1).filter((box, i) => box.top < boxes[i].bottom && box.left < boxes[i].right);
        });
        document.title = [page.documentElement.scrollWidth, page.querySelector('svg').getBoundingClientRect().width,
            text.getBoundingClientRect().height, touching.length].join(' ');
        document.body.innerHTML = ''; console.log('probed'); }</script>"""
    shown, console = browse(probe.replace("PAGE", inside))
    assert "probed" in console  # console output is captured
    sizes = re.search(r"<title>([\d.]+) ([\d.]+) ([\d.]+) (\d+)</title>", shown)
    assert sizes is not None
    page_width, chart_width, text_height, touching = map(float, sizes.groups())
    assert touching == 0
    assert page_width <= 375
    assert 280 < chart_width <= 375
    assert text_height > 9


def row_of(report: Report, model: str) -> dict[str, str]:
    (row,) = [row for row in lines(report) if row["model"] == model]
    return row


def test_each_column_of_differences_has_one_reference(workspace: Path, whole: Report, tmp_path: Path) -> None:
    prepared = workspace / "prepared" / "one"
    same = whole.markdown
    assert "Recall@20 - gru4rec |" in same
    assert "session encoder" not in same  # ARNN's session encoder is the GRU4REC of the table
    pnn = [write_run(tmp_path / str(seed), prepared, seed, "model=pnn") for seed in (1, 2)]
    other = write_run(tmp_path / "other", prepared, 3, "model.session.epochs=99")
    report = undrawn([*pnn, other, seed_runs(workspace)[0]], workspace)
    header = next(line for line in report.markdown.splitlines() if line.startswith("| model"))
    assert header.count("Recall@20 - ") == 2
    assert "Recall@20 - session encoder |" in header


def test_devices_and_batch_limits_are_settings(workspace: Path, tmp_path: Path) -> None:
    prepared = workspace / "prepared" / "one"
    overrides = {"two": "trainer.devices=2", "few": "+trainer.limit_train_batches=1", "gpu": "trainer.accelerator=gpu"}
    others = [write_run(tmp_path / name, prepared, 4, override) for name, override in overrides.items()]
    rows = [row for row in rows_of([*seed_runs(workspace), *others], workspace) if row["model"] == "arnn"]
    assert sorted(row["seeds"] for row in rows) == ["1 2 3 4", "4", "4"]
    assert {"trainer.devices=2" in row["setting"] for row in rows} == {True, False}


def test_paths_of_the_data_are_not_settings(workspace: Path, tmp_path: Path) -> None:
    moved = write_run(tmp_path / "moved", workspace / "prepared" / "one", 4, "+data.events=./elsewhere/clicks.csv")
    rows = rows_of([*seed_runs(workspace), moved], workspace)
    assert {row["seeds"] for row in rows if row["model"] == "arnn"} == {"1 2 3 4"}


@pytest.mark.parametrize(
    "path",
    ["source/checkpoints/best.ckpt", "source", "~/source", "{tmp}/source/checkpoints", "{tmp}/source"],
)
def test_V17_a_pretrained_encoder_may_be_given_by_its_run_folder(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Also relative to the folder that the run was started in."""
    prepared = workspace / "prepared" / "one"
    source = write_run(tmp_path / "source", prepared, 5, "model=gru4rec")
    config = OmegaConf.load(source / ".hydra" / "config.yaml")
    part: Any = OmegaConf.to_container(compose_config("data=xing").model.session, resolve=True)
    config.model = {key: value for key, value in part.items() if key != "dims"}
    OmegaConf.save(config, source / ".hydra" / "config.yaml")
    run = write_run(tmp_path / "run", prepared, 5, f"pretrained.session='{path.format(tmp=tmp_path)}'")
    OmegaConf.save({"hydra": {"runtime": {"cwd": str(tmp_path)}}}, run / ".hydra" / "hydra.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [row for row in rows_of([*seed_runs(workspace), run], workspace) if row["model"].startswith("arnn")]
    assert [row["seeds"] for row in rows] == ["1 2 3 5"]


@pytest.mark.parametrize(
    ("override", "averaged"),
    [
        ("seed=5", True),
        ("data.contexts.assignment=unknown", True),  # not read by a session encoder
        ("performance.cache_mb=1", True),
        ("performance.compile=true", False),
        ("model.epochs=9", False),
        ("trainer.precision=bf16-mixed", False),
        ("+trainer.limit_train_batches=3", False),
    ],
)
def test_V17_pretrained_encoders_count_as_they_were_trained(
    workspace: Path, tmp_path: Path, override: str, averaged: bool
) -> None:
    """An encoder of another run has the configuration of that run."""
    prepared = workspace / "prepared" / "one"
    source = write_run(tmp_path / "source", prepared, 5, "model=gru4rec", override)
    config = OmegaConf.load(source / ".hydra" / "config.yaml")
    if not override.startswith("model."):
        part: Any = OmegaConf.to_container(compose_config("data=xing").model.session, resolve=True)
        config.model = {key: value for key, value in part.items() if key != "dims"}
        OmegaConf.save(config, source / ".hydra" / "config.yaml")
    checkpoint = source / "checkpoints" / "best.ckpt"
    run = write_run(tmp_path / "run", prepared, 5, f"pretrained.session={checkpoint}")
    rows = [row for row in rows_of([*seed_runs(workspace), run], workspace) if row["model"].startswith("arnn")]
    assert [row["seeds"] for row in rows] == (["1 2 3 5"] if averaged else ["1 2 3", "5"])


def test_parts_of_another_seed_or_run_are_not_averaged(workspace: Path, tmp_path: Path) -> None:
    prepared = workspace / "prepared" / "one"
    other_seed = seed_runs(workspace)[0] / "checkpoints" / "session" / "best.ckpt"
    checkpoints = {"seed": other_seed, "lost": tmp_path / "lost.ckpt"}
    runs = [write_run(tmp_path / name, prepared, 4, f"pretrained.session={path}") for name, path in checkpoints.items()]
    rows = [row for row in rows_of([*seed_runs(workspace), *runs], workspace) if row["model"].startswith("arnn")]
    assert [row["seeds"] for row in rows] == ["1 2 3", "4", "4"]
    assert any("session.pretrained_seed=1" in row["model"] for row in rows)


def test_an_encoder_of_an_unknown_run_is_not_paired_with_others(workspace: Path, tmp_path: Path) -> None:
    lost = write_run(tmp_path / "lost", workspace / "prepared" / "one", 4, "pretrained.session=/gone/best.ckpt")
    (section,) = group_runs(load_runs([*seed_runs(workspace), lost], workspace)[0], SETTINGS.ties)
    (encoder,) = (variant for variant in section.variants if "pretrained" in variant.config)
    assert list(encoder.results) == [4]


def test_the_most_common_configuration_has_most_runs(workspace: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", workspace / "prepared" / "one", 1, "model.optimizer.lr=0.2")
    rows = rows_of([other, *seed_runs(workspace)], workspace)
    seeds = {row["model"]: row["seeds"] for row in rows if row["model"].startswith("arnn")}
    assert seeds == {"arnn": "1 2 3", "arnn (optimizer.lr=0.2)": "1"}


def test_a_damaged_data_set_is_skipped_with_a_reason(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "prepared", tmp_path / "prepared")
    (tmp_path / "prepared" / "one" / "users.parquet").write_bytes(b"PAR1")
    report = undrawn(seed_runs(workspace), tmp_path)
    assert f"skipped: {tmp_path / 'prepared' / 'one'}: damaged prepared data set" in report.html
    assert {row["seeds"] for row in lines(report) if row["model"] == "arnn"} == {"1 2 3"}
    (tmp_path / "prepared" / "one" / "manifest.json").write_text("{}")
    assert "manifest.json lacks raw, config" in undrawn(seed_runs(workspace), tmp_path).html


class Cells(HTMLParser):
    """The numbers of cells in the rows of every table, and the tags that were not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[int]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "br", "wbr", "path", "use", "rect"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += 1

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_page_shows_groups_of_attributes_in_whole_tables(workspace: Path) -> None:
    settings = replace(SETTINGS, groups=["age", "zip"])  # the data set's users have no zip
    html = report_of(seed_runs(workspace), workspace, settings=settings).html
    assert "<h3>By age</h3>" in html
    assert "<h3>By zip</h3>" not in html
    assert "Gain of arnn by age" in html
    assert '<td class="text">&lt;30</td>' in html
    page = Cells(html)
    assert page.open == []
    assert len(page.tables) > 5
    assert all(len(set(rows)) == 1 for rows in page.tables)


def test_page_shows_what_is_listed_before_the_first_click(workspace: Path, tmp_path: Path) -> None:
    heading = "<h3>Before the first click</h3>"
    page = undrawn(seed_runs(workspace), workspace).html.split(heading)[1].split("</table>")[0]
    row = " ".join(re.sub("<[^>]*>", " ", page.split("<tbody>")[1]).split())
    assert row == "arnn PNN 1,234 0.2500 0.3250 by profile in 2 of 3 runs"
    shutil.copytree(seed_runs(workspace)[0], tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    del metrics["first_items"]["encoder"]  # as of a run of version 0.2.0
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    assert ">PNN</td><td>1,234</td>" in undrawn([tmp_path / "run"], workspace).html
    assert first_items_line(metrics["first_items"]).endswith("popularity 0.2500, PNN 0.5000)")
    del metrics["first_items"]  # as of a model that has no list by profile
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    assert heading not in undrawn([tmp_path / "run"], workspace).html
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics | {"first_items": {"answer": "pnn"}}))
    ((skipped, reason),) = ((run.folder.name, run.reason) for run in load_runs([tmp_path / "run"], workspace)[1])
    assert (skipped, "first_items lacks metric" in reason) == ("run", True)


def test_p_values_are_adjusted_over_the_table(whole: Report) -> None:
    rows = lines(whole)
    p_values = [float(row[f"{metric}_gain_p"]) for row in rows for metric in SETTINGS.metrics if row["base"]]
    assert len(p_values) == 6  # three models, two metrics
    assert min(p_values) == pytest.approx(6 * 2 / 2401)  # 50 resamples give no less than .235, whatever the difference


def test_one_seed_is_pointed_out(workspace: Path, whole: Report) -> None:
    sentence = "One seed: intervals reflect the variation over users only"
    assert sentence in undrawn(seed_runs(workspace)[:1], workspace).html
    assert sentence not in whole.html


def test_a_page_of_20_runs_is_small_and_quick(workspace: Path, tmp_path: Path) -> None:
    for seed in range(1, 21):
        folder = tmp_path / str(seed)
        shutil.copytree(seed_runs(workspace)[seed % 3], folder)
        metrics = json.loads((folder / "metrics.json").read_text()) | {"seed": seed}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    started = time.process_time()
    page = report_of(find_run_dirs([str(tmp_path)]), workspace).html
    assert time.process_time() - started < 30
    assert len(page.encode()) < 3e6
    assert "20 runs" in page


def test_charts_take_the_colors_of_the_page(whole: Report) -> None:
    html = whole.html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    charts_of_page = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert all("currentColor" in svg and charts.INK not in svg for svg in charts_of_page)


def test_any_registered_metric_can_be_reported(workspace: Path) -> None:
    report = undrawn(seed_runs(workspace), settings=replace(SETTINGS, metrics=["ndcg@5"]))
    assert "| model | NDCG@5 | 95 % interval | NDCG@5 - gru4rec |" in report.markdown
    ranks = [EvaluationResult.read("arnn", folder).ranks["rank"].to_numpy() for folder in seed_runs(workspace)]
    expected = np.mean([np.where(rank <= 5, 1 / np.log2(rank + 1), 0).mean() for rank in ranks])
    assert float(row_of(report, "arnn")["ndcg@5"]) == pytest.approx(expected, abs=1e-12)


def test_a_model_has_one_color_in_all_charts(workspace: Path, tmp_path: Path) -> None:
    faster = write_run(tmp_path / "faster", workspace / "prepared" / "one", 1, "model.optimizer.lr=0.5")
    styles = assign_styles(row["model"] for row in rows_of([*seed_runs(workspace), faster], workspace))
    assert styles["arnn"] == charts.MODELS["arnn"]
    assert styles["arnn (optimizer.lr=0.5)"] not in charts.MODELS.values()
    assert styles["arnn (optimizer.lr=0.5)"][0] == styles["arnn"][0]
    assert len(set(styles.values())) == len(styles)


def test_ticks_of_bar_charts_do_not_overlap() -> None:
    svg = charts.bars("Training", "events per second", {"synthetic: gru4rec": 28_000.0, "b": 1.0}, ["#000000"] * 2)
    ticks = re.findall(r">(\d+k?)</text>", svg)
    assert 2 <= len(ticks) <= 5
    assert max(map(len, ticks)) <= 3


def test_configurations_show_only_differing_values(workspace: Path) -> None:
    html = undrawn([*seed_runs(workspace), workspace / "per_session"], workspace).html
    section = html[html.index('id="configs"') : html.index('id="runs"')]
    assert len(re.findall(r"<th\b", section)) == 2
    assert re.search(r"<td>data.<wbr>contexts.<wbr>assignment</td>", section)  # a row per key
    assert "<code>own</code> <i>now/0, now/1, now/2</i>" in section
    assert "<code>per_session</code>" in section


def test_configurations_of_models_are_compared_within_a_model(workspace: Path, tmp_path: Path) -> None:
    prepared = workspace / "prepared" / "one"
    runs = [write_run(tmp_path / "own", prepared, 4), write_run(tmp_path / "sr", prepared, 4, "model=sr")]
    page = undrawn([*seed_runs(workspace), *runs], workspace).html.replace("<wbr>", "")
    assert "<td>model." not in page
    runs.append(write_run(tmp_path / "other", prepared, 5, "model=sr", "model.steps=7"))
    page = undrawn([*seed_runs(workspace), *runs], workspace).html.replace("<wbr>", "")
    assert re.findall(r"<td>(model\..*?)</td>", page) == ["model.steps"]
    values = page[page.index("<td>model.steps") :].split("</tr>")[0]
    folders = [f"{tmp_path.name}/{run}" for run in ("sr", "other")]
    assert re.findall(r"<code>(\d+)</code> <i>(.*?)</i>", values) == list(zip(("10", "7"), folders, strict=True))


def test_runs_whose_configs_refer_to_sizes_of_the_data_are_read(workspace: Path, tmp_path: Path) -> None:
    """As those of an own encoder do; a config is stored before the sizes are known."""
    run = write_run(tmp_path / "run", workspace / "prepared" / "one", 4)
    config = OmegaConf.load(run / ".hydra" / "config.yaml")
    config.model.encoder = {"n_items": "${..dims.n_items}", "hidden_size": 3}
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    assert OmegaConf.is_missing(config.model.dims, "n_items")
    (loaded,), skipped = load_runs([run], workspace)
    assert not skipped
    assert loaded.config["model"]["encoder"] == {"n_items": None, "hidden_size": 3}


def test_stages_are_named_in_words(workspace: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", workspace / "prepared" / "one", 1)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["seconds"] |= {"train_session": 3.0, "test_context": 4.0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = undrawn([run], workspace).html.replace(' class="number"', "")
    header = page[page.index('id="speed"') :].split("</tr>")[0]
    assert re.findall(r">([^<>]+)</th>", header)[2:] == [
        *("prepare", "train", "train the session encoder", "test the context encoder", "total"),
    ]


def test_whose_contexts_are_given_is_explained_where_it_is_a_setting(workspace: Path) -> None:
    page = undrawn([*seed_runs(workspace), workspace / "per_session"], workspace).html.replace("<wbr>", "")
    assert '<td class="text">assignment=per_session</td>' in page  # the label is short
    explained = "permuted (those of one other user, the same in all sessions)"
    assert explained in undrawn([*seed_runs(workspace), workspace / "per_session"], workspace).html
    assert explained not in undrawn(seed_runs(workspace), workspace).html


def test_one_epoch_is_no_learning_curve(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", workspace / "prepared" / "one", 1)
    titles: list[str] = []
    monkeypatch.setattr(charts, "lines", lambda title, *_, **__: titles.append(title) or "")
    undrawn([run], workspace)
    assert titles[0] == "Learning curves"
    lines_of_file = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join(line for line in lines_of_file if not line.startswith("1,")) + "\n")
    titles.clear()
    undrawn([run], workspace)
    assert titles[0] == "Recall by K"


def test_only_runs_of_experiments_are_reproduced_as_single_runs(workspace: Path, tmp_path: Path) -> None:
    """An experiment may be a multirun."""
    prepared = workspace / "prepared" / "one"
    run = write_run(tmp_path / "run", prepared, 1)
    for stored, command in (
        (["task=train", "pretrained.session=a.ckpt", "seed=1"], "seed=1"),
        (["experiment=table2", "seed=1"], "hydra.mode=RUN experiment=table2 seed=1"),
    ):
        OmegaConf.save(OmegaConf.create(stored), run / ".hydra" / "overrides.yaml")
        (loaded,), _ = load_runs([run], prepared)
        assert loaded.command == f"python -m arnn_lightning {command}"


def test_lists_of_another_program_have_neither_speed_nor_settings(workspace: Path, tmp_path: Path) -> None:
    """Nothing but the data applies to them; they are in every section on their data."""
    theirs = write_lists(tmp_path / "theirs", workspace / "prepared" / "one", "vstan")
    runs = [*seed_runs(workspace), workspace / "per_session"]
    page = undrawn([*runs, theirs], workspace).html
    speed = page.split('<h2 id="speed">')[1].split('<h2 id="configs">')[0]
    assert ": arnn</td>" in speed
    assert "vstan" not in speed
    settings = [
        text.split('<h2 id="configs">')[1].split('<h2 id="runs">')[0] for text in (page, undrawn(runs, workspace).html)
    ]
    assert settings[0] == settings[1]
    assert "python -m arnn_lightning task=evaluate data=xing lists=theirs.csv name=vstan" in page
    assert "identical except for the seed ()" not in undrawn([theirs], workspace).html


def test_lists_of_another_program_may_have_the_name_of_a_model(workspace: Path, tmp_path: Path) -> None:
    theirs = write_lists(tmp_path / "theirs", workspace / "prepared" / "one", "gru4rec")
    models = [row["model"] for row in rows_of([*seed_runs(workspace), theirs], workspace)]
    assert sorted(models) == ["arnn", "gru4rec", "gru4rec (lists)", "itemknn", "pnn"]
    assert [row["model"] for row in rows_of([theirs], workspace)] == ["gru4rec"]


def test_speed_is_averaged_within_each_setting(workspace: Path) -> None:
    page = undrawn([*seed_runs(workspace), workspace / "per_session"], workspace).html
    speed = page.split('<h2 id="speed">')[1].split('<h2 id="configs">')[0]
    rows = re.findall(r"<td[^>]*>([^<]*(?:<wbr>[^<]*)*): arnn</td><td>(\d)</td>", speed)
    assert [count for _, count in rows] == ["3", "1"]


def test_charts_of_many_models_have_the_main_model_and_the_best(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (section,) = group_runs(load_runs(seed_runs(workspace), workspace)[0], SETTINGS.ties)
    view = compare(section, SETTINGS)
    assert _shown(view, view.rows) == (view.rows, "")
    monkeypatch.setattr(figures, "MAX_SERIES", 3)
    rows, remark = _shown(view, view.rows)
    best = max(
        (row for row in view.rows if row.variant.label in ("itemknn", "pnn")),
        key=lambda row: row.metrics["recall@20"].mean,
    )
    assert {row.variant.label for row in rows} == {"arnn", "gru4rec", best.variant.label}
    assert remark == " 3 of 4 models: arnn, its session encoder, gru4rec and those with the highest Recall@20."


def test_a_name_with_an_underscore_first_has_a_legend_entry() -> None:
    series = [charts.Series(name, [1, 2], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2]) for name in ("_mine", "_yours")]
    svg = charts.lines("title", "x", "y", series, [1, 2], charts.METRICS)
    assert ">_mine<" in svg
    assert ">_yours<" in svg


def test_an_interval_without_its_mean_has_an_arm_of_no_length() -> None:
    """As of two resamples."""
    series = [charts.Series("mrr@20", ["a", "b"], [0.1, 0.2], [0.15, 0.1], [0.3, 0.15])]
    assert "<svg" in charts.vertical_intervals("title", "x", "y", ["a", "b"], series)
    assert "<svg" in charts.horizontal_intervals("title", "x", ["a", "b"], series)


def test_damaged_counts_of_recommended_items_are_skipped(workspace: Path, tmp_path: Path) -> None:
    for name, times in {"few": [1, 2, 3], "text": ["1"] * ITEMS}.items():
        shutil.copytree(seed_runs(workspace)[0], tmp_path / name)
        pl.DataFrame({"item": range(len(times)), "times": times}).write_parquet(tmp_path / name / "test_lists.parquet")
    _, skipped = load_runs([tmp_path / "few", tmp_path / "text"], workspace)
    assert [run.reason for run in skipped] == [
        "incomplete: ValueError: test lists of arnn: not a count for every item of the catalogue"
    ] * 2


def test_a_run_without_settings_of_the_evaluation_is_skipped(workspace: Path, tmp_path: Path) -> None:
    run = shutil.copytree(seed_runs(workspace)[0], tmp_path / "run")
    config = OmegaConf.load(run / ".hydra" / "config.yaml")
    del config["evaluation"]
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    ((reason,),) = ([run.reason for run in load_runs([run], workspace)[1]],)
    assert reason == "incomplete: ValueError: config.yaml lacks evaluation"


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"train": {}}, "manifest.json: splits lacks test"),
        ({"train": {}, "test": {"users": None}}, "manifest.json: users must not be null"),
    ],
)
def test_a_manifest_without_the_size_of_a_split_is_damaged(
    workspace: Path, tmp_path: Path, splits: dict[str, Any], reason: str
) -> None:
    folder = shutil.copytree(workspace / "prepared" / "one", tmp_path / "prepared" / "one")
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = {name: manifest["splits"]["test"] | change for name, change in splits.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"splits": changed}))
    _, ((damage),) = load_data_sets(tmp_path, [])
    assert damage.reason == f"damaged prepared data set, prepare it again: {reason}"


def test_a_metric_that_is_given_twice_has_one_column() -> None:
    given = compose_config("task=report", "runs=.", "report.metrics=[mrr@20,recall@5,mrr@20]")
    assert _settings(given).metrics == ["mrr@20", "recall@5"]


def test_a_list_as_long_as_the_catalogue_is_refused(workspace: Path, tmp_path: Path) -> None:
    theirs = write_lists(tmp_path / "theirs", workspace / "prepared" / "one", "vstan")
    runs, _ = load_runs([seed_runs(workspace)[0], theirs], workspace)
    _require_below_catalogue(["recall@60"], runs[:1])  # without lists nothing is missing
    _require_below_catalogue(["recall@59"], runs)
    with pytest.raises(UserError, match="recall@60 is not below the catalogue of 60 items"):
        _require_below_catalogue(["mrr@5", "recall@60"], runs)


def test_a_model_that_is_also_an_encoder_has_its_own_seconds(workspace: Path, tmp_path: Path) -> None:
    """Of the run that trained it alone, whichever is read first."""
    alone, arnn = (
        write_run(tmp_path / "alone", workspace / "prepared" / "one", 1, "model=gru4rec"),
        seed_runs(workspace)[0],
    )
    shutil.copyfile(arnn / "test_ranks_session.parquet", alone / "test_ranks.parquet")
    metrics = json.loads((alone / "metrics.json").read_text()) | {"encoders": {}, "baselines": {}}
    (alone / "metrics.json").write_text(json.dumps(metrics | {"seconds": {"train": 7.0}}))
    for folders in ([arnn, alone], [alone, arnn]):
        page = undrawn(folders, workspace).html.replace(' class="number"', "")
        assert "<td>7.0</td>" in page
        assert "<td>20.0</td>" in page


def test_the_note_on_preparations_names_what_differs(workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared" / "other"
    shutil.copytree(workspace / "prepared" / "one", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    fewer = {"contexts": {"single": ["age"], "multi": ["roles"]}}
    for change, words in (
        ({"config": manifest["config"] | fewer}, " (data.contexts.single differs)"),
        ({"config": manifest["config"] | fewer, "raw": {"log": "a"}}, " (data.contexts.single, the raw files differ)"),
        ({"config": manifest["config"] | {"gap": "1h"}}, ""),  # a setting of another version
        ({"raw": {"log": "a"}}, " (the raw files differ)"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        other = write_run(tmp_path / "run", folder, 1)
        page = undrawn([seed_runs(workspace)[0], other], workspace, tmp_path).html
        assert f"xing was prepared in 2 ways{words}; results on different data are not averaged." in page


def test_settings_of_a_preparation_have_the_names_of_today(workspace: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workspace / "prepared" / "one", tmp_path / "prepared" / "one")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] |= {"items": {"coverage": 0.5}, "reader": {"_target_": "arnn_lightning.data.xing.XingReader"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    settings = next(iter(load_data_sets(tmp_path, [])[0].values())).settings
    assert settings["data.items.popularity_coverage"] == 0.5
    assert settings["data.reader._target_"] == "XingReader"


def test_a_folder_given_by_two_paths_is_read_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert find_run_dirs(["multirun", str(workspace / "multirun")]) == find_run_dirs(["multirun"])


def test_the_page_states_that_lists_are_ranked_within_the_list(workspace: Path, tmp_path: Path) -> None:
    theirs = write_lists(tmp_path / "theirs", workspace / "prepared" / "one", "vstan")
    assert "full catalogue, those of other programs' lists within the list;" in undrawn([theirs], workspace).html
    assert "ranks over the full catalogue;" in undrawn(seed_runs(workspace)[:1], workspace).html


def test_models_of_fewer_seeds_are_compared_under_another_setting(workspace: Path) -> None:
    runs, _ = load_runs([*seed_runs(workspace)[1:], workspace / "per_session"], workspace)  # seeds 2, 3 and 1
    first, other = sorted(
        (compare(section, SETTINGS) for section in group_runs(runs, SETTINGS.ties)), key=_section_order
    )
    same = {row.variant.name: row.variant for row in other.rows}
    main = {row.variant.name: row.variant for row in first.rows}
    assert not _same_ranks(same["arnn"], main["arnn"])  # no common seed
    both = replace(main["arnn"], results=main["arnn"].results | same["arnn"].results)
    assert _same_ranks(both, main["arnn"])
    assert _same_ranks(main["arnn"], both)


def test_seconds_of_resumed_runs_are_left_out(workspace: Path, tmp_path: Path) -> None:
    """They are of the last part of the run."""
    for folder in seed_runs(workspace)[:2]:
        shutil.copytree(folder, tmp_path / folder.name)
    part = json.loads((tmp_path / "0" / "metrics.json").read_text()) | {"resumed": True, "seconds": {"train": 0.0}}
    for count in (1, 0):  # runs that are not resumed
        (tmp_path / f"{count}" / "metrics.json").write_text(json.dumps(part | {"seed": count + 1}))
        page = undrawn(find_run_dirs([str(tmp_path)]), workspace).html
        assert ("<td>20.0</td>" in page.replace(' class="number"', "")) == bool(count)
        assert "Resumed runs are left out" in page
