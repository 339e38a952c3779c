"""The command line as users call it: real processes in an empty folder."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import arnn_lightning
from arnn_lightning import cli, conf
from arnn_lightning.config import config_dir_option
from arnn_lightning.evaluation.result import RANKS
from arnn_lightning.reporting.console import first_items_line
from arnn_lightning.tasks import train
from arnn_lightning.tasks.train import _absolute
from commandline import NO_BASELINES, SMALL, Command, arnn, arnn_here, error_line, metrics_of


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the default experiment has run once, small."""
    folder = tmp_path_factory.mktemp("workspace")
    done = arnn(folder, *SMALL, "evaluation.groups=[country]", "hydra.run.dir=first")
    (folder / "first.out").write_text(done.stdout)
    return folder


def test_help_is_about_the_project() -> None:
    shown = arnn(Path.cwd(), "--help").stdout
    assert shown.startswith("arnn: ")
    assert (
        "arnn, arnn_strong, concat, gru4rec, gru4rec_strong, init_state, input_concat, itemknn, latent_cross, narm"
        in shown
    )
    assert 'eval "$(arnn -sc install=bash)"' in shown
    assert "Hydra" not in shown
    assert not re.search(r"\b_(base|training|common)\b", shown)
    assert "  tune: models, trials, workers, space, sampler, pruner" in shown


@pytest.mark.parametrize("task", [file.stem for file in (Path(conf.__path__[0]) / "task").glob("*.yaml")])
def test_help_of_a_task_describes_its_keys(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arnn_here([f"task={task}", "--help"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"arnn task={task}")
    keys = OmegaConf.load(Path(conf.__path__[0]) / "task" / f"{task}.yaml").keys() - {"task", "hydra", "defaults"}
    assert all(f"\n{key}:" in shown for key in keys)
    assert "_target_: arnn_lightning" not in shown


def test_help_of_an_unknown_task_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arnn_here(["task=trian", "--help"], monkeypatch) == 2
    assert capsys.readouterr().err == 'error: no task trian (did you mean "train"?); arnn --help lists all\n'


def test_version_is_that_of_the_package() -> None:
    assert arnn(Path.cwd(), "--version").stdout == f"arnn-lightning {arnn_lightning.__version__}\n"


def test_help_into_a_closed_pipe_has_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "arnn_lightning", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""


def test_a_broken_pipe_within_a_task_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_main", send)
    with pytest.raises(BrokenPipeError):
        cli.main()


@pytest.mark.parametrize("content", [b"a: [1", "name: caf\u00e9\n".encode("latin-1"), b"3\n"])
def test_a_full_disk_is_no_error_of_a_users_yaml(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arnn_conf" / "model").mkdir(parents=True)
    (tmp_path / "arnn_conf" / "model" / "mine.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert cli.composition_error(OSError(28, "No space left on device")) is None


def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for given, expanded in (
        ("data.events=~/a.csv", "data.events=/home/me/a.csv"),
        ("data.events=[~/a.csv, '~/b.csv']", "data.events=[/home/me/a.csv, '/home/me/b.csv']"),
        ("hydra.run.dir=runs/~/1", "hydra.run.dir=runs/~/1"),
        ("~baselines.pop", "~baselines.pop"),
    ):
        assert cli._expand_home(given) == expanded


def test_paths_of_a_checkpoint_are_absolute_but_those_in_raw_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir("/")
    written = ["${.raw_dir}/a.csv", "b.csv", "~/c.csv"]
    paths = ["raw/a.csv", "b.csv", "~/c.csv"]
    assert _absolute(written, paths) == ["${.raw_dir}/a.csv", "/b.csv", "/home/me/c.csv"]
    assert _absolute("${.raw_dir}/a.csv", "raw/a.csv") == "${.raw_dir}/a.csv"
    assert _absolute("${..events}", ["a.csv", "/b.csv"]) == ["/a.csv", "/b.csv"]


def test_a_closed_standard_stream_is_no_error(tmp_path: Path) -> None:
    for streams in ("<&- >&-", "2>&-"):
        command = f'"{sys.executable}" -m arnn_lightning --version {streams}'
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), streams


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"defaults: [pop]\nname:\tmine\n", "line 2 is not valid YAML: found character '\\t'"),
        (b"name: mine\nname: yours\n", "line 2 is not valid YAML: found duplicate key name"),
        ("name: caf\u00e9\n".encode("latin-1"), "not UTF-8 text; save it in this encoding"),
        (b"defaults: 3\n", "'model/mine', defaults must be a list"),
        (b"defaults: [none]\n", "no model none"),
        (b"3\n", "mine.yaml: must be a mapping"),
        (b"defaults: [pop]\nname: ${oc.env:NOT_SET}\n", "Environment variable 'NOT_SET' not found"),
        (b"_target_: mine.Model\nname: mine\n", "model: needs dims, the sizes of the data"),
    ],
    ids=["tab", "duplicate key", "latin-1", "no list", "no such base", "number", "reference", "no sizes"],
)
def test_a_users_yaml_that_cannot_be_used_is_one_line(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "configs" / "model" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert arnn_here(["model=mine", "--config-dir", "configs", "seed=2"], monkeypatch) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    if "line" in message or "UTF" in message:
        assert str(path.relative_to(tmp_path)) in line
    (tmp_path / "arnn_conf").symlink_to("configs")
    assert "mine" in arnn(tmp_path, "--help").stdout


def test_files_of_config_dir_replace_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("configs", "arnn_conf"):
        (tmp_path / folder / "model").mkdir(parents=True)
        (tmp_path / folder / "model" / "pop.yaml").write_text(f"defaults: [_base, _self_]\nname: {folder}\n")
    monkeypatch.chdir(tmp_path)
    for options, name in (([], "arnn_conf"), (["--config-dir=configs"], "configs")):
        assert arnn_here(["model=pop", "--cfg", "job", *options, "seed=7"], monkeypatch) == 0
        printed = capsys.readouterr().out
        assert f"\n  name: {name}\n" in printed
        assert "\nseed: 7\n" in printed


def test_commands_for_later_have_the_folder_of_config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[list[str]] = []
    monkeypatch.setattr(train, "train", lambda *_: options.append(config_dir_option(HydraConfig.get().runtime)))
    monkeypatch.chdir(tmp_path)
    for given in ([], ["--config-dir=my configs"]):
        (tmp_path / "my configs").mkdir(exist_ok=True)
        assert arnn_here(["model=pop", *given], monkeypatch) == 0
    assert options == [[], ["--config-dir", str(tmp_path / "my configs")]]


@pytest.mark.parametrize("target", ["nowhere.run", "json.nothing", "string.digits"])
def test_a_task_that_does_not_exist_is_one_line(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arnn_conf" / "task").mkdir(parents=True)
    (tmp_path / "arnn_conf" / "task" / "mine.yaml").write_text(f"# @package _global_\ntask:\n  _target_: {target}\n")
    monkeypatch.chdir(tmp_path)
    assert arnn_here(["task=mine", "model=pop"], monkeypatch) == 2
    assert f"error: task._target_={target}: " in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["model.epochs=two"]])
def test_help_and_wrong_settings_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys\nfrom arnn_lightning.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'pytorch_lightning', 'polars', 'wandb'} & sys.modules.keys()))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of the processor, not of the clock
    assert seconds < 6  # the first command of an installation compiles its modules


def test_tasks_without_a_model_import_no_torch() -> None:
    """The process of task=serve that has no model imports its HTTP half only."""
    code = "import sys; from arnn_lightning.serving import http, worker; from arnn_lightning.tasks import serve\n"
    code += "assert not {'torch', 'polars'} & sys.modules.keys()\n"
    code += "from arnn_lightning.tasks import generate, prepare, report\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_completion_knows_groups_and_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMP_LINE", "arnn model=gru4rec model.hid")
    assert "model.hidden_size=" in arnn(tmp_path, "-sc", "query=bash").stdout


def test_a_wrong_setting_leaves_a_run_folder_untouched(workspace: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in (workspace / "first").rglob("*")}
    line = error_line(arnn(workspace, *SMALL, "model.epochs=two", "hydra.run.dir=first", "resume=true", code=2))
    assert line == "error: model.epochs=two: must be an integer of at least 1"
    assert files == {path: path.stat().st_mtime_ns for path in (workspace / "first").rglob("*")}


def test_each_task_has_its_run_folder(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert arnn_here(["task=prepare", *SMALL], monkeypatch) == 0
    (folder,) = (workspace / "outputs" / "prepare").iterdir()
    summary = json.loads((folder / "prepare.json").read_text())
    assert summary["popularity_scope"] == "window"
    assert summary["steps"][-1]["events"] == sum(counts["events"] for counts in summary["splits"].values())
    assert summary["log"]["first_day"] < summary["log"]["last_day"]
    assert [attribute["kind"] for attribute in summary["contexts"]] == ["multi"] * 2 + ["single"] * 9
    assert summary["remarks"]["contexts"].keys() >= {"edu_degree"}  # unknown for most users


@pytest.mark.slow
def test_modules_of_the_current_folder_are_found(workspace: Path) -> None:
    """A callback, a logger and an optimizer of the user's; by ``python -m`` and by the console script.

    They come after the packages that are installed.
    """
    (workspace / "mine.py").write_text(
        "import torch\n"
        "from pytorch_lightning import Callback\n"
        "from pytorch_lightning.loggers import CSVLogger\n"
        "class Stop(Callback):\n"
        "    def __init__(self, word): self.word = word\n"
        "    def on_train_epoch_end(self, trainer, pl_module): print(self.word, pl_module.name)\n"
        "class Log(CSVLogger): pass\n"
        "class SGD(torch.optim.SGD): pass\n"
    )
    (workspace / "click.py").write_text("raise ImportError('a file of the user, not the package')")
    (workspace / "rich.py").write_text("raise ImportError('a file of the user, not the package')")
    mine = [*SMALL, "model=gru4rec", "+callbacks.stop={_target_: mine.Stop, word: stopped}"]
    mine += ["+logger.mine={_target_: mine.Log}", "model/optimizer=sgd", "model.optimizer._target_=mine.SGD"]
    assert "stopped gru4rec" in arnn(workspace, *mine, "hydra.run.dir=mine_1").stdout
    (metrics,) = (workspace / "mine_1" / "lightning_logs").rglob("metrics.csv")
    assert "train/loss" in metrics.read_text()
    script = [
        sys.executable,
        "-P",
        "-c",
        "from arnn_lightning.cli import main; main()",
    ]  # no current folder in sys.path
    evaluate = ["task=evaluate", "checkpoint=mine_1/checkpoints/best.ckpt", "hydra.run.dir=mine_2"]
    done = subprocess.run(
        [*script, *evaluate, "trusted_modules=[mine]"], cwd=workspace, capture_output=True, text=True, check=True
    )
    assert metrics_of(workspace / "mine_2")["test"] == metrics_of(workspace / "mine_1")["test"], done.stderr
    for name in ("click.py", "rich.py"):
        (workspace / name).unlink()
    # A checkpoint is not trusted, whoever wrote it.
    assert "_target_ mine.SGD is not in a trusted module" in error_line(arnn(workspace, *evaluate, code=2))


def test_the_default_run_prints_all_models_and_a_difference(workspace: Path) -> None:
    printed = (workspace / "first.out").read_text()
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert rows[:7] == ["pop", "itemknn", "sr", "vsknn", "gru4rec", "pnn", "arnn"]
    assert "arnn - gru4rec, paired: Recall@20" in printed
    first_items = metrics_of(workspace / "first")["first_items"]
    assert first_items_line(first_items) in printed
    for role in ("", "context"):
        checkpoint = torch.load(workspace / "first" / "checkpoints" / role / "best.ckpt", weights_only=True)
        assert {key: value for key, value in checkpoint["first_items"].items() if key != "scorer"} == first_items


def test_strong_models_keep_their_names_in_table_and_paths(workspace: Path) -> None:
    small = [*SMALL, "model.session.n_sample=100"]
    printed = arnn(workspace, *small, "model=arnn_strong").stdout
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert rows == ["pop", "itemknn", "sr", "vsknn", "gru4rec_strong", "pnn", "arnn_strong"]
    (run,) = (workspace / "outputs" / "train" / "synthetic" / "arnn_strong").iterdir()
    assert metrics_of(run)["encoders"]["session"]["model"] == "gru4rec_strong"


def test_run_folder_contains_checkpoints_metrics_and_ranks(workspace: Path) -> None:
    run = workspace / "first"
    for name in ("best.ckpt", "last.ckpt", "session/best.ckpt", "context/best.ckpt"):
        assert (run / "checkpoints" / name).is_file(), name
    metrics = metrics_of(run)
    assert (metrics["data"], metrics["model"], metrics["seed"]) == ("synthetic", "arnn", 1)
    assert metrics["encoders"]["session"]["model"] == "gru4rec"
    assert metrics["encoders"]["context"]["model"] == "pnn"
    assert {"recall@5", "mrr@10", "recall@20", "macro_recall@20", "events", "sessions"} <= metrics["test"].keys()
    assert metrics["train_events_per_second"] > 0
    assert 0 <= metrics["val"]["mrr@20"] <= metrics["val"]["recall@20"] <= 1
    names = set(pl.read_csv(run / "metrics.csv")["metric"])
    assert {"train/loss", "session/train/loss", "context/val/mrr@20", "val/recall@20", "test/mrr@20"} <= names
    assert not [path for path in workspace.rglob("*") if "=" in path.name or "," in path.name]


def test_metrics_can_be_recomputed_from_the_ranks(workspace: Path) -> None:
    ranks = pl.read_parquet(workspace / "first" / "test_ranks.parquet")
    metrics = metrics_of(workspace / "first")["test"]
    assert tuple(ranks.columns) == RANKS
    assert ranks.select("session", "position").equals(ranks.select("session", "position").sort("session", "position"))
    assert (ranks["rank"] == ranks["higher"] + ranks["equal"]).all()
    assert metrics["recall@20"] == pytest.approx((ranks["rank"] <= 20).mean(), abs=1e-12)
    assert metrics["events"] == ranks.height
    (prepared,) = (workspace / "data" / "prepared").glob("synthetic-*/")
    test = pl.read_parquet(prepared / "test.parquet")
    assert ranks.height == test.height - test["session"].n_unique()


def test_checkpoints_are_plain_data(workspace: Path) -> None:
    checkpoint = torch.load(workspace / "first" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["metadata"]["model"]["name"] == "arnn"


@pytest.mark.parametrize("target", ["os.system", "${..note}"])
def test_a_checkpoint_names_trusted_readers_only(
    workspace: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(workspace / "first" / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["metadata"]["data"] |= {"note": "os.system", "reader": {"_target_": target, "command": "touch executed"}}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    monkeypatch.chdir(tmp_path)
    assert arnn_here(["task=evaluate", "checkpoint=other.ckpt", "hydra.run.dir=out"], monkeypatch) == 2
    assert "_target_ os.system is not in a trusted module" in capfd.readouterr().err
    assert not Path("executed").exists()


def test_equal_runs_agree_bit_by_bit(workspace: Path) -> None:
    arnn(workspace, *SMALL, "evaluation.groups=[country]", "hydra.run.dir=second")
    first, second = workspace / "first", workspace / "second"
    ours, theirs = metrics_of(first), metrics_of(second)
    for changing in ("seconds", "train_events_per_second"):
        ours.pop(changing), theirs.pop(changing)
    assert ours == theirs
    assert (first / "test_ranks.parquet").read_bytes() == (second / "test_ranks.parquet").read_bytes()
    weights = [
        torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for run in (first, second)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_moved_checkpoint_evaluates_to_the_runs_metrics(workspace: Path, tmp_path: Path) -> None:
    moved = tmp_path / "alone.ckpt"
    moved.write_bytes((workspace / "first" / "checkpoints" / "best.ckpt").read_bytes())
    arnn(tmp_path, "task=evaluate", f"checkpoint={moved}", f"paths.data={workspace / 'data'}", "hydra.run.dir=again")
    assert metrics_of(tmp_path / "again")["test"] == metrics_of(workspace / "first")["test"]
    ranks = [folder / "test_ranks.parquet" for folder in (workspace / "first", tmp_path / "again")]
    assert ranks[0].read_bytes() == ranks[1].read_bytes()


def test_a_pretrained_encoder_is_not_trained_again(workspace: Path) -> None:
    arnn(workspace, *SMALL, "hydra.run.dir=merged", "pretrained.session=first/checkpoints/session/best.ckpt")
    assert not (workspace / "merged" / "checkpoints" / "session").exists()
    assert metrics_of(workspace / "merged")["test"] == metrics_of(workspace / "first")["test"]


def test_a_report_repeats_metrics_and_intervals_of_its_run(workspace: Path) -> None:
    bootstrap = "evaluation.bootstrap.resamples=50"
    printed = arnn(workspace, "task=report", "runs=first", "hydra.run.dir=report", bootstrap).stdout
    rows = {row["model"]: row for row in pl.read_csv(workspace / "report" / "table2.csv").iter_rows(named=True)}
    metrics = metrics_of(workspace / "first")
    tested = {**metrics["encoders"], **metrics["baselines"], "": {"model": "arnn"} | metrics["test"]}
    assert {metrics["model"] for metrics in tested.values()} == rows.keys()
    for metrics in tested.values():
        for name in ("recall@20", "mrr@20"):
            assert rows[metrics["model"]][name] == pytest.approx(metrics[name], abs=1e-12)
    (shown,) = [line for line in (workspace / "first.out").read_text().splitlines() if line.startswith("│ arnn")]
    interval = [f"{rows['arnn'][f'recall@20_{end}']:.4f}" for end in ("low", "high")]
    assert " - ".join(interval) in shown  # the run's table resamples the same users
    assert "| arnn |" in printed
    page = (workspace / "report" / "report.html").read_text()
    assert all(f"Gain of arnn by {group}" in page for group in ("position", "known attributes", "user", "popularity"))
    assert "<h3>By country</h3>" in page  # a group of the run


def test_metrics_of_lists_are_stored_for_every_model(workspace: Path) -> None:
    metrics = metrics_of(workspace / "first")
    tested = {"": metrics["test"], **metrics["encoders"], **metrics["baselines"]}
    for role, values in tested.items():
        assert {"ndcg@5", "ndcg@20", "coverage@20", "novelty@20", "gini@20", "mean_popularity@20"} <= values.keys()
        counts = pl.read_parquet(workspace / "first" / f"test_lists{'_' * bool(role)}{role}.parquet")["times"]
        assert counts.sum() == 20 * values["events"]
        assert values["coverage@20"] == (counts > 0).mean()
    pop = metrics["baselines"]["pop"]  # recommends the same 20 items always
    assert pop["coverage@20"] < metrics["test"]["coverage@20"]
    assert pop["novelty@20"] < metrics["test"]["novelty@20"]
    assert pop["gini@20"] > metrics["test"]["gini@20"]
    assert pop["mean_popularity@20"] > metrics["test"]["mean_popularity@20"]


def test_groups_of_an_attribute_are_stored_for_every_model(workspace: Path) -> None:
    metrics = metrics_of(workspace / "first")
    models = metrics["groups"]["country"]
    assert list(models) == ["pop", "itemknn", "sr", "vsknn", "gru4rec", "pnn", "arnn"]
    for groups in models.values():
        assert {group["group"] for group in groups} <= {"unknown", "de", "at", "ch", "non_dach"}
        assert sum(group["predictions"] for group in groups) == metrics["test"]["events"]
    mean = sum(group["predictions"] * group["mrr@20"] for group in models["arnn"]) / metrics["test"]["events"]
    assert mean == pytest.approx(metrics["test"]["mrr@20"])
    printed = (workspace / "first.out").read_text()
    assert "arnn by country" in printed
    assert "one seed: intervals reflect the variation over users only" in printed


def test_a_group_that_the_data_lack_is_one_line(workspace: Path) -> None:
    done = arnn(workspace, *SMALL, "model=pop", "evaluation.groups=[contry]", code=2)
    line = error_line(done)
    assert 'evaluation.groups: contry is not a single-valued or numeric attribute (did you mean "country"?)' in line


def test_a_finished_run_needs_resume_to_be_shown_again(workspace: Path) -> None:
    again = arnn(workspace, *SMALL, "evaluation.groups=[country]", "hydra.run.dir=first", "resume=true").stdout
    first = (workspace / "first.out").read_text()
    assert again[again.index("synthetic, seed") :] == first[first.index("synthetic, seed") :]
    assert "resume=true" in error_line(arnn(workspace, *SMALL, "hydra.run.dir=first", code=2))


def test_resume_skips_finished_stages(workspace: Path) -> None:
    run = workspace / "interrupted"
    shutil.copytree(workspace / "first", run)
    for name in ("metrics.json", "test_ranks.parquet", "checkpoints/done"):
        (run / name).unlink()
    parts = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").glob("*/best.ckpt")}
    printed = arnn(workspace, "hydra.run.dir=interrupted", "resume=true").stdout
    assert "epoch 1 of" not in printed
    assert len(parts) == 2
    assert parts == {path: path.stat().st_mtime_ns for path in parts}
    assert metrics_of(run)["encoders"] == metrics_of(workspace / "first")["encoders"]


def test_ctrl_c_saves_and_prints_how_to_resume(workspace: Path) -> None:
    run = Command(workspace, *SMALL, "model=gru4rec", "hydra.run.dir=stopped", "trainer.max_epochs=6", "model.epochs=6")
    last = workspace / "stopped" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert run.is_running()
        time.sleep(0.1)
    os.kill(run.pid, signal.SIGINT)
    done = run.wait()
    assert done.returncode == 130
    assert "resume=true hydra.run.dir=stopped" in done.stderr
    assert "Traceback" not in done.stderr
    arnn(workspace, "hydra.run.dir=stopped", "resume=true")
    assert metrics_of(workspace / "stopped")["model"] == "gru4rec"


def test_patience_stops_a_stage_without_improvement(workspace: Path) -> None:
    overrides = ["model=gru4rec", "trainer.max_epochs=9", "model.epochs=9", "model.patience=1", "model.optimizer.lr=0"]
    printed = arnn(workspace, *SMALL, *overrides, "hydra.run.dir=patient").stdout
    assert "epoch 2 of 9" in printed
    assert "epoch 3 of 9" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=xing"], "data/raw/xing; expected: interactions.csv"),
        (["data=xing", "data.raw_dir=bad_time"], "column 'created_at', row 3: 'yesterday' is not an integer"),
        (["data=xing", "data.raw_dir=bad_column"], "no column 'item_id' (did you mean \"itemid\"?)"),
        (["data=tabular", "task=prepare"], "data.events is required; set it on the command line"),
        ([*SMALL, "paths.data=first.out/data"], "first.out/data/raw: Not a directory; must be a folder"),
        (["--run", "-m"], "Only one of --run, --multirun"),
        (["--resolve", "model=pop"], "The --resolve flag can only be used"),
        (["-sc", "install=csh"], "No completion plugin for 'csh'"),
        (["--experimental-rerun", "first.out"], "--experimental-rerun: is not supported"),
        (["--config-name", "foo"], "no config foo.yaml; "),
        (["+seed=3"], "+seed: leave out the +"),
        (["resume=true", "hydra.run.dir=a,b"], "resume=true needs the folder to resume"),
        ([*SMALL, "data.window_days=0"], "data.window_days=0: must be an integer of at least 1"),
        ([*SMALL, "data.contexts.single=[region,region]"], "attribute 'region' is listed more than once"),
        (["task=evaluate", "checkpoint=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["task=evaluate", "checkpoint=first.out"], "first.out: damaged or not a checkpoint"),
        ([*SMALL, "data.split.test_days=40"], "split is empty with data.split.test_days=40"),
        ([*SMALL, "evaluation.cutoffs=[100000]"], "100000 is not smaller than the catalogue of"),
        ([*SMALL, "data.contexts.single=[regoin]"], "no attribute 'regoin' (did you mean \"region\"?)"),
        ([*SMALL, "pretrained.context=first/metrics.json"], "damaged or not a checkpoint"),
        (
            [*SMALL, "pretrained.context=first/checkpoints/session/best.ckpt", "hydra.run.dir=early"],
            "best.ckpt is a checkpoint of gru4rec, but the context encoder is pnn",
        ),
        ([*SMALL, "model=gru4rec", "model.loss.logq=1"], "logq=1: only cross_entropy with candidates=batch"),
        ([*SMALL, "model=gru4rec", "model.batch_size=1", "model.n_sample=0"], "model.batch_size=1 leaves no negatives"),
        (["model=gru4rek"], 'no model gru4rek (did you mean "gru4rec"?)'),
        (["model=["], "model=[: "),
        ([""], "must be KEY=VALUE or GROUP=NAME"),
        (["", "resume=true"], "must be KEY=VALUE or GROUP=NAME"),
        ([*SMALL, "model=gru4rec", "model._target_=nowhere.Model"], "nowhere.Model: No module named 'nowhere'"),
        (["-m", "seed=x", "model=pop,itemknn"], "seed=x: must be an integer"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    workspace: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    users = "id\tjobroles\tcareer_level\n1\t2\t3\n"
    for name, text in {
        "bad_time": "user_id\titem_id\tinteraction_type\tcreated_at\n1\t2\t1\t1440000000\n1\t3\t1\tyesterday\n",
        "bad_column": "user_id\titemid\tinteraction_type\tcreated_at\n1\t2\t1\t1440000000\n",
    }.items():
        (workspace / name).mkdir(exist_ok=True)
        (workspace / name / "interactions.csv").write_text(text)
        (workspace / name / "users.csv").write_text(users)
    monkeypatch.chdir(workspace)
    assert arnn_here(arguments, monkeypatch) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not list(workspace.rglob(".*.tmp"))


def test_generated_files_are_prepared_as_xing(workspace: Path) -> None:
    arnn(workspace, "task=generate", "schema=xing", "events=8000", "output=made")
    done = arnn(workspace, "task=prepare", "data=xing", "data.raw_dir=made")
    assert "in sessions of 2 events or more" in done.stdout
    assert "8,000" in done.stdout


def test_a_run_without_a_validation_split_shows_no_warning(workspace: Path) -> None:
    settings = ["model=gru4rec", "data.split.val_days=0", "hydra.run.dir=unvalidated"]
    done = arnn(workspace, *SMALL, *NO_BASELINES, *settings)
    assert "no validation split (data.split): the last epoch of each stage is kept" in done.stdout
    assert "arning" not in done.stderr
    assert "across ranks" not in done.stderr


def test_user_tables_train_from_the_command_line(tmp_path: Path) -> None:
    """The README's example: semicolons, quotes, a byte order mark, milliseconds, ids with commas; then US dates."""
    noon = 1_447_243_200
    lines = ['\ufeff"customer";"product";"clicked_at"']
    other = ["customer,product,clicked_at"]
    for number in range(240):
        for step in range(3):
            day, product = number % 12, f"{(number + step) % 30}"
            lines.append(f'"C,{number % 40}";"lamp, {product}";{1_000 * (noon + 86_400 * day + 60 * step) + 123}')
            other.append(f'"C,{number % 40}","lamp, {product}",11/{day + 1:02}/2015 12:{step:02}')
    (tmp_path / "clicks.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "us.csv").write_text("\n".join(other))
    customers = [
        "id,country,age,interests",
        *(f'"C,{n}",{"de" if n % 2 else ""},{n % 5},"garden,light"' for n in range(38)),
    ]
    (tmp_path / "customers.csv").write_text("\n".join(customers))
    common = ["data=tabular", "data.name=shop", "data.users=customers.csv", "data.columns.user=customer"]
    common += ["data.columns.item=product", "data.columns.time=clicked_at", "data.columns.user_in_users=id"]
    common += ["data.contexts.single=[country,age]", "data.contexts.multi=[interests]", "data.split.val_days=2"]
    arnn(tmp_path, *common, "data.events=clicks.csv", "model=arnn", "hydra.run.dir=run", *SMALL[1:])
    assert metrics_of(tmp_path / "run")["data"] == "shop"
    # The tables may lie elsewhere when a checkpoint is evaluated.
    (tmp_path / "other").mkdir()
    moved = ["data=tabular", f"data.events={tmp_path / 'clicks.csv'}", f"data.users={tmp_path / 'customers.csv'}"]
    again = ["task=evaluate", f"checkpoint={tmp_path / 'run/checkpoints/best.ckpt'}", "hydra.run.dir=again", *moved]
    arnn(tmp_path / "other", *again)
    assert metrics_of(tmp_path / "other/again")["test"] == metrics_of(tmp_path / "run")["test"]
    us = [*common, "data.events=us.csv", "task=prepare"]
    assert "row 2: '11/01/2015 12:00' is not an ISO 8601" in error_line(arnn(tmp_path, *us, code=2))
    shown = arnn(tmp_path, *us, "data.time_format='%m/%d/%Y %H:%M'").stdout
    assert "2 of 40 users have no row in the users table" in shown


def test_a_log_without_users_has_no_largest_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        f"{10 * day + visit},{item},2024-01-{day:02}" for day in range(1, 9) for visit in range(3) for item in "abc"
    ]
    Path("log.csv").write_text("\n".join(["session,item,time", *rows]))
    log = ["data=tabular", "data.events=log.csv", "data.columns.user=null", "data.session=given"]
    assert arnn_here(["task=prepare", *log, "hydra.run.dir=prepared"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "events of the longest session" in shown
    assert "most active user" not in shown
    assert "largest_user" not in json.loads(Path("prepared/prepare.json").read_text())["log"]


def test_the_data_folder_can_be_an_environment_variable(workspace: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ARNN_DATA", str(workspace / "data"))
    done = arnn(tmp_path, "task=prepare", *SMALL)
    assert str(workspace / "data" / "prepared") in done.stdout.replace("\n", "")
    assert not (tmp_path / "data").exists()
