"""XingWorld: a world in the schema of XING (RecSys Challenge 2016), where a job draws those whom it suits.

It acts out the paper's example (section 1): somebody in New York who looks at a job in Paris goes on to jobs
in New York, somebody in Paris to jobs in Paris.

- A **user** has the 12 XING attributes, drawn from published marginals (``marginals/``). What a profile hides (region
  45 %, career level 50 %, job roles 19 % of users) the person still has: only the file lacks it.
- An **item** is an advert for one cluster of job roles, in one region, at one career level, with a topic: its place in
  the cluster. Its popularity is Zipf-like. Its regions and levels are spread as the users' are.
- A **session** has an intent that lasts: a cluster and a topic. The cluster is one of the user's own with chance
  ``own_role`` times the strength, else any, by popularity.
- A **click**: the visitor sees a page of ``page`` adverts near the session's topic and picks one, popular ones rather.
  The first click of a session comes from anywhere (a link, a search: the job in Paris). From the second on, adverts of
  the own region weigh ``region_pull`` times, of the own level ``level_pull`` times, both to the power of the strength.
  One click in ten (``stray``) follows no intent, only popularity.

With ``context_strength`` 0 the contexts say nothing about the clicks; everything else stays the same.

Sizes are XING's ratios (Table 1 of the paper, RecSys Challenge 2016): 3.4 clicks a session, 2.7 sessions a user with
any, 42.9 % of the catalogue's users without, and bookmarks, replies and deletes beside the clicks. Not XING's: 20
clicks an item where XING has 7.2, since a log this small would leave too few to learn an item's region and level from;
and the page and the pulls, which nobody has published and which were chosen so that contexts matter
(``experiments/LOG.md``).
Weights follow Zipf's law with exponent 0.88, which puts half of XING's clicks on the 1.3 % of its items that hold them.
(Clicks spread wider than the weights, since a page shows adverts near the topic, popular or not.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

from arnn_lightning.readers.xing import SINGLE
from arnn_lightning.simulation.simulator import World, check_settings, draw_kinds, read_marginals

CLUSTERS = 30
CLICKS_PER_SESSION = 3.4
SESSIONS_PER_USER = 2.7
SILENT_USERS = 0.429
# Rows of each other kind per click: bookmark, reply, delete (206,191; 422,026; 1,015,423 beside 7,183,038 clicks).
OTHER_KINDS = {2: 0.0287, 3: 0.0588, 4: 0.1414}
FIRST_DAY = 16_709  # 2015-10-01, in days since 1970
DAYS = 33  # three more than the paper's window keeps
DAY = 86_400
USERS_AT_ONCE = 20_000


@dataclass(frozen=True)
class XingWorld(World):
    """Writes interactions.csv, users.csv and items.csv in the XING schema.

    Attributes:
        events: rows of interactions.csv, about 81 % of them clicks.
        job_roles: size of the job-role vocabulary; roles fall into 30 clusters.
        context_strength: how much clicks lean to the user's own role, region and level, in [0, 1].
        seed: of everything drawn; equal settings write equal bytes.
        own_role: chance, at full strength, that a session is about one of the user's own roles.
        region_pull: how many times more an advert of the own region weighs at full strength.
        level_pull: likewise for the own career level.
        topic_width: spread of a session's clicks around its topic, as a share of the cluster's items.
        page: adverts on the page a visitor chooses from.
        stray: share of clicks that follow no intent.
        clicks_per_item: sets the size of the catalogue.
        zipf: exponent of the popularity of items.

    Raises:
        UserError: a setting out of its range.
    """

    log: ClassVar[str] = "interactions.csv"
    separator: ClassVar[str] = "\t"

    events: int
    job_roles: int
    context_strength: float
    seed: int
    own_role: float
    region_pull: float
    level_pull: float
    topic_width: float
    page: int
    stray: float
    clicks_per_item: float
    zipf: float

    def __post_init__(self) -> None:
        check_settings(
            self,
            ("context_strength", 0 <= self.context_strength <= 1, "must lie in [0, 1]"),
            ("own_role", 0 <= self.own_role <= 1, "must lie in [0, 1]"),
            ("stray", 0 <= self.stray <= 1, "must lie in [0, 1]"),
            ("events", self.events >= 1_000, "at least 1000, or nothing is left after the preparation"),
            ("job_roles", self.job_roles >= CLUSTERS, f"at least {CLUSTERS}, one for each cluster"),
            ("page", self.page >= 1, "at least 1"),
            ("seed", self.seed >= 0, "must not be negative"),
            ("topic_width", self.topic_width >= 0, "must not be negative"),
            ("region_pull", self.region_pull > 0, "must be positive"),
            ("level_pull", self.level_pull > 0, "must be positive"),
            ("clicks_per_item", self.clicks_per_item > 0, "must be positive"),
        )

    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        """items.csv at once, then users and their rows until all rows are there."""
        items = _Items(self)
        yield {"items.csv": items.frame()}
        first, left = 1, self.events
        while left:
            rng = np.random.default_rng([self.seed, 1, first])
            people = _People(rng, USERS_AT_ONCE, self.job_roles)
            users = people.frame(first)
            rows = self._interactions(rng, items, people, first).sort("user_id", maintain_order=True)
            if rows.height > left:
                # Whole users, but for the very last: dropping rows at random would cut sessions into fragments.
                rows = rows.head(left)
                users = users.filter(pl.col("id") <= rows["user_id"].max())
            left -= rows.height
            first += USERS_AT_ONCE
            # As in the real file, rows lie in no useful order.
            yield {"users.csv": users, "interactions.csv": rows[rng.permutation(rows.height)]}

    def _interactions(
        self, rng: np.random.Generator, items: "_Items", people: "_People", first_user: int
    ) -> pl.DataFrame:
        counts = np.where(
            rng.random(people.count) < SILENT_USERS, 0, rng.geometric(1 / SESSIONS_PER_USER, people.count)
        )
        user = np.repeat(np.arange(people.count), counts)
        length = rng.geometric(1 / CLICKS_PER_SESSION, len(user))
        cluster = items.draw_clusters(rng, len(user))
        own = rng.random(len(user)) < self.own_role * self.context_strength
        cluster = np.where(own, people.draw_role(rng, user) % CLUSTERS, cluster)
        topic = items.place[items.draw_in_cluster(rng, cluster)]
        start = (FIRST_DAY + rng.integers(0, DAYS, len(user))) * DAY + rng.integers(0, DAY, len(user))
        columns: dict[str, list[np.ndarray]] = {"user": [], "item": [], "time": []}
        now, going = start, np.arange(len(user))
        for click in range(int(length.max(initial=0))):
            going = going[length[going] > click]
            strength = self.context_strength if click else 0.0
            item = self._click(rng, items, cluster[going], topic[going], people, user[going], strength)
            columns["user"].append(user[going])
            columns["item"].append(item)
            columns["time"].append(now[going])
            now = now + 1 + np.minimum(rng.exponential(90, len(user)), 3_000).astype(np.int64)
        clicks = {name: np.concatenate(parts) for name, parts in columns.items()}
        return self._rows(rng, clicks, items, first_user)

    def _click(
        self,
        rng: np.random.Generator,
        items: "_Items",
        cluster: np.ndarray,
        topic: np.ndarray,
        people: "_People",
        user: np.ndarray,
        strength: float,
    ) -> np.ndarray:
        size = items.size[cluster]
        away = rng.laplace(0, self.topic_width, (len(user), self.page)) * size[:, None]
        seen = items.first[cluster][:, None] + (topic[:, None] + np.rint(away).astype(np.int64)) % size[:, None]
        pull = np.log(self.region_pull) * (items.region[seen] == people.region[user][:, None])
        pull += np.log(self.level_pull) * (items.level[seen] == people.level[user][:, None])
        # The largest of weight + Gumbel noise is a draw in proportion to exp(weight).
        appeal = items.log_popularity[seen] + strength * pull + rng.gumbel(size=seen.shape)
        picked = np.take_along_axis(seen, appeal.argmax(1)[:, None], 1)[:, 0]
        return np.where(rng.random(len(user)) < self.stray, items.draw_anywhere(rng, len(user)), picked)

    def _rows(
        self, rng: np.random.Generator, clicks: Mapping[str, np.ndarray], items: "_Items", first_user: int
    ) -> pl.DataFrame:
        parts = [(clicks["user"], clicks["item"], np.ones(len(clicks["user"]), np.int64), clicks["time"])]
        for kind, share in OTHER_KINDS.items():
            chosen = rng.random(len(clicks["user"])) < share
            late = clicks["time"][chosen] + rng.integers(1, 30, chosen.sum())
            parts.append((clicks["user"][chosen], clicks["item"][chosen], np.full(chosen.sum(), kind), late))
        user, item, kind_of, time = (np.concatenate(column) for column in zip(*parts, strict=True))
        return pl.DataFrame(
            {"user_id": user + first_user, "item_id": items.id[item], "interaction_type": kind_of, "created_at": time}
        )


class _Items:
    """The catalogue: items sorted by cluster, within a cluster by topic."""

    def __init__(self, world: XingWorld) -> None:
        rng = np.random.default_rng([world.seed, 0])
        clicks = world.events / (1 + sum(OTHER_KINDS.values()))
        self.count = max(20 * CLUSTERS, round(clicks / world.clicks_per_item))
        self.cluster = np.sort(draw_kinds(rng, CLUSTERS, self.count, 0.5))
        self.size = np.bincount(self.cluster, minlength=CLUSTERS)
        self.first = np.cumsum(self.size) - self.size
        self.place = np.arange(self.count) - self.first[self.cluster]
        self.log_popularity = -world.zipf * np.log(rng.permutation(self.count) + 1.0)
        self.region = _draw(rng, "region", self.count)
        self.level = _draw(rng, "career_level", self.count)
        self.id = rng.permutation(self.count) + 1
        self._cumulated = np.cumsum(np.exp(self.log_popularity))

    def draw_anywhere(self, rng: np.random.Generator, count: int) -> np.ndarray:
        chance = rng.random(count) * self._cumulated[-1]
        drawn: np.ndarray = np.searchsorted(self._cumulated, chance, side="right").clip(max=self.count - 1)
        return drawn

    def draw_clusters(self, rng: np.random.Generator, count: int) -> np.ndarray:
        cluster: np.ndarray = self.cluster[self.draw_anywhere(rng, count)]
        return cluster

    def draw_in_cluster(self, rng: np.random.Generator, cluster: np.ndarray) -> np.ndarray:
        below = np.append(0.0, self._cumulated)[self.first[cluster]]
        above = self._cumulated[self.first[cluster] + self.size[cluster] - 1]
        drawn = np.searchsorted(self._cumulated, below + rng.random(len(cluster)) * (above - below), side="right")
        inside: np.ndarray = drawn.clip(self.first[cluster], self.first[cluster] + self.size[cluster] - 1)
        return inside

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "id": self.id,
                "title": [
                    f"cluster {cluster} topic {place}" for cluster, place in zip(self.cluster, self.place, strict=True)
                ],
                "career_level": self.level,
                "region": self.region,
            }
        ).sort("id")


class _People:
    """Some users: what they are (``role``, ``region``, ``level``), and what their profile tells."""

    def __init__(self, rng: np.random.Generator, count: int, job_roles: int) -> None:
        self.count = count
        marginals = read_marginals("xing_users")
        self.profile = {name: _draw_text(rng, marginals[name], count) for name in SINGLE}
        # The person behind a hidden attribute has one all the same, spread like the others'.
        self.region = _reveal(rng, "region", self.profile["region"])
        self.level = _reveal(rng, "career_level", self.profile["career_level"])
        self.roles, self.role_offset, self.hides_roles = _draw_lists(rng, marginals["jobroles"], count, job_roles)
        fields = marginals["edu_fieldofstudies"]
        self.fields, self.field_offset, self.hides_fields = _draw_lists(rng, fields, count, fields["vocab"] - 2)

    def draw_role(self, rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
        first, after = self.role_offset[user], self.role_offset[user + 1]
        role: np.ndarray = self.roles[first + (rng.random(len(user)) * (after - first)).astype(np.int64)]
        return role

    def frame(self, first_user: int) -> pl.DataFrame:
        roles = _join_lists(self.roles + 1, self.role_offset, self.hides_roles, "0")
        fields = _join_lists(self.fields + 1, self.field_offset, self.hides_fields, "")
        profile = {name: self.profile[name] for name in SINGLE}
        return pl.DataFrame(
            {"id": np.arange(self.count) + first_user, "jobroles": roles, **profile, "edu_fieldofstudies": fields}
        )


def _draw_text(rng: np.random.Generator, counts: Mapping[str, int], count: int) -> np.ndarray:
    share = np.array(list(counts.values()), np.float64)
    drawn: np.ndarray = np.array(list(counts))[rng.choice(len(share), count, p=share / share.sum())]
    return drawn


def _draw(rng: np.random.Generator, name: str, count: int) -> np.ndarray:
    """Codes of a single-valued attribute among those that tell it."""
    known = {code: number for code, number in read_marginals("xing_users")[name].items() if code not in ("0", "NULL")}
    return _draw_text(rng, known, count).astype(np.int64)


def _reveal(rng: np.random.Generator, name: str, told: np.ndarray) -> np.ndarray:
    hidden = np.isin(told, ["0", "NULL"])
    return np.where(hidden, _draw(rng, name, len(told)), np.where(hidden, "0", told).astype(np.int64))


def _draw_lists(
    rng: np.random.Generator, published: Mapping[str, Any], count: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists of codes in [0, vocabulary), each code once, and which of them the profile hides.

    Lengths are as published, where a hidden list counts as one of length 1; values follow the published rank-frequency
    curve, whose first entry is the hidden ones. Past the curve's end, frequencies fall on as its tail does.

    Returns:
        values of all lists one after the other, where each starts (count + 1,), hidden (count,).
    """
    length = _draw_text(rng, published["list_len_hist"], count).astype(np.int64)
    hidden_share = (published["count_0_only"] + published["count_empty"]) / published["list_len_hist"]["1"]
    hidden = (length == 1) & (rng.random(count) < hidden_share)
    curve = np.array(published["rank_frequency_counts"][1:], np.float64)
    rank = np.arange(1, vocabulary + 1)
    tail = curve[-1] * (len(curve) / rank) ** 1.5
    weight = np.where(rank <= len(curve), curve[np.minimum(rank, len(curve)) - 1], tail)
    share = weight / weight.sum()
    offset = np.append(0, np.cumsum(np.minimum(length, vocabulary)))
    values = np.empty(offset[-1], np.int64)
    values[offset[:-1]] = rng.choice(vocabulary, count, p=share)
    for row in np.flatnonzero(length > 1).tolist():
        size = offset[row + 1] - offset[row]
        values[offset[row] : offset[row + 1]] = rng.choice(vocabulary, size, replace=False, p=share)
    return values, offset, hidden


def _join_lists(values: np.ndarray, offset: np.ndarray, hidden: np.ndarray, instead: str) -> list[str]:
    texts = values.astype(str).tolist()
    bounds = offset.tolist()
    return [
        instead if hides else ",".join(texts[bounds[row] : bounds[row + 1]])
        for row, hides in enumerate(hidden.tolist())
    ]
