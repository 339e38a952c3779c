"""Writes the model zoo of experiments/README.md: a table of the recorded runs for each data set.

python experiments/zoo.py

A row is a model: its paper, its results on the test split with their intervals over users and seeds, the minutes that
training and test took, the commit, and the command. Runs with the users' own contexts and all attributes are shown.
"""

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from hydra import compose, initialize_config_module

from arnn_lightning.evaluation.metrics import metric_label
from arnn_lightning.io import write_text
from arnn_lightning.reporting.comparison import Row, Section, Settings, compare, group_runs
from arnn_lightning.reporting.runs import Run, find_run_dirs, load_data_sets, load_run
from record import restore

README = Path(__file__).parent / "README.md"
RECORDED = Path(__file__).parent / "results" / "recorded"
START, END = "<!-- experiments/zoo.py writes from here -->\n", "<!-- to here -->\n"
DEFAULTS = {"data.contexts.assignment": "own", "data.contexts.n_attributes": None}  # of the runs that are shown
METRICS = ("recall@20", "mrr@20")
# A variant such as gru4rec_strong has the paper of its stem; POP has none.
PAPERS = {
    "pop": "",
    "spop": "[Hidasi et al. 2016](https://arxiv.org/abs/1511.06939)",
    "itemknn": "[Linden et al. 2003](https://doi.org/10.1109/MIC.2003.1167344)",
    "sr": "[Ludewig & Jannach 2018](https://arxiv.org/abs/1803.09587)",
    "sknn": "[Ludewig & Jannach 2018](https://arxiv.org/abs/1803.09587)",
    "vsknn": "[Ludewig & Jannach 2018](https://arxiv.org/abs/1803.09587)",
    "stan": "[Garg et al. 2019](https://doi.org/10.1145/3331184.3331322)",
    "vstan": "[Ludewig et al. 2021](https://arxiv.org/abs/1910.12781)",
    "gru4rec": "[Hidasi et al. 2016](https://arxiv.org/abs/1511.06939)",
    "narm": "[Li et al. 2017](https://arxiv.org/abs/1711.04725)",
    "sasrec": "[Kang & McAuley 2018](https://arxiv.org/abs/1808.09781)",
    "pnn": "[Qu et al. 2016](https://arxiv.org/abs/1611.00144)",
    "concat": "[Qu et al. 2016](https://arxiv.org/abs/1611.00144), without its layers",
    "arnn": "[Song & Lee 2018](https://arxiv.org/abs/1805.02983)",
    "latent_cross": "[Beutel et al. 2018](https://doi.org/10.1145/3159652.3159727)",
    "init_state": "[Quadrana et al. 2017](https://arxiv.org/abs/1706.04148)",
    "prefix": "after [Wu et al. 2022](https://arxiv.org/abs/2205.09666)",
    "input_concat": "[Smirnova & Vasile 2017](https://arxiv.org/abs/1706.07684)",
}
# The last one is of version 0.1.0.
UNREPEATED = ("pretrained.", "hydra.", "logger=", "resume=", "seed=", "evaluation.lists=")


def zoo(restored: Path) -> str:
    """The tables of the run folders below ``restored``, as Markdown."""
    run_dirs = find_run_dirs([str(restored)])
    data_sets, _ = load_data_sets(restored, run_dirs)
    loaded = [load_run(folder, data_sets) for folder in run_dirs]
    runs = [
        run for run in loaded if isinstance(run, Run) and all(run.settings[key] == DEFAULTS[key] for key in DEFAULTS)
    ]
    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=["task=report", "runs=."])
    settings = Settings(
        METRICS, config.report.base, (), (), config.evaluation.ties, config.evaluation.bootstrap, config.seed
    )
    sections = group_runs(runs, settings.ties)
    return "\n".join(line for section in sections for line in table(section, compare(section, settings).rows))


def table(section: Section, rows: Sequence[Row]) -> Iterator[str]:
    name = section.title.partition(" (")[0]  # without the settings in which data sets of one name differ
    yield f"### {name}: {section.predictions.height:,} predictions\n"
    header = ["model", "paper", *map(metric_label, METRICS), "seeds", "minutes", "commit", "command"]
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        runs = list(row.variant.runs.values())
        results = [row.metrics[metric] for metric in METRICS]
        shown = [f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})" for value in results]
        commits = dict.fromkeys(run.metrics["commit"] for run in runs)
        seeds = str(len(row.variant.seeds))
        yield (
            f"| {row.variant.label} | {paper(row.variant.name)} | {' | '.join(shown)} | {seeds} | "
            f"{minutes(runs, next(iter(row.variant.roles.values())))} | {', '.join(commits)} | {command(runs)} |"
        )
    yield ""


def paper(name: str) -> str:
    stem = max((stem for stem in PAPERS if name == stem or name.startswith(f"{stem}_")), key=len, default=None)
    if stem is None:
        sys.exit(f"{name}: add its paper to PAPERS")
    return PAPERS[stem]


def minutes(runs: Sequence[Run], role: str) -> str:
    """Of training and test, mean over the runs: of all stages for the main model.

    Baselines have none, nor have encoders that other runs trained (``pretrained``).
    """
    if role and runs[0].metrics["seconds"].get(f"train_{role}", 0) < 1:
        return ""
    keys = [f"train_{role}", f"test_{role}"] if role else list(runs[0].metrics["seconds"])
    return f"{mean(sum(run.metrics['seconds'][key] for key in keys) for run in runs) / 60:.1f}"


def command(runs: Sequence[Run]) -> str:
    """Repeats the runs; a model that is a part or a baseline of them is trained and tested there, too."""
    kept = [override for override in runs[0].overrides if not override.startswith(UNREPEATED)]
    seeds = ",".join(str(run.seed) for run in runs)
    return f"`python -m arnn_lightning -m {shlex.join([*kept, f'seed={seeds}'])}`"


def with_zoo(text: str, tables: str) -> str:
    """A document with new tables between its two markers."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{tables}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        restore(RECORDED, Path(folder))
        tables = zoo(Path(folder))
    write_text(README, with_zoo(README.read_text(), tables))


if __name__ == "__main__":
    main()
