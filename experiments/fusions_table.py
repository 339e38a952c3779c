"""Session encoders by fusions by whose contexts, with and without attributes of items, after an equal search.

    python experiments/fusions_table.py run FOLDER ENCODER [OVERRIDE ...]      # FOLDER: one per data set
    python experiments/fusions_table.py table FOLDER

`run` trains, with the session encoder ENCODER (gru or sasrec): the encoder alone, ARNN on it (arnn) and the fusions
that it takes, for own, permuted and per-session contexts, and for own contexts with attributes of items; and on gru
the encoder and ARNN for users held out of training, and for items that training does not have, by their attributes
and by permuted ones. Seeds 1, 2, 3, three epochs, the best on validation kept. A finished run is not repeated.

The search before is the same for each of them: one epoch with seed 0 and own contexts at three learning rates, of which
the best MRR@20 on validation is taken; for ARNN, its PNN and its merging layer are searched one after the other. The
encoder alone is trained once per seed, and it is the encoder that ARNN freezes; a fusion trains an encoder of its own.
OVERRIDE specifies the data set.

`table` prints the means over seeds, and the differences to the encoder alone with 95 % intervals over users and seeds.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from arnn_lightning.evaluation.decision import measure_gain
from arnn_lightning.training.checkpoint import read_checkpoint

ENCODERS = {
    "gru": ["gru4rec_strong"],
    "sasrec": ["sasrec", "hidden_size=64", "last_n_events=5", "blocks=1"],  # a step takes about as long as gru's
}
FUSIONS = {"arnn": "arnn_strong"} | {name: name for name in ("latent_cross", "init_state", "input_concat", "prefix")}
# sasrec has neither a hidden state nor an input beside the item; tokens in front of the session are for it alone.
REFUSED = {"gru": ("prefix",), "sasrec": ("init_state", "input_concat")}
SETTINGS = {  # the columns contexts and attributes of items of the table, and what they stand for
    "own": [],
    "permuted": ["data.contexts.assignment=permuted"],
    "per session": ["data.contexts.assignment=per_session"],
    "own, with attributes of items": ["model.item_contexts=add"],
    "own, users held out": ["data.held_out_user_share=0.2"],
    "own, new items by their attributes": ["model.item_contexts=add", "data.items.cold=keep"],
    "own, new items by permuted ones": [
        *("model.item_contexts=add", "data.items.cold=keep", "data.item_contexts.assignment=permuted")
    ],
}
CONTROLS, ATTRIBUTES, NEW = list(SETTINGS)[:3], list(SETTINGS)[3], list(SETTINGS)[4:]
SEEDS = (1, 2, 3)
RATES = (0.02, 0.05, 0.1)
OPTIONS = ["logger=csv", *(f"~baselines.{name}" for name in ("pop", "itemknn", "sr", "vsknn"))]


def run_name(fusion: str, setting: str, seed: int) -> str:
    return f"{fusion}-{setting.replace(',', '').replace(' ', '_')}-{seed}"


class Runs:
    """The runs of one data set and one session encoder."""

    def __init__(self, folder: Path, encoder: str, overrides: list[str]) -> None:
        self.folder, self.encoder, self.overrides = folder / encoder, encoder, overrides
        self.model, *self.settings = ENCODERS[encoder]

    def train(self, name: str, *overrides: str) -> Path:
        """One run in the folder ``name``; a finished one is kept."""
        target = self.folder / name
        if not (target / "metrics.json").exists():
            shutil.rmtree(target, ignore_errors=True)  # an interrupted one
            command = [sys.executable, "-m", "arnn_lightning", *OPTIONS, *self.overrides, *overrides]
            subprocess.run([*command, f"hydra.run.dir={target}"], check=True, stdout=subprocess.DEVNULL)
        print(target, flush=True)
        return target

    def search(self, name: str, key: str, *overrides: str, stage: str = "") -> str:
        """The rate with the best MRR@20 on validation of the trained stage, as an override of ``key``."""
        trials = {}
        for rate in RATES:
            trial = f"{key}.optimizer.lr={rate}"
            run = self.train(f"search/{name}-{stage}{rate}", "seed=0", f"{key}.epochs=1", trial, *overrides)
            values = pl.read_csv(run / "metrics.csv").filter(pl.col("metric") == f"{stage}val/mrr@20")["value"]
            trials[values.max()] = trial
        return trials[max(trials)]

    def session(self, setting: str, seed: int) -> str:
        setting = "own" if setting in CONTROLS else setting
        return f"pretrained.session={self.folder / run_name('none', setting, seed) / 'checkpoints' / 'best.ckpt'}"

    def all(self) -> None:
        alone = [f"model={self.model}", *(f"model.{setting}" for setting in self.settings)]
        rate = self.search("none", "model", *alone)
        new = NEW if self.encoder == "gru" else []
        if "data=completejourney" in self.overrides:  # 52,000 products: none of its new items is among the first 20
            new = new[:1]
        for setting in ("own", ATTRIBUTES, *new):
            for seed in (0, *SEEDS) if setting == "own" else SEEDS:
                options = (rate, "model.epochs=3", f"seed={seed}", *SETTINGS[setting])
                self.train(run_name("none", setting, seed), *alone, *options)
        for fusion, model in FUSIONS.items():
            if fusion in REFUSED[self.encoder]:
                continue
            within = [f"model={model}", f"model@model.session={self.model}"]
            within += [f"model.session.{setting}" for setting in self.settings]
            pretrained, context, settings = [self.session("own", 0)], [], [*CONTROLS, ATTRIBUTES]
            if fusion == "arnn":
                settings += new
                context = [f"model.context{key[5:]}" for key in self.overrides if key.startswith("model.")]
                options = (*within, *context, *pretrained, "model.epochs=1")
                rate = self.search(fusion, "model.context", *options, stage="context/")
                searched = self.folder / f"search/arnn-context/{rate.rpartition('=')[2]}"
                pretrained.append(f"pretrained.context={searched / 'checkpoints' / 'context' / 'best.ckpt'}")
                context += [rate, "model.context.epochs=3"]
            within.append(self.search(fusion, "model", *within, *pretrained))
            for seed in SEEDS:
                for setting in settings:
                    name = run_name(fusion, setting, seed)
                    trained = self.folder.parent / "gru" / name / "checkpoints" / "context" / "best.ckpt"
                    # ARNN's PNN does not depend on the session encoder.
                    is_trained = self.encoder != "gru" and trained.exists()
                    parts = [f"pretrained.context={trained}"] if is_trained else context
                    options = ("model.epochs=3", f"seed={seed}", *SETTINGS[setting], self.session(setting, seed))
                    self.train(name, *within, *parts, *options)


def read_values(folder: Path, fusion: str, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """(S, N) reciprocal ranks of at most 20, ties against the model, and (N,) users; of new items if tested."""
    runs = [folder / run_name(fusion, setting, seed) for seed in SEEDS]
    tables = [pl.read_parquet(run / "test_ranks.parquet") for run in runs]
    rank = np.stack([(table["higher"] + table["equal"]).to_numpy() for table in tables]).astype(np.float64)
    value, user = np.where(rank <= 20, 1 / rank, 0.0), tables[0]["user"].to_numpy()
    if "new items" in setting:
        metadata = read_checkpoint(runs[0] / "checkpoints" / "best.ckpt")["metadata"]
        data = Path(yaml.safe_load((runs[0] / ".hydra" / "config.yaml").read_text())["paths"]["data"])
        trained = pl.read_parquet(data / "prepared" / metadata["prepared"] / "train.parquet")["item"].unique()
        is_new = (~tables[0]["item"].is_in(trained.implode())).to_numpy()
        value, user = value[:, is_new], user[is_new]
    return value, user


def table(folder: Path) -> None:
    print("| encoder | fusion | contexts | predictions | Recall@20 | MRR@20 | MRR@20 minus the encoder's |")
    print("|---|---|---|---|---|---|---|")
    for encoder in ENCODERS:
        for fusion in ("none", *FUSIONS):
            for setting in SETTINGS:
                if not (folder / encoder / run_name(fusion, setting, SEEDS[-1]) / "metrics.json").exists():
                    continue
                value, user = read_values(folder / encoder, fusion, setting)
                base, _ = read_values(
                    folder / encoder, "none", "own" if setting in (*CONTROLS, ATTRIBUTES) else setting
                )
                recall = (value > 0).mean(1)
                gain = measure_gain(value, base, user, {"resamples": 2000, "confidence": 0.95}, 1)
                is_base = fusion == "none" and setting != ATTRIBUTES
                shown = "" if is_base else f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
                print(
                    f"| {encoder} | {fusion} | {setting} | {len(user):,} | {mean_of(recall)} "
                    f"| {mean_of(value.mean(1))} | {shown} |"
                )


def mean_of(by_seed: np.ndarray) -> str:
    return f"{by_seed.mean():.4f} ± {by_seed.std(ddof=1):.4f}"


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "run":
        Runs(Path(folder).absolute(), rest[0], rest[1:]).all()
    else:
        table(Path(folder))
