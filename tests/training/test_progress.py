"""What a run shows while it trains: a bar during an epoch, on a terminal only, and a line after it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from commandline import SMALL, arnn

COLUMNS = 80
RUN = [
    *SMALL,
    "model=arnn",
    "trainer.max_epochs=2",
    "model.epochs=2",
    "model.session.epochs=1",
    "model.context.epochs=1",
]
EPOCHS = ["session encoder: epoch 1 of 1", "context encoder: epoch 1 of 1"]
EPOCHS += [f"merging layer: epoch {epoch} of 2" for epoch in (1, 2)]
EPOCH_LINE = re.compile(r"(.*: epoch \d of \d): loss \d\.\d{3}, val recall@20 0\.\d{4}, mrr@20 0\.\d{4}")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


def in_a_terminal(folder: Path, *arguments: str) -> str:
    """Everything that a run writes to a terminal of 80 columns."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("ARNN_DATA", "COLUMNS", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    command = [sys.executable, "-m", "arnn_lightning", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, **streams) as run:  # type: ignore[call-overload]
        os.close(terminal)
        written = b""
        while part := read(main):
            written += part
    os.close(main)
    assert run.returncode == 0, written.decode()
    return written.decode()


def read(main: int) -> bytes:
    try:
        return os.read(main, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def screen(written: str) -> list[str]:
    """The lines that are left, after carriage returns and the cursor's movements."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif token.endswith("A") and token.startswith("\x1b["):
            row -= int(token[2:-1])
        elif token == "\r" or token.startswith("\x1b["):
            lines[row] = "" if token == "\x1b[2K" else lines[row]
        else:
            lines[row] += token
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_a_terminal_shows_one_bar_and_then_one_line_per_epoch(workspace: Path) -> None:
    written = in_a_terminal(workspace, *RUN, "hydra.run.dir=terminal")
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written))
    bars = [frame for frame in frames if "━" in frame and ": epoch" in frame]
    assert all(len(frame) <= COLUMNS for frame in bars)
    assert list(dict.fromkeys(bar.split(" ━")[0].split(" ╺")[0] for bar in bars)) == EPOCHS
    assert any("events/s" in bar for bar in bars)
    assert any("validation" in bar for bar in bars)
    assert not re.search(r"v_num|Epoch", written)
    left = [line for line in screen(written) if ": epoch" in line]
    assert [EPOCH_LINE.fullmatch(line)[1] for line in left] == EPOCHS  # type: ignore[index]
    assert max(map(len, left)) <= COLUMNS


def test_without_a_terminal_there_are_lines_alone(workspace: Path) -> None:
    done = arnn(workspace, *RUN, "hydra.run.dir=pipe")
    lines = [line for line in done.stdout.splitlines() if ": epoch" in line]
    assert [EPOCH_LINE.fullmatch(line)[1] for line in lines] == EPOCHS  # type: ignore[index]
    assert "\x1b" not in done.stdout + done.stderr
    assert "━ " not in done.stdout + done.stderr
    rows = [row.split(",") for row in (workspace / "pipe" / "metrics.csv").read_text().splitlines()]
    validation = [float(value) for *_, metric, value in rows if metric == "val/mrr@20"]
    # Each line has the validation of its own epoch.
    assert [float(line.rpartition(" ")[2]) for line in lines[2:]] == pytest.approx(validation, abs=1e-4)
