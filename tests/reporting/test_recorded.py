"""The results tables of experiments/README.md equal those computed from the recorded runs."""

from pathlib import Path

import polars as pl
import pytest

import record
import zoo
from arnn_lightning.reporting.comparison import Settings
from arnn_lightning.reporting.runs import Run, find_run_dirs, load_data_sets, load_run
from arnn_lightning.reporting.sections import build_report
from helpers import compose_config

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "experiments" / "results" / "recorded"
pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="an sdist has no recorded runs")


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restored")
    record.restore(RECORDED, folder)
    return folder


@pytest.mark.slow
def test_tables_of_the_experiments_are_those_of_the_recorded_runs(restored: Path) -> None:
    data_sets, damaged = load_data_sets(restored, [])
    assert len(data_sets) == 3
    assert not damaged
    runs = [load_run(folder, data_sets) for folder in find_run_dirs([str(restored)])]
    # The default setting alone, which comes first: each setting is averaged by itself.
    default = [run for run in runs if isinstance(run, Run) and run.settings["data.contexts.n_attributes"] is None]
    assert (len(runs), len(default)) == (52, 25)
    config = compose_config("task=report", "runs=.")
    settings = Settings(
        metrics=["recall@20", "mrr@20"],
        base=config.report.base,
        cutoffs=config.report.cutoffs,
        groups=[],
        ties=config.evaluation.ties,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )
    lines = [line for line in build_report(default, [], settings).markdown.splitlines() if line.startswith("|")]
    assert len(lines) > 10
    readme = (ROOT / "experiments" / "README.md").read_text()
    missing = [line for line in lines if line not in readme]
    assert not missing, "run make report and copy its tables to experiments/README.md, which lacks:\n" + "\n".join(
        missing
    )


@pytest.mark.slow
def test_restored_runs_are_recorded_as_the_same_files(restored: Path, tmp_path: Path) -> None:
    record.record(tmp_path, restored, [str(restored)])
    files = {path.relative_to(RECORDED) for path in RECORDED.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == files
    for file in sorted(files):
        if file.suffix == ".parquet":
            assert pl.read_parquet(tmp_path / file).equals(pl.read_parquet(RECORDED / file)), file
        else:
            assert (tmp_path / file).read_text() == (RECORDED / file).read_text(), file


@pytest.mark.slow
def test_the_model_zoo_is_that_of_the_recorded_runs(restored: Path) -> None:
    text = zoo.README.read_text()
    assert zoo.with_zoo(text, zoo.zoo(restored)) == text, "run python experiments/zoo.py"


def test_a_model_without_a_paper_is_named() -> None:
    assert zoo.paper("gru4rec_strong") == zoo.paper("gru4rec")
    assert zoo.paper("vstan_context").startswith("[Ludewig et al. 2021]")
    with pytest.raises(SystemExit, match="grusome: add its paper"):
        zoo.paper("grusome")
