"""task=verdict: the plan, and one small verdict end to end: interrupted, resumed, and computed again from its ranks."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf
from scipy.stats import t as student_t

from arnn_lightning.preprocessing.dataset import PreparedDataset, WithoutAttribute
from arnn_lightning.reporting.runs import Run, find_run_dirs, load_run
from arnn_lightning.reporting.verdict import outcome, profile_advice, remarks, sentences
from arnn_lightning.sweeps.plan import Costs, Plan, extend_plan, make_plan, plan_line, seconds_of
from arnn_lightning.tasks import train
from commandline import arnn_here, metrics_of

SETTINGS = ["trainer.max_epochs=1", "evaluation.bootstrap.resamples=60", "evaluation.cutoffs=[5]"]
DATA = ["data=tabular", "data.events=log.csv", "data.contexts.single=[team,age]", "data.contexts.multi=[tags]"]
VERDICT = ["task=verdict", *DATA, *SETTINGS, "evaluation.monitor=mrr@5", "max_seeds=2", "counted=[pop,sr]"]
RUNS = ["counted-pop", "counted-sr"]
RUNS += [f"{arm}-seed{seed}" for seed in (1, 2) for arm in ("own", "per_session", "permuted", "session")]


def write_log(file: Path) -> None:
    """Five days; 120 users in all of them, 120 on the last alone. A user's team decides which item comes next."""
    rng = np.random.default_rng(1)
    rows = ["user,item,time,team,age,tags"]
    for user in range(240):
        team, age = user % 2, ("young", "old", "")[user % 3]
        for day in range(5) if user < 120 else (4,):
            item = int(rng.integers(12))
            for event in range(3):
                time = f"2024-01-0{day + 1}T10:{event:02}:00"
                rows.append(
                    f'{user},{(item + (1 if team else -1) * event) % 12},{time},team{team},{age},"a,b{user % 5}"'
                )
    file.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A verdict whose fifth training is interrupted, and which the same command resumes."""
    root = tmp_path_factory.mktemp("verdict")
    trained: list[str] = []

    def train_or_interrupt(config: Any, *arguments: Any) -> float | None:
        trained.append(f"{config.model.name} {config.data.contexts.assignment} {config.seed}")
        if len(trained) == 5:
            raise KeyboardInterrupt
        return original(config, *arguments)

    original = train.train
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("ARNN_DATA", raising=False)
        write_log(root / "log.csv")
        patch.setattr(train, "train", train_or_interrupt)
        interrupted = arnn_here(VERDICT, patch)
        before = list(trained)
        finished = arnn_here(VERDICT, patch)
        folder = root / "outputs" / "verdict" / "tabular"
        shown = json.loads((folder / "verdict.json").read_text())
        yield SimpleNamespace(
            codes=(interrupted, finished),
            before=before,
            trained=trained,
            after=trained[5:],
            folder=folder,
            shown=shown,
            patch=patch,
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


def test_finished_seeds_count_whatever_the_budget(verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    n_trained = len(verdict.trained)
    assert arnn_here([*VERDICT, "smallest_gain=0.5", "budget=1s"], monkeypatch) == 0
    again = json.loads((verdict.folder / "verdict.json").read_text())
    assert again["gains"] == verdict.shown["gains"]
    assert again["smallest_gain_absolute"] == pytest.approx(50 * verdict.shown["smallest_gain_absolute"])
    assert len(verdict.trained) == n_trained


def test_other_settings_do_not_mix_in_one_folder(
    verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [argument for argument in VERDICT if not argument.startswith("data.contexts.multi")]
    assert arnn_here(command, monkeypatch) == 2
    assert "data.contexts.multi=[]: " in capsys.readouterr().err


def test_another_log_needs_another_folder(
    verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    later = "500,1,2024-01-05T10:00:00,team0,old,a\n500,2,2024-01-05T10:01:00,team0,old,a\n"
    Path("later.csv").write_text(Path("log.csv").read_text() + later)
    assert arnn_here([*VERDICT, "data.events=later.csv", "paths.data=later"], monkeypatch) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("a verdict is of one log; use a new hydra.run.dir, such as outputs/verdict/tabular-2")


def test_its_runs_share_the_session_encoder(verdict: SimpleNamespace) -> None:
    for arm in ("own", "permuted", "per_session"):
        assert not (verdict.folder / f"{arm}-seed2" / "checkpoints" / "session").exists()  # not trained there
        shared = pl.read_parquet(verdict.folder / f"{arm}-seed2" / "test_ranks_session.parquet")
        assert shared.equals(pl.read_parquet(verdict.folder / "session-seed2" / "test_ranks.parquet"))


class Recomputed:
    """The figures of a verdict from the ranks of its runs, by loops over users."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranks = folder, pl.read_parquet(folder / "own-seed1" / "test_ranks.parquet")
        self.user = self.ranks["user"].to_numpy()

    def values(self, *runs: str) -> np.ndarray:
        """(S, N) reciprocal ranks up to 5."""
        files = [self.folder / (run if run.endswith(".parquet") else f"{run}/test_ranks.parquet") for run in runs]
        rank = np.stack([pl.read_parquet(file)["rank"].to_numpy() for file in files])
        return np.where(rank <= 5, 1 / rank, 0)

    def arm(self, name: str) -> np.ndarray:
        return self.values(f"{name}-seed1", f"{name}-seed2")

    def gain(self, difference: np.ndarray, keep: np.ndarray, column: int = 0) -> dict[str, float]:
        """Of (2, N) differences of the predictions ``keep`` among the columns of one bootstrap, of all users in it."""
        users = np.unique(self.user if column else self.user[keep])
        sums = [[difference[seed][keep & (self.user == user)].sum() for user in users] for seed in (0, 1)]
        counts = [(keep & (self.user == user)).sum() for user in users]
        rng, means = np.random.default_rng(1), []
        for _ in range(60):
            chosen = rng.integers(0, len(users), len(users))
            total = sum(counts[index] for index in chosen)
            means.append(np.mean([sum(of_seed[index] for index in chosen) / total for of_seed in sums]))
        order, quantiles = np.random.default_rng([1, 2]), student_t.ppf((np.arange(60) + 0.5) / 60, 1)
        for _ in range(column):
            order.permutation(quantiles)
        first, second = (difference[seed][keep].mean() for seed in (0, 1))
        means += order.permutation(quantiles) * abs(first - second) / 2
        tail = min((np.array(means) <= 0).sum(), (np.array(means) >= 0).sum())
        low, high = np.quantile(means, [0.025, 0.975])
        return {"mean": (first + second) / 2, "low": low, "high": high, "p_value": min(1, 2 * (tail + 1) / 61)}


def test_every_figure_follows_from_the_ranks(verdict: SimpleNamespace) -> None:
    again, shown = Recomputed(verdict.folder), verdict.shown
    everything = np.full(again.ranks.height, True)
    arms = {arm: again.arm(arm) for arm in ("session", "own", "permuted", "per_session")}
    counted = {name: again.values(f"counted-{name}") for name in ("pop", "sr")}
    for arm, values in arms.items():
        row = shown["models"][arm]
        assert row["mean"]["mrr@5"] == pytest.approx(values.mean(), abs=1e-9)
        assert row["deviation"]["mrr@5"] == pytest.approx(values.mean(1).std(ddof=1), abs=1e-9)
        assert row["mean"]["recall@5"] == pytest.approx((values > 0).mean(), abs=1e-9)
        validated = [metrics_of(verdict.folder / f"{arm}-seed{seed}")["val"]["mrr@5"] for seed in (1, 2)]
        assert row["validation"] == pytest.approx(np.mean(validated), abs=1e-9)
    for name, values in counted.items():
        assert shown["counted"][name]["mean"]["mrr@5"] == pytest.approx(values.mean(), abs=1e-9)
        assert shown["counted"][name]["validation"] == metrics_of(verdict.folder / f"counted-{name}")["val"]["mrr@5"]
    best = max(counted, key=lambda name: shown["counted"][name]["validation"])
    assert shown["best_counted"] == best

    unseen = again.user >= 0
    train_users = pl.read_parquet(prepared(verdict).folder / "train.parquet")["user"].to_numpy()
    unseen = ~np.isin(again.user, train_users)
    assert shown["new_users"] == {"users": 120, "predictions": 240, "held_out": False}
    pairs = {
        "over_session": (arms["own"], arms["session"], everything),
        "over_per_session": (arms["own"], arms["per_session"], everything),
        "content": (arms["own"], arms["permuted"], everything),
        "recognition": (arms["permuted"], arms["per_session"], everything),
        "over_counted": (arms["own"], counted[best], everything),
        "new_users": (arms["own"], arms["session"], unseen),
    }
    assert shown["gains"].keys() == pairs.keys()
    for name, (values, base, keep) in pairs.items():
        expected = again.gain(values - base, keep)
        expected |= {"base": base[:, keep].mean(), "relative": expected["mean"] / base[:, keep].mean()}
        assert {key: shown["gains"][name][key] for key in expected} == pytest.approx(expected, abs=1e-9), name

    family = sorted((shown["gains"][name]["p_value"], name) for name in shown["claims"])
    assert {name for _, name in family} == {"content", "recognition", "over_counted", "new_users"}
    largest = 0.0
    for place, (p_value, name) in enumerate(family):
        largest = max(largest, min(1.0, p_value * (len(family) - place)))
        assert shown["claims"][name]["adjusted_p_value"] == pytest.approx(largest, abs=1e-9)
        result = "not shown" if largest >= 0.05 else "above 0" if shown["gains"][name]["mean"] > 0 else "below 0"
        assert shown["claims"][name]["result"] == result
    smallest = 0.01 * shown["gains"]["over_session"]["base"]
    both = [shown["gains"][name] for name in ("over_session", "over_per_session")]
    is_no, is_yes = any(gain["high"] < smallest for gain in both), all(gain["low"] > 0 for gain in both)
    assert shown["helps"] == ("no" if is_no else "yes" if is_yes else "unclear")


def prepared(verdict: SimpleNamespace) -> PreparedDataset:
    (folder,) = (verdict.folder.parents[2] / "data" / "prepared").glob("tabular-*")
    return PreparedDataset(folder)


def test_groups_and_attributes_follow_from_the_ranks(verdict: SimpleNamespace) -> None:
    again, shown = Recomputed(verdict.folder), verdict.shown
    own, difference = again.arm("own"), again.arm("own") - again.arm("session")
    for column, row in enumerate(shown["groups"]["position"]):
        keep = (again.ranks["position"] == int(row["group"])).to_numpy()
        expected = again.gain(difference, keep, column) if column else again.gain(difference, keep)
        assert {key: row[key] for key in ("mean", "low", "high")} == pytest.approx(
            {key: expected[key] for key in ("mean", "low", "high")}, abs=1e-9
        )
        assert row["predictions"] == keep.sum()
    users = prepared(verdict).users()
    team = pl.Series(users["id"].cast(pl.Int64) % 2).to_numpy()[again.user]
    values = {row["group"]: row for row in shown["attribute_values"]["team"]}
    for name in (0, 1):
        assert values[f"team{name}"]["mean"] == pytest.approx(difference[:, team == name].mean(), abs=1e-9)
    assert {row["group"] for row in shown["attribute_values"]["age"]} == {"young", "old", "unknown"}
    assert next(iter(shown["attribute_values"]["tags"]))["predictions"] == again.ranks.height  # all have the tag a
    for row in shown["attributes"]:
        place = ["tags", "team", "age"].index(row["attribute"])
        hidden = again.values(*(f"own-seed{seed}/without_attribute/{place}.parquet" for seed in (1, 2)))
        expected = again.gain(own - hidden, np.full(again.ranks.height, True))
        assert {key: row[key] for key in ("mean", "low", "high")} == pytest.approx(
            {key: expected[key] for key in ("mean", "low", "high")}, abs=1e-9
        )
    losses = [row["mean"] for row in shown["attributes"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def test_an_attribute_that_is_hidden_is_unknown(verdict: SimpleNamespace) -> None:
    whole = prepared(verdict)
    users = WithoutAttribute(whole.folder, "team").users()
    assert users["context.team"].unique().to_list() == [0]
    assert users.drop("context.team").equals(whole.users().drop("context.team"))
    users = WithoutAttribute(whole.folder, "tags").users()
    assert users["active"].list.len().sum() == 0
    assert users.drop("active").equals(whole.users().drop("active"))


def figures(value: Any) -> Iterator[float]:
    """All numbers of a verdict."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from figures(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


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
        for value in (*figures(shown),)
        for written_as in (f"{round(value, 4) + 0.0:+.4f}", f"{value:.4f}", f"{100 * value:+.1f}", f"{100 * value:.1f}")
    }
    assert len(written) > 30
    assert written <= known
    paragraph = shown["paragraph"].replace(f"{shown['answer']} ", "")
    assert paragraph in " ".join(text.split()).replace("&#39;", "'").replace(f"{shown['answer']} ", "")
    assert shown["paragraph"].startswith(shown["advice"].split(". ")[0])


def test_its_runs_are_ordinary_runs_of_the_report(verdict: SimpleNamespace) -> None:
    whole = prepared(verdict)
    loaded = [load_run(folder, {whole.manifest_sha256: None}) for folder in find_run_dirs([str(verdict.folder)])]
    assert sorted(run.folder.name for run in loaded if isinstance(run, Run)) == sorted(RUNS)


def test_the_deployed_model_is_trained_by_the_command(verdict: SimpleNamespace) -> None:
    deploy = verdict.shown["deploy"]
    trained = verdict.folder.parents[2] / deploy["trained"]
    assert (trained / "checkpoints" / "best.ckpt").is_file()
    assert metrics_of(trained)["model"] == deploy["model"]
    helps = verdict.shown["helps"] == "yes"
    counted = {name: row for name, row in verdict.shown["counted"].items() if helps or not row["uses_profiles"]}
    rows = counted | {"own": verdict.shown["models"]["own" if helps else "session"]}
    names = {"own": "arnn_strong" if helps else "gru4rec_strong"}
    assert deploy["chosen_from"] == {names.get(name, name): row["validation"] for name, row in rows.items()}
    assert deploy["model"] == max(deploy["chosen_from"], key=deploy["chosen_from"].get)
    command = shlex.split(deploy["command"])
    assert command[:4] == ["python", "-m", "arnn_lightning", f"model={deploy['model']}"]
    recorded = OmegaConf.load(trained / ".hydra" / "overrides.yaml")
    assert {*command[3:], "logger=csv", "task=train"} == {*recorded}


def test_users_are_held_out_where_the_log_has_few_new_ones(
    verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arnn_lightning.reporting.verdict_figures.MIN_NEW_USERS", 121)  # there are 120
    n_trained = len(verdict.trained)
    assert arnn_here(VERDICT, monkeypatch) == 0
    assert verdict.trained[n_trained:] == ["arnn_strong own 1", "arnn_strong own 2"]
    shown, again = json.loads((verdict.folder / "verdict.json").read_text()), Recomputed(verdict.folder)
    files = [f"new_users-seed{seed}/test_ranks{{}}.parquet" for seed in (1, 2)]
    own, session = (again.values(*(file.format(role) for file in files)) for role in ("", "_session"))
    held_out = pl.read_parquet(verdict.folder / files[0].format(""))["user"]
    assert shown["new_users"] == {"users": held_out.n_unique(), "predictions": len(held_out), "held_out": True}
    assert shown["gains"]["new_users"]["mean"] == pytest.approx((own - session).mean(), abs=1e-9)


def test_a_budget_for_less_than_two_seeds_is_no_answer(
    verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*VERDICT, "budget=1s", "hydra.run.dir=short"]
    assert arnn_here(command, monkeypatch) == 0
    shown = json.loads(Path("short/verdict.json").read_text())
    assert (shown["helps"], shown["seeds"]) == ("unclear", [])
    assert shown["seconds_needed"] > 1
    assert "budget of 1s is too short for two seeds" in shown["paragraph"]
    assert " data" not in shown["paragraph"]
    assert not list(Path("short").glob("*/metrics.json"))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("budget=15", "budget=15: must be a duration such as 90s, 15m or 2h"),
        ("budget=0m", "budget=0m: must be a duration such as 90s, 15m or 2h"),
        ("counted=[pop,srr]", 'counted=srr: no such model (did you mean "sr"?)'),
        ("counted=[gru4rec]", "counted=gru4rec: is trained; counted takes models without training, such as sr"),
        ("max_seeds=1", "max_seeds=1: must be an integer of at least 2"),
        (
            "data.contexts.assignment=unknown",
            "data.contexts.assignment: task=verdict sets it, run by run; leave it out",
        ),
        ("model=gru4rec", "model has no effect: task=verdict trains its models with their own settings"),
    ],
)
def test_wrong_settings_are_one_line(
    override: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arnn_here(["task=verdict", override], monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_data_without_attributes_or_validation_are_refused(
    verdict: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = ["task=verdict", "data=tabular", "data.events=log.csv", "hydra.run.dir=refused"]
    assert arnn_here([*log, "data.split.val_days=0"], monkeypatch) == 2
    assert "data=tabular has no attributes; list them in data.contexts" in capsys.readouterr().err
    assert arnn_here([*log, "data.contexts.single=[team]", "data.split.val_days=0"], monkeypatch) == 2
    assert "has no validation split: set data.split.val_days" in capsys.readouterr().err
    assert not Path("refused").exists()


def test_durations_are_seconds() -> None:
    assert [seconds_of(text) for text in ("90s", "15m", "2h")] == [90, 900, 7200]


def test_the_plan_has_what_fits_into_the_budget() -> None:
    costs = Costs(counted=10, session=20, profile=30, attributes=5)  # 1.1 (20 + 3 * 30 + 5) = 126.5 a seed
    assert make_plan(390, costs, 5, False) == Plan(3, False, True, pytest.approx(389.5))
    assert make_plan(3600, costs, 5, False).n_seeds == 5
    # Held-out users cost 55 more a seed, a third seed comes first.
    assert make_plan(390, costs, 5, True) == Plan(3, False, True, pytest.approx(389.5))
    assert make_plan(555, costs, 5, True) == Plan(3, True, True, pytest.approx(554.5))
    # Without attributes a seed takes 121.
    assert make_plan(380, costs, 5, True) == Plan(3, False, False, pytest.approx(373))
    assert make_plan(300, costs, 5, False) == Plan(2, False, True, pytest.approx(263))
    assert make_plan(200, costs, 5, False) == Plan(0, False, False, pytest.approx(252))
    for budget in range(0, 2000, 7):
        plan = make_plan(budget, costs, 4, True)
        assert plan.n_seeds == 0 or plan.seconds <= budget


def test_the_plan_is_the_same_once_runs_are_finished() -> None:
    """It depends on the budget and on measured seconds, which finished runs have recorded."""
    costs = Costs(10, 20, 30, 5)
    assert make_plan(600, costs, 5, True) == make_plan(600, costs, 5, True)


def test_a_larger_plan_names_what_limits_the_seeds() -> None:
    costs = Costs(counted=10, session=20, profile=30, attributes=5)  # 126.5 a seed
    two = make_plan(3600, costs, 2, False)
    more = extend_plan(two, 2, 3600, 263, costs, 2, False)
    assert (more.n_seeds, more.settings, more.limited_by) == (3, ("max_seeds=3",), "max_seeds")
    assert more.seconds == pytest.approx(126.5)
    two = make_plan(300, costs, 5, False)
    more = extend_plan(two, 2, 300, 263, costs, 5, False)
    assert (more.n_seeds, more.settings, more.limited_by) == (3, ("budget=7m",), "budget")
    line = plan_line(two, costs, "300s", 2, " ".join(more.settings))
    assert line.endswith("; two seeds seldom decide, three need budget=7m")
    assert "seldom" not in plan_line(make_plan(3600, costs, 5, False), costs, "1h", 2, "")
    assert extend_plan(two, 2, 300, 263, costs, 2, False).settings == ("max_seeds=3", "budget=7m")
    assert extend_plan(two, 3, 300, 1000, costs, 5, False).settings == ("budget=21m",)  # slower than measured
    for budget in range(263, 2000, 7):
        plan = make_plan(budget, costs, 4, True)
        more = extend_plan(plan, plan.n_seeds, budget, 0, costs, 4, True)
        enough = next((60 * int(text[7:-1]) for text in more.settings if text.startswith("budget=")), budget)
        assert make_plan(enough, costs, max(4, more.n_seeds), True).n_seeds >= more.n_seeds > plan.n_seeds
        complete = make_plan(60 * int(more.complete_budget[:-1]), costs, 4, True)
        assert complete.holds_out_users
        assert complete.hides_attributes


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
    names = ("over_session", "over_per_session", "content", "recognition", "over_counted", "new_users")
    holds = dict.fromkeys(names[2:], True) | {"content": content, "recognition": recognition}
    claims = {
        name: {"result": "above 0" if is_above else "not shown", "adjusted_p_value": 0.08}
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
        "counted": {"vsknn": row},
        "bootstrap": {"confidence": 0.95},
        "smallest_gain": 0.01,
        "smallest_gain_absolute": 0.06,
        "gains": {name: dict(gain) for name in names},
        "claims": claims,
        "attributes": [{"attribute": "region", "mean": 0.0123, "low": 0.01, "high": 0.02}],
        "new_users": {"users": 1200, "held_out": True},
        "holds_out_users": True,
        "best_counted": "vsknn",
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
            "counted": True,
            "uses_profiles": False,
            "chosen_from": {"vsknn": 0.21, "gru4rec_strong": 0.2},
        },
    } | changed


def words(helps: str, content: bool, recognition: bool) -> str:
    return " ".join(sentences(shown_figures(helps, content, recognition)))


def test_an_unclear_verdict_states_what_would_decide_it() -> None:
    figures = shown_figures("unclear")
    figures["gains"]["over_session"]["low"] = -0.1
    text = " ".join(sentences(figures))
    assert text.startswith("Keep the existing profiles")
    assert "Whether profiles help cannot be decided with 3 seeds." in text
    remedy = "run the same command with max_seeds=5, which needs about 1m35s more."
    assert f"because of the number of seeds (3 only, limited by max_seeds=3): {remedy}" in text
    best = "the best on validation of the models without profiles (MRR@20: vsknn 0.2100, gru4rec_strong 0.2000)"
    assert f"Until it is decided deploy vsknn, {best}." in text
    by_budget = figures["more_seeds"] | {"limited_by": "budget", "settings": ["budget=9m"]}
    text = " ".join(sentences(figures | {"more_seeds": by_budget}))
    assert "limited by the budget" in text
    assert "run the same command with budget=9m" in text
    figures["gains"]["over_session"]["seed_error"] = 0.001
    text = " ".join(sentences(figures))
    assert "Whether profiles help cannot be decided with this amount of data." in text
    assert "because of the number of test users (1,500)" in text
    assert "test on more users" in text
    assert "max_seeds" not in text
    assert "cannot be decided with 2 seeds" in sentences(figures | {"seeds": [1, 2]})[1]


def test_an_uncorrected_interval_above_0_is_worded_as_such() -> None:
    figures = shown_figures("yes", content=False, recognition=False)
    by_itself = "above 0 by itself, not after correction for 4 comparisons"
    assert outcome(figures, "content") == by_itself
    assert outcome(figures, "over_session") == "above 0"
    text = " ".join(sentences(figures))
    assert f"what the profile contains +0.0100 to +0.0500, {by_itself})" in text
    figures["claims"]["new_users"]["result"] = figures["claims"]["over_counted"]["result"] = "not shown"
    text = " ".join([*sentences(figures), *remarks(figures)])
    assert text.count(f"+0.0500), {by_itself} (p = 0.0800).") == 2
    assert "may be chance" not in text
    figures["gains"]["new_users"]["low"] = -0.01
    assert "(+10.0%, -0.0100 to +0.0500), which may be chance." in " ".join(sentences(figures))


def test_figures_are_clear_without_the_answer_before_them() -> None:
    """The page has the answer as its headline, and leaves it out of the paragraph."""
    size = next(sentence for sentence in sentences(shown_figures("yes")) if " with " in sentence)
    assert " with profiles (arnn_strong) and " in size


def test_recognition_is_excluded_only_below_the_smallest_gain() -> None:
    assert "), not from recognising the user" in words("yes", content=True, recognition=False)
    figures = shown_figures("yes", content=True, recognition=False, smallest_gain_absolute=0.002)
    assert "; it is not shown to come from recognising the user" in " ".join(sentences(figures))
    figures = shown_figures("yes", content=False, recognition=True, smallest_gain_absolute=0.002)
    assert ": any stable label of a user may do" in " ".join(sentences(figures))


def test_the_page_states_what_to_do_with_the_profiles() -> None:
    limits = {"plan": (0.05, 0.09), "country": (-0.01, 0.001), "age": (-0.01, 0.05)}
    rows = [{"attribute": name, "mean": low, "low": low, "high": high} for name, (low, high) in limits.items()]
    keep, drop, undecided, _ = profile_advice(shown_figures("yes", smallest_gain_absolute=0.002, attributes=rows))
    assert keep == "Keep and collect plan."
    assert drop.startswith("Can be dropped: country; ")
    assert undecided.startswith("Undecided, to be kept for now: age; ")
    assert "any stable label" in profile_advice(shown_figures("yes"))[0]
    untested = shown_figures("yes", smallest_gain_absolute=0.002, attributes=[])
    assert profile_advice(untested)[0] == "Keep the profiles."
    assert profile_advice(untested)[1].endswith("was not tested; budget=9m is enough for it.")
    recognised = profile_advice(shown_figures("yes", content=False, smallest_gain_absolute=0.002))
    assert recognised[0].startswith("Keep the existing profiles, but collect no more: they are shown to recognise")
    assert "region" not in " ".join(recognised)
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


def test_untested_new_users_name_the_budget() -> None:
    figures = shown_figures("yes", new_users=None, holds_out_users=False)
    assert "budget=9m is long enough" in " ".join(remarks(figures))
    figures = shown_figures("yes", new_users=None)
    assert "budget" not in " ".join(remarks(figures))


def test_another_order_by_another_metric_is_named() -> None:
    figures = shown_figures("yes")
    assert "is first" not in " ".join(remarks(figures))
    figures["counted"] = {"vsknn": {"mean": {"recall@20": 0.6, "mrr@20": 0.2}}}
    assert "By Recall@20 vsknn is first (0.6000; arnn_strong 0.5500)." in remarks(figures)
    figures["models"]["context"] = {"mean": {"recall@20": 0.5, "mrr@20": 0.3}}
    assert "By MRR@20 pnn, the context encoder of arnn_strong, is first (0.3000; arnn_strong 0.2200)." in remarks(
        figures
    )


def test_a_validation_metric_that_still_improves_is_named() -> None:
    row = {"model": "arnn_strong", "epochs": 2, "is_capped": True}
    text = sentences(shown_figures("yes", rising=[row]))[-1]
    assert text.startswith("Validation was best in the last epoch in most runs of arnn_strong (epoch 2)")
    assert "trainer.max_epochs" in text
    assert "model.epochs" in sentences(shown_figures("yes", rising=[row | {"is_capped": False}]))[-1]


def test_the_paragraph_names_the_source_of_a_gain() -> None:
    assert "It comes from what the profile contains" in words("yes", content=True, recognition=False)
    assert "any stable label of a user would do" in words("yes", content=False, recognition=True)
    assert "which any stable label would give" in words("yes", content=True, recognition=True)
    assert "cannot be decided" in words("yes", content=False, recognition=False)
    assert "comes from" not in words("no", content=True, recognition=True)
    assert "; both intervals end below 0.0600" in words("no", content=True, recognition=True)
    most = "most useful attribute is region: without it the model loses 0.0123"
    assert most in " ".join(remarks(shown_figures("yes")))
    assert "most useful attribute" not in " ".join(remarks(shown_figures("yes", content=False)))
    assert "For the 1,200 users held out of training" in words("no", content=True, recognition=True)
