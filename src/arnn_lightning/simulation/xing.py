"""XingSimulator: a click log in the XING schema (RecSys Challenge 2016) in which a user's context affects clicks.

It simulates the paper's example (section 1): a user in New York who opens a job in Paris continues with jobs in New
York, a user in Paris with jobs in Paris.

- A **user** has the 12 XING attributes, sampled from published marginals (``marginals/``). Users whose profile hides an
  attribute (region 45 %, career level 50 %, job roles 19 % of users) have a value too: only the file lacks it.
- An **item** is an advert for one cluster of job roles, in one region, at one career level, with a topic: its rank in
  the cluster. Popularity is Zipf-like. Regions and levels are distributed as those of the users.
- A **session** has one intent: a cluster and a topic. The cluster is one of the user's with probability
  ``own_role_prob`` times the context strength, else any, by popularity.
- A **click** chooses among ``n_candidates`` adverts near the session's topic, by popularity. For the first click of a
  session nothing else matters (a link, a search: the job in Paris). From the second on, adverts of the user's region
  weigh ``region_boost`` times as much, those of the user's level ``level_boost`` times, both to the power of the
  context strength. The share ``noise_rate`` of clicks ignores the intent and follows popularity.

With ``context_strength`` 0, contexts carry no information about clicks; everything else stays the same.

Sizes are XING's ratios (Table 1 of the paper, RecSys Challenge 2016): 3.4 clicks a session, 2.7 sessions per active
user, 42.9 % inactive users, and bookmarks, replies and deletes besides clicks. Not XING's: 20 clicks an item instead
of 7.2, since a log of this size would be too sparse to learn an item's region and level; and the number of candidates
and the boosts, which are not published and were chosen so that contexts matter (``experiments/LOG.md``).
Zipf's exponent 0.88 gives half of the weight to 1.3 % of the items, which hold half of XING's clicks. (Clicks are less
concentrated than the weights, since candidates are near the topic, popular or not.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

from arnn_lightning.readers.xing import SINGLE
from arnn_lightning.simulation.simulator import Simulator, read_marginals, sample_zipf_classes, validate_settings

CLUSTERS = 30
CLICKS_PER_SESSION = 3.4
SESSIONS_PER_USER = 2.7
INACTIVE_USER_SHARE = 0.429
# Rows of each other kind per click: bookmark, reply, delete (206,191; 422,026; 1,015,423; and 7,183,038 clicks).
OTHER_ACTION_RATES = {2: 0.0287, 3: 0.0588, 4: 0.1414}
FIRST_DAY = 16_709  # 2015-10-01, in days since 1970
DAYS = 33  # three more than the paper's window keeps
DAY = 86_400
USER_CHUNK = 20_000


@dataclass(frozen=True)
class XingSimulator(Simulator):
    """Writes interactions.csv, users.csv and items.csv in the XING schema.

    An item's discipline is its cluster of job roles: the clicks of a session are in one cluster, but for the noise.

    Attributes:
        events: rows of interactions.csv, about 81 % of them clicks.
        job_roles: size of the job-role vocabulary; roles fall into 30 clusters.
        context_strength: effect of the user's role, region and level on clicks, in [0, 1].
        seed: seed of all samples; equal settings write equal bytes.
        own_role_prob: probability, at full strength, that a session's cluster is one of the user's roles.
        region_boost: weight of adverts of the user's region, relative to others, at full strength.
        level_boost: likewise for the user's career level.
        topic_width: spread of a session's clicks around its topic, as a share of the cluster's items.
        n_candidates: number of adverts that a click chooses from.
        noise_rate: share of clicks that ignore the intent.
        clicks_per_item: determines the size of the catalogue.
        zipf: exponent of the items' popularity.

    Raises:
        UserError: a setting out of its range.
    """

    log: ClassVar[str] = "interactions.csv"
    separator: ClassVar[str] = "\t"

    events: int
    job_roles: int
    context_strength: float
    seed: int
    own_role_prob: float
    region_boost: float
    level_boost: float
    topic_width: float
    n_candidates: int
    noise_rate: float
    clicks_per_item: float
    zipf: float

    def __post_init__(self) -> None:
        validate_settings(
            self,
            ("context_strength", 0 <= self.context_strength <= 1, "in [0, 1]"),
            ("own_role_prob", 0 <= self.own_role_prob <= 1, "in [0, 1]"),
            ("noise_rate", 0 <= self.noise_rate <= 1, "in [0, 1]"),
            ("events", self.events >= 1_000, "at least 1000 (with fewer, no events remain after preparation)"),
            ("job_roles", self.job_roles >= CLUSTERS, f"at least {CLUSTERS}, one for each cluster"),
            ("n_candidates", self.n_candidates >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("topic_width", self.topic_width >= 0, "at least 0"),
            ("region_boost", self.region_boost > 0, "positive"),
            ("level_boost", self.level_boost > 0, "positive"),
            ("clicks_per_item", self.clicks_per_item > 0, "positive"),
        )

    def chunks(self) -> Iterator[Mapping[str, pl.DataFrame]]:
        """items.csv, then users and their rows until all rows are written."""
        items = _Catalogue(self)
        yield {"items.csv": items.frame()}
        first, left = 1, self.events
        while left:
            rng = np.random.default_rng([self.seed, 1, first])
            users = _Users(rng, USER_CHUNK, self.job_roles)
            profiles = users.frame(first)
            rows = self._interactions(rng, items, users, first).sort("user_id", maintain_order=True)
            if rows.height > left:
                # Drops whole users, except for the last one: dropping rows at random would fragment sessions.
                rows = rows.head(left)
                profiles = profiles.filter(pl.col("id") <= rows["user_id"].max())
            left -= rows.height
            first += USER_CHUNK
            # As in the real file, rows are in no meaningful order.
            yield {"users.csv": profiles, "interactions.csv": rows[rng.permutation(rows.height)]}

    def _interactions(
        self, rng: np.random.Generator, items: "_Catalogue", users: "_Users", first_user: int
    ) -> pl.DataFrame:
        counts = np.where(
            rng.random(users.count) < INACTIVE_USER_SHARE,
            0,
            rng.geometric(1 / SESSIONS_PER_USER, users.count),
        )
        user = np.repeat(np.arange(users.count), counts)
        length = rng.geometric(1 / CLICKS_PER_SESSION, len(user))
        cluster = items.sample_clusters(rng, len(user))
        is_own_role = rng.random(len(user)) < self.own_role_prob * self.context_strength
        cluster = np.where(is_own_role, users.sample_role(rng, user) % CLUSTERS, cluster)
        topic = items.rank[items.sample_in_cluster(rng, cluster)]
        start = (FIRST_DAY + rng.integers(0, DAYS, len(user))) * DAY + rng.integers(0, DAY, len(user))
        columns: dict[str, list[np.ndarray]] = {"user": [], "item": [], "time": []}
        now, active = start, np.arange(len(user))
        for click in range(int(length.max(initial=0))):
            active = active[length[active] > click]
            strength = self.context_strength if click else 0.0
            item = self._click(rng, items, cluster[active], topic[active], users, user[active], strength)
            columns["user"].append(user[active])
            columns["item"].append(item)
            columns["time"].append(now[active])
            now = now + 1 + np.minimum(rng.exponential(90, len(user)), 3_000).astype(np.int64)
        clicks = {name: np.concatenate(parts) for name, parts in columns.items()}
        return self._rows(rng, clicks, items, first_user)

    def _click(
        self,
        rng: np.random.Generator,
        items: "_Catalogue",
        cluster: np.ndarray,
        topic: np.ndarray,
        users: "_Users",
        user: np.ndarray,
        strength: float,
    ) -> np.ndarray:
        size = items.size[cluster]
        offset = rng.laplace(0, self.topic_width, (len(user), self.n_candidates)) * size[:, None]
        candidates = items.first[cluster][:, None] + (topic[:, None] + np.rint(offset).astype(np.int64)) % size[:, None]
        boost = np.log(self.region_boost) * (items.region[candidates] == users.region[user][:, None])
        boost += np.log(self.level_boost) * (items.level[candidates] == users.level[user][:, None])
        # The argmax of weight + Gumbel noise is a sample in proportion to exp(weight).
        utility = items.log_popularity[candidates] + strength * boost + rng.gumbel(size=candidates.shape)
        clicked = np.take_along_axis(candidates, utility.argmax(1)[:, None], 1)[:, 0]
        return np.where(rng.random(len(user)) < self.noise_rate, items.sample_any(rng, len(user)), clicked)

    def _rows(
        self, rng: np.random.Generator, clicks: Mapping[str, np.ndarray], items: "_Catalogue", first_user: int
    ) -> pl.DataFrame:
        parts = [(clicks["user"], clicks["item"], np.ones(len(clicks["user"]), np.int64), clicks["time"])]
        for kind, rate in OTHER_ACTION_RATES.items():
            chosen = rng.random(len(clicks["user"])) < rate
            later = clicks["time"][chosen] + rng.integers(1, 30, chosen.sum())
            parts.append((clicks["user"][chosen], clicks["item"][chosen], np.full(chosen.sum(), kind), later))
        user, item, interaction_type, time = (np.concatenate(column) for column in zip(*parts, strict=True))
        return pl.DataFrame(
            {
                "user_id": user + first_user,
                "item_id": items.id[item],
                "interaction_type": interaction_type,
                "created_at": time,
            }
        )


class _Catalogue:
    """The catalogue: items sorted by cluster, within a cluster by topic."""

    def __init__(self, simulator: XingSimulator) -> None:
        rng = np.random.default_rng([simulator.seed, 0])
        clicks = simulator.events / (1 + sum(OTHER_ACTION_RATES.values()))
        self.count = max(20 * CLUSTERS, round(clicks / simulator.clicks_per_item))
        self.cluster = np.sort(sample_zipf_classes(rng, CLUSTERS, self.count, 0.5))
        self.size = np.bincount(self.cluster, minlength=CLUSTERS)
        self.first = np.cumsum(self.size) - self.size
        self.rank = np.arange(self.count) - self.first[self.cluster]
        self.log_popularity = -simulator.zipf * np.log(rng.permutation(self.count) + 1.0)
        self.region = _sample_codes(rng, "region", self.count)
        self.level = _sample_codes(rng, "career_level", self.count)
        self.id = rng.permutation(self.count) + 1
        self._cumulative = np.cumsum(np.exp(self.log_popularity))

    def sample_any(self, rng: np.random.Generator, count: int) -> np.ndarray:
        uniform = rng.random(count) * self._cumulative[-1]
        sampled: np.ndarray = np.searchsorted(self._cumulative, uniform, side="right").clip(max=self.count - 1)
        return sampled

    def sample_clusters(self, rng: np.random.Generator, count: int) -> np.ndarray:
        cluster: np.ndarray = self.cluster[self.sample_any(rng, count)]
        return cluster

    def sample_in_cluster(self, rng: np.random.Generator, cluster: np.ndarray) -> np.ndarray:
        below = np.append(0.0, self._cumulative)[self.first[cluster]]
        above = self._cumulative[self.first[cluster] + self.size[cluster] - 1]
        sampled = np.searchsorted(self._cumulative, below + rng.random(len(cluster)) * (above - below), side="right")
        inside: np.ndarray = sampled.clip(self.first[cluster], self.first[cluster] + self.size[cluster] - 1)
        return inside

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "id": self.id,
                "title": [
                    f"cluster {cluster} topic {rank}" for cluster, rank in zip(self.cluster, self.rank, strict=True)
                ],
                "career_level": self.level,
                "discipline_id": self.cluster + 1,
                "region": self.region,
            }
        ).sort("id")


class _Users:
    """A chunk of users: their true roles, region and level, and the profiles that the file contains."""

    def __init__(self, rng: np.random.Generator, count: int, job_roles: int) -> None:
        self.count = count
        marginals = read_marginals("xing_users")
        self.profile = {name: _sample_text(rng, marginals[name], count) for name in SINGLE}
        # A hidden attribute has a true value too, distributed as those that are not hidden.
        self.region = _true_codes(rng, "region", self.profile["region"])
        self.level = _true_codes(rng, "career_level", self.profile["career_level"])
        self.roles, self.role_offset, self.roles_hidden = _sample_lists(rng, marginals["jobroles"], count, job_roles)
        fields = marginals["edu_fieldofstudies"]
        self.fields, self.field_offset, self.fields_hidden = _sample_lists(rng, fields, count, fields["vocab"] - 2)

    def sample_role(self, rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
        first, after = self.role_offset[user], self.role_offset[user + 1]
        role: np.ndarray = self.roles[first + (rng.random(len(user)) * (after - first)).astype(np.int64)]
        return role

    def frame(self, first_user: int) -> pl.DataFrame:
        roles = _join_lists(self.roles + 1, self.role_offset, self.roles_hidden, "0")
        fields = _join_lists(self.fields + 1, self.field_offset, self.fields_hidden, "")
        return pl.DataFrame(
            {"id": np.arange(self.count) + first_user, "jobroles": roles, **self.profile, "edu_fieldofstudies": fields}
        )


def _sample_text(rng: np.random.Generator, counts: Mapping[str, int], count: int) -> np.ndarray:
    share = np.array(list(counts.values()), np.float64)
    sampled: np.ndarray = np.array(list(counts))[rng.choice(len(share), count, p=share / share.sum())]
    return sampled


def _sample_codes(rng: np.random.Generator, name: str, count: int) -> np.ndarray:
    """Samples codes of a single-valued attribute from the users who do not hide it."""
    marginals = read_marginals("xing_users")[name]
    known = {code: n_users for code, n_users in marginals.items() if code not in ("0", "NULL")}
    return _sample_text(rng, known, count).astype(np.int64)


def _true_codes(rng: np.random.Generator, name: str, observed: np.ndarray) -> np.ndarray:
    """The codes behind a profile: those that it shows, and sampled ones where it hides them."""
    is_hidden = np.isin(observed, ["0", "NULL"])
    sampled = _sample_codes(rng, name, len(observed))
    return np.where(is_hidden, sampled, np.where(is_hidden, "0", observed).astype(np.int64))


def _sample_lists(
    rng: np.random.Generator, published: Mapping[str, Any], count: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples lists of distinct codes in [0, vocabulary), and which of them are hidden in the profile.

    Lengths are as published, where a hidden list has length 1; values follow the published rank-frequency curve, whose
    first entry counts the hidden lists. Beyond the end of the curve, frequencies decrease as in its tail.

    Returns:
        the concatenated lists, their offsets (count + 1,), and whether each is hidden (count,).
    """
    length = _sample_text(rng, published["list_len_hist"], count).astype(np.int64)
    hidden_share = (published["count_0_only"] + published["count_empty"]) / published["list_len_hist"]["1"]
    is_hidden = (length == 1) & (rng.random(count) < hidden_share)
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
    return values, offset, is_hidden


def _join_lists(values: np.ndarray, offset: np.ndarray, is_hidden: np.ndarray, placeholder: str) -> list[str]:
    texts = values.astype(str).tolist()
    bounds = offset.tolist()
    return [
        placeholder if hidden else ",".join(texts[bounds[row] : bounds[row + 1]])
        for row, hidden in enumerate(is_hidden.tolist())
    ]
