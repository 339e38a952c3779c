"""TmallSimulator: its files, and the ground truth in them."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from arnn_lightning.errors import UserError
from arnn_lightning.simulation.tmall import TmallSimulator
from helpers import compose_config
from models import slow

EVENTS = 400_000
LOG, INFO = "user_log_format1.csv", "user_info_format1.csv"
PROFILES = json.loads(files("arnn_lightning.simulation").joinpath("marginals/tmall_users.json").read_text())


@cache
def schema() -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(compose_config("+schema=tmall").schema, resolve=True)
    return settings  # type: ignore[no-any-return]


def simulator(**changes: Any) -> TmallSimulator:
    """The simulator of conf/schema/tmall.yaml, with fewer rows."""
    assert set(changes) <= set(schema())
    settings = schema() | {"events": EVENTS} | changes
    del settings["_target_"]
    return TmallSimulator(**settings)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Context strength -> folder of its files."""
    folders = {strength: tmp_path_factory.mktemp("simulated") for strength in (0.0, 1.0)}
    for strength, folder in folders.items():
        simulator(context_strength=strength).write(folder)
    return folders


@pytest.fixture(params=[0.0, 1.0], ids="strength={}".format)
def folder(simulated: dict[float, Path], request: pytest.FixtureRequest) -> Path:
    """The files at either strength, for laws that hold at both."""
    return simulated[request.param]


def log(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / LOG)


def clicks(folder: Path) -> pl.DataFrame:
    return log(folder).filter(pl.col("action_type") == 0)


def info(folder: Path) -> pl.DataFrame:
    """Profiles as text: an empty field is a null."""
    return pl.read_csv(folder / INFO, schema={"user_id": pl.Int64, "age_range": pl.String, "gender": pl.String})


# --- the files ---


def test_the_files_have_the_columns_of_data_format1(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == [INFO, LOG]
    heads = {name: folder.joinpath(name).read_text().partition("\n")[0] for name in (INFO, LOG)}
    assert heads[LOG] == "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"
    assert heads[INFO] == "user_id,age_range,gender"
    assert set(log(folder).dtypes) == {pl.Int64}


@pytest.mark.parametrize("events", [1_000, 300_000])
def test_the_log_has_exactly_the_requested_rows_and_their_users(tmp_path: Path, events: int) -> None:
    simulator(events=events).write(tmp_path)
    users = info(tmp_path)["user_id"]
    assert log(tmp_path).height == events
    assert users.is_unique().all()
    assert set(users) == set(log(tmp_path)["user_id"])


def test_another_seed_writes_other_bytes(tmp_path: Path, simulated: dict[float, Path]) -> None:
    simulator(context_strength=1.0).write(tmp_path / "again")
    simulator(context_strength=1.0, seed=2).write(tmp_path / "other")
    for name in (LOG, INFO):
        assert (tmp_path / "again" / name).read_bytes() == (simulated[1.0] / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (simulated[1.0] / name).read_bytes()


def test_a_longer_log_of_the_same_items_starts_with_the_shorter(tmp_path: Path, simulated: dict[float, Path]) -> None:
    """Chunks of users do not depend on later ones."""
    half = simulator(context_strength=1.0, events=EVENTS // 2, rows_per_item=schema()["rows_per_item"] / 2)
    half.write(tmp_path)
    for name in (LOG, INFO):
        assert simulated[1.0].joinpath(name).read_bytes().startswith(tmp_path.joinpath(name).read_bytes())


def test_the_rows_of_a_user_lie_together_but_not_in_time_order(folder: Path) -> None:
    users = log(folder)["user_id"].rle().struct.field("value")
    assert users.is_unique().all()
    assert not users.is_sorted()
    step = log(folder).select(pl.col("time_stamp").diff().over("user_id"))["time_stamp"]
    assert (step < 0).sum() / (step > 0).sum() == pytest.approx(1, abs=0.1)


def test_the_rows_of_a_users_day_lie_together(folder: Path) -> None:
    day = pl.struct("user_id", "time_stamp")
    assert log(folder).select(day.rle_id().n_unique()).item() == log(folder).select(day.n_unique()).item()


def test_other_actions_follow_a_click_on_the_item(folder: Path) -> None:
    same = ["user_id", "item_id", "time_stamp"]
    after = log(folder).with_columns(pl.col("action_type", *same).shift().name.prefix("last_"))
    others = after.filter(pl.col("action_type") != 0)
    assert (others["last_action_type"] == 0).all()
    assert all((others[name] == others[f"last_{name}"]).all() for name in same)


def test_an_item_has_one_category_seller_and_brand(simulated: dict[float, Path]) -> None:
    """The log agrees with the catalogue."""
    shown = log(simulated[1.0]).select("item_id", "cat_id", "seller_id", "brand_id").unique()
    true = simulator(context_strength=1.0).catalogue()
    assert shown["item_id"].is_unique().all()
    assert true["item_id"].sort().to_list() == list(range(1, 1 + round(EVENTS / schema()["rows_per_item"])))
    assert shown.join(true.cast(pl.Int64), on=shown.columns, nulls_equal=True).height == shown.height


def test_the_catalogue_of_the_full_size_is_tmalls() -> None:
    catalogue = simulator(events=54_925_330).catalogue()
    sizes = catalogue.select(
        pl.col("item_id", "cat_id", "seller_id").n_unique(), pl.col("brand_id").drop_nulls().n_unique()
    )
    assert sizes.row(0) == pytest.approx((1_090_390, 1_658, 4_995, 8_444), abs=10)


# --- the sizes ---


def test_action_types_are_shared_out_as_published(folder: Path) -> None:
    kinds = dict(log(folder)["action_type"].value_counts(normalize=True).iter_rows())
    published = {0: 48_550_713, 1: 76_750, 2: 3_292_144, 3: 3_005_723}
    assert set(kinds) == set(published)
    for kind, count in published.items():
        assert kinds[kind] == pytest.approx(count / 54_925_330, abs=0.002)


def test_as_few_rows_lack_a_brand_as_published(folder: Path) -> None:
    assert log(folder)["brand_id"].is_null().mean() == pytest.approx(91_015 / 54_925_330, abs=0.001)


def test_days_range_from_may_to_november_with_a_peak(folder: Path) -> None:
    days = dict(log(folder)["time_stamp"].value_counts(normalize=True).iter_rows())
    assert len(days) == 31 - 10 + 30 + 31 + 31 + 30 + 31 + 12
    assert (min(days), max(days)) == (511, 1112)
    assert days.pop(1111) == pytest.approx(0.193, abs=0.01)
    assert max(days.values()) < 0.008


def test_sessions_are_as_long_and_as_many_as_published(folder: Path) -> None:
    sessions = clicks(folder).group_by("user_id", "time_stamp").len()
    users = info(folder).height
    assert sessions["len"].mean() == pytest.approx(48.6 / 6.5, rel=0.03)
    assert sessions.height / users == pytest.approx(6_500 / 424, rel=0.05)
    assert EVENTS / users == pytest.approx(54_925_330 / 424_170, rel=0.05)


@pytest.mark.parametrize("events", [EVENTS, slow(1_500_000)])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_one_item_in_ninety_holds_half_of_the_clicks(tmp_path: Path, events: int, strength: float) -> None:
    """At any size and strength: 11,939 of TMALL's 1,090,390."""
    simulator(events=events, context_strength=strength).write(tmp_path)
    counts = clicks(tmp_path)["item_id"].value_counts(sort=True)["count"]
    popular = (counts.cum_sum() < counts.sum() / 2).sum()
    assert popular / (events / schema()["rows_per_item"]) == pytest.approx(11_939 / 1_090_390, rel=0.1)


def test_profiles_follow_the_published_counts(simulated: dict[float, Path]) -> None:
    users = info(simulated[1.0])
    sampled = dict.fromkeys(((age, gender) for age, gender, _ in PROFILES["age_range_gender_count"]), 0.0)
    for age, gender, count in users.group_by("age_range", "gender").len().fill_null("").iter_rows():
        sampled[age, gender] += count / users.height
    assert len(sampled) == len(PROFILES["age_range_gender_count"])
    for age, gender, count in PROFILES["age_range_gender_count"]:
        assert sampled[age, gender] == pytest.approx(count / PROFILES["n_users"], abs=0.025)


# --- the truth ---


def own_persona_clicks(folder: Path, strength: float) -> pl.DataFrame:
    """Clicks of users with known age and gender; ``own``: whether the item targets their persona."""
    known = info(folder).cast(pl.Int64).filter(pl.col("age_range") > 0, pl.col("gender") < 2)
    who = (pl.col("age_range").clip(upper_bound=7) - 1) * 2 + pl.col("gender")
    items = simulator(context_strength=strength).catalogue().select("item_id", "persona").cast(pl.Int64)
    return (
        clicks(folder)
        .with_columns(first=pl.struct("user_id", "time_stamp").is_first_distinct())
        .join(known.select("user_id", who=who), on="user_id", maintain_order="left")
        .join(items, on="item_id", maintain_order="left")
        .with_columns(own=pl.col("who") == pl.col("persona"))
    )


def shuffled(rows: pl.DataFrame) -> np.ndarray:
    """How often a click's item targets the persona of its user after shuffling users, 20 times."""
    users = rows.select("user_id", "who").unique(maintain_order=True)
    place = users.select("user_id").with_row_index("place")
    clicker = rows.join(place, on="user_id", maintain_order="left")["place"].to_numpy()
    rng = np.random.default_rng(0)
    who, persona = users["who"].to_numpy(), rows["persona"].to_numpy()
    return np.array([(rng.permutation(who)[clicker] == persona).mean() for _ in range(20)])


def test_without_strength_personas_are_independent_of_users(simulated: dict[float, Path]) -> None:
    rows = own_persona_clicks(simulated[0.0], 0.0)
    by_chance = shuffled(rows)
    assert by_chance.std() < 0.005
    assert abs(rows["own"].mean() - by_chance.mean()) < 5 * by_chance.std()


def test_with_strength_users_click_items_of_their_persona(simulated: dict[float, Path]) -> None:
    rows = own_persona_clicks(simulated[1.0], 1.0)
    assert rows["own"].mean() > shuffled(rows).mean() + 0.2


def test_the_first_click_of_a_session_comes_from_anywhere(simulated: dict[float, Path]) -> None:
    rows = own_persona_clicks(simulated[1.0], 1.0).filter("first")
    by_chance = shuffled(rows)
    assert abs(rows["own"].mean() - by_chance.mean()) < 5 * by_chance.std()


def test_users_with_hidden_gender_have_a_persona(simulated: dict[float, Path]) -> None:
    """Users with known age only click their two personas' items as often as those with both known."""
    profiles = info(simulated[1.0]).cast(pl.Int64).with_columns(pl.col("gender").fill_null(2))
    group = (pl.col("age_range").clip(upper_bound=7) - 1).alias("group")
    items = simulator(context_strength=1.0).catalogue().select("item_id", of=pl.col("persona") // 2).cast(pl.Int64)
    rows = clicks(simulated[1.0]).join(profiles.filter(pl.col("age_range") > 0).with_columns(group), on="user_id")
    own = (
        rows.join(items, on="item_id")
        .group_by(hidden=pl.col("gender") == 2)
        .agg((pl.col("group") == pl.col("of")).mean().alias("own"))
    )
    shares = dict(own.iter_rows())
    assert shares[True] == pytest.approx(shares[False], abs=0.08)


def test_the_strength_changes_the_items_and_nothing_else(simulated: dict[float, Path]) -> None:
    assert (simulated[0.0] / INFO).read_bytes() == (simulated[1.0] / INFO).read_bytes()
    without, full = log(simulated[0.0]), log(simulated[1.0])
    same = ["user_id", "cat_id", "time_stamp", "action_type"]
    assert without.select(same).equals(full.select(same))
    assert (without["item_id"] != full["item_id"]).mean() > 0.3


def test_a_category_lasts(simulated: dict[float, Path]) -> None:
    """Within a session, unless the intent switches or one of two clicks is noise."""
    rows = (
        clicks(simulated[1.0])
        .with_columns(last=pl.col("cat_id").shift().over("user_id", "time_stamp"))
        .drop_nulls("last")
    )
    lasting = (1 - schema()["intent_switch_prob"]) * (1 - schema()["noise_rate"]) ** 2
    stays = (rows["cat_id"] == rows["last"]).mean()
    assert lasting < stays < lasting + 0.2


# --- the settings ---

BAD = {
    "context_strength": [-0.1, 1.1],
    "favourite_prob": [-0.1, 1.1],
    "intent_switch_prob": [-0.1, 1.1],
    "noise_rate": [-0.1, 1.1],
    "head_share": [0.0, 0.5],
    "events": [0, 999, 5e6],
    "seed": [-1, 0.5],
    "class_skew": [-0.1],
    "topic_width": [-1.0],
    "rows_per_item": [0.0, -1.0],
    "items_per_category": [0.0, -1.0],
    "sellers": [0],
    "brands": [0],
    "n_favourite_categories": [0],
    "persona_boost": [0.0, -1.0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        simulator(**{name: value})


def test_every_setting_has_a_range() -> None:
    assert set(BAD) == set(schema()) - {"_target_"}


@pytest.mark.parametrize(
    "changes",
    [
        {"events": 1_000, "rows_per_item": 10_000.0},
        {"events": 1_000, "items_per_category": 0.5},
        {"sellers": 1, "brands": 1, "n_favourite_categories": 1},
        {"topic_width": 0.0, "intent_switch_prob": 0.0, "noise_rate": 0.0, "favourite_prob": 1.0},
        {"topic_width": 100.0, "intent_switch_prob": 1.0, "noise_rate": 1.0, "favourite_prob": 0.0},
        {"class_skew": 0.0, "head_share": 0.49, "persona_boost": 0.01},
    ],
)
def test_extreme_settings_write_a_valid_log(tmp_path: Path, changes: dict[str, Any]) -> None:
    log_simulator = simulator(**{"events": 5_000} | changes)
    log_simulator.write(tmp_path)
    assert log(tmp_path).height == log_simulator.events
    assert log(tmp_path).drop("brand_id").null_count().row(0) == (0,) * 6
