"""task=report: run folders -> Table 2 as markdown and CSV, and one HTML page."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from arnn_lightning.errors import UserError
from arnn_lightning.reporting.build import Settings, build, write
from arnn_lightning.reporting.runs import DataSet, LeftOut, Run, data_place, find, read

MOST_METRICS = 4  # that one chart can show side by side


def run(config: DictConfig) -> None:
    """Writes table2.md, table2.csv and report.html into the task's own folder.

    Raises:
        UserError: no run folder at ``runs``, or none that is finished.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    given = OmegaConf.to_container(config.runs) if OmegaConf.is_list(config.runs) else [config.runs]
    found = find([str(one) for one in given])  # type: ignore[union-attr]
    data_sets = _data_sets(Path(config.paths.data), found)
    told = [read(one, data_sets) for one in found]
    runs = [one for one in told if isinstance(one, Run)]
    left_out = [one for one in told if isinstance(one, LeftOut)]
    if not runs:
        raise UserError(
            f"runs: none of the {len(told)} run folders is a finished training run: {told[0].folder} is not"
        )
    metrics = list(config.report.metrics)
    if not 1 <= len(metrics) <= MOST_METRICS or not all(
        re.fullmatch(r"(recall|mrr)@[1-9]\d*", str(one)) for one in metrics
    ):
        raise UserError(
            f"report.metrics={metrics}: one to {MOST_METRICS} of recall@K and mrr@K, as in [recall@20,mrr@20]"
        )
    settings = Settings(
        metrics=metrics,
        base=config.report.base,
        cutoffs=list(config.report.cutoffs),
        ties=config.evaluation.ties,
        bootstrap=OmegaConf.to_container(config.evaluation.bootstrap, resolve=True),  # type: ignore[arg-type]
        seed=config.seed,
    )
    made = build(runs, left_out, settings)
    write(made, folder)
    console = Console()
    for one in left_out:
        console.print(f"left out: {one.folder}: {one.why}", soft_wrap=True, markup=False)
    console.print(made.markdown, soft_wrap=True, markup=False, highlight=False)
    page = folder / "report.html"
    console.print(f"{len(runs)} runs: {os.path.relpath(page)} ({page.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def _data_sets(root: Path, found: Iterable[Path]) -> dict[str, DataSet]:
    """Prepared data sets by the sha256 of their manifests: those below ``root``, and those where runs had theirs."""
    roots = {root, *(place for folder in found if (place := data_place(folder)) is not None)}
    manifests = (file for one in sorted(roots) for file in sorted((one / "prepared").glob("*/manifest.json")))
    return {hashlib.sha256(file.read_bytes()).hexdigest(): DataSet.read(file.parent) for file in manifests}
