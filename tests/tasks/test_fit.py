"""al.fit: what its caller sees."""

import logging

import pytest

from arnn_lightning.tasks import fit


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
