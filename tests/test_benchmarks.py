"""The benchmarks that need no peer run at tiny sizes, and the reference trains the same model as ours."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from models import slow


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)  # they prepare data below the current folder


def test_gpu_benchmark_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("gpu").main(["--quick", "--modes", "eager", "graph", "--device", "cpu"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("cpu, torch")
    measured = [(line.split()[0], line.split()[2], line.split()[4]) for line in lines]
    # A CUDA graph needs CUDA.
    assert measured == [(model, n_sample, "eager") for model in ("gru4rec", "pnn", "arnn") for n_sample in ("0", "8")]
    assert all("mini-batches/s" in line and "events/s" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_benchmark_without_cuda_exits_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("gpu").main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_reference_table_has_a_ratio_in_every_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    import_module("reference").main(["--quick"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    assert all(float(row[-2]) > 0 for row in rows)


def test_reference_gru4rec_has_the_same_losses() -> None:
    reference, workloads = import_module("reference"), import_module("workloads")
    model = reference.gru4rec(200)
    expected = reference.dense_training(model, batch_size=8)()
    losses, _ = workloads.chunk_training(model, batch_size=8)()
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    ("name", "unit", "n_lines"),
    [("training", "mini-batches/s", 2), slow("scale", "ms a step", 9), slow("product", " ms ", 8)],
)
def test_benchmark_prints_every_measurement(
    name: str, unit: str, n_lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import_module(name).main(["--quick"])
    assert sum(unit in line for line in capsys.readouterr().out.splitlines()) == n_lines


def test_memory_of_a_pass_is_the_only_output(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("product").main(["--quick", "--memory-of", "naive"])
    assert re.fullmatch(r"\d+(\.\d+)?(e[+-]\d+)?\n", capsys.readouterr().out)


@pytest.mark.slow
def test_prepare_benchmark_prints_what_a_million_rows_take(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--events", "20000", "--rounds", "1", "--only", "arnn-lightning"])
    import_module("prepare").main()
    _, size, parse, ours = capfd.readouterr().out.splitlines()
    assert size.split()[1] == "rows,"
    assert int(size.split()[0].replace(",", "")) == pytest.approx(20_000, rel=0.2)
    for name, line in (("parse", parse), ("arnn-lightning", ours)):
        assert line.split()[0] == name
        assert "x parse" in line
        assert line.endswith("MB")


def test_recommend_benchmark_times_clicks_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("recommend").main(["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("ms (fastest" in line for line in lines) == 5
    assert any("sessions/s" in line for line in lines)


@pytest.mark.slow
def test_serve_benchmark_counts_answers_without_errors(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn")
    assert import_module("serve").main(["--quick"]) == 0
    line = capfd.readouterr().out.splitlines()[-1]
    assert "p90" in line
    assert "statuses {201: " in line
    assert not re.search(r"[45]\d\d: ", line)
