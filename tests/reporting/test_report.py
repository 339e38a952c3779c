"""task=report: what is averaged, what never is, and that the page is whole, safe and legible."""

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from arnn_lightning.cli import main
from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.reporting.build import Report, Settings, build
from arnn_lightning.reporting.runs import DataSet, LeftOut, Run, find, read
from helpers import compose_config

ITEMS, USERS, SESSIONS = 60, 30, 80
SETTINGS = Settings(
    metrics=["recall@20", "mrr@20"],
    base="gru4rec",
    cutoffs=[1, 5, 20],
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
    pl.DataFrame({"user": range(USERS), "known": rng.integers(0, 4, USERS)}).write_parquet(folder / "users.parquet")
    counts = {"events": 400, "sessions": 90, "users": USERS, "items": ITEMS}
    manifest = {
        "name": "xing",
        "raw": {"interactions.csv": f"sha-{seed}"},
        "config": {"contexts": {"single": ["age", "zip"], "multi": ["roles"]}},
        "seconds": {"prepare": machine},
        "funnel": [{"step": "<i>all</i>", **counts}],
        "splits": dict.fromkeys(("train", "val", "test"), counts),
        "dims": {"n_items": ITEMS, "single_sizes": [3, 3], "n_binary": 2},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def write_run(folder: Path, prepared: Path, seed: int, *overrides: str, skill: float = 3.0) -> Path:
    """A run folder as task=train leaves it; the higher ``skill``, the better its own model ranks."""
    config = compose_config("data=xing", f"seed={seed}", *overrides)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create([f"seed={seed}", *overrides]), folder / ".hydra" / "overrides.yaml")
    test = pl.read_parquet(prepared / "test.parquet")
    roles = {"session": "gru4rec", "context": "pnn", "itemknn": "itemknn", "": config.model.name}
    told: dict[str, dict[str, Any]] = {}
    for index, (role, name) in enumerate(roles.items()):
        better = 1 + (role == "") * skill + index / 9
        counts = evaluated(test, seed if name != "itemknn" else 0, better)
        one = EvaluationResult.from_counts(name, counts, test, "conservative", torch.arange(ITEMS))
        one.write(folder, role)
        told[role] = {"model": name} | one.metrics(["recall@20", "mrr@20"])
    metrics = {
        "data": "xing",
        "model": config.model.name,
        "seed": seed,
        "test": {key: value for key, value in told[""].items() if key != "model"},
        "val": {},
        "parts": {role: told[role] for role in ("session", "context")},
        "baselines": {"itemknn": told["itemknn"]},
        "manifest": hashlib.sha256((prepared / "manifest.json").read_bytes()).hexdigest(),
        "seconds": {"prepare": 1.0, "train": 20.0},
        "train_events_per_second": 1000.0,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    curve = ["epoch,window,metric,value", "0,1,train/loss,2", "0,1,val/mrr@20,.1", "1,2,val/mrr@20,.2"]
    (folder / "metrics.csv").write_text("\n".join(curve) + "\n")
    return folder


def evaluated(test: pl.DataFrame, seed: int, skill: float) -> dict[str, torch.Tensor]:
    """Counts of a model whose targets score ``skill`` higher than other items do, give or take."""
    places = test.with_columns(position=pl.int_range(pl.len()).over("session")).filter(pl.col("position") > 0)
    chance = np.random.default_rng(seed).random(places.height)
    higher = torch.from_numpy((ITEMS * chance**skill).astype(np.int64))
    told = {name: torch.from_numpy(places[name].to_numpy().astype(np.int64)) for name in ("session", "position")}
    return told | {"higher": higher, "equal": 1 + (higher % 7 == 0).long()}


def report_of(folders: list[Path], *prepared: Path) -> Report:
    known = {hashlib.sha256((one / "manifest.json").read_bytes()).hexdigest(): DataSet.read(one) for one in prepared}
    told = [read(folder, known) for folder in folders]
    runs = [one for one in told if isinstance(one, Run)]
    return build(runs, [one for one in told if isinstance(one, LeftOut)], SETTINGS)


def lines(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.csv)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set, three seeds of a multirun, and a run of other settings."""
    folder = tmp_path_factory.mktemp("report")
    write_data(folder / "prepared" / "one")
    for seed in (1, 2, 3):
        write_run(folder / "multirun" / "now" / str(seed - 1), folder / "prepared" / "one", seed)
    write_run(folder / "drawn", folder / "prepared" / "one", 1, "data.contexts.assignment=per_session", skill=0.5)
    return folder


def seeds_of(home: Path) -> list[Path]:
    return find([str(home / "multirun")])


def test_V14_means_deviations_and_paired_differences_over_seeds(home: Path) -> None:
    table = {row["model"]: row for row in lines(report_of(seeds_of(home), home / "prepared" / "one"))}
    assert list(table) == ["itemknn", "gru4rec", "pnn", "arnn"]  # the order of the paper's Table 2
    told = [json.loads((folder / "metrics.json").read_text()) for folder in seeds_of(home)]
    for metric in ("recall@20", "mrr@20"):
        ours = [one["test"][metric] for one in told]
        base = [one["parts"]["session"][metric] for one in told]
        assert float(table["arnn"][metric]) == pytest.approx(np.mean(ours), abs=1e-12)
        assert float(table["arnn"][f"{metric}_deviation"]) == pytest.approx(np.std(ours, ddof=1), abs=1e-12)
        gain = np.subtract(ours, base)
        assert float(table["arnn"][f"{metric}_gain"]) == pytest.approx(gain.mean(), abs=1e-12)
        assert float(table["arnn"][f"{metric}_gain_deviation"]) == pytest.approx(np.std(gain, ddof=1), abs=1e-12)
        low, high = (float(table["arnn"][f"{metric}_gain_{end}"]) for end in ("low", "high"))
        assert low < gain.mean() < high
    # The interval is that of the mean over the seeds: users are drawn, trainings are not.
    ranks = [EvaluationResult.read("arnn", folder).ranks for folder in seeds_of(home)]
    of_user = {user: np.flatnonzero(ranks[0]["user"] == user) for user in sorted(ranks[0]["user"].unique())}
    hits = np.mean([(one["rank"] <= 20).to_numpy() for one in ranks], axis=0)
    rng, users = np.random.default_rng(1), list(of_user)
    draws = [np.concatenate([of_user[users[i]] for i in rng.integers(0, len(users), len(users))]) for _ in range(50)]
    expected = np.quantile([hits[draw].mean() for draw in draws], [0.025, 0.975])
    told_interval = [float(table["arnn"][f"recall@20_{end}"]) for end in ("low", "high")]
    assert told_interval == pytest.approx(expected.tolist(), abs=1e-9)
    assert table["itemknn"]["seeds"] == "1"  # it draws nothing: three times the same is one result
    assert table["gru4rec"]["recall@20_gain"] == ""
    assert float(table["arnn"]["recall@20_paper"]) == 0.3106


def test_markdown_and_page_show_the_same_table(home: Path) -> None:
    report = report_of(seeds_of(home), home / "prepared" / "one")
    arnn = next(row for row in lines(report) if row["model"] == "arnn")
    mean = f"{float(arnn['recall@20']):.4f}"
    assert f"| arnn | **{mean} ± " in report.markdown
    assert f"<b>{mean}</b>" in report.html
    assert "0.3106" in report.markdown
    assert "0.3106" in report.html


def test_an_incomplete_run_is_said_so_and_counts_nowhere(home: Path, tmp_path: Path) -> None:
    whole = report_of(seeds_of(home), home / "prepared" / "one")
    broken = {"still going": "metrics.json", "cut off": "test_ranks.parquet", "lost": "test_ranks_session.parquet"}
    for name, file in broken.items():
        shutil.copytree(seeds_of(home)[0], tmp_path / name)
        (tmp_path / name / file).unlink()
    shutil.copytree(seeds_of(home)[0], tmp_path / "half")
    (tmp_path / "half" / "metrics.json").write_text('{"data": "xing", "mod')
    shutil.copytree(seeds_of(home)[0], tmp_path / "torn")
    (tmp_path / "torn" / "test_ranks.parquet").write_bytes(b"PAR1 torn")
    report = report_of([*seeds_of(home), *find([str(tmp_path)])], home / "prepared" / "one")
    assert report.csv == whole.csv
    assert report.markdown == whole.markdown
    for name in (*broken, "half", "torn"):
        assert f"left out: {tmp_path / name}: incomplete" in report.html


def test_runs_on_different_data_stand_apart_and_are_said_so(home: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "prepared" / "two", seed=9)
    other = write_run(tmp_path / "other", tmp_path / "prepared" / "two", 2)
    alone = {row["model"]: row for row in lines(report_of(seeds_of(home), home / "prepared" / "one"))}
    report = report_of([*seeds_of(home), other], home / "prepared" / "one", tmp_path / "prepared" / "two")
    keys = {row["data_key"] for row in lines(report)}
    assert len(keys) == 2
    assert "results on different data are not averaged" in report.html
    mixed = [row for row in lines(report) if row["seeds"] == "1 2 3"]
    assert {row["model"]: row["recall@20"] for row in mixed} == {
        name: row["recall@20"] for name, row in alone.items() if name != "itemknn"
    }


def test_the_same_data_prepared_on_two_machines_is_the_same_data(home: Path, tmp_path: Path) -> None:
    """A manifest tells the seconds too; they are no reason to keep runs apart."""
    write_data(tmp_path / "prepared" / "one", machine=77)
    other = write_run(tmp_path / "other", tmp_path / "prepared" / "one", 4)
    report = report_of([*seeds_of(home), other], home / "prepared" / "one", tmp_path / "prepared" / "one")
    assert {row["seeds"] for row in lines(report) if row["model"] == "arnn"} == {"1 2 3 4"}


def test_other_settings_and_other_hyperparameters_are_never_averaged(home: Path, tmp_path: Path) -> None:
    faster = write_run(tmp_path / "faster", home / "prepared" / "one", 1, "model.optimizer.lr=0.5")
    report = report_of([*seeds_of(home), faster, home / "drawn"], home / "prepared" / "one")
    told = [(row["setting"], row["model"], row["seeds"]) for row in lines(report) if row["model"].startswith("arnn")]
    assert told == [
        ("data.contexts.assignment=own", "arnn", "1 2 3"),
        ("data.contexts.assignment=own", "arnn (optimizer.lr=0.5)", "1"),
        ("data.contexts.assignment=per_session", "arnn", "1"),
    ]
    assert "data.contexts.assignment=per_session" in report.html


def test_models_of_one_grid_stand_in_one_table_whatever_their_search_spaces(home: Path, tmp_path: Path) -> None:
    grid = [write_run(tmp_path / model, home / "prepared" / "one", 1, f"model={model}") for model in ("arnn", "pnn")]
    spaces = [OmegaConf.load(folder / ".hydra" / "config.yaml").search for folder in grid]
    assert spaces[0] != spaces[1]
    fast = write_run(
        tmp_path / "fast", home / "prepared" / "one", 2, "performance.compile=true", "performance.threads=2"
    )
    told = lines(report_of([*grid, fast], home / "prepared" / "one"))
    assert len({row["setting"] for row in told}) == 1
    assert {row["seeds"] for row in told if row["model"] == "arnn"} == {"1 2"}


def test_one_seed_run_twice_with_other_ranks_counts_once_and_is_said_so(home: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", home / "prepared" / "one", 1, skill=1.0)
    report = report_of([*seeds_of(home), again], home / "prepared" / "one")
    alone = report_of(seeds_of(home), home / "prepared" / "one")
    assert report.csv == alone.csv
    assert "have one configuration and other ranks" in report.html


def test_a_report_without_the_prepared_data_shows_what_ranks_alone_tell(home: Path) -> None:
    report = report_of(seeds_of(home))
    assert "is not under paths.data" in report.html
    assert "by position" in report.html
    assert "by known attributes" not in report.html


def test_recorded_ranks_take_their_attempts_from_the_test_split(home: Path, tmp_path: Path) -> None:
    for folder in seeds_of(home):
        shutil.copytree(folder, tmp_path / folder.name)
        for file in (tmp_path / folder.name).glob("test_ranks*.parquet"):
            pl.read_parquet(file).select(pl.col("higher", "equal").cast(pl.UInt32)).write_parquet(file)
    slim = report_of(find([str(tmp_path)]), home / "prepared" / "one")
    assert slim.csv == report_of(seeds_of(home), home / "prepared" / "one").csv
    (left,) = {one.why for one in (read(tmp_path / "0", {}),) if isinstance(one, LeftOut)}
    assert "lack the attempts" in left


def test_runs_are_folders_globs_and_lists_each_run_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [folder.name for folder in find([str(home / "multirun")])] == ["0", "1", "2"]
    assert find([str(home / "multi*" / "*" / "1"), str(home / "multirun" / "now")])[0].name == "1"
    assert len(find([str(home / "multirun"), str(home / "multirun" / "*")])) == 3
    with pytest.raises(UserError, match="there is no folder"):
        find([str(home / "nowhere*")])
    with pytest.raises(UserError, match="no run folder"):
        find([str(home / "prepared")])


def test_words_from_configs_cannot_break_the_page(home: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>$x^{$&\"'|"
    run = write_run(tmp_path / "evil", home / "prepared" / "one", 1)
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
    report = report_of([run, *seeds_of(home)], home / "prepared" / "one")
    assert "<script" not in report.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report.html
    assert "<i>all</i>" not in report.html
    row = next(line for line in report.markdown.splitlines() if "alert(1)" in line)
    assert "<script" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"\|", report.markdown.splitlines()[2]))


def test_the_page_needs_no_network_and_is_small(home: Path) -> None:
    html = report_of([*seeds_of(home), home / "drawn"], home / "prepared" / "one").html
    assert len(html.encode()) < 3_000_000
    assert html.count("<svg") >= 7
    fetched = re.findall(r"""(?:\ssrc=|<link[^>]*\shref=|url\(|@import)\s*["']?([^"')\s>]*)""", html)
    assert all(place.startswith(("data:", "#")) for place in fetched), fetched
    assert "<script" not in html
    assert "python -m arnn_lightning hydra.mode=RUN seed=2" in html


def test_equal_runs_make_equal_reports(home: Path) -> None:
    once, twice = (report_of([*seeds_of(home), home / "drawn"], home / "prepared" / "one") for _ in range(2))
    assert once == twice


def arnn(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["arnn", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_task_report_writes_three_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "evaluation.bootstrap.resamples=20"
    runs = f"runs=[{home}/multirun/now,{home}/drawn]"
    assert arnn(monkeypatch, "task=report", runs, f"paths.data={home}", small, "hydra.run.dir=out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"table2.md", "table2.csv", "report.html"}
    assert "| arnn |" in capsys.readouterr().out
    assert "by known attributes" in (tmp_path / "out" / "report.html").read_text()
    assert arnn(monkeypatch, "task=report", runs, "report.metrics=[ndcg@20]") == 2
    assert "error: report.metrics=['ndcg@20']: one to 4 of recall@K" in capsys.readouterr().err
    assert arnn(monkeypatch, "task=report", "runs=nowhere") == 2
    assert "error: runs: there is no folder nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")

    def open_page(html: str) -> tuple[str, str]:
        """The document after loading, and what the console said."""
        file = tmp_path_factory.mktemp("page") / "page.html"
        file.write_text(html)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
        done = subprocess.run(
            [CHROMIUM, *flags, "--window-size=1200,900", "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)

    return open_page


def test_the_page_renders_in_a_browser_without_console_errors_and_fits_a_phone(
    home: Path, browse: Callable[[str], tuple[str, str]]
) -> None:
    html = report_of([*seeds_of(home), home / "drawn"], home / "prepared" / "one").html
    shown, console = browse(html)
    assert console == ""
    assert shown.count("</svg>") == html.count("<svg")
    # The same page in a frame as wide as a phone: nothing but tables may be wider, and those scroll by themselves.
    inside = html.replace("&", "&amp;").replace('"', "&quot;")
    probe = """<iframe id=phone width=375 height=800 srcdoc="PAGE"></iframe><script>onload = () => {
        const page = document.getElementById('phone').contentDocument, text = page.querySelector('svg text');
        document.title = [page.documentElement.scrollWidth, page.querySelector('svg').getBoundingClientRect().width,
            text.getBoundingClientRect().height].join(' ');
        document.body.innerHTML = ''; console.log('probed'); }</script>"""
    shown, console = browse(probe.replace("PAGE", inside))
    assert "probed" in console  # what the console says does arrive here
    found = re.search(r"<title>([\d.]+) ([\d.]+) ([\d.]+)</title>", shown)
    assert found is not None
    page_width, chart_width, text_height = map(float, found.groups())
    assert page_width <= 375
    assert 280 < chart_width <= 375
    assert text_height > 9
