"""XingSimulator: its files, and the ground truth in them."""

import json
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import prepare
from arnn_lightning.readers.schema import validate_events
from arnn_lightning.readers.xing import MULTI, SINGLE, XingReader
from arnn_lightning.simulation.xing import XingSimulator
from helpers import compose_config
from models import slow

EVENTS = 30_000
NAMES = ("interactions.csv", "items.csv", "users.csv")
MARGINALS: dict[str, Any] = json.loads(
    files("arnn_lightning.simulation").joinpath("marginals/xing_users.json").read_text()
)


@cache
def schema() -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(compose_config("data=synthetic").data.generate, resolve=True)
    return settings  # type: ignore[no-any-return]


def simulator(**changes: Any) -> XingSimulator:
    """The simulator of conf/schema/xing.yaml, with fewer rows."""
    assert set(changes) <= set(schema())
    settings = schema() | {"events": EVENTS} | changes
    del settings["_target_"]
    return XingSimulator(**settings)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Context strength -> folder of its files."""
    folders = {strength: tmp_path_factory.mktemp("simulated") for strength in (0.0, 1.0)}
    for strength, folder in folders.items():
        simulator(context_strength=strength).write(folder)
    return folders


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(folder / name, separator="\t", quote_char=None, infer_schema=name != "users.csv")


def clicks(folder: Path) -> pl.DataFrame:
    return table(folder, "interactions.csv").filter(pl.col("interaction_type") == 1)


def sessions(folder: Path) -> pl.DataFrame:
    """Clicks of every session of the log (a pause of more than an hour ends one): user_id, clicks."""
    log = clicks(folder).sort("user_id", "created_at")
    late = pl.col("created_at") - pl.col("created_at").shift() > 3_600
    new = ((pl.col("user_id") != pl.col("user_id").shift()) | late).fill_null(True)
    return log.with_columns(session=new.cum_sum()).group_by("session", "user_id").len("clicks")


# --- the files ---


@pytest.mark.parametrize("events", [1_000, slow(EVENTS)])
def test_the_log_has_exactly_the_requested_rows(tmp_path: Path, events: int) -> None:
    simulator(events=events).write(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == list(NAMES)
    assert table(tmp_path, "interactions.csv").height == events


def test_equal_settings_write_equal_bytes_another_seed_others(tmp_path: Path, simulated: dict[float, Path]) -> None:
    simulator(context_strength=1.0).write(tmp_path / "again")
    simulator(context_strength=1.0, seed=2).write(tmp_path / "other")
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (simulated[1.0] / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (simulated[1.0] / name).read_bytes()


def test_strength_changes_clicks_only(simulated: dict[float, Path]) -> None:
    same = {
        name: simulated[0.0].joinpath(name).read_bytes() == simulated[1.0].joinpath(name).read_bytes() for name in NAMES
    }
    assert same == {"interactions.csv": False, "items.csv": True, "users.csv": True}


def test_ids_are_those_of_the_other_files(simulated: dict[float, Path]) -> None:
    log, items, users = (table(simulated[1.0], name) for name in NAMES)
    assert log["item_id"].is_in(items["id"].implode()).all()
    assert log["user_id"].is_in(users["id"].cast(pl.Int64).implode()).all()
    assert items["id"].is_unique().all()
    assert users["id"].is_unique().all()


def test_the_reader_reads_what_is_written(simulated: dict[float, Path]) -> None:
    raw = XingReader(str(simulated[1.0]), [], []).read()
    validate_events(raw, simulated[1.0])
    assert raw.rows == EVENTS
    assert raw.events.height == clicks(simulated[1.0]).height
    assert raw.users().collect().columns == ["user", *SINGLE, *MULTI]


@pytest.mark.parametrize("name", MULTI)
def test_the_lists_that_are_read_hold_codes_and_nothing_else(simulated: dict[float, Path], name: str) -> None:
    codes = (
        XingReader(str(simulated[1.0]), [], []).read().users().collect()[name].explode().drop_nulls().unique().to_list()
    )
    assert [text for text in codes if not text.isdigit()] == []


def test_the_simulated_log_can_be_prepared(simulated: dict[float, Path], tmp_path: Path) -> None:
    data: Any = OmegaConf.to_container(
        compose_config("data=synthetic", f"data.raw_dir={simulated[1.0]}").data, resolve=True
    )
    prepared = prepare(data, tmp_path)
    assert all(counts["sessions"] > 20 for counts in prepared.manifest["splits"].values())
    assert len(prepared.dims["single_sizes"]) == len(data["contexts"]["single"])


# --- sizes and truth ---


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_four_in_five_rows_are_clicks(simulated: dict[float, Path], strength: float) -> None:
    kinds = Counter(table(simulated[strength], "interactions.csv")["interaction_type"])
    assert set(kinds) == {1, 2, 3, 4}
    # 7,183,038 clicks beside 206,191 bookmarks, 422,026 replies and 1,015,423 deletes
    for kind, share in {1: 0.814, 2: 0.023, 3: 0.048, 4: 0.115}.items():
        assert kinds[kind] / EVENTS == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_popularity_is_skewed(simulated: dict[float, Path], strength: float) -> None:
    counts = clicks(simulated[strength]).group_by("item_id").len()["len"].sort(descending=True)
    catalogue = table(simulated[strength], "items.csv").height
    # Equally popular items would give their first tenth some 15 % of the clicks.
    assert counts.head(catalogue // 10).sum() > 0.35 * counts.sum()


@pytest.mark.parametrize("events", [EVENTS, slow(150_000)])
def test_sizes_have_the_ratios_of_xing(tmp_path: Path, events: int) -> None:
    simulator(events=events).write(tmp_path)
    log_sessions = sessions(tmp_path)
    active = log_sessions["user_id"].n_unique()
    assert log_sessions["clicks"].mean() == pytest.approx(3.4, abs=0.4)
    assert log_sessions.height / active == pytest.approx(2.7, abs=0.3)
    assert active / table(tmp_path, "users.csv").height == pytest.approx(1 - 0.429, abs=0.03)


def region_matches(folder: Path) -> tuple[float, np.ndarray]:
    """How often a click's item lies in the region that its user shows, and the same with users shuffled, 20 times."""
    users = table(folder, "users.csv").filter(~pl.col("region").is_in(["0", "NULL"]))
    region = users["region"].cast(pl.Int64).to_numpy()
    place = {user: row for row, user in enumerate(users["id"].cast(pl.Int64))}
    rows = clicks(folder).join(table(folder, "items.csv").select(item_id="id", where="region"), on="item_id")
    shown = rows.filter(pl.col("user_id").is_in(list(place)))
    clicker = np.array([place[user] for user in shown["user_id"]])
    where = shown["where"].to_numpy()
    rng = np.random.default_rng(0)
    shuffled = [(rng.permutation(region)[clicker] == where).mean() for _ in range(20)]
    return float((region[clicker] == where).mean()), np.array(shuffled)


def test_without_strength_regions_are_independent_of_users(simulated: dict[float, Path]) -> None:
    rate, shuffled = region_matches(simulated[0.0])
    assert abs(rate - shuffled.mean()) < 5 * shuffled.std()
    assert shuffled.std() < 0.01


def test_with_strength_users_click_items_of_their_region(simulated: dict[float, Path]) -> None:
    rate, shuffled = region_matches(simulated[1.0])
    assert rate > shuffled.mean() + 0.2


@pytest.mark.parametrize("name", SINGLE)
def test_profiles_follow_the_published_marginals(simulated: dict[float, Path], name: str) -> None:
    users = table(simulated[1.0], "users.csv")
    sampled = Counter(users[name])
    assert set(sampled) <= set(MARGINALS[name])
    for code, count in MARGINALS[name].items():
        assert sampled[code] / users.height == pytest.approx(count / MARGINALS["n_users"], abs=0.02)


def test_four_in_nine_users_hide_their_region(simulated: dict[float, Path]) -> None:
    hidden = (table(simulated[1.0], "users.csv")["region"] == "0").mean()
    assert hidden == pytest.approx(MARGINALS["region"]["0"] / MARGINALS["n_users"], abs=0.02)


@pytest.mark.parametrize("name", MULTI)
def test_as_many_lists_are_unknown_as_published(simulated: dict[float, Path], name: str) -> None:
    users = XingReader(str(simulated[1.0]), [], []).read().users().collect()
    unknown = (users[name].list.len().fill_null(0) == 0).mean()
    published = MARGINALS[name]["count_0_only"] + MARGINALS[name]["count_empty"]
    assert unknown == pytest.approx(published / MARGINALS["n_users"], abs=0.02)


@pytest.mark.parametrize("name", MULTI)
def test_lists_are_as_long_as_published(simulated: dict[float, Path], name: str) -> None:
    # The published lengths count an unknown list as one entry.
    entries = table(simulated[1.0], "users.csv")[name].fill_null("").str.count_matches(",") + 1
    published = MARGINALS[name]["list_len_hist"]["1"] / MARGINALS["n_users"]
    assert (entries == 1).mean() == pytest.approx(published, abs=0.04)


# --- the settings ---


BAD = {
    "context_strength": [-0.1, 1.1],
    "events": [0, 999, 5e6],
    "job_roles": [0, 29],
    "seed": [-1],
    "own_role_prob": [-0.1, 1.1],
    "region_boost": [0.0, -1.0],
    "level_boost": [0.0, -1.0],
    "topic_width": [-1.0],
    "n_candidates": [0],
    "noise_rate": [-0.1, 1.1],
    "clicks_per_item": [0.0, -1.0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        simulator(**{name: value})
