"""init_from on the command line: every stage starts from its own checkpoint, and the record states which."""

import hashlib
from pathlib import Path

import pytest
import torch

from commandline import SMALL, arnn, error_line, metrics_of


@pytest.mark.slow
def test_all_stages_of_arnn_start_from_the_earlier_run(tmp_path: Path) -> None:
    arnn(tmp_path, "model=arnn", *SMALL, "hydra.run.dir=first")
    best = tmp_path / "first" / "checkpoints" / "best.ckpt"
    again = ["model=arnn", *SMALL, "init_from=first"]
    still = [f"model.{part}optimizer.lr=0" for part in ("", "session.", "context.")]
    done = arnn(tmp_path, *again, *still, "hydra.run.dir=second")
    assert "known, 0 new, 0 removed; categories" in done.stdout + done.stderr
    first, second = metrics_of(tmp_path / "first"), metrics_of(tmp_path / "second")
    files = {"model": best} | {role: best.parent / role / "best.ckpt" for role in ("session", "context")}
    assert {role: entry["sha256"] for role, entry in second["init_from"].items()} == {
        role: hashlib.sha256(file.read_bytes()).hexdigest() for role, file in files.items()
    }
    assert "init_from" not in first
    for role in ("", "session", "context"):
        file = Path("checkpoints", role, "best.ckpt")
        weights = [torch.load(tmp_path / run / file, weights_only=True)["state_dict"] for run in ("first", "second")]
        learned = [name for name in weights[0] if name.endswith(("weight", "bias")) or "embedding" in name]
        assert learned
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in learned), role
    wrong = error_line(arnn(tmp_path, "model=arnn", *SMALL, "init_from=frist", code=2))
    assert wrong == "error: no checkpoint at frist (runs save theirs to RUN/checkpoints/best.ckpt)"
    files["session"].unlink()
    lost = error_line(arnn(tmp_path, *again, "hydra.run.dir=third", code=2))
    assert "session/best.ckpt does not exist" in lost
    assert "set pretrained.session" in lost
    pop = error_line(arnn(tmp_path, "model=pop", *SMALL, f"init_from={best}", "hydra.run.dir=fourth", code=2))
    assert pop == "error: init_from: pop is a non-neural model and has no initial weights"
