"""The benchmarks that need no peer and no long run still start: tiny sizes, whole path."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

TINY = ["--rounds", "1", "--items", "50", "--fields", "20", "--lanes", "4"]


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def test_the_gpu_benchmark_runs_on_a_processor(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("gpu").main([*TINY, "--hidden", "8", "--users", "10", "--device", "cpu"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("cpu, torch")
    assert [line.split(" B=")[0].strip() for line in lines] == ["GRU4REC H=8", "PNN", "ARNN's merge"]
    assert all("mini-batches/s" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_says_in_one_line_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("gpu").main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1


def test_the_table_of_references_has_a_ratio_for_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("reference").main([*TINY, "--epochs", "0"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(rows) == 3
    assert all(float(row[-2]) > 0 for row in rows)
