"""TmallWorld: a world in the schema of TMALL (IJCAI-15, data_format1), where age and gender tell what somebody buys.

- A **person** has an age group and a gender, together the **persona**. Profiles are drawn from published joint counts
  (``marginals/``). What a profile hides (age 22 %, gender 4 % of users) the person still has: only the file lacks it.
- An **item** lies in one category and is made for one persona; personas are spread over items as over users. Its
  popularity follows Zipf's law with a flattened head: with n items, the k-th weighs 1 / (k + shift * n), and the shift
  is such that the share ``half`` of the items holds half of the weight, however many items there are.
- A **session** is a calendar day. It has an intent that lasts: a category, one of the user's ``favourites`` with
  chance ``loyalty``, else any, by popularity; and a topic, which is a place among each persona's items of the category.
  A click turns to a new intent with chance ``switch``.
- A **click** goes to an item of the category by popularity, near the topic (``topic_width``). Items made for the own
  persona weigh ``persona_pull`` to the power of the strength times as much, but not for the first click of a session,
  which comes from anywhere (a link, a search). The share ``stray`` of clicks follows no intent, only popularity. What
  an item gains from its own persona it loses from the others: it is as popular at any strength.
- A **buy**, a favourite or a cart is a row of its own right after a click on the item.

With ``context_strength`` 0 the contexts say nothing about the clicks; everything else stays the same (users, days,
categories and action types row by row).

Sizes are TMALL's: 7.47 clicks a session, 15.3 sessions a user, 19.3 % of the rows on 11 November (on which everybody
comes, since the competition is about that day's buyers; the other days are alike), the shares of the action types and
of rows without a brand, 50.4 rows an item, 658 items a category. So a smaller world has fewer items and categories, but
as many of them for a user to choose from. Sellers and brands, by which nobody chooses, stay as many (at most one an
item). Nobody has published the settings from ``skew`` on; they were chosen so that contexts matter.

Rows of a user lie together, their days in no order, the clicks of a day in the order in which they happened.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl

from arnn_lightning.simulation.simulator import World, check_settings, draw_kinds, read_marginals

CLICK = 0
# Rows of each other kind per click: cart, buy, favourite (76,750; 3,292,144; 3,005,723 beside 48,550,713 clicks).
OTHER_KINDS = {1: 0.00158, 2: 0.06781, 3: 0.06191}
CLICKS_PER_SESSION = 7.47
SESSIONS_PER_USER = 15.3
SALE_SHARE = 0.193  # of all rows, on 11 November
NO_BRAND = 0.00166  # share of rows
DATES = np.arange("2014-05-11", "2014-11-13", dtype="datetime64[D]")
MONTHS = DATES.astype("datetime64[M]")
TIME_STAMPS = (MONTHS.astype(int) % 12 + 1) * 100 + (DATES - MONTHS).astype(int) + 1  # MMDD
SALE = int(np.flatnonzero(TIME_STAMPS == 1111)[0])
UNKNOWN_AGE, UNKNOWN_GENDER = ("", "0"), ("", "2")
AGE_GROUPS, GENDERS = 7, 2  # codes 7 and 8 both mean 50 and older
PERSONAS = AGE_GROUPS * GENDERS
ANYBODY = PERSONAS  # whose click follows no persona
BALANCING_ROUNDS = 100
USERS_AT_ONCE = 2_000


@dataclass(frozen=True)
class TmallWorld(World):
    """Writes user_log_format1.csv and user_info_format1.csv in the TMALL schema.

    Attributes:
        events: rows of user_log_format1.csv, about 88 % of them clicks.
        context_strength: how much clicks lean to items made for the own persona, in [0, 1].
        seed: of everything drawn; equal settings write equal bytes.
        rows_per_item: sets the size of the catalogue.
        items_per_category: sets the number of categories.
        sellers: number of sellers.
        brands: number of brands.
        half: share of the items that hold half of the popularity.
        skew: how unequal categories, sellers and brands are: the k-th has items in proportion to k^-skew.
        favourites: categories that a user comes back to.
        loyalty: chance that an intent is about one of them.
        switch: chance that a click turns to a new intent.
        topic_width: spread of an intent's clicks around its topic; 1 is a persona's whole block of the category.
        persona_pull: how many times more an item made for the own persona weighs at full strength.
        stray: share of clicks that follow no intent.

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
    half: float
    skew: float
    favourites: int
    loyalty: float
    switch: float
    topic_width: float
    persona_pull: float
    stray: float

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("context_strength", 0 <= self.context_strength <= 1, "must lie in [0, 1]"),
            ("loyalty", 0 <= self.loyalty <= 1, "must lie in [0, 1]"),
            ("switch", 0 <= self.switch <= 1, "must lie in [0, 1]"),
            ("stray", 0 <= self.stray <= 1, "must lie in [0, 1]"),
            ("half", 0 < self.half < 0.5, "must lie between 0 and 0.5"),
            ("events", self.events >= 1_000, "at least 1000, or nothing is left after the preparation"),
            ("seed", self.seed >= 0, "must not be negative"),
            ("skew", self.skew >= 0, "must not be negative"),
            ("topic_width", self.topic_width >= 0, "must not be negative"),
            ("rows_per_item", self.rows_per_item > 0, "must be positive"),
            ("items_per_category", self.items_per_category > 0, "must be positive"),
            ("sellers", self.sellers >= 1, "at least 1"),
            ("brands", self.brands >= 1, "at least 1"),
            ("favourites", self.favourites >= 1, "at least 1"),
            ("persona_pull", self.persona_pull > 0, "must be positive"),
        )

    def catalogue(self) -> pl.DataFrame:
        """The truth about the items, of which the files show all but the last column.

        Returns:
            item_id, cat_id, seller_id, brand_id, and persona: (age group - 1) * 2 + gender, groups and gender coded as
            in user_info_format1.csv, with 7 for both 7 and 8.
        """
        items = _Items(self)
        return items.columns.with_columns(persona=pl.Series(items.persona, dtype=pl.Int32))

    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        """Users and their rows, until all rows are there."""
        items = _Items(self)
        first, left = 1, self.events
        while left:
            rng = np.random.default_rng([self.seed, 1, first])
            people = _People(rng, USERS_AT_ONCE, first)
            # Whole users, but for the very last.
            rows = self._rows(rng, items, people).head(left)
            users = people.profile.filter(pl.col("user_id").is_in(rows["user_id"].unique().implode()))
            left -= rows.height
            first += USERS_AT_ONCE
            yield {"user_info_format1.csv": users, self.log: rows}

    def _rows(self, rng: np.random.Generator, items: "_Items", people: "_People") -> pl.DataFrame:
        user, day = _visits(rng, len(people.id))
        clicks_per_user = SESSIONS_PER_USER * CLICKS_PER_SESSION
        on_another_day = (1 - SALE_SHARE) * clicks_per_user / (SESSIONS_PER_USER - 1)
        clicks = rng.geometric(1 / np.where(day == SALE, SALE_SHARE * clicks_per_user, on_another_day))
        session = np.repeat(np.arange(len(user)), clicks)
        first = np.diff(session, prepend=-1) != 0
        kind = rng.choice([CLICK, *OTHER_KINDS], len(session), p=[1 - sum(OTHER_KINDS.values()), *OTHER_KINDS.values()])
        item = self._items_clicked(rng, items, people.persona, user[session], first)
        rows = 1 + (kind != CLICK)
        of = np.repeat(np.arange(len(session)), rows)
        action = np.full(len(of), CLICK)
        action[np.cumsum(rows) - 1] = kind
        return pl.concat(
            [
                pl.DataFrame({"user_id": people.id[user[session]][of]}),
                items.columns[item[of]],
                pl.DataFrame({"time_stamp": TIME_STAMPS[day[session]][of], "action_type": action}),
            ],
            how="horizontal",
        )

    def _items_clicked(
        self, rng: np.random.Generator, items: "_Items", persona: np.ndarray, user: np.ndarray, first: np.ndarray
    ) -> np.ndarray:
        """The item of each click: ``persona`` of every user, ``user`` of every click, ``first`` of a session."""
        favourites = items.draw_categories(rng, len(persona) * self.favourites).reshape(len(persona), -1)
        turn = first | (rng.random(len(user)) < self.switch)
        intents = int(turn.sum())
        favourite = favourites[user[turn], rng.integers(0, self.favourites, intents)]
        loyal = rng.random(intents) < self.loyalty
        category = np.where(loyal, favourite, items.draw_categories(rng, intents))
        topic = rng.random(intents)
        intent = np.cumsum(turn) - 1
        place = (topic[intent] + rng.laplace(0, self.topic_width, len(user))) % 1
        item = items.draw_in_category(rng, category[intent], np.where(first, ANYBODY, persona[user]), place)
        astray = rng.random(len(user)) < self.stray
        item[astray] = items.draw_anywhere(rng, int(astray.sum()))
        return item


class _Items:
    """The catalogue: items sorted by block, which is one persona's items of one category.

    Drawn by inverse distribution: a number below the total popularity, looked up among the sums up to each item.
    """

    def __init__(self, world: TmallWorld) -> None:
        rng = np.random.default_rng([world.seed, 0])
        count = max(1, round(world.events / world.rows_per_item))
        categories = min(count, max(1, round(count / world.items_per_category)))
        category = draw_kinds(rng, categories, count, world.skew)
        block = np.sort(category * PERSONAS + rng.choice(PERSONAS, count, p=_persona_shares()))
        self.persona = block % PERSONAS
        shift = world.half**2 / (1 - 2 * world.half)
        popularity = 1 / (rng.permutation(count) + 0.5 + shift * count)
        self._sum = np.append(0.0, np.cumsum(popularity))  # of the items before; one more at the end
        self._first = np.searchsorted(block, np.arange(categories * PERSONAS + 1))  # item of each block
        self._block_sum = self._sum[self._first]
        pull = world.persona_pull**world.context_strength
        chance = _block_chance(np.diff(self._block_sum).reshape(-1, PERSONAS), pull)
        self._block_chance = (np.cumsum(chance, 1).clip(max=1) + np.arange(len(chance))[:, None]).ravel()
        brand = 1 + rng.permutation(draw_kinds(rng, min(world.brands, count), count, world.skew))
        self.columns = pl.DataFrame(
            {
                "item_id": 1 + rng.permutation(count),
                "cat_id": (1 + rng.permutation(categories))[block // PERSONAS],
                "seller_id": 1 + rng.permutation(draw_kinds(rng, min(world.sellers, count), count, world.skew)),
                "brand_id": pl.Series(brand).set(pl.Series(_without_brand(rng, popularity)), None),
            }
        ).cast(pl.Int32)

    def draw_anywhere(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self._item_at(rng.random(count) * self._sum[-1]).clip(0, len(self.persona) - 1)

    def draw_categories(self, rng: np.random.Generator, count: int) -> np.ndarray:
        edge = self._block_sum[::PERSONAS]
        category: np.ndarray = np.searchsorted(edge, rng.random(count) * edge[-1], side="right") - 1
        return category.clip(0, len(edge) - 2)

    def draw_in_category(
        self, rng: np.random.Generator, category: np.ndarray, who: np.ndarray, place: np.ndarray
    ) -> np.ndarray:
        """The item at ``place`` in [0, 1) of a block of ``category`` that draws ``who``, a persona or ANYBODY."""
        row = category * (PERSONAS + 1) + who
        block = np.searchsorted(self._block_chance, row + rng.random(len(row)), side="right") - row * PERSONAS
        # Rounding may lead just past the last block of the category, or the last item of the block.
        block = category * PERSONAS + block.clip(max=PERSONAS - 1)
        low = self._block_sum[block]
        item = self._item_at(low + place * (self._block_sum[block + 1] - low))
        return item.clip(self._first[block], self._first[block + 1] - 1)

    def _item_at(self, at: np.ndarray) -> np.ndarray:
        item: np.ndarray = np.searchsorted(self._sum, at, side="right") - 1
        return item


class _People:
    """Some users: who they are (``persona``), and what their profile tells."""

    def __init__(self, rng: np.random.Generator, count: int, first: int) -> None:
        table, chance = _profiles()
        number = rng.choice(len(chance), count, p=chance.sum(1) / chance.sum())
        self.id = first + rng.permutation(count)
        self.profile = pl.DataFrame({"user_id": self.id}).hstack(table[number])
        # The person behind a hidden attribute has one all the same, spread like the others'.
        up_to = np.cumsum(chance, 1)[number]
        self.persona = (rng.random((count, 1)) * up_to[:, -1:] >= up_to).sum(1)


def _visits(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
    """User and day (a place in ``DATES``) of every session, a user's together and their days shuffled.

    How readily a user comes on a day is drawn from Beta(1, b): most come seldom, some often. All come on 11 November.
    """
    days_per_visit = (len(DATES) - 1) / (SESSIONS_PER_USER - 1)
    comes = rng.random((users, len(DATES))) < rng.beta(1, days_per_visit - 1, (users, 1))
    comes[:, SALE] = True
    user, day = np.nonzero(comes)
    order = np.argsort(user + rng.random(len(user)), kind="stable")
    return user[order], day[order]


def _profiles() -> tuple[pl.DataFrame, np.ndarray]:
    """The profiles there are (age_range, gender), and how many users of each persona show them (profiles, personas)."""
    ages, genders, counts = zip(*read_marginals("tmall_users")["age_range_gender_count"], strict=True)
    count = np.array(counts, np.float64)
    group = np.array([-1 if age in UNKNOWN_AGE else min(int(age), AGE_GROUPS) - 1 for age in ages])
    gender = np.array([-1 if code in UNKNOWN_GENDER else int(code) for code in genders])
    told = (group >= 0) & (gender >= 0)
    known = np.bincount(group[told] * GENDERS + gender[told], count[told], minlength=PERSONAS)
    persona = np.arange(PERSONAS)
    fits = ((group[:, None] < 0) | (group[:, None] == persona // GENDERS)) & (
        (gender[:, None] < 0) | (gender[:, None] == persona % GENDERS)
    )
    spread = fits * known
    shown = pl.DataFrame({"age_range": ages, "gender": genders})
    return shown, count[:, None] * spread / spread.sum(1, keepdims=True)


def _persona_shares() -> np.ndarray:
    of_persona = _profiles()[1].sum(0)
    shares: np.ndarray = of_persona / of_persona.sum()
    return shares


def _block_chance(weight: np.ndarray, pull: float) -> np.ndarray:
    """The chance of each block of a category for a click of each persona, and of ANYBODY in a last row.

    Weights are scaled by turns until every persona has its share of the clicks and every block its share of the
    category's popularity; the odds between personas stay those of the ``pull``.

    Args:
        weight: popularity of the blocks (categories, personas).
        pull: how many times more the own block weighs.

    Returns:
        (categories * (personas + 1), personas)
    """
    plain = weight[:, None, :] / weight.sum(1)[:, None, None]
    persona_shares = _persona_shares()[:, None]
    clicks = persona_shares * plain * np.where(np.eye(PERSONAS, dtype=bool), pull, 1.0)
    for _ in range(BALANCING_ROUNDS):
        of_block = clicks.sum(1, keepdims=True)
        clicks *= np.divide(plain, of_block, out=np.zeros_like(plain), where=of_block > 0)
        clicks *= persona_shares / clicks.sum(2, keepdims=True)
    chance = clicks / clicks.sum(2, keepdims=True)
    return np.concatenate([chance, plain], 1).reshape(-1, PERSONAS)


def _without_brand(rng: np.random.Generator, popularity: np.ndarray) -> np.ndarray:
    """Which items have no brand: some that hold that share of the popularity together, none much of it alone."""
    share = popularity / popularity.sum()
    order = rng.permutation(np.flatnonzero(share < NO_BRAND / 10))
    without = np.zeros(len(share), bool)
    without[order[np.cumsum(share[order]) <= NO_BRAND]] = True
    return without
