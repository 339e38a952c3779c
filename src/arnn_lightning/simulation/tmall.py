"""TmallSimulator: a log in the schema of TMALL (IJCAI-15, data_format1) in which age and gender affect clicks.

- A **user** has an age group and a gender, together the **persona**. Profiles are sampled from published joint counts
  (``marginals/``). Users whose profile hides an attribute (age 22 %, gender 4 % of users) have a value too: only the
  file lacks it.
- An **item** belongs to one category and targets one persona; personas of items are distributed as those of users.
  Popularity follows Zipf's law with a flattened head: of n items, the k-th weighs 1 / (k + shift * n), with a shift
  such that the share ``head_share`` of the items has half of the weight, for any number of items.
- A **session** is a calendar day. It has an intent: a category, one of the user's ``n_favourite_categories`` with
  probability ``favourite_prob``, else any, by popularity; and a topic, which is a position among each persona's items
  of the category. A click starts a new intent with probability ``intent_switch_prob``.
- A **click** chooses an item of the category by popularity, near the topic (``topic_width``). Items that target the
  user's persona weigh ``persona_boost`` to the power of the context strength times as much, except for the first click
  of a session (a link, a search). The share ``noise_rate`` of clicks ignores the intent and follows popularity. What an
  item gains from its persona it loses from the others: its popularity does not depend on the strength.
- A **buy**, a favourite or a cart is a row right after a click on the item.

With ``context_strength`` 0, contexts carry no information about clicks; everything else stays the same (users, days,
categories and action types row by row).

Sizes are TMALL's: 7.47 clicks a session, 15.3 sessions a user, 19.3 % of the rows on 11 November (Singles' Day, on
which every user is active, since the competition is about its buyers; the other days are equal), the shares of the
action types and of rows without a brand, 50.4 rows an item, 658 items a category. So a smaller log has fewer items and
categories, but a user has as many of them to choose from. Sellers and brands, which do not affect clicks, keep their
number (at most one per item). The settings from ``class_skew`` on are not published; they were chosen so that contexts
matter.

Rows of a user are adjacent, the user's days in random order, the clicks of a day in the order in which they happened.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from arnn_lightning.readers.tmall import month_and_day
from arnn_lightning.simulation.simulator import Simulator, read_marginals, sample_zipf_classes, validate_settings

CLICK = 0
# Rows of each other action type per click: cart, buy, favourite (76,750; 3,292,144; 3,005,723; 48,550,713 clicks).
OTHER_ACTION_RATES = {1: 0.00158, 2: 0.06781, 3: 0.06191}
CLICKS_PER_SESSION = 7.47
SESSIONS_PER_USER = 15.3
SINGLES_DAY_SHARE = 0.193  # of all rows, on 11 November
MISSING_BRAND_SHARE = 0.00166  # share of rows
DATES = np.arange("2014-05-11", "2014-11-13", dtype="datetime64[D]")
TIME_STAMPS = month_and_day(DATES)
SINGLES_DAY = int(np.flatnonzero(TIME_STAMPS == 1111)[0])
UNKNOWN_AGE, UNKNOWN_GENDER = ("", "0"), ("", "2")
AGE_GROUPS, GENDERS = 7, 2  # codes 7 and 8 both mean 50 and older
PERSONAS = AGE_GROUPS * GENDERS
NO_PERSONA = PERSONAS  # of clicks that do not depend on the persona
BALANCING_ROUNDS = 100
USER_CHUNK = 2_000


@dataclass(frozen=True)
class TmallSimulator(Simulator):
    """Writes user_log_format1.csv and user_info_format1.csv in the TMALL schema.

    Attributes:
        events: rows of user_log_format1.csv, about 88 % of them clicks.
        context_strength: effect of the user's persona on clicks, in [0, 1].
        seed: seed of all samples; equal settings write equal bytes.
        rows_per_item: determines the size of the catalogue.
        items_per_category: determines the number of categories.
        sellers: number of sellers.
        brands: number of brands.
        head_share: share of the items that have half of the popularity.
        class_skew: exponent of the sizes of categories, sellers and brands: the k-th has k^-class_skew of the items.
        n_favourite_categories: number of categories that a user prefers.
        favourite_prob: probability that an intent is about one of them.
        intent_switch_prob: probability that a click starts a new intent.
        topic_width: spread of an intent's clicks around its topic; 1: a persona's whole block of the category.
        persona_boost: weight of items that target the user's persona, relative to others, at full strength.
        noise_rate: share of clicks that ignore the intent.

    Raises:
        UserError: a setting out of its range.
    """

    log: ClassVar[str] = "user_log_format1.csv"
    separator: ClassVar[str] = ","

    events: int
    context_strength: float
    seed: int
    rows_per_item: float
    items_per_category: float
    sellers: int
    brands: int
    head_share: float
    class_skew: float
    n_favourite_categories: int
    favourite_prob: float
    intent_switch_prob: float
    topic_width: float
    persona_boost: float
    noise_rate: float

    def __post_init__(self) -> None:
        validate_settings(
            self,
            ("context_strength", 0 <= self.context_strength <= 1, "in [0, 1]"),
            ("favourite_prob", 0 <= self.favourite_prob <= 1, "in [0, 1]"),
            ("intent_switch_prob", 0 <= self.intent_switch_prob <= 1, "in [0, 1]"),
            ("noise_rate", 0 <= self.noise_rate <= 1, "in [0, 1]"),
            ("head_share", 0 < self.head_share < 0.5, "between 0 and 0.5"),
            ("events", self.events >= 1_000, "at least 1000 (with fewer, no events remain after preparation)"),
            ("seed", self.seed >= 0, "at least 0"),
            ("class_skew", self.class_skew >= 0, "at least 0"),
            ("topic_width", self.topic_width >= 0, "at least 0"),
            ("rows_per_item", self.rows_per_item > 0, "positive"),
            ("items_per_category", self.items_per_category > 0, "positive"),
            ("sellers", self.sellers >= 1, "at least 1"),
            ("brands", self.brands >= 1, "at least 1"),
            ("n_favourite_categories", self.n_favourite_categories >= 1, "at least 1"),
            ("persona_boost", self.persona_boost > 0, "positive"),
        )

    def catalogue(self) -> pl.DataFrame:
        """The true attributes of the items, all of which but the last are in the files.

        Returns:
            item_id, cat_id, seller_id, brand_id, and persona: (age group - 1) * 2 + gender, groups and gender coded as
            in user_info_format1.csv, with 7 for both 7 and 8.
        """
        items = _Catalogue(self)
        return items.columns.with_columns(persona=pl.Series(items.persona, dtype=pl.Int32))

    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        """Users and their rows, until all rows are written."""
        items = _Catalogue(self)
        first, left = 1, self.events
        while left:
            rng = np.random.default_rng([self.seed, 1, first])
            users = _Users(rng, USER_CHUNK, first)
            # Drops whole users, except for the last one.
            rows = self._rows(rng, items, users).head(left)
            profiles = users.profile.filter(pl.col("user_id").is_in(rows["user_id"].unique().implode()))
            left -= rows.height
            first += USER_CHUNK
            yield {"user_info_format1.csv": profiles, self.log: rows}

    def _rows(self, rng: np.random.Generator, items: "_Catalogue", users: "_Users") -> pl.DataFrame:
        user, day = _sample_session_days(rng, len(users.id))
        clicks_per_user = SESSIONS_PER_USER * CLICKS_PER_SESSION
        on_another_day = (1 - SINGLES_DAY_SHARE) * clicks_per_user / (SESSIONS_PER_USER - 1)
        clicks = rng.geometric(1 / np.where(day == SINGLES_DAY, SINGLES_DAY_SHARE * clicks_per_user, on_another_day))
        session = np.repeat(np.arange(len(user)), clicks)
        first = np.diff(session, prepend=-1) != 0
        rates = [1 - sum(OTHER_ACTION_RATES.values()), *OTHER_ACTION_RATES.values()]
        action = rng.choice([CLICK, *OTHER_ACTION_RATES], len(session), p=rates)
        item = self._items_clicked(rng, items, users.persona, user[session], first)
        rows = 1 + (action != CLICK)
        click = np.repeat(np.arange(len(session)), rows)
        action_type = np.full(len(click), CLICK)
        action_type[np.cumsum(rows) - 1] = action
        return pl.concat(
            [
                pl.DataFrame({"user_id": users.id[user[session]][click]}),
                items.columns[item[click]],
                pl.DataFrame({"time_stamp": TIME_STAMPS[day[session]][click], "action_type": action_type}),
            ],
            how="horizontal",
        )

    def _items_clicked(
        self, rng: np.random.Generator, items: "_Catalogue", persona: np.ndarray, user: np.ndarray, first: np.ndarray
    ) -> np.ndarray:
        """The item of each click, from the ``persona`` of every user, and the ``user`` and whether it is the session's
        ``first`` of every click.
        """
        favourites = items.sample_categories(rng, len(persona) * self.n_favourite_categories).reshape(len(persona), -1)
        is_new_intent = first | (rng.random(len(user)) < self.intent_switch_prob)
        n_intents = int(is_new_intent.sum())
        favourite = favourites[user[is_new_intent], rng.integers(0, self.n_favourite_categories, n_intents)]
        is_favourite = rng.random(n_intents) < self.favourite_prob
        category = np.where(is_favourite, favourite, items.sample_categories(rng, n_intents))
        topic = rng.random(n_intents)
        intent = np.cumsum(is_new_intent) - 1
        position = (topic[intent] + rng.laplace(0, self.topic_width, len(user))) % 1
        item = items.sample_in_category(rng, category[intent], np.where(first, NO_PERSONA, persona[user]), position)
        is_noise = rng.random(len(user)) < self.noise_rate
        item[is_noise] = items.sample_any(rng, int(is_noise.sum()))
        return item


class _Catalogue:
    """The catalogue: items sorted by block, which is one persona's items of one category.

    Items are sampled by inverting the cumulative popularity.
    """

    def __init__(self, simulator: TmallSimulator) -> None:
        rng = np.random.default_rng([simulator.seed, 0])
        count = max(1, round(simulator.events / simulator.rows_per_item))
        categories = min(count, max(1, round(count / simulator.items_per_category)))
        category = sample_zipf_classes(rng, categories, count, simulator.class_skew)
        block = np.sort(category * PERSONAS + rng.choice(PERSONAS, count, p=_persona_shares()))
        self.persona = block % PERSONAS
        shift = simulator.head_share**2 / (1 - 2 * simulator.head_share)
        popularity = 1 / (rng.permutation(count) + 0.5 + shift * count)
        self._cumulative = np.append(0.0, np.cumsum(popularity))  # popularity of all items before each one
        self._first = np.searchsorted(block, np.arange(categories * PERSONAS + 1))  # first item of each block
        self._block_cumulative = self._cumulative[self._first]
        boost = simulator.persona_boost**simulator.context_strength
        prob = _balanced_block_probs(np.diff(self._block_cumulative).reshape(-1, PERSONAS), boost)
        # Cumulative probabilities of row r plus r: one increasing array, so that one searchsorted samples all rows.
        self._block_probs = (np.cumsum(prob, 1).clip(max=1) + np.arange(len(prob))[:, None]).ravel()

        def sample_classes(n_classes: int) -> np.ndarray:
            classes = sample_zipf_classes(rng, min(n_classes, count), count, simulator.class_skew)
            return 1 + rng.permutation(classes)

        brand = sample_classes(simulator.brands)
        self.columns = pl.DataFrame(
            {
                "item_id": 1 + rng.permutation(count),
                "cat_id": (1 + rng.permutation(categories))[block // PERSONAS],
                "seller_id": sample_classes(simulator.sellers),
                "brand_id": pl.Series(brand).set(pl.Series(_without_brand(rng, popularity)), None),
            }
        ).cast(pl.Int32)

    def sample_any(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self._item_at(rng.random(count) * self._cumulative[-1]).clip(0, len(self.persona) - 1)

    def sample_categories(self, rng: np.random.Generator, count: int) -> np.ndarray:
        edge = self._block_cumulative[::PERSONAS]
        category: np.ndarray = np.searchsorted(edge, rng.random(count) * edge[-1], side="right") - 1
        return category.clip(0, len(edge) - 2)

    def sample_in_category(
        self, rng: np.random.Generator, category: np.ndarray, persona: np.ndarray, position: np.ndarray
    ) -> np.ndarray:
        """The item at ``position`` in [0, 1) of a block of ``category``, sampled for ``persona`` or NO_PERSONA."""
        row = category * (PERSONAS + 1) + persona
        block = np.searchsorted(self._block_probs, row + rng.random(len(row)), side="right") - row * PERSONAS
        # Rounding may exceed the last block of the category, or the last item of the block.
        block = category * PERSONAS + block.clip(max=PERSONAS - 1)
        low = self._block_cumulative[block]
        item = self._item_at(low + position * (self._block_cumulative[block + 1] - low))
        return item.clip(self._first[block], self._first[block + 1] - 1)

    def _item_at(self, at: np.ndarray) -> np.ndarray:
        item: np.ndarray = np.searchsorted(self._cumulative, at, side="right") - 1
        return item


class _Users:
    """A chunk of users: their true persona, and the profiles that the file contains."""

    def __init__(self, rng: np.random.Generator, count: int, first: int) -> None:
        table, weight = _profiles()
        profile = rng.choice(len(weight), count, p=weight.sum(1) / weight.sum())
        self.id = first + rng.permutation(count)
        self.profile = pl.DataFrame({"user_id": self.id}).hstack(table[profile])
        # A hidden attribute has a true value too, distributed as those that are not hidden.
        cumulative = np.cumsum(weight, 1)[profile]
        self.persona = (rng.random((count, 1)) * cumulative[:, -1:] >= cumulative).sum(1)


def _sample_session_days(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
    """User and day (an index into ``DATES``) of every session; those of a user are adjacent, in random order.

    The probability that a user is active on a day is sampled from Beta(1, b): mostly low, high for some users. All
    users are active on 11 November.
    """
    days_per_session = (len(DATES) - 1) / (SESSIONS_PER_USER - 1)
    is_active = rng.random((users, len(DATES))) < rng.beta(1, days_per_session - 1, (users, 1))
    is_active[:, SINGLES_DAY] = True
    user, day = np.nonzero(is_active)
    order = np.argsort(user + rng.random(len(user)), kind="stable")
    return user[order], day[order]


def _profiles() -> tuple[pl.DataFrame, np.ndarray]:
    """All profiles (age_range, gender), and the number of users of each persona who have them (profiles, personas)."""
    ages, genders, counts = zip(*read_marginals("tmall_users")["age_range_gender_count"], strict=True)
    count = np.array(counts, np.float64)
    group = np.array([-1 if age in UNKNOWN_AGE else min(int(age), AGE_GROUPS) - 1 for age in ages])
    gender = np.array([-1 if code in UNKNOWN_GENDER else int(code) for code in genders])
    is_known = (group >= 0) & (gender >= 0)
    n_known = np.bincount(group[is_known] * GENDERS + gender[is_known], count[is_known], minlength=PERSONAS)
    persona = np.arange(PERSONAS)
    is_possible = ((group[:, None] < 0) | (group[:, None] == persona // GENDERS)) & (
        (gender[:, None] < 0) | (gender[:, None] == persona % GENDERS)
    )
    spread = is_possible * n_known
    profiles = pl.DataFrame({"age_range": ages, "gender": genders})
    return profiles, count[:, None] * spread / spread.sum(1, keepdims=True)


def _persona_shares() -> np.ndarray:
    n_users = _profiles()[1].sum(0)
    shares: np.ndarray = n_users / n_users.sum()
    return shares


def _balanced_block_probs(weight: np.ndarray, boost: float) -> np.ndarray:
    """The probability of each block of a category for a click of each persona, and of NO_PERSONA in a last row.

    Rows and columns are scaled alternately (Sinkhorn) until every persona has its share of the clicks and every block
    its share of the category's popularity; the odds ratios between personas remain those of ``boost``.

    Args:
        weight: popularity of the blocks (categories, personas).
        boost: weight of the persona's block, relative to others.

    Returns:
        (categories * (personas + 1), personas)
    """
    plain = weight[:, None, :] / weight.sum(1)[:, None, None]
    persona_shares = _persona_shares()[:, None]
    clicks = persona_shares * plain * np.where(np.eye(PERSONAS, dtype=bool), boost, 1.0)
    for _ in range(BALANCING_ROUNDS):
        block_clicks = clicks.sum(1, keepdims=True)
        clicks *= np.divide(plain, block_clicks, out=np.zeros_like(plain), where=block_clicks > 0)
        clicks *= persona_shares / clicks.sum(2, keepdims=True)
    prob = clicks / clicks.sum(2, keepdims=True)
    return np.concatenate([prob, plain], 1).reshape(-1, PERSONAS)


def _without_brand(rng: np.random.Generator, popularity: np.ndarray) -> np.ndarray:
    """Which items have no brand: unpopular ones that together have MISSING_BRAND_SHARE of the popularity."""
    share = popularity / popularity.sum()
    order = rng.permutation(np.flatnonzero(share < MISSING_BRAND_SHARE / 10))
    without = np.zeros(len(share), bool)
    without[order[np.cumsum(share[order]) <= MISSING_BRAND_SHARE]] = True
    return without
