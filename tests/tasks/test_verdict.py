"""task=verdict: the plan, and one small verdict end to end: interrupted, resumed, and computed again from its ranks."""

import html
import json
import math
import re
import shlex
import shutil
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf
from scipy.stats import t as student_t

from arnn_lightning.errors import UserError
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.preprocessing.dataset import PreparedDataset, WithoutAttribute
from arnn_lightning.reporting.runs import Run, find_run_dirs, load_run
from arnn_lightning.reporting.verdict_figures import VerdictFigures, lacks_new_users
from arnn_lightning.reporting.verdict_text import answer, outcome, profile_advice, remarks, sentences
from arnn_lightning.sweeps.plan import (
    Costs,
    FirstEpoch,
    Job,
    Plan,
    TooSlowError,
    extend_plan,
    make_plan,
    measured_costs,
    plan_line,
    seconds_of,
    seed_jobs,
    spent_seconds,
)
from arnn_lightning.tasks import train, verdict_runs
from arnn_lightning.tasks.verdict import Verdict
from arnn_lightning.tasks.verdict_results import VerdictResults
from arnn_lightning.tasks.verdict_runs import VerdictRuns
from commandline import arnn_here, metrics_of
from helpers import compose_config
from models import slow

SETTINGS = ["trainer.max_epochs=1", "evaluation.bootstrap.resamples=60", "evaluation.cutoffs=[5]"]
DATA = ["data=tabular", "data.events=log.csv", "data.contexts.single=[team,age]", "data.contexts.multi=[tags]"]
VERDICT = ["task=verdict", *DATA, *SETTINGS, "evaluation.monitor=mrr@5", "max_seeds=2", "non_neural=[pop,sr]"]
RUNS = ["non_neural-pop", "non_neural-sr"]
RUNS += [f"{arm}-seed{seed}" for seed in (1, 2) for arm in ("own", "per_session", "permuted", "session")]


def write_log(file: Path) -> None:
    """Five days; 120 users in all of them, 120 on the last alone. A user's team decides which item comes next.

    Young users have two sessions on the last day: most test events, though no more users than other ages.
    """
    rng = np.random.default_rng(1)
    rows = ["user,item,time,team,age,tags"]
    for user in range(240):
        team, age = user % 2, ("young", "unknown", "")[user % 3]
        visits = [(day, 10) for day in (range(5) if user < 120 else (4,))]
        for day, hour in [*visits, (4, 14)] if age == "young" else visits:
            item = int(rng.integers(12))
            for event in range(3):
                time = f"2024-01-0{day + 1}T{hour}:{event:02}:00"
                rows.append(
                    f'{user},{(item + (1 if team else -1) * event) % 12},{time},team{team},{age},"a,b{user % 5}"'
                )
    file.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log."""
    folder = tmp_path_factory.mktemp("workspace")
    write_log(folder / "log.csv")
    return folder


@pytest.fixture
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


class Trainings(list[str]):
    """Trains as task=train does, and notes what; the training of number ``interrupt_at`` is interrupted."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.interrupt_at, self._train = interrupt_at, train.train

    def __call__(self, config: Any, *arguments: Any) -> float | None:
        self.append(f"{config.model.name} {config.data.contexts.assignment} {config.seed}")
        if len(self) == self.interrupt_at:
            time.sleep(0.5)
            raise KeyboardInterrupt
        return self._train(config, *arguments)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """What a test trains."""
    trainings = Trainings()
    monkeypatch.setattr(train, "train", trainings)
    return trainings


@pytest.fixture(scope="module")
def verdict(workspace: Path) -> SimpleNamespace:
    """A verdict whose fifth training is interrupted, and which the same command resumes."""
    trained = Trainings(interrupt_at=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(train, "train", trained)
        interrupted = arnn_here(VERDICT, patch)
        before = list(trained)
        finished = arnn_here(VERDICT, patch)
    folder = workspace / "outputs" / "verdict" / "tabular"
    (prepared,) = (workspace / "data" / "prepared").glob("tabular-*")
    return SimpleNamespace(
        codes=(interrupted, finished),
        before=before,
        after=trained[5:],
        folder=folder,
        shown=json.loads((folder / "verdict.json").read_text()),
        prepared=PreparedDataset(prepared),
    )


def test_an_interrupted_verdict_trains_only_what_is_missing(verdict: SimpleNamespace) -> None:
    assert verdict.codes == (130, 0)
    assert verdict.before == [
        "gru4rec_strong own 1",
        "pop own 1",
        "sr own 1",
        "arnn_strong own 1",
        "arnn_strong permuted 1",
    ]
    seed_2 = ["gru4rec_strong own 2", *(f"arnn_strong {arm} 2" for arm in ("own", "permuted", "per_session"))]
    assert verdict.after == ["arnn_strong permuted 1", "arnn_strong per_session 1", *seed_2]
    assert sorted(path.parent.name for path in verdict.folder.glob("*/metrics.json")) == sorted(RUNS)


@pytest.mark.usefixtures("in_workspace")
@pytest.mark.parametrize("name", ["metrics.json", slow("test_ranks.parquet"), slow("without_attribute/0.parquet")])
def test_damaged_results_of_a_run_of_the_verdict_are_one_line(
    name: str, verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = verdict.folder / "own-seed1" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    try:
        assert arnn_here(VERDICT, monkeypatch) == 2
    finally:
        file.write_bytes(content)
    assert "own-seed1: its results are missing or damaged" in capfd.readouterr().err


def test_a_category_of_the_log_may_be_named_unknown(verdict: SimpleNamespace) -> None:
    codes, labels = verdict.prepared.attribute("age")
    assert labels == ["(unknown)", "unknown", "young"]
    assert {*codes.tolist()} == {0, 1, 2}


def test_seconds_of_interrupted_attempts_count(verdict: SimpleNamespace) -> None:
    """Also those of the tests without attributes."""
    spent = spent_seconds(verdict.folder)
    assert {*spent} == {*RUNS, *(f"own-seed{seed}, without attributes" for seed in (1, 2))}
    last = {name: sum(metrics_of(verdict.folder / name)["seconds"].values()) for name in RUNS}
    assert all(spent[name] > seconds for name, seconds in last.items())
    assert spent["permuted-seed1"] > last["permuted-seed1"] + 0.5


@pytest.mark.usefixtures("in_workspace")
def test_a_data_set_that_is_prepared_again_is_the_same_log(
    verdict: SimpleNamespace, trained: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest has other seconds."""
    file = verdict.prepared.folder / "manifest.json"
    content = file.read_text()
    file.write_text(json.dumps(json.loads(content) | {"seconds": {"read": 1e9}}))
    try:
        assert arnn_here(VERDICT, monkeypatch) == 0
    finally:
        file.write_text(content)
    assert trained == []


@pytest.mark.usefixtures("in_workspace")
def test_finished_seeds_count_whatever_the_budget(
    verdict: SimpleNamespace, trained: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arnn_here([*VERDICT, "smallest_gain=0.5", "budget=1s"], monkeypatch) == 0
    again = json.loads((verdict.folder / "verdict.json").read_text())
    assert again["gains"] == verdict.shown["gains"]
    by_budget = {"budget", "seconds", "smallest_gain", "smallest_gain_absolute", "paragraph", "more_seeds"}
    assert {key for key in again if again[key] != verdict.shown[key]} <= by_budget
    assert again["attributes"]
    assert again["smallest_gain_absolute"] == pytest.approx(50 * verdict.shown["smallest_gain_absolute"])
    assert trained == []


@pytest.mark.usefixtures("in_workspace")
@pytest.mark.usefixtures("verdict")
def test_other_settings_do_not_mix_in_one_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [argument for argument in VERDICT if not argument.startswith("data.contexts.multi")]
    assert arnn_here(command, monkeypatch) == 2
    assert "data.contexts.multi=[]: " in capsys.readouterr().err


@pytest.mark.usefixtures("in_workspace")
@pytest.mark.usefixtures("verdict")
def test_tuned_values_that_changed_since_do_not_mix_in_one_folder(
    trained: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command line names them."""
    tuned = Path("arnn_conf/tuned/tabular_gru4rec_strong_cross_entropy_logq_adagrad.yaml")
    tuned.parent.mkdir(parents=True)
    tuned.write_text("optimizer: {lr: 0.123}\n")
    try:
        assert arnn_here([*VERDICT, "max_seeds=3"], monkeypatch) == 2
    finally:
        shutil.rmtree("arnn_conf")
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"error: model\.optimizer\.lr: \S+session-seed1 was trained with \S+, and a file of tuned .*0\.123", line
    )
    assert line.endswith("use a new folder, such as hydra.run.dir=outputs/verdict/tabular-2")
    assert trained == []


@pytest.mark.usefixtures("in_workspace")
@pytest.mark.usefixtures("verdict")
def test_another_log_needs_another_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    later = "500,1,2024-01-05T10:00:00,team0,unknown,a\n500,2,2024-01-05T10:01:00,team0,unknown,a\n"
    Path("later.csv").write_text(Path("log.csv").read_text() + later)
    assert arnn_here([*VERDICT, "data.events=later.csv", "paths.data=later"], monkeypatch) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("a verdict is of one log; use a new hydra.run.dir, such as outputs/verdict/tabular-2")


def test_its_runs_share_the_session_encoder(verdict: SimpleNamespace) -> None:
    for arm in ("own", "permuted", "per_session"):
        assert not (verdict.folder / f"{arm}-seed2" / "checkpoints" / "session").exists()  # not trained there
        shared = pl.read_parquet(verdict.folder / f"{arm}-seed2" / "test_ranks_session.parquet")
        assert shared.equals(pl.read_parquet(verdict.folder / "session-seed2" / "test_ranks.parquet"))


def read_ranks(*files: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(file) for file in files]


def hits(ranks: list[pl.DataFrame], metric: str = "mrr@5") -> np.ndarray:
    """(S, N) values of the predictions."""
    rank = np.stack([of_seed["rank"].to_numpy() for of_seed in ranks])
    return np.where(rank <= 5, 1 / rank if metric == "mrr@5" else 1.0, 0.0)


def gain(value: np.ndarray, base: np.ndarray, user: np.ndarray, keep: np.ndarray, column: int = 0) -> dict[str, Any]:
    """Of (2, N) values, the gain of the predictions ``keep``, a column of one bootstrap over all users."""
    difference, users = value - base, np.unique(user)
    sums = np.array([[of_seed[keep & (user == one_user)].sum() for one_user in users] for of_seed in difference])
    counts = np.array([(keep & (user == one_user)).sum() for one_user in users])
    rng, means = np.random.default_rng(1), np.empty(60)
    for resample in range(60):
        chosen = rng.integers(0, len(users), len(users))
        means[resample] = (sums[:, chosen].sum(1) / counts[chosen].sum()).mean()
    order, quantiles = np.random.default_rng([1, 2]), student_t.ppf((np.arange(60) + 0.5) / 60, 1)
    for _ in range(column):
        order.permutation(quantiles)
    by_seed = sums.sum(1) / counts.sum()
    seed_error = abs(by_seed[0] - by_seed[1]) / 2
    means += order.permutation(quantiles) * seed_error
    low, high = np.quantile(means, [0.025, 0.975])
    of_base = base[:, keep].mean()
    return {
        "mean": by_seed.mean(),
        "low": low,
        "high": high,
        "p_value": min(1, 2 * (min((means <= 0).sum(), (means >= 0).sum()) + 1) / 61),
        "base": of_base,
        "by_seed": by_seed.tolist(),
        "user_error": math.sqrt(((sums.mean(0) - by_seed.mean() * counts) ** 2).sum()) / counts.sum(),
        "seed_error": seed_error,
        "relative": by_seed.mean() / of_base,
    }


def group_rows(
    value: np.ndarray, base: np.ndarray, user: np.ndarray, members: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    rows = []
    for column, (name, keep) in enumerate((name, keep) for name, keep in members.items() if keep.any()):
        row = gain(value, base, user, keep, column)
        counts = {"predictions": int(keep.sum()), "users": len(np.unique(user[keep]))}
        rows.append({"group": name, **counts, **{key: row[key] for key in ("base", "mean", "low", "high")}})
    return rows


def model_row(ranks: list[pl.DataFrame], validation: float | None) -> dict[str, Any]:
    by_seed = {metric: hits(ranks, metric).mean(1) for metric in ("recall@5", "mrr@5")}
    return {
        "mean": {metric: values.mean() for metric, values in by_seed.items()},
        "deviation": {m: values.std(ddof=1) if len(values) > 1 else None for m, values in by_seed.items()},
        "validation": validation,
    }


def recompute(folder: Path, splits: dict[str, pl.DataFrame], user_ids: np.ndarray, held_out: bool) -> dict[str, Any]:
    """All figures of the verdict, by loops over users, from the files of its runs; nothing of arnn_lightning.

    Args:
        folder: of the verdict.
        splits: the events of ``train``, ``val`` and ``test``.
        user_ids: (U,) the log's id of every user code.
        held_out: whether users are held out of training.
    """
    metrics = {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/metrics.json")}
    seconds = json.loads((folder / "seconds.json").read_text())
    names = ("session", "own", "permuted", "per_session")
    ranks = {
        name: read_ranks(*(folder / f"{name}-seed{seed}" / "test_ranks.parquet" for seed in (1, 2))) for name in names
    }
    ranks["context"] = read_ranks(*(folder / f"own-seed{seed}" / "test_ranks_context.parquet" for seed in (1, 2)))
    counted_ranks = {name: read_ranks(folder / f"non_neural-{name}" / "test_ranks.parquet") for name in ("pop", "sr")}
    validation = {name: np.mean([metrics[f"{name}-seed{seed}"]["val"]["mrr@5"] for seed in (1, 2)]) for name in names}
    validation |= {name: metrics[f"non_neural-{name}"]["val"]["mrr@5"] for name in counted_ranks}
    best = max(counted_ranks, key=lambda name: validation[name])

    value = {name: hits(of_model) for name, of_model in ranks.items()}
    user, item, position = (ranks["own"][0][column].to_numpy() for column in ("user", "item", "position"))
    everything, is_new = np.full(len(user), True), ~np.isin(user, splits["train"]["user"].to_numpy())
    own, session = value["own"], value["session"]
    gains = {
        "over_session": gain(own, session, user, everything),
        "over_per_session": gain(own, value["per_session"], user, everything),
        "content": gain(own, value["permuted"], user, everything),
        "recognition": gain(value["permuted"], value["per_session"], user, everything),
        "over_non_neural": gain(own, hits(counted_ranks[best] * 2), user, everything),
    }
    new_own, new_session, new_user = own[:, is_new], session[:, is_new], user[is_new]
    if held_out:
        files = [
            [folder / f"new_users-seed{s}" / f"test_ranks{role}.parquet" for s in (1, 2)] for role in ("", "_session")
        ]
        held_out_ranks, without = (read_ranks(*of_model) for of_model in files)
        new_own, new_session, new_user = hits(held_out_ranks), hits(without), held_out_ranks[0]["user"].to_numpy()
    gains["new_users"] = gain(new_own, new_session, new_user, np.full(len(new_user), True))
    family = sorted(
        (gains[name]["p_value"], name) for name in ("content", "recognition", "over_non_neural", "new_users")
    )
    claims, adjusted = {}, 0.0
    for place, (p_value, name) in enumerate(family):
        adjusted = max(adjusted, min(1.0, p_value * (len(family) - place)))
        result = "not significant" if adjusted >= 0.05 else "above 0" if gains[name]["mean"] > 0 else "below 0"
        claims[name] = {"p_value": p_value, "adjusted_p_value": adjusted, "result": result}
    smallest = 0.01 * gains["over_session"]["base"]
    both = [gains[name] for name in ("over_session", "over_per_session")]
    is_no, is_yes = any(row["high"] < smallest for row in both), all(row["low"] > 0 for row in both)

    n_events = np.bincount(splits["train"]["item"].to_numpy(), minlength=12)
    place_of = {code: place for place, code in enumerate(sorted(range(12), key=lambda code: (-n_events[code], code)))}
    place = np.array([place_of[code] for code in item])
    number = user_ids[user]
    has_age, age = number % 3 < 2, np.array(["young", "unknown", "(unknown)"])[number % 3]
    members = {
        "position": {"1": position == 1, "2": position == 2},
        "known_attributes": {"2": ~has_age, "3": has_age},
        "seen_in_training": {"unseen": is_new, "seen": ~is_new},
        "popularity": {"head 1 %": place == 0, "middle": (place > 0) & (place < 6), "tail": place >= 6},
    }
    values = {
        "team": {f"team{team}": number % 2 == team for team in (0, 1)},
        "age": {name: age == name for name in ("(unknown)", "unknown", "young")},
        "tags": {"a": everything, **{f"b{tag}": number % 5 == tag for tag in range(5)}},
    }
    for name, of_attribute in values.items():  # most predictions first
        values[name] = dict(sorted(of_attribute.items(), key=lambda member: -member[1].sum()))
    losses = []
    for attribute, name in enumerate(("tags", "team", "age")):
        hidden = read_ranks(*(folder / f"own-seed{s}" / "without_attribute" / f"{attribute}.parquet" for s in (1, 2)))
        row = gain(own, hits(hidden), user, everything)
        losses.append({"attribute": name, **{key: row[key] for key in ("mean", "low", "high")}})
    candidates = {"arnn_strong" if is_yes else "gru4rec_strong": validation["own" if is_yes else "session"]}
    a_seed = seconds["session-seed1"] * (1 + held_out) + seconds["own-seed1"] * (3 + held_out)
    arms = (*names, *(["new_users"] if held_out else []))
    order = ["non_neural-pop", "non_neural-sr", *(f"{name}-seed{seed}" for seed in (1, 2) for name in arms)]
    return {
        "helps": "no" if is_no else "yes" if is_yes else "unclear",
        "smallest_gain_absolute": smallest,
        "models": {name: model_row(of_model, validation.get(name)) for name, of_model in ranks.items()},
        "non_neural": {name: model_row(of_model, validation[name]) for name, of_model in counted_ranks.items()},
        "best_non_neural": best,
        "gains": gains,
        "claims": claims,
        "new_users": {
            "users": len(np.unique(new_user)),
            "predictions": len(new_user),
            "with_profiles": new_own.mean(),
            "held_out": held_out,
        },
        "groups": {by: group_rows(own, session, user, groups) for by, groups in members.items()},
        "attribute_values": {name: group_rows(own, session, user, groups) for name, groups in values.items()},
        "attributes": sorted(losses, key=lambda loss: -loss["mean"]),
        "splits": {
            name: {"events": len(events), **{f"{key}s": events[key].n_unique() for key in ("session", "user", "item")}}
            for name, events in splits.items()
        },
        "deploy": {"chosen_from": candidates | {name: validation[name] for name in counted_ranks}},
        "rising": [{"model": name, "epochs": 1} for name in ("gru4rec_strong", "arnn_strong")],
        "more_seeds": {"n_seeds": 3, "seconds": 1.1 * (a_seed + 3 * metrics["own-seed1"]["seconds"]["test"])},
        "runs": [{"folder": name, "seconds": round(seconds[name], 1)} for name in order],
        # settings
        "seeds": [1, 2],
        "budget": 1800,
        "smallest_gain": 0.01,
        "bootstrap": {"resamples": 60, "confidence": 0.95, "seed": 1},
    }


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """All values of a nested structure, by path."""
    if not isinstance(value, dict | list):
        return {path: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, part in parts for name, leaf in leaves(part, f"{path}/{key}").items()}


def numbers_of(values: dict[str, Any]) -> dict[str, float]:
    return {path: leaf for path, leaf in values.items() if isinstance(leaf, int | float) and not isinstance(leaf, bool)}


def require_recomputed(verdict: SimpleNamespace, shown: dict[str, Any], held_out: bool) -> None:
    """Every number of a verdict, and the words that follow from numbers, are those of ``recompute``."""
    splits = {name: pl.read_parquet(verdict.prepared.folder / f"{name}.parquet") for name in ("train", "val", "test")}
    user_ids = pl.read_parquet(verdict.prepared.folder / "users.parquet")["id"].cast(pl.Int64).to_numpy()
    expected = leaves(recompute(verdict.folder, splits, user_ids, held_out))
    known = leaves(shown)
    assert known.pop("/seconds") >= sum(row["seconds"] for row in shown["runs"]) - 0.05 * len(shown["runs"])  # a clock
    assert len(numbers := numbers_of(known)) > 200
    assert numbers.keys() - expected.keys() == set()
    for path, leaf in expected.items():
        assert known[path] == (leaf if isinstance(leaf, str | None) else pytest.approx(leaf, abs=1e-9)), path


def test_every_number_follows_from_files_of_the_runs(verdict: SimpleNamespace) -> None:
    assert not verdict.shown["new_users"]["held_out"]
    require_recomputed(verdict, verdict.shown, held_out=False)


def test_an_attribute_that_is_hidden_is_unknown(verdict: SimpleNamespace) -> None:
    whole = verdict.prepared
    users = WithoutAttribute(whole.folder, "team").users()
    assert users["context.team"].unique().to_list() == [0]
    assert users.drop("context.team").equals(whole.users().drop("context.team"))
    users = WithoutAttribute(whole.folder, "tags").users()
    assert users["active"].list.len().sum() == 0
    assert users.drop("active").equals(whole.users().drop("active"))


@pytest.mark.parametrize("page", ["verdict.html", "verdict.md"])
def test_every_figure_on_the_page_is_in_the_json(verdict: SimpleNamespace, page: str) -> None:
    text = (verdict.folder / page).read_text()
    if page.endswith(".html"):
        text = re.sub(r"<style>.*?</style>|<pre>.*?</pre>|<[^>]*>", " ", text, flags=re.DOTALL)
    text = re.sub(r"^    .*$|`[^`]*`", "", text, flags=re.MULTILINE)
    written = set(re.findall(r"(?<![\w@.,-])[+-]?\d[\d,]*\.\d+|[+-]\d+\.\d+", text))
    shown = json.loads((verdict.folder / "verdict.json").read_text())
    known = {
        written_as
        for value in numbers_of(leaves(shown)).values()
        for written_as in (f"{round(value, 4) + 0.0:+.4f}", f"{value:.4f}", f"{100 * value:+.1f}", f"{100 * value:.1f}")
    }
    assert len(written) > 30
    assert written <= known
    summary = shown["paragraph"].replace(f"{shown['answer']} ", "").removesuffix(shown["deployment"])
    assert summary in " ".join(text.split()).replace("&#39;", "'")
    assert shown["paragraph"].startswith(shown["advice"].split(". ")[0])
    assert shown["deployment"] in text


def test_verdict_md_has_the_sentences_of_the_page(verdict: SimpleNamespace) -> None:
    page = (verdict.folder / "verdict.html").read_text().replace("<code>", "`").replace("</code>", "`")
    paragraphs = [html.unescape(text) for text in re.findall(r"<(?:p|h1|h2|h3)(?: [^>]*)?>(.*?)</", page, re.DOTALL)]
    in_text = (verdict.folder / "verdict.md").read_text()
    assert len(paragraphs) > 20
    assert [text for text in paragraphs if text not in in_text] == []
    headings = re.findall("^#+ (.*)", in_text, re.MULTILINE)
    assert len(headings) == len({*headings}) > 10


def test_its_runs_are_ordinary_runs_of_the_report(
    verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(verdict.folder.parents[2])
    monkeypatch.setattr("arnn_lightning.reporting.charts._to_svg", lambda *_, **__: "<svg></svg>")
    assert arnn_here(["task=report", f"runs={verdict.folder}", "evaluation.bootstrap.resamples=20"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert f"{len(RUNS)} runs: " in printed
    assert "skipped" not in printed  # the verdict's own folder is no run
    whole = verdict.prepared
    loaded = [load_run(folder, {whole.manifest_sha256: None}) for folder in find_run_dirs([str(verdict.folder)])]
    assert sorted(run.folder.name for run in loaded if isinstance(run, Run)) == sorted(RUNS)


def test_the_deployed_model_is_trained_by_the_command(verdict: SimpleNamespace) -> None:
    deploy = verdict.shown["deploy"]
    trained = verdict.folder.parents[2] / deploy["trained"]
    assert (trained / "checkpoints" / "best.ckpt").is_file()
    assert metrics_of(trained)["model"] == deploy["model"]
    of_seeds = verdict.folder.glob(f"{trained.name.partition('seed')[0]}*")
    validation = {folder: metrics_of(folder)["val"]["mrr@5"] for folder in of_seeds}
    assert trained == max(validation, key=validation.__getitem__)
    helps = verdict.shown["helps"] == "yes"
    non_neural = {name: row for name, row in verdict.shown["non_neural"].items() if helps or not row["uses_profiles"]}
    rows = non_neural | {"own": verdict.shown["models"]["own" if helps else "session"]}
    names = {"own": "arnn_strong" if helps else "gru4rec_strong"}
    assert deploy["chosen_from"] == {names.get(name, name): row["validation"] for name, row in rows.items()}
    assert deploy["model"] == max(deploy["chosen_from"], key=deploy["chosen_from"].get)
    command = shlex.split(deploy["command"])
    assert command[:3] == ["python", "-m", "arnn_lightning"]
    assert f"model={deploy['model']}" in command
    recorded = OmegaConf.load(trained / ".hydra" / "overrides.yaml")
    assert {*command[3:], "logger=csv", "task=train"} == {*recorded}


@pytest.mark.usefixtures("in_workspace")
def test_users_are_held_out_where_the_log_has_few_new_ones(
    verdict: SimpleNamespace, trained: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arnn_lightning.reporting.verdict_figures.MIN_NEW_USERS", 121)  # there are 120
    assert arnn_here(VERDICT, monkeypatch) == 0
    assert trained == ["arnn_strong own 1", "arnn_strong own 2"]
    require_recomputed(verdict, json.loads((verdict.folder / "verdict.json").read_text()), held_out=True)


@pytest.mark.usefixtures("in_workspace")
def test_a_budget_for_less_than_two_seeds_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arnn_lightning.sweeps.plan.time", SimpleNamespace(monotonic=count().__next__))  # 1 s an epoch
    command = [*VERDICT, "budget=1s", "hydra.run.dir=short"]
    assert arnn_here(command, monkeypatch) == 0
    shown = json.loads(Path("short/verdict.json").read_text())
    assert (shown["helps"], shown["seeds"]) == ("unclear", [])
    assert shown["seconds_needed"] > 1
    assert f"budget={math.ceil(shown['seconds_needed'] / 60)}m or more" in shown["paragraph"]
    assert "budget of 1s is too small for two seeds" in shown["paragraph"]
    assert "amount of data" not in shown["paragraph"]  # the remedy is time, not more data
    assert not list(Path("short").glob("*/metrics.json"))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("budget=15", "budget=15: must be a duration such as 90s, 15m or 2h"),
        ("budget=0m", "budget=0m: must be a duration such as 90s, 15m or 2h"),
        ("non_neural=[pop,srr]", 'non_neural=srr: no such model (did you mean "sr"?)'),
        ("non_neural=[gru4rec]", "non_neural=gru4rec: is trained; non_neural takes non-neural models, such as sr"),
        ("max_seeds=1", "max_seeds=1: must be an integer of at least 2"),
        (
            "data.contexts.assignment=unknown",
            "data.contexts.assignment: task=verdict sets it for each run; leave it out",
        ),
        (
            "evaluation.bootstrap.unit=session",
            "evaluation.bootstrap.unit: task=verdict resamples users, who have profiles; leave it out",
        ),
        ("model=gru4rec", "model has no effect: task=verdict trains its models with their own settings"),
    ],
)
def test_wrong_settings_are_one_line(
    override: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arnn_here(["task=verdict", override], monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.usefixtures("in_workspace")
def test_data_without_attributes_or_validation_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = ["task=verdict", "data=tabular", "data.events=log.csv", "hydra.run.dir=refused"]
    assert arnn_here([*log, "data.split.val_days=0"], monkeypatch) == 2
    assert "data=tabular has no attributes; list them in data.contexts" in capsys.readouterr().err
    assert arnn_here([*log, "data.contexts.single=[team]", "data.split.val_days=0"], monkeypatch) == 2
    assert "has no validation split: set data.split.val_days" in capsys.readouterr().err
    assert not Path("refused").exists()


def test_epochs_of_an_earlier_attempt_do_not_make_epochs_look_short() -> None:
    """Each takes at least .05 s, ten .5 s, and two seeds of four runs 4 s."""
    callback = FirstEpoch(budget=3.0, compiles=False)
    callback.on_train_start(None, None)  # type: ignore[arg-type]
    time.sleep(0.05)
    with pytest.raises(TooSlowError):
        callback.on_train_epoch_end(SimpleNamespace(current_epoch=9, max_epochs=10), None)  # type: ignore[arg-type]


def test_the_first_run_ends_where_its_epochs_leave_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of four runs, each as long as five epochs of the mean length so far."""
    clock = iter([0.0, 2.0, 6.0])
    monkeypatch.setattr("arnn_lightning.sweeps.plan.time", SimpleNamespace(monotonic=lambda: next(clock)))
    callback, trainer = FirstEpoch(budget=80.0, compiles=False), SimpleNamespace(max_epochs=5)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(TooSlowError) as too_slow:
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert too_slow.value.args == (120.0,)


def test_the_time_of_compiling_is_not_that_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 60.0, 62.0, 65.0])
    monkeypatch.setattr("arnn_lightning.sweeps.plan.time", SimpleNamespace(monotonic=lambda: next(clock)))
    callback, trainer = FirstEpoch(budget=80.0, compiles=True), SimpleNamespace(max_epochs=5)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    for _ in range(2):
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(TooSlowError) as too_slow:
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert too_slow.value.args == (100.0,)


def test_costs_are_those_of_the_first_runs() -> None:
    metrics = {"seconds": {"prepare": 1.0, "test": 4.0}}
    first = {"session": SimpleNamespace(seconds=20.0), "own": SimpleNamespace(seconds=30.0, metrics=lambda: metrics)}
    non_neural = [SimpleNamespace(seconds=2.0), SimpleNamespace(seconds=3.0)]
    assert measured_costs(non_neural, first, 3) == Costs(5.0, 20.0, 30.0, 12.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_new", "lacks"), [(99, True), (100, False)])
def test_a_hundred_test_users_without_training_are_enough(n_new: int, lacks: bool, tmp_path: Path) -> None:
    pl.DataFrame({"user": range(200)}).write_parquet(tmp_path / "train.parquet")
    pl.DataFrame({"user": [*range(50, 200 + n_new), 200]}).write_parquet(tmp_path / "test.parquet")
    assert lacks_new_users(SimpleNamespace(folder=tmp_path)) == lacks  # type: ignore[arg-type]


def test_durations_are_seconds() -> None:
    assert [seconds_of(text) for text in ("90s", "15m", "2h")] == [90, 900, 7200]


def test_a_damaged_file_of_seconds_is_named(tmp_path: Path) -> None:
    for damage in ("", "[]", '{"own-seed1": null}'):
        (tmp_path / "seconds.json").write_text(damage)
        with pytest.raises(UserError, match=r"seconds\.json: damaged; delete it"):
            spent_seconds(tmp_path)


def test_the_command_of_a_run_has_overrides_in_the_order_of_the_run() -> None:
    """Hydra takes the last: the run's own share of held-out users, 0.2, replaces the verdict's."""
    job = seed_jobs(Path("verdict"), 1, True)["new_users"]
    command = shlex.split(job.command(["data=log", "data.held_out_user_share=0.1"]))
    assert command[3:] == [
        *("data=log", "data.held_out_user_share=0.1"),
        *("model=arnn_strong", "data.held_out_user_share=0.2", "seed=1"),
    ]


def test_the_plan_has_what_fits_into_the_budget() -> None:
    costs = Costs(non_neural=10, session=20, profile=30, attributes=5)  # 1.1 (20 + 3 * 30 + 5) = 126.5 a seed
    assert make_plan(390, costs, 5, False) == Plan(3, False, True, pytest.approx(389.5))
    assert make_plan(3600, costs, 5, False).n_seeds == 5
    # Held-out users cost 55 more a seed, a third seed comes first.
    assert make_plan(390, costs, 5, True) == Plan(3, False, True, pytest.approx(389.5))
    assert make_plan(555, costs, 5, True) == Plan(3, True, True, pytest.approx(554.5))
    assert make_plan(540, Costs(10, 20, 30, 60), 5, True) == Plan(3, True, False, pytest.approx(538))
    # Without attributes a seed takes 121.
    assert make_plan(380, costs, 5, True) == Plan(3, False, False, pytest.approx(373))
    assert make_plan(300, costs, 5, False) == Plan(2, False, True, pytest.approx(263))
    assert make_plan(200, costs, 5, False) == Plan(0, False, False, pytest.approx(252))
    for budget in range(0, 2000, 7):
        plan = make_plan(budget, costs, 4, True)
        assert plan.n_seeds == 0 or plan.seconds <= budget


def test_a_larger_plan_names_what_limits_the_seeds() -> None:
    costs = Costs(non_neural=10, session=20, profile=30, attributes=5)  # 126.5 a seed
    two = make_plan(3600, costs, 2, False)
    more = extend_plan(two, 2, 3600, 263, costs, 2, False)
    assert (more.n_seeds, more.settings, more.limited_by) == (3, ("max_seeds=3",), "max_seeds")
    assert more.seconds == pytest.approx(126.5)
    two = make_plan(300, costs, 5, False)
    more = extend_plan(two, 2, 300, 263, costs, 5, False)
    assert (more.n_seeds, more.settings, more.limited_by) == (3, ("budget=7m",), "budget")
    line = plan_line(two, costs, "300s", 2, " ".join(more.settings))
    assert line.endswith("; two seeds are seldom enough; for three, set budget=7m")
    assert "seldom" not in plan_line(make_plan(3600, costs, 5, False), costs, "1h", 2, "")
    assert extend_plan(two, 2, 300, 263, costs, 2, False).settings == ("max_seeds=3", "budget=7m")
    assert extend_plan(two, 2, 300, 263, costs, 5, True).settings == ("budget=7m",)  # not that for held-out users
    five = make_plan(3600, costs, 5, False)
    assert extend_plan(five, 5, 3600, 0, costs, 5, False).complete_budget == "11m"
    assert [extend_plan(five, n, 3600, 0, costs, 5, False).n_seeds for n in (3, 5, 6)] == [5, 10, 12]
    assert extend_plan(two, 3, 300, 1000, costs, 5, False).settings == ("budget=21m",)  # slower than measured
    for budget in range(263, 2000, 7):
        plan = make_plan(budget, costs, 4, True)
        more = extend_plan(plan, plan.n_seeds, budget, 0, costs, 4, True)
        enough = next((60 * int(text[7:-1]) for text in more.settings if text.startswith("budget=")), budget)
        larger = make_plan(enough, costs, more.n_seeds, True)
        assert plan.seconds + more.seconds == pytest.approx(larger.seconds)  # with what it adds to earlier seeds
        assert make_plan(enough, costs, max(4, more.n_seeds), True).n_seeds >= more.n_seeds > plan.n_seeds
        complete = make_plan(60 * int(more.complete_budget[:-1]), costs, 4, True)
        assert complete.holds_out_users
        assert complete.hides_attributes


def test_the_line_of_a_plan_names_its_parts() -> None:
    costs = Costs(non_neural=10, session=20, profile=30, attributes=5)
    whole = plan_line(Plan(3, True, True, 95), costs, "2m", 1, "")
    assert whole.endswith("arnn_strong trained without a fifth of the users, tests without the attribute: 1m35s in all")
    assert plan_line(Plan(3, False, False, 95), costs, "2m", 1, "").endswith("per-session profiles: 1m35s in all")
    several = plan_line(Plan(3, False, True, 95), costs, "2m", 2, "")
    assert several.endswith("per-session profiles, tests without each of 2 attributes in turn: 1m35s in all")
    too_small = "budget=1m is too small for two seeds, which need about 1m35s: nothing more is trained"
    assert plan_line(Plan(0, False, False, 95), costs, "1m", 2, "").endswith(too_small)


def shown_figures(helps: str, content: bool = True, recognition: bool = True, **changed: Any) -> dict[str, Any]:
    """The figures of a verdict with given answers."""
    gain = {
        "mean": 0.02,
        "low": 0.01,
        "high": 0.05,
        "relative": 0.1,
        "base": 0.2,
        "user_error": 0.01,
        "seed_error": 0.02,
    }
    names = ("over_session", "over_per_session", "content", "recognition", "over_non_neural", "new_users")
    holds = dict.fromkeys(names[2:], True) | {"content": content, "recognition": recognition}
    claims = {
        name: {"result": "above 0" if is_above else "not significant", "adjusted_p_value": 0.08}
        for name, is_above in holds.items()
    }
    row = {"mean": {"recall@20": 0.5, "mrr@20": 0.2}}
    return {
        "helps": helps,
        "seeds": [1, 2, 3],
        "metric": "mrr@20",
        "profile_model": "arnn_strong",
        "session_model": "gru4rec_strong",
        "context_model": "pnn",
        "models": {"own": {"mean": {"recall@20": 0.55, "mrr@20": 0.22}}, "session": row, "context": row},
        "non_neural": {"vsknn": row},
        "bootstrap": {"confidence": 0.95},
        "smallest_gain": 0.01,
        "smallest_gain_absolute": 0.06,
        "gains": {name: dict(gain) for name in names},
        "claims": claims,
        "attributes": [{"attribute": "region", "mean": 0.0123, "low": 0.01, "high": 0.02}],
        "new_users": {"users": 1200, "held_out": True, "with_profiles": 0.22},
        "holds_out_users": True,
        "best_non_neural": "vsknn",
        "splits": {"test": {"users": 1500}},
        "more_seeds": {
            "settings": ["max_seeds=5"],
            "limited_by": "max_seeds",
            "seconds": 95,
            "complete_budget": "9m",
        },
        "rising": [],
        "deploy": {
            "model": "vsknn",
            "non_neural": True,
            "uses_profiles": False,
            "chosen_from": {"vsknn": 0.21, "gru4rec_strong": 0.2, "pop": 0.1},
        },
    } | changed


def paragraph(helps: str, content: bool, recognition: bool) -> str:
    return " ".join(sentences(shown_figures(helps, content, recognition)))


def test_an_unclear_verdict_states_what_would_decide_it() -> None:
    figures = shown_figures("unclear")
    figures["gains"]["over_session"]["low"] = -0.1
    undecidable = {name: gain | {"user_error": 0.03} for name, gain in figures["gains"].items()}
    text = " ".join(sentences(figures | {"gains": undecidable}))
    assert "too few seeds (3) and too few test users (1,500): with the gains measured so far, more seeds alone" in text
    assert "run the same command" in " ".join(sentences(figures | {"gains": undecidable, "seeds": [1, 2]}))
    for confidence, alone in ((0.95, False), (0.99, True)):  # .02 - 2.58 x .01 < 0, and .02 + 2.58 x .01 > .04
        wider = figures | {"smallest_gain_absolute": 0.04, "bootstrap": {"confidence": confidence}}
        assert ("more seeds alone would not decide it" in " ".join(sentences(wider))) == alone
    text = " ".join(sentences(figures))
    assert text.startswith("Keep the existing profiles")
    assert "Whether profiles help cannot be decided with 3 seeds." in text
    remedy = "run the same command with max_seeds=5, which takes about 1m35s more."
    assert f"There are too few seeds (3, limited by max_seeds=3): {remedy}" in text
    best = "the best on validation of the models without profiles (MRR@20: vsknn 0.2100, gru4rec_strong 0.2000)"
    assert f"Until this is decided, deploy vsknn, {best}." in text
    by_budget = figures["more_seeds"] | {"limited_by": "budget", "settings": ["budget=9m"]}
    text = " ".join(sentences(figures | {"more_seeds": by_budget}))
    assert "limited by the budget" in text
    assert "run the same command with budget=9m" in text
    # The t value of three seeds is 2.2 times the normal one.
    figures["gains"]["over_session"]["seed_error"] = 0.0046
    assert "cannot be decided with 3 seeds" in " ".join(sentences(figures))
    figures["gains"]["over_session"]["seed_error"] = 0.0044
    text = " ".join(sentences(figures))
    assert "Whether profiles help cannot be decided with this amount of data." in text
    assert "There are too few test users (1,500): use a longer log" in text
    assert "max_seeds" not in text
    figures["gains"]["over_session"]["seed_error"] = figures["gains"]["over_per_session"]["seed_error"] = 0.0
    assert "cannot be decided with 2 seeds" in sentences(figures | {"seeds": [1, 2]})[1]  # however equal they are


def test_an_uncorrected_interval_above_0_is_worded_as_such() -> None:
    figures = shown_figures("yes", content=False, recognition=False)
    by_itself = "above 0 only without correction for 4 comparisons"
    assert outcome(figures, "content") == by_itself
    assert outcome(figures, "over_session") == "above 0"
    text = " ".join(sentences(figures))
    assert f"content of the profile: +0.0100 to +0.0500, {by_itself})" in text
    figures["claims"]["new_users"]["result"] = figures["claims"]["over_non_neural"]["result"] = "not significant"
    text = " ".join([*sentences(figures), *remarks(figures)])
    assert text.count(f"+0.0500), {by_itself} (corrected p = 0.0800).") == 2
    assert "not significant" not in text
    figures["gains"]["new_users"]["low"] = -0.01
    assert "(+10.0%, -0.0100 to +0.0500), which is not significant." in " ".join(sentences(figures))
    for high, words in ((0.01, "not significant"), (-0.01, by_itself.replace("above", "below"))):
        figures["gains"]["new_users"] |= {"mean": -0.02, "low": -0.05, "high": high}
        assert outcome(figures, "new_users") == words


def test_figures_are_clear_without_the_answer_before_them() -> None:
    """The page has the answer as its headline, and leaves it out of the paragraph."""
    size = next(sentence for sentence in sentences(shown_figures("yes")) if " with " in sentence)
    assert " with profiles (arnn_strong) and " in size


def test_recognition_is_excluded_only_below_the_smallest_gain() -> None:
    assert "), not from recognising the user: with profiles permuted" in paragraph(
        "yes", content=True, recognition=False
    )
    figures = shown_figures("yes", content=True, recognition=False, smallest_gain_absolute=0.002)
    assert "while a contribution of recognising the user is not significant" in " ".join(sentences(figures))
    figures = shown_figures("yes", content=False, recognition=True, smallest_gain_absolute=0.002)
    assert ": any persistent user ID may work" in " ".join(sentences(figures))


def test_the_page_states_what_to_do_with_the_profiles() -> None:
    limits = {"plan": (0.05, 0.09), "city": (0.0005, 0.001), "country": (-0.01, 0.001), "age": (-0.01, 0.05)}
    rows = [{"attribute": name, "mean": low, "low": low, "high": high} for name, (low, high) in limits.items()]
    deploy = shown_figures("yes")["deploy"]
    with_profiles = deploy | {"uses_profiles": True}
    advice = profile_advice(shown_figures("yes", smallest_gain_absolute=0.002, attributes=rows, deploy=with_profiles))
    keep, drop, undecided, one_by_one = advice
    assert keep == "Keep and collect the attribute plan."
    assert drop.startswith("The attributes city and country can be dropped: the decrease without each is below 0.0020")
    assert one_by_one.startswith("Drop one at a time: ")
    assert undecided.startswith(
        "Keep the attribute age for now: the interval of the decrease without it includes 0, but also decreases of"
    )
    without_profiles = shown_figures("yes", smallest_gain_absolute=0.002, attributes=rows, deploy=deploy)
    unused, instead = profile_advice(without_profiles)
    assert unused == "No profiles are needed for vsknn, the best model on validation."
    assert instead == f"If arnn_strong is deployed instead: {' '.join(advice)}"
    assert answer(without_profiles) == "Profiles help, but the best model uses none."
    one = profile_advice(shown_figures("yes", smallest_gain_absolute=0.002, attributes=rows[:2], deploy=with_profiles))
    assert [line.partition(":")[0] for line in one] == [
        "Keep and collect the attribute plan.",
        "The attribute city can be dropped",
    ]
    assert "any persistent user ID" in profile_advice(shown_figures("yes", deploy=with_profiles))[0]
    untested = shown_figures("yes", smallest_gain_absolute=0.002, attributes=[], deploy=with_profiles)
    assert profile_advice(untested)[0] == "Keep the profiles."
    assert profile_advice(untested)[1].endswith("was not tested; budget=9m is large enough to test it.")
    recognised = profile_advice(shown_figures("yes", content=False, smallest_gain_absolute=0.002, deploy=with_profiles))
    assert recognised[0].startswith("Keep the existing profiles, but do not collect more: they have only been shown")
    assert "region" not in " ".join(recognised)
    undecided = shown_figures(
        "yes", content=False, recognition=False, smallest_gain_absolute=0.002, deploy=with_profiles
    )
    assert profile_advice(undecided) == [
        "Keep the attribute region, but do not collect more profiles until it is decided whether their content is "
        "useful."
    ]
    assert profile_advice(shown_figures("no")) == ["No profiles need to be collected for these recommendations."]
    assert "until it is decided" in profile_advice(shown_figures("unclear"))[0]


@pytest.mark.parametrize("helps", ["yes", "no", "unclear"])
def test_the_paragraph_is_short_and_starts_with_the_profiles(helps: str) -> None:
    figures = shown_figures(helps, smallest_gain_absolute=0.06 if helps == "no" else 0.002)
    if helps == "unclear":
        figures["gains"]["over_session"]["low"] = -0.1
    action, answer, *with_figures = sentences(figures)
    assert action == profile_advice(figures)[0]
    assert answer.startswith({"yes": "Profiles help", "no": "Profiles do not help"}.get(helps, "Whether profiles help"))
    assert 3 <= len(with_figures) <= 5
    assert all(len(sentence) < 230 for sentence in with_figures)
    assert " ".join([*sentences(figures), *remarks(figures)]).count("For the 1,200 users held out of training, ") == 1


def test_new_users_who_lose_get_the_session_model() -> None:
    deploy = {"model": "arnn_strong", "non_neural": False, "uses_profiles": True, "chosen_from": {"arnn_strong": 0.2}}
    figures = shown_figures("yes", deploy=deploy)
    clause = "; for users without a training session, gru4rec_strong."
    assert clause not in " ".join(sentences(figures))
    figures["claims"]["new_users"]["result"] = "below 0"
    text = " ".join(sentences(figures))
    assert clause in text
    assert "(+10.0%, +0.0100 to +0.0500), a loss." in text
    figures["deploy"] = shown_figures("yes")["deploy"]  # which uses no profiles
    assert clause not in " ".join(sentences(figures))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("above 0", "is worse than arnn_strong"),
        ("below 0", "is better than arnn_strong"),
        ("not significant", "does not differ significantly from arnn_strong"),
    ],
)
def test_the_best_non_neural_model_is_judged(result: str, words: str) -> None:
    figures = shown_figures("yes")
    figures["claims"]["over_non_neural"]["result"] = result
    figures["gains"]["over_non_neural"]["low"] = -0.01
    assert f"vsknn, the best non-neural model, has a test MRR@20 of 0.2000 and {words}." in remarks(figures)


def test_a_recommended_budget_exceeds_the_estimate_by_a_quarter() -> None:
    """With the budget that a first verdict names, a second must not find that a few seconds are missing."""
    figures = {"seeds": [], "seconds_needed": 175.0, "budget": 60.0}
    assert sentences(figures)[-1] == "Run the same command with budget=4m or more."


def test_untested_new_users_name_the_budget() -> None:
    figures = shown_figures("yes", new_users=None, holds_out_users=False)
    assert "budget=9m is large enough" in " ".join(remarks(figures))
    figures = shown_figures("yes", new_users=None)
    assert "budget" not in " ".join(remarks(figures))


def test_another_order_by_another_metric_is_named() -> None:
    figures = shown_figures("yes")
    assert "has the highest" not in " ".join(remarks(figures))
    figures["non_neural"] = {"vsknn": {"mean": {"recall@20": 0.6, "mrr@20": 0.2}}}
    assert (
        "vsknn has the highest test Recall@20 (0.6000; arnn_strong 0.5500); the difference was not tested."
        in remarks(figures)
    )
    figures["models"]["context"] = {"mean": {"recall@20": 0.5, "mrr@20": 0.3}}
    assert [line for line in remarks(figures) if " has the highest test " in line] == [  # by the verdict's metric first
        "pnn, the context encoder of arnn_strong, has the highest test MRR@20 (0.3000; arnn_strong 0.2200); the "
        "difference was not tested. A context encoder alone is not a candidate for deployment.",
        "vsknn has the highest test Recall@20 (0.6000; arnn_strong 0.5500); the difference was not tested.",
    ]
    figures = shown_figures("yes", non_neural={"vsknn": {"mean": {"recall@20": 0.5, "mrr@20": 0.3}}})
    assert (
        "arnn_strong has the highest test Recall@20 (0.5500; vsknn 0.5000); the difference was not tested."
        in remarks(figures)
    )


def test_a_validation_metric_that_still_improves_is_named() -> None:
    row = {"model": "arnn_strong", "epochs": 2, "is_capped": True}
    text = sentences(shown_figures("yes", rising=[row]))[-2]
    assert text.startswith("Most runs of arnn_strong (2 epochs) were best in their last epoch")
    assert "trainer.max_epochs" in text
    assert "model.epochs" in sentences(shown_figures("yes", rising=[row | {"is_capped": False}]))[-2]


def test_the_paragraph_names_the_source_of_a_gain() -> None:
    assert "It comes from the content of the profile" in paragraph("yes", content=True, recognition=False)
    assert "which is too little to matter" in paragraph("yes", content=False, recognition=True)
    assert "for which any persistent user ID would do" in paragraph("yes", content=True, recognition=True)
    assert "cannot be decided" in paragraph("yes", content=False, recognition=False)
    assert "comes from" not in paragraph("no", content=True, recognition=True)
    assert "Both intervals end below 0.0600" in paragraph("no", content=True, recognition=True)
    for name, which in (("over_session", "second"), ("over_per_session", "first")):
        figures = shown_figures("no")
        figures["gains"][name]["high"] = 0.07
        assert f"The {which} interval ends below 0.0600" in " ".join(sentences(figures))
    most = "most useful attribute is region: without it, MRR@20 falls by 0.0123"
    assert most in " ".join(remarks(shown_figures("yes")))
    assert "most useful attribute" not in " ".join(remarks(shown_figures("yes", content=False)))
    unclear = shown_figures("yes", attributes=[{"attribute": "region", "mean": 0.0123, "low": -0.01, "high": 0.02}])
    assert "most useful attribute" not in " ".join(remarks(unclear))
    assert "For the 1,200 users held out of training" in paragraph("no", content=True, recognition=True)


def test_the_best_epoch_is_that_of_the_largest_last_value(tmp_path: Path) -> None:
    job = seed_jobs(tmp_path, 1, False)["own"]
    job.folder.mkdir()
    for values, is_last in (([1, 2, 3], True), ([1, 3, 2], False)):
        rows = pl.DataFrame({"metric": "val/ndcg", "epoch": [0, 1, 2], "value": values})
        rows.write_csv(job.folder / "metrics.csv")
        assert job.was_best_in_last_epoch("ndcg") == is_last
    # A resumed run has an epoch twice.
    rows = pl.DataFrame({"metric": "val/ndcg", "epoch": [0, 1, 2, 2], "value": [3, 1, 4, 2]})
    rows.write_csv(job.folder / "metrics.csv")
    assert not job.was_best_in_last_epoch("ndcg")


def test_seconds_of_runs_without_attempts_are_their_own(tmp_path: Path) -> None:
    for name in ("own-seed1", "own-seed2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"seconds": {"train": 2, "test": 1}}')
    (tmp_path / "seconds.json").write_text('{"own-seed1": 9}')
    assert spent_seconds(tmp_path) == {"own-seed1": 9, "own-seed2": 3}


def test_runs_without_some_users_are_of_the_same_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a data set of their own, of the same raw files."""
    for name, digest in (("log-1", "a"), ("log-2", "a"), ("log-3", "b")):
        folder = tmp_path / "prepared" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"raw": {"clicks.csv": digest}, "name": name}))
    jobs = seed_jobs(tmp_path / "verdict", 1, holds_out_users=True)
    for job in jobs.values():
        job.folder.mkdir(parents=True)
        (job.folder / "metrics.json").write_text(json.dumps({"manifest": "another"}))
    runs = VerdictRuns.__new__(VerdictRuns)
    runs.prepared = PreparedDataset(tmp_path / "prepared" / "log-1")
    for name, names in (("log-1", {"own", "new_users"}), ("log-2", {"new_users"}), ("log-3", set()), ("gone", set())):
        monkeypatch.setattr(verdict_runs, "read_checkpoint", lambda _, name=name: {"metadata": {"prepared": name}})
        for job_name in ("own", "new_users"):
            if job_name in names:
                runs.require_comparable([jobs[job_name]])
            else:
                with pytest.raises(UserError, match="was trained on another log"):
                    runs.require_comparable([jobs[job_name]])


def finished(name: str, validation: float) -> SimpleNamespace:
    """A run with a value on validation."""
    metrics = {"val": {"mrr@20": validation}}
    return SimpleNamespace(
        description=name, folder=Path(name), metrics=lambda: metrics, command=lambda given: f"{name} {given}"
    )


def results_of_runs(non_neural: dict[str, float], **by_seed: list[float]) -> VerdictResults:
    """Of runs with these values on validation."""
    config = OmegaConf.create({"evaluation": {"monitor": "mrr@20"}})
    jobs: Any = [
        {name: finished(f"{name}-{seed}", values[seed]) for name, values in by_seed.items()} for seed in range(2)
    ]
    runs: Any = [finished(name, value) for name, value in non_neural.items()]
    plan = Plan(2, False, False, 0.0)
    return VerdictResults(config, None, [], plan, runs, jobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("helps", "sr", "deployed", "uses_profiles"),
    [
        ("yes", 0.5, "vstan_context", True),
        ("yes", 0.9, "sr", False),
        ("no", 0.5, "sr", False),
        ("unclear", 0.5, "sr", False),
    ],
)
def test_models_with_profiles_are_deployed_where_profiles_help(
    helps: str, sr: float, deployed: str, uses_profiles: bool
) -> None:
    non_neural = {"sr": sr, "vstan_context": 0.8}
    rows = {"sr": {"uses_profiles": False}, "vstan_context": {"uses_profiles": True}}
    results = results_of_runs(non_neural, own=[0.7, 0.6], session=[0.2, 0.4])
    validation = non_neural | {"own": 0.65, "session": 0.3}
    deploy = results._deployment({"helps": helps, "non_neural": rows}, validation, [])
    assert (deploy["model"], deploy["uses_profiles"], deploy["non_neural"]) == (deployed, uses_profiles, True)
    assert ("vstan_context" in deploy["chosen_from"]) == (helps == "yes")


@pytest.mark.parametrize(("helps", "trained"), [("yes", "own-0"), ("unclear", "session-1")])
def test_the_best_seed_on_validation_is_deployed(helps: str, trained: str) -> None:
    results = results_of_runs({}, own=[0.7, 0.6], session=[0.2, 0.4])
    deploy = results._deployment({"helps": helps, "non_neural": {}}, {"own": 0.65, "session": 0.3}, [])
    assert (deploy["trained"], deploy["non_neural"], deploy["uses_profiles"]) == (trained, False, helps == "yes")
    assert deploy["command"] == f"{trained} []"


def test_one_of_two_runs_that_still_improve_is_not_most() -> None:
    results = results_of_runs({}, own=[0.7, 0.6])
    for job, is_rising in zip(results.jobs, (True, False), strict=True):
        vars(job["own"])["was_best_in_last_epoch"] = lambda _, is_rising=is_rising: is_rising
    assert results._rising("own") == []


class TimedRuns:
    """Runs that record 10 s each, and take ``seconds_per_run``."""

    def __init__(self, seconds_per_run: float, seconds: float = 0.0) -> None:
        self.seconds, self.seconds_per_run = seconds, seconds_per_run

    def execute(self, job: Job, *_: Any) -> None:
        if not job.is_finished:
            job.folder.mkdir(parents=True)
            (job.folder / "metrics.json").write_text('{"seconds": {"train": 9, "test": 1}}')
            self.seconds += self.seconds_per_run

    def require_comparable(self, jobs: Any) -> None:
        pass

    def hide_attributes(self, job: Job, attributes: Any) -> None:
        pass


def test_two_seeds_are_completed_and_more_only_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed is planned to take 45 s, so that four fit into 200 s."""
    monkeypatch.setattr("arnn_lightning.tasks.verdict.has_record", lambda _: True)
    concluded = []

    def seeds_of(folder: Path, *seconds: float) -> list[int]:
        verdict: Any = Verdict.__new__(Verdict)
        verdict.config = compose_config("task=verdict", "seed=1", "max_seeds=9", "budget=200s")
        verdict.folder, verdict.budget, verdict.non_neural, verdict.attributes = folder, 200.0, [], ["team"]
        verdict.plan, verdict.lacks_new_users = Plan(0, False, False, 0.0), False
        verdict.runs = TimedRuns(*seconds)
        verdict._conclude = lambda seeds, _: concluded.append(seeds)
        verdict.run()
        return concluded.pop()

    assert seeds_of(tmp_path / "as planned", 10) == [1, 2, 3, 4]
    assert seeds_of(tmp_path / "faster", 5) == [1, 2, 3, 4]
    assert seeds_of(tmp_path / "slower", 15) == [1, 2, 3]
    assert seeds_of(tmp_path / "slowest", 60) == [1, 2]
    assert seeds_of(tmp_path / "as planned", 60, 1000) == [1, 2, 3, 4]  # which are finished
    assert seeds_of(tmp_path / "slowest", 10) == [1, 2, 3, 4]  # two are
    for seed in range(1, 6):
        TimedRuns(10).execute(seed_jobs(tmp_path / "partly", seed, False)["session"])
    assert seeds_of(tmp_path / "partly", 10) == [1, 2, 3, 4]  # none is


def test_the_best_non_neural_model_is_that_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_groups", "_attribute_values"):
        monkeypatch.setattr(VerdictFigures, name, lambda *_: {})
    monkeypatch.setattr(VerdictFigures, "_new_users", lambda *_: (None, None))

    def result(rank: float) -> EvaluationResult:
        ranks = {"session": range(3), "position": 1, "user": range(3), "item": 0, "rank": rank}
        return EvaluationResult("", pl.DataFrame(ranks))

    bootstrap = {"resamples": 20, "confidence": 0.9, "unit": "user"}
    figures = VerdictFigures(None, [], "mrr@20", ["mrr@20"], bootstrap, 1, 0.01)  # type: ignore[arg-type]
    models = {name: [result(2.0)] * 2 for name in ("own", "session", "permuted", "per_session")}
    non_neural = {"pop": result(1.0), "sr": result(4.0)}  # on the test split, the order is the other
    shown = figures.compute(models, non_neural, {"pop": 0.1, "sr": 0.3}, None, [])
    assert shown["best_non_neural"] == "sr"
    assert shown["gains"]["over_non_neural"]["base"] == 0.25
