"""The figures of a verdict: gains over users and seeds, also by group, attribute value and hidden attribute.

S seeds, N predictions of one seed, U users.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from arnn_lightning.evaluation.bootstrap import MIN_CLUSTERS
from arnn_lightning.evaluation.decision import Gain, check_claims, decide, group_gains, measure_gain, paired_values
from arnn_lightning.evaluation.groups import by_known_attributes, by_popularity, by_position, by_seen
from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.preprocessing.contexts import PREFIX, UNKNOWN, unused_label
from arnn_lightning.preprocessing.dataset import PreparedDataset

MIN_NEW_USERS = 100  # users without a training session in the test split: with fewer, users are held out
MAX_VALUES = 8  # groups of an attribute's values: the most frequent ones
PairedValues = tuple[np.ndarray, np.ndarray]  # (S, N) of the model with profiles, and of the session model
GAINS = {  # the model, and the one that it is compared with
    "over_session": ("own", "session"),
    "over_per_session": ("own", "per_session"),
    "content": ("own", "permuted"),
    "recognition": ("permuted", "per_session"),
}
CLAIMS = ("content", "recognition", "over_non_neural", "new_users")  # a family of tests: corrected for their number


def lacks_new_users(prepared: PreparedDataset) -> bool:
    """Whether the test split has too few users without a training session to measure a gain for them."""
    train_users = pl.read_parquet(prepared.folder / "train.parquet", columns=["user"], glob=False)["user"]
    test_users = pl.read_parquet(prepared.folder / "test.parquet", columns=["user"], glob=False)["user"].unique()
    return int((~test_users.is_in(train_users.unique().implode())).sum()) < MIN_NEW_USERS


@dataclass(frozen=True)
class VerdictFigures:
    """Computes the figures of a verdict from the test ranks of its runs.

    Attributes:
        prepared: the data set of the runs.
        attributes: names of the user attributes that the models use.
        metric: the one that gains are measured in, such as ``mrr@20``.
        metrics: those shown for every model.
        bootstrap: ``resamples``, ``confidence`` and ``unit``.
        seed: of the resampling.
        smallest_gain: the least gain that matters, as a share of the session model's mean.
    """

    prepared: PreparedDataset
    attributes: Sequence[str]
    metric: str
    metrics: Sequence[str]
    bootstrap: Mapping[str, Any]
    seed: int
    smallest_gain: float

    def compute(
        self,
        models: Mapping[str, Sequence[EvaluationResult]],
        non_neural: Mapping[str, EvaluationResult],
        validation: Mapping[str, float],
        held_out: tuple[Sequence[EvaluationResult], Sequence[EvaluationResult]] | None,
        without_attribute: Iterable[tuple[str, Sequence[EvaluationResult]]],
    ) -> dict[str, Any]:
        """The part of verdict.json that follows from ranks; see docs/verdict.md.

        Args:
            models: S results each of ``session``, the model without profiles, and of the model with the user's
                ``own``, ``permuted`` and ``per_session`` profiles; and of ``context``, its context encoder.
            non_neural: the result of each non-neural model.
            validation: the validation metric of all of these but ``context``, a mean over seeds.
            held_out: S results of the models with and without profiles, for users held out of training; None where
                the test split has enough new users.
            without_attribute: attributes, and S results of the model with the user's own profiles, tested without
                the attribute.
        """
        own, session = models["own"], models["session"]
        values = paired_values(own, session, self.metric)
        best = max(non_neural, key=validation.__getitem__)
        gains = {name: self._gain(models[model], models[base]) for name, (model, base) in GAINS.items()}
        gains["over_non_neural"] = self._gain(own, [non_neural[best]])
        new_users, gain = self._new_users(*(held_out or (own, session)), held_out is not None)
        if gain is not None:
            gains["new_users"] = gain
        claims = {name: gains[name] for name in CLAIMS if name in gains}
        return {
            "helps": decide(gains["over_session"], gains["over_per_session"], self.smallest_gain),
            "smallest_gain_absolute": self.smallest_gain * gains["over_session"].base,
            "models": {name: self._model_row(results, validation.get(name)) for name, results in models.items()},
            "non_neural": {name: self._model_row([result], validation[name]) for name, result in non_neural.items()},
            "best_non_neural": best,
            "gains": {name: asdict(gain) | {"relative": gain.relative} for name, gain in gains.items()},
            "claims": check_claims(claims, self.bootstrap["confidence"]),
            "new_users": new_users,
            "groups": self._groups(own, values),
            "attribute_values": self._attribute_values(own, values),
            "attributes": self._attribute_losses(own, without_attribute),
        }

    def _gain(self, results: Sequence[EvaluationResult], bases: Sequence[EvaluationResult]) -> Gain:
        value, base = paired_values(results, bases, self.metric)
        return measure_gain(value, base, self._cluster(results), self.bootstrap, self.seed)

    def _cluster(self, results: Sequence[EvaluationResult]) -> np.ndarray:
        """(N,) the unit of resampling of every prediction."""
        cluster: np.ndarray = results[0].ranks[self.bootstrap["unit"]].to_numpy()
        return cluster

    def _model_row(self, results: Sequence[EvaluationResult], validation: float | None) -> dict[str, Any]:
        """Mean and standard deviation over seeds of every metric; no deviation of one seed."""
        metrics = [result.metrics(self.metrics) for result in results]
        return {
            "mean": {name: float(np.mean([of_seed[name] for of_seed in metrics])) for name in self.metrics},
            "deviation": {
                name: float(np.std([of_seed[name] for of_seed in metrics], ddof=1)) if len(metrics) > 1 else None
                for name in self.metrics
            },
            "validation": validation,
        }

    def _new_users(
        self, own: Sequence[EvaluationResult], session: Sequence[EvaluationResult], are_held_out: bool
    ) -> tuple[dict[str, Any] | None, Gain | None]:
        """The gain for users without a training session: of the test split, or held out."""
        user = own[0].ranks["user"]
        if are_held_out:
            is_new = np.full(len(user), True)
        else:
            train_events = pl.read_parquet(self.prepared.folder / "train.parquet", columns=["user"], glob=False)
            is_new = (by_seen(user, train_events) == "unseen").to_numpy()
        users = user.to_numpy()[is_new]
        n_users = len(np.unique(users))
        if n_users < (MIN_CLUSTERS if are_held_out else MIN_NEW_USERS):
            return None, None
        value, base = paired_values(own, session, self.metric)
        cluster = self._cluster(own)[is_new]
        gain = measure_gain(value[:, is_new], base[:, is_new], cluster, self.bootstrap, self.seed)
        with_profiles = float(value[:, is_new].mean())
        of_new_users = {"users": n_users, "predictions": len(users), "with_profiles": with_profiles}
        return of_new_users | {"held_out": are_held_out}, gain

    def _groups(self, own: Sequence[EvaluationResult], values: PairedValues) -> dict[str, Any]:
        """The gain over the session model in groups of predictions, by what they are grouped by."""
        ranks, folder = own[0].ranks, self.prepared.folder
        train_events = pl.read_parquet(folder / "train.parquet", columns=["user", "item"], glob=False)
        labels = {
            "position": by_position(ranks["position"]),
            "known_attributes": by_known_attributes(ranks["user"], self.prepared.users()),
            "seen_in_training": by_seen(ranks["user"], train_events),
            "popularity": by_popularity(ranks["item"], train_events, int(self.prepared.dims["n_items"])),
        }
        groups = {}
        for by, label in labels.items():
            assert isinstance(label.dtype, pl.Enum)
            members = {name: (label == name).to_numpy() for name in label.dtype.categories}
            groups[by] = self._group_gains(own, values, members)
        return groups

    def _attribute_values(self, own: Sequence[EvaluationResult], values: PairedValues) -> dict[str, Any]:
        """For each attribute the gain of its most frequent values; where it has one, unknown is one of them."""
        user, users, vocabulary = own[0].ranks["user"].to_numpy(), self.prepared.users(), self.prepared.vocabulary()
        return {
            name: self._group_gains(
                own, values, {value: is_in[user] for value, is_in in _frequent_values(name, user, users, vocabulary)}
            )
            for name in self.attributes
        }

    def _group_gains(
        self,
        own: Sequence[EvaluationResult],
        values: PairedValues,
        members: Mapping[str, np.ndarray],
    ) -> list[dict[str, Any]]:
        """The rows of ``group_gains``; ``members``: name -> (N,) whether a prediction is in the group."""
        return group_gains(*values, members, self._cluster(own), self.bootstrap, self.seed).to_dicts()

    def _attribute_losses(
        self,
        own: Sequence[EvaluationResult],
        without_attribute: Iterable[tuple[str, Sequence[EvaluationResult]]],
    ) -> list[dict[str, Any]]:
        """How much the metric falls when an attribute is set to unknown, the largest fall first."""
        losses = []
        for name, hidden in without_attribute:
            loss = self._gain(own, hidden)
            losses.append({"attribute": name, "mean": loss.mean, "low": loss.low, "high": loss.high})
        return sorted(losses, key=lambda loss: -loss["mean"])


def _frequent_values(
    attribute: str, user: np.ndarray, users: pl.DataFrame, vocabulary: pl.DataFrame
) -> list[tuple[str, np.ndarray]]:
    """The values of an attribute with most predictions: name, (U,) whether a user has it.

    Args:
        attribute: its name.
        user: (N,) code of the user of every prediction.
        users, vocabulary: of the prepared data set.
    """
    code_of = dict(vocabulary.filter(pl.col("attribute") == attribute).select("category", "code").iter_rows())
    column = f"{PREFIX}{attribute}"
    if column in users.columns:
        codes = users[column].to_numpy()
        values = {name: codes == code for name, code in {unused_label(UNKNOWN, code_of): 0, **code_of}.items()}
    else:
        active = users["active"].list
        values = {name: active.contains(pl.lit(code, pl.UInt32)).to_numpy() for name, code in code_of.items()}
    frequent = sorted(values.items(), key=lambda value: -int(value[1][user].sum()))
    return [(name, is_in) for name, is_in in frequent[:MAX_VALUES] if is_in[user].any()]
