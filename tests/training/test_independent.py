"""The command line beside a second implementation in plain loops (tests/independent.py), both in float64."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import polars as pl
import pytest
import torch
from pytorch_lightning import Callback

import independent
from arnn_lightning.loading.negatives import PopularitySampler
from commandline import NO_BASELINES, arnn_here
from models import slow

BATCH_SIZE, LR, EPS = 5, 0.1, 1e-6  # a larger eps: rounding of a gradient that is 0 must not become a step
DAY = 86_400
N_ITEMS, N_USERS = 18, 24
TOLERANCE = 1e-9


class Recorder(Callback):
    """The first weights and the loss of every step of each stage."""

    stages: ClassVar[dict[str, tuple[independent.Weights, list[float]]]] = {}

    def on_train_start(self, trainer: Any, model: Any) -> None:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.stages[model.settings.log_prefix] = (weights, [])

    def on_train_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
        prefix = model.settings.log_prefix
        self.stages[prefix][1].append(float(trainer.logged_metrics[f"{prefix}train/loss"]))


class Log(NamedTuple):
    """The log of the tests, read by itself: sessions by split in the order of their starts, profiles by user."""

    train: list[independent.Session]
    test: list[independent.Session]
    profiles: dict[str, tuple[list[int], set[int]]]


@pytest.fixture
def float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def write_log(folder: Path) -> None:
    """A log of 14 days whose test days have users of an unknown country."""
    sample = random.Random(3)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time", "session", "country", "skills"])
        for session in range(130):
            start = 1_700_006_400 + session * 14 * DAY // 130
            known = session < 96
            user = sample.randrange(N_USERS - 4 if known else N_USERS)
            country = f"c{user % 3}" if user < N_USERS - 4 else ""
            skills = ",".join(f"s{bit}" for bit in range(4) if user >> bit & 1)
            for place in range(sample.randrange(2, 8)):
                item = session % N_ITEMS if place == 0 else sample.randrange(N_ITEMS)
                writer.writerow([f"u{user:02}", f"i{item:02}", start + 60 * place, session, country, skills])


def read_log(folder: Path, prepared: Path) -> Log:
    """The sessions by split, and the profiles in the codes of the prepared data set's tables."""
    item_code = {row["id"]: row["item"] for row in pl.read_parquet(prepared / "items.parquet").to_dicts()}
    category_code = {
        (row["attribute"], row["category"]): row["code"]
        for row in pl.read_parquet(prepared / "contexts.parquet").to_dicts()
    }
    sessions: dict[str, tuple[int, independent.Session]] = {}
    profiles: dict[str, tuple[list[int], set[int]]] = {}
    with (folder / "log.csv").open() as file:
        for row in csv.DictReader(file):
            day, (user, items) = sessions.setdefault(row["session"], (int(row["time"]) // DAY, (row["user"], [])))
            items.append(item_code[row["item"]])
            skills = row["skills"].split(",") if row["skills"] else []
            country = category_code["country", row["country"]] if row["country"] else 0
            profiles[user] = [country], {category_code["skills", skill] for skill in skills}
    last = max(day for day, _ in sessions.values())
    by_split = {"train": [], "val": [], "test": []}
    for day, session in sessions.values():
        by_split["test" if day > last - 3 else "val" if day == last - 3 else "train"].append(session)
    return Log(by_split["train"], by_split["test"], profiles)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Path, Log]:
    """Trains by the command line; the run folder, and the log."""
    write_log(folder)
    monkeypatch.chdir(folder)
    Recorder.stages = {}
    small = ["data=tabular", "data.events=log.csv", "data.session=given", "data.items.min_events=1", "logger=none"]
    small += ["data.contexts.single=[country]", "data.contexts.multi=[skills]", "data.contexts.coverage=1.0"]
    small += ["evaluation.cutoffs=[1,5]", "evaluation.monitor=mrr@5", "evaluation.bootstrap.resamples=10"]
    small += ["performance.steps_per_execution=1", "hydra.run.dir=run", f"paths.data={folder / 'data'}"]
    small += [f"+callbacks.record._target_={__name__}.Recorder", *NO_BASELINES]
    assert arnn_here([*small, *overrides], monkeypatch) == 0
    (prepared,) = (folder / "data" / "prepared").glob("*/manifest.json")
    return folder / "run", read_log(folder, prepared.parent)


def stage(prefix: str) -> list[str]:
    """Overrides of a stage: small, no dropout, the second implementation's optimizer."""
    return [
        f"{prefix}.batch_size={BATCH_SIZE}",
        f"{prefix}.epochs=1",
        f"{prefix}.optimizer.lr={LR}",
        f"{prefix}.optimizer.eps={EPS}",
    ]


def check_weights(checkpoint: Path, weights: independent.Weights) -> None:
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in stored.items():
        if value.is_floating_point():
            assert torch.equal(value, weights[name]) or (value - weights[name]).abs().max() < TOLERANCE, name


def check_ranks(file: Path, expected: list[int]) -> None:
    assert pl.read_parquet(file).sort("session", "position")["rank"].to_list() == expected


def place_unknown(weights: independent.Weights, log: Log, name: str) -> None:
    """The row of an unknown country, which no training user has: the mean over training events (E28)."""
    rows = [weights[name][log.profiles[user][0][0]] for user, items in log.train for _ in items]
    weights[name] = weights[name].clone()
    weights[name][0] = torch.stack(rows).mean(0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("loss", ["top1_max", *(slow(loss) for loss in independent.LOSSES if loss != "top1_max")])
def test_gru4rec_equals_a_second_implementation(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["model=gru4rec", f"model/loss={loss}", "model.hidden_size=6", "model.dropout_hidden=0"]
    folder, log = run(tmp_path, monkeypatch, *overrides, "model.n_sample=3", "model.sample_alpha=0.5", *stage("model"))
    weights, losses = Recorder.stages[""]
    popularity = torch.tensor([item for _, items in log.train for item in items]).bincount(minlength=N_ITEMS)
    sampler = PopularitySampler(popularity.numpy(), 3, 0.5, seed=1)

    def extra(step: int) -> list[int]:
        return sampler.sample(0, step, 1)[0].tolist()

    trained = [name for name, value in weights.items() if value.is_floating_point()]
    encoder = independent.GRU4Rec()
    expected = independent.train(weights, trained, encoder, log.train, BATCH_SIZE, loss, LR, EPS, extra)
    assert len(losses) >= 70
    assert losses == pytest.approx(expected, abs=TOLERANCE)
    check_weights(folder / "checkpoints" / "best.ckpt", weights)
    check_ranks(folder / "test_ranks.parquet", independent.ranks(weights, independent.GRU4Rec(), log.test))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["gram", slow("closed")])
def test_arnn_equals_a_second_implementation(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["model.hidden_size=7", "model.session.hidden_size=6", "model.session.dropout_hidden=0"]
    sizes += ["model.context.hidden_size=5", "model.context.embedding_size=4", f"model.context.product_method={method}"]
    stages = [*stage("model"), *stage("model.session"), *stage("model.context")]
    folder, log = run(tmp_path, monkeypatch, "model=arnn", *sizes, *stages)
    n_binary = 5  # the four skills, and all others
    for role in ("session", "context", ""):
        weights, losses = Recorder.stages[f"{role}/" if role else ""]
        parameters = [name for name, value in weights.items() if value.is_floating_point() and "running" not in name]
        if role == "session":
            encoder: Any = independent.GRU4Rec()
        elif role == "context":
            encoder = independent.PNN(log.profiles, n_binary, BATCH_SIZE, "encoder.")
        else:
            context = independent.PNN(log.profiles, n_binary, BATCH_SIZE, "encoder.context.")
            encoder = independent.ARNN(independent.GRU4Rec("encoder.session."), context, BATCH_SIZE)
            parameters = [name for name in parameters if not name.startswith(("encoder.session.", "encoder.context."))]
        expected = independent.train(weights, parameters, encoder, log.train, BATCH_SIZE, "top1", LR, EPS)
        if role == "context":
            place_unknown(weights, log, "encoder.single_embedding.weight")
        assert len(losses) >= 70
        assert losses == pytest.approx(expected, abs=TOLERANCE)
        check_weights(folder / "checkpoints" / role / "best.ckpt", weights)
        if role != "session":
            encoder.norm.training = False
        ranks_file = f"test_ranks_{role}.parquet" if role else "test_ranks.parquet"
        check_ranks(folder / ranks_file, independent.ranks(weights, encoder, log.test))
