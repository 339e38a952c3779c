"""The snippets of docs/recommend.md, run as a reader would: from an own CSV to recommendations with titles."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from commandline import NO_BASELINES, arnn_here

DOCUMENT = (Path(__file__).parents[2] / "docs" / "recommend.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
NAMES = ["lamp", "bulb", "desk", *(f"item {number}" for number in range(40))]
QUICKER = ["trainer.max_epochs=1", "model.session.n_sample=20", "evaluation.bootstrap.resamples=20", *NO_BASELINES]
QUICKER += ["data.items.min_events=1"]


def write_shop(folder: Path) -> None:
    """clicks.csv of 14 days and products.csv."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(400):
        user, start = int(rng.integers(0, 60)), 1_447_243_200 + 3_000 * number
        for step in range(int(rng.integers(2, 6))):
            item = NAMES[int(rng.zipf(1.3)) % len(NAMES)]
            rows.append((f"C-{user}", item, start + 60 * step, "de" if user % 2 else "at"))
    clicks = pl.DataFrame(rows, schema=["user", "product", "time", "country"], orient="row")
    clicks.write_csv(folder / "clicks.csv")
    pl.DataFrame({"product": NAMES, "title": [name.upper() for name in NAMES]}).write_csv(folder / "products.csv")


def test_the_documents_snippets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    names: dict[str, Any] = {}
    first = BLOCKS[0].replace(
        'contexts={"single": ["country"]},\n', f'contexts={{"single": ["country"]}},\n    overrides={QUICKER},\n'
    )
    assert first != BLOCKS[0]
    for block in (first, *BLOCKS[1:]):
        exec(block, names)
    assert names["lists"].columns == ["session_id", "item_id", "score", "rank", "title"]
    assert names["lists"]["session_id"].unique(maintain_order=True).to_list() == [1, 2, 3]
    assert names["lists"].height == 9
    assert (names["lists"]["title"] == names["lists"]["item_id"].str.to_uppercase()).all()
    assert names["session"].clicks == 1
    assert "test_ranks.parquet" in {file.name for file in names["run"].folder.iterdir()}
    assert 0 <= names["run"].metrics["recall@20"] <= 1
    capsys.readouterr()

    names["sessions"].write_csv("sessions.csv")
    names["users"].write_parquet("profiles.parquet")
    command = ["task=recommend", f"checkpoint={names['run'].folder}", "input=sessions.csv", "users=profiles.parquet"]
    command += ["k=3", "exclude_seen=true", "hydra.run.dir=here"]
    assert arnn_here([*command, "output=lists.csv"], monkeypatch) == 0
    assert re.search(
        r"sessions: 3 \(1 without a known item\); events of unknown items: 0; unknown attributes and values: 0;",
        capsys.readouterr().out,
    )
    expected = names["lists"].with_columns(pl.col("session_id").cast(pl.Int64))
    assert pl.read_csv("lists.csv").select("session_id", "item_id", "rank", "title").equals(expected.drop("score"))
    assert arnn_here([*command, "output=lists.parquet"], monkeypatch) == 0
    assert pl.read_parquet("lists.parquet")["item_id"].equals(expected["item_id"])
