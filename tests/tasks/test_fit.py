"""al.fit: what its caller sees."""

import logging
import re
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import polars as pl
import pytest
from filelock import FileLock

from arnn_lightning.errors import UserError
from arnn_lightning.tasks import fit

EVENTS = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "time": [1, 2]})


@pytest.mark.parametrize("record", ["metrics.json", ".hydra/config.yaml"])
def test_the_frames_of_a_run_are_not_replaced(record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame is written before the command can refuse the folder."""

    def run(arguments: list[str]) -> None:
        (tmp_path / "metrics.json").write_text("{}")
        assert f'data.events="{raw}"' in arguments

    def fit_here(events: Any, *overrides: str) -> None:
        fit.fit(events, overrides=overrides, folder=tmp_path)

    raw = tmp_path / "raw" / "events.parquet"
    monkeypatch.setattr(fit, "_run", run)
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="is in use by another process"):
        fit_here(EVENTS)
    fit_here(EVENTS.head(1))
    (tmp_path / "metrics.json").unlink()
    fit_here(EVENTS)  # the first ended before it trained anything
    (tmp_path / "metrics.json").unlink()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / record).touch()
    content = raw.read_bytes()
    with pytest.raises(UserError, match="run; pass resume=true"):
        fit_here(EVENTS.head(1))
    with pytest.raises(UserError, match=r"events: .*events\.parquet contains different rows"):
        fit_here(EVENTS.head(1), "resume=true")
    fit_here(EVENTS.to_pandas(), "resume=true")
    assert raw.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"contexts": {"single": "country"}}, "contexts={'single': 'country'}: must be a mapping such as"),
        ({"contexts": ["country"]}, "contexts=['country']: must be a mapping such as"),
        ({"columns": ["sku"]}, "columns=['sku']: must be a mapping of names to columns"),
        ({"overrides": "model.epochs=3"}, "overrides='model.epochs=3': must be a list, as ['model.epochs=3']"),
        ({"overrides": ["hydra.run.dir=x"]}, "overrides: hydra.run.dir=x: fit runs one task=train; set folder instead"),
        ({"overrides": ["+task=prepare"]}, "overrides: +task=prepare: fit runs one task=train; leave it out"),
        ({"overrides": ["seed=1,2", "-m"]}, "overrides: -m: fit runs one task=train; leave it out"),
    ],
)
def test_arguments_of_a_wrong_form_are_refused(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        fit.fit(EVENTS, folder=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_contexts_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: list[str]) -> None:
        (tmp_path / "metrics.json").write_text("{}")
        with hydra.initialize_config_module("arnn_lightning.conf", version_base="1.3"):
            contexts = hydra.compose("config", [text for text in arguments if "contexts" in text]).data.contexts
        assert contexts.single == names
        assert contexts.numeric == {"an age": 5, "born": [1960, 1990.5]}

    monkeypatch.setattr(fit, "_run", run)
    names = ["country, of birth", "it's", 'a "size"', "a\\'b", "C:\\"]
    numeric = {"an age": np.int64(5), "born": [1960, 1990.5]}
    fit.fit("a.csv", contexts={"single": names, "numeric": numeric}, folder=tmp_path)


def test_a_folder_may_be_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(fit, "_run", lambda _: (tmp_path / "metrics.json").write_text("{}"))
    assert fit.fit("a.csv", folder="~").folder == tmp_path


def test_output_of_fit_is_printed_unless_logging_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for has_handlers, level, is_printed, n_logged in (
        (False, logging.NOTSET, True, 0),
        (False, logging.INFO, True, 0),  # nothing would be seen
        (True, logging.INFO, False, 1),
        (True, logging.WARNING, False, 0),
        (False, logging.WARNING, False, 0),
    ):
        monkeypatch.setattr(fit.log, "hasHandlers", lambda has_handlers=has_handlers: has_handlers)
        caplog.set_level(level, "arnn_lightning")
        caplog.clear()
        fit._show("epoch 1\n")
        assert capsys.readouterr().out == ("epoch 1\n" if is_printed else "")
        assert [record.message for record in caplog.records] == ["epoch 1"] * n_logged
