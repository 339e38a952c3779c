"""How simulators write files, and the folder of simulated files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.simulation import tmall, xing
from arnn_lightning.simulation.simulator import Simulator, ensure_simulated
from commandline import arnn_here
from helpers import compose_config

FILES = {
    "xing": ["interactions.csv", "items.csv", "users.csv"],
    "tmall": ["user_info_format1.csv", "user_log_format1.csv"],
}


@pytest.fixture(autouse=True)
def few_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both schemas make many users at once, whose profiles take longer than the rows of these tests."""
    for schema in (xing, tmall):
        monkeypatch.setattr(schema, "USER_CHUNK", 500)


@dataclass(frozen=True)
class Numbers(Simulator):
    """Writes the numbers below ``events``, two at a time, and raises ``error`` after the first two."""

    log: ClassVar[str] = "numbers.csv"
    separator: ClassVar[str] = ","

    events: int
    error: type[BaseException] | None = None

    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        yield {"names.csv": pl.DataFrame({"name": ["a", None]})}
        for first in range(0, self.events, 2):
            if first and self.error:
                raise self.error
            yield {"numbers.csv": pl.DataFrame({"number": [first, first + 1]})}


def generator(schema: str = "xing", **changes: Any) -> dict[str, Any]:
    """The settings of conf/schema/<schema>.yaml, with few rows."""
    settings: Any = OmegaConf.to_container(compose_config(f"+schema={schema}").schema, resolve=True)
    assert set(changes) <= set(settings)
    return settings | {"events": 1_000} | changes  # type: ignore[no-any-return]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- writing ---


def test_chunks_follow_each_other_under_one_header(tmp_path: Path) -> None:
    messages: list[str] = []
    written = Numbers(events=4).write(tmp_path / "new" / "folder", messages.append)
    assert [file.name for file in written] == ["names.csv", "numbers.csv"]
    assert [file.read_text() for file in written] == ["name\na\n\n", "number\n0\n1\n2\n3\n"]
    assert messages == ["0 of 4 rows", "2 of 4 rows", "4 of 4 rows"]


def test_new_files_replace_those_of_the_same_name_only(tmp_path: Path) -> None:
    for name in ("numbers.csv", "mine.csv"):
        (tmp_path / name).write_text("old")
    Numbers(events=2).write(tmp_path)
    assert names(tmp_path) == ["mine.csv", "names.csv", "numbers.csv"]
    assert (tmp_path / "mine.csv").read_text() == "old"
    assert (tmp_path / "numbers.csv").read_text() == "number\n0\n1\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_only_the_old_files(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "numbers.csv").write_text("old")
    with pytest.raises(error):
        Numbers(events=4, error=error).write(tmp_path)
    assert names(tmp_path) == ["numbers.csv"]
    assert (tmp_path / "numbers.csv").read_text() == "old"


# --- the task ---


@pytest.mark.parametrize("schema", FILES)
def test_the_task_writes_the_requested_number_of_rows(
    tmp_path: Path, schema: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "mine.csv").write_text("old")
    assert arnn_here(["task=generate", f"schema={schema}", "events=1234", f"output={tmp_path}"], monkeypatch) == 0
    assert names(tmp_path) == sorted([*FILES[schema], "mine.csv"])
    log = next(name for name in FILES[schema] if name in ("interactions.csv", "user_log_format1.csv"))
    assert len((tmp_path / log).read_text().splitlines()) == 1 + 1234
    assert capsys.readouterr().out == f"wrote {', '.join(FILES[schema])} to {tmp_path}\n"


@pytest.mark.parametrize("schema", FILES)
def test_events_default_to_those_of_the_schema(schema: str) -> None:
    config = compose_config("task=generate", f"schema={schema}", "output=x")
    assert config.events == config.schema.events >= 100_000


# --- the folder ---


def test_a_simulated_folder_is_written_once(tmp_path: Path) -> None:
    messages: list[str] = []
    settings = generator(events=2_000)
    folder = ensure_simulated(settings, "synthetic", tmp_path / "raw", messages.append)
    assert folder.parent == tmp_path / "raw"
    assert messages[-1] == "2,000 of 2,000 rows"
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.iterdir()}
    messages.clear()
    assert ensure_simulated(settings, "synthetic", tmp_path / "raw", messages.append) == folder
    assert {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.iterdir()} == before
    assert messages == []


def test_other_settings_are_written_to_another_folder(tmp_path: Path) -> None:
    folders = {
        ensure_simulated(generator(schema, **changes), name, tmp_path): schema
        for name, schema, changes in [
            ("synthetic", "xing", {}),
            ("other", "xing", {}),
            ("synthetic", "tmall", {}),
            ("synthetic", "tmall", {"seed": 2}),
            ("synthetic", "tmall", {"context_strength": 0.5}),
        ]
    }
    assert len(folders) == 5
    assert all(names(folder) == FILES[schema] for folder, schema in folders.items())


def test_an_interrupted_simulation_leaves_no_folder(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_simulated(generator(), "synthetic", tmp_path, interrupt)
    folder = ensure_simulated(generator(), "synthetic", tmp_path)
    assert names(folder) == FILES["xing"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("schema", FILES)
def test_bad_settings_leave_no_folder(tmp_path: Path, schema: str) -> None:
    with pytest.raises(UserError, match="context_strength=2"):
        ensure_simulated(generator(schema, context_strength=2), "synthetic", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
