"""What the README shows is what the recorded runs give."""

import hashlib
from pathlib import Path

from arnn_lightning.reporting.build import Settings, build
from arnn_lightning.reporting.runs import DataSet, LeftOut, Run, find, read
from helpers import compose_config

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "experiments" / "results" / "recorded"


def test_the_readmes_table_is_that_of_the_recorded_runs() -> None:
    manifests = (RECORDED / "prepared").glob("*/manifest.json")
    data_sets = {hashlib.sha256(file.read_bytes()).hexdigest(): DataSet.read(file.parent) for file in manifests}
    told = [read(folder, data_sets) for folder in find([str(RECORDED)])]
    assert not [one for one in told if isinstance(one, LeftOut)]
    config = compose_config("task=report", "runs=.")
    settings = Settings(
        metrics=config.report.metrics,
        base=config.report.base,
        cutoffs=config.report.cutoffs,
        ties=config.evaluation.ties,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )
    # The usual setting alone, which comes first: each setting is averaged by itself.
    usual = [run for run in told if isinstance(run, Run) and run.config["data"]["contexts"]["shown"] is None]
    lines = [line for line in build(usual, [], settings).markdown.splitlines() if line.startswith("|")]
    assert len(lines) > 10
    shown = (ROOT / "README.md").read_text()
    missing = [line for line in lines if line not in shown]
    assert not missing, "make report, and put its tables into the README; it lacks:\n" + "\n".join(missing)
