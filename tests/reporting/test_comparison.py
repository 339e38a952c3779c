"""What the charts and tables of a section share."""

import csv
import io
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from arnn_lightning.evaluation.result import EvaluationResult
from arnn_lightning.reporting.comparison import (
    ASSIGNMENT,
    N_ATTRIBUTES,
    SESSION_ENCODER,
    Estimate,
    Row,
    Section,
    SectionView,
    Settings,
    Variant,
    compare,
)
from arnn_lightning.reporting.results_table import Cell, csv_text, markdown, page_table
from arnn_lightning.reporting.sections import _headline, _same_ranks, _section_order

TRAINED = {"optimizer.lr": 0.1}


def result(rank: int) -> EvaluationResult:
    return EvaluationResult("arnn", pl.DataFrame({"rank": [rank]}))


def view(*variants: Variant, **settings: Any) -> SectionView:
    contexts = {"single": ["age", "zip"], "multi": ["roles"]}
    data = SimpleNamespace(manifest={"config": {"contexts": contexts}})
    runs: Any = [SimpleNamespace(data=data)]
    rows = [Row(variant, {}, {}, {}) for variant in variants]
    return SectionView(Section("data", settings, runs), rows, settings=None)  # type: ignore[arg-type]


def test_the_main_model_has_the_most_common_configuration() -> None:
    session = {1: result(2)}
    rare, common = (
        Variant("arnn", {}, is_most_common=is_common, session_results=session) for is_common in (False, True)
    )
    gru4rec = Variant("gru4rec", {}, is_most_common=True)
    main = view(gru4rec, rare, common).main_model
    assert main is not None
    assert main.variant is common
    alone = view(gru4rec, rare).main_model
    assert alone is not None
    assert alone.variant is rare
    assert view(gru4rec).main_model is None


def test_the_number_of_seeds_is_that_of_trained_models() -> None:
    counted = Variant("pop", {}, results={seed: result(seed) for seed in (1, 2, 3)})  # with random contexts
    trained = Variant("gru4rec", TRAINED, results={seed: result(seed) for seed in (1, 2)})
    assert view(counted, trained).n_seeds == 2
    assert view(counted).n_seeds == 0


def test_equal_results_are_those_of_one_seed() -> None:
    """With one, its results may differ, and so the differences to them."""
    results = {seed: result(1) for seed in (2, 1)}
    assert Variant("pop", {}, results=results).seeds == [1]
    assert Variant("arnn", TRAINED, results=results, session_results=results).seeds == [1, 2]


def test_a_model_is_unaffected_where_the_ranks_of_all_seeds_are_equal() -> None:
    first, second = (Variant("arnn", TRAINED, results=results) for results in ({1: result(1)}, {1: result(1)}))
    assert _same_ranks(second, first)
    both = Variant("arnn", TRAINED, results={1: result(1), 2: result(1)})
    assert _same_ranks(both, first)  # as far as both have seeds
    for results in ({1: result(2)}, {2: result(1)}):
        assert not _same_ranks(Variant("arnn", TRAINED, results=results), first)
    assert not _same_ranks(Variant("arnn", TRAINED, results={1: result(1), 2: result(3)}), both)


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (1, 1), ("2", 2), (5, 3)])
def test_attributes_are_those_that_there_are_up_to_the_limit(limit: Any, expected: int) -> None:
    assert view(**{N_ATTRIBUTES: limit}).n_attributes == expected


def test_the_first_section_has_own_contexts_and_all_attributes() -> None:
    """Among equals, most runs."""

    def made(n_runs: int, **settings: Any) -> SectionView:
        runs: Any = [None] * n_runs
        return SectionView(Section("", settings, runs), [], SETTINGS)

    few, own = made(1, **{ASSIGNMENT: "own", N_ATTRIBUTES: None}), made(2)
    limited, permuted = made(3, **{N_ATTRIBUTES: 2}), made(4, **{ASSIGNMENT: "permuted"})
    assert sorted([permuted, limited, few, own], key=_section_order) == [own, few, limited, permuted]


def section(**labels: Any) -> tuple[Section, list[Row]]:
    """ARNN with a published figure in two configurations, and the GRU4REC that it is compared with, of two seeds."""
    result = SimpleNamespace(ranks=pl.DataFrame({"rank": range(1234)}))
    config = {"published": {"table2": {"arnn": {"mrr@20": 0.3}, "gru4rec": {"recall@20": 0.2}}}}
    runs: Any = [SimpleNamespace(metrics={"data": "xing"}, config=config, main=SimpleNamespace(result=result))]
    means, rows = (
        {
            "mrr@20": Estimate(0.5, 0.4, 0.6, (0.4, 0.6), 1),
            "recall@20": Estimate(0.7, 0.6, 0.8, (0.7,), 1),
            "mrr@5": Estimate(0.3, 0.2, 0.4, (0.3,), 1),
        },
        [],
    )
    for label, is_common in (("gru4rec", True), ("arnn", True), ("arnn (lr=1)", False)):
        variant = Variant(label.split()[0], {}, label, is_common, {1: EvaluationResult(label, result.ranks)})
        reference = SESSION_ENCODER if label == "arnn" else "gru4rec"
        gains = (
            {}
            if label == "gru4rec"
            else {reference: {"mrr@20": Estimate(0.1, 0.05, 0.2, (0.1,), 0.01, adjusted_p=0.034)}}
        )
        rows.append(Row(variant, means, gains, {reference: {"mrr@20": 0.25}}))
    return Section("key", {}, runs, **labels), rows


def test_a_table_of_the_page_has_all_of_its_rows() -> None:
    table = page_table(*section(), ["mrr@20", "recall@20"], 0.9)
    assert table.caption.startswith("Below each figure is its 90 % interval;")
    assert table.caption.endswith(" The session encoder is the one of the same run.")
    assert table.header[:5] == ["model", "MRR@20", "paper", "Recall@20", "paper"]
    arnn, other = table.rows[1:]
    assert arnn[1:3] == [Cell("0.5000", "± 0.1414", "0.4000 to 0.6000", bold=True), "0.3000"]
    assert other[2] == ""  # the paper's model has its most common configuration
    gain = Cell("+0.1000", "(+25.0%)", "+0.0500 to +0.2000; p = .034")
    assert [cell for cell in arnn if isinstance(cell, Cell)][2:] == [gain]
    assert arnn[-1] == "2"  # seeds
    assert "paper" not in page_table(*section(), ["mrr@5"], 0.9).header  # without figures of it
    assert page_table(*section(), ["mrr@5", "mrr@20"], 0.9).header[:4] == ["model", "MRR@5", "MRR@20", "paper"]
    data, (gru4rec, _, other) = section()
    assert "session encoder" not in page_table(data, [gru4rec, other], ["mrr@20"], 0.9).caption


def test_the_highest_mean_of_every_column_is_bold() -> None:
    """Seeds that are equal have a standard deviation, of 0."""
    data, rows = section()
    means = {"gru4rec": (0.2, 0.9), "arnn": (0.3, 0.8), "arnn (lr=1)": (0.3, 0.7)}
    for index, (row, (mrr, recall)) in enumerate(zip(rows, means.values(), strict=True)):
        by_seed = (mrr, mrr) if index == 1 else (mrr,)
        estimates = {"mrr@20": Estimate(mrr, 0, 1, by_seed, 1), "recall@20": Estimate(recall, 0, 1, (recall,), 1)}
        rows[index] = replace(row, metrics=estimates)
    table = page_table(data, rows, ["mrr@20", "recall@20"], 0.9)
    bold = [[cell.text for cell in row[1:] if isinstance(cell, Cell) and cell.bold] for row in table.rows]
    assert bold == [["0.9000"], ["0.3000"], ["0.3000"]]
    text = markdown([(data, rows)], ["mrr@20", "recall@20"], 0.9)
    assert re.findall(r"\*\*(.*?)\*\*", text) == ["0.9000", "0.3000 ± 0.0000", "0.3000"]
    assert "over up to 2 seeds" in text


def test_sections_come_in_their_order_in_all_files() -> None:
    parts = [section(), section(label="b|c")]
    first, second = markdown(parts, ["recall@20", "mrr@20"], 0.9).split("\n\nxing")[0], markdown(parts, ["mrr@20"], 0.9)
    assert first.startswith("xing: 1,234 predictions\n\n| model | Recall@20 | 90 % interval | paper |")
    assert re.findall("^xing.*", second, re.MULTILINE) == [
        f"xing{label}: 1,234 predictions, mean ± standard deviation over 2 seeds" for label in ("", r" (b\|c)")
    ]
    lines = list(csv.DictReader(io.StringIO(csv_text(parts, ["mrr@20"]))))
    assert [line["setting"] for line in lines] == [""] * 3 + ["b|c"] * 3
    assert [(line["base"], line["mrr@20_gain_p"], line["mrr@20_session_gain_p"]) for line in lines[:3]] == [
        *(("", "", ""), ("", "", "0.034"), ("gru4rec", "0.034", ""))
    ]


def test_markdown_has_the_number_of_seeds_of_every_row() -> None:
    made, rows = section()
    fewer = replace(rows[0], metrics={"mrr@20": Estimate(0.5, 0.4, 0.6, (0.5,), 1)})
    text = markdown([(made, [fewer, *rows[1:]])], ["mrr@20"], 0.9)
    assert text.startswith("xing: 1,234 predictions, mean ± standard deviation over up to 2 seeds")
    assert [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("|")] == [
        *("seeds |", "---: |", "1 |", "2 |", "2 |")
    ]


SETTINGS = Settings(["mrr@20"], "", [], [], "", {"unit": "user", "confidence": 0.9}, 1)


def headline(mean: float, gain: Estimate) -> str:
    session = {1: EvaluationResult("gru4rec", pl.DataFrame())}
    variant = Variant("arnn", {}, label="arnn", is_most_common=True, session_results=session)
    row = Row(variant, {"mrr@20": Estimate(mean, 0, 1, (mean,), 1)}, {SESSION_ENCODER: {"mrr@20": gain}}, {})
    runs: Any = [SimpleNamespace(metrics={"data": "xing"})]
    text = _headline(SectionView(Section("", {}, runs), [row], SETTINGS))
    assert text is not None
    return text


@pytest.mark.parametrize(("gain", "words"), [(0.1, "25.0% above"), (-0.1, "16.7% below")])
def test_a_headline_says_by_how_much_the_model_is_better(gain: float, words: str) -> None:
    estimate = Estimate(gain, gain - 0.05, gain + 0.05, (gain,), 0.034)
    assert headline(0.5, estimate) == (
        f"On xing, arnn is {words} its session encoder gru4rec: MRR@20 0.5000 and {0.5 - gain:.4f}, paired difference "
        f"{gain:+.4f} (90 % interval {gain - 0.05:+.4f} to {gain + 0.05:+.4f}, over users, one seed; "
        "p = .034)."
    )
    assert "over users and 2 seeds;" in headline(0.5, Estimate(gain, gain, gain, (gain, gain), 0.034))


@pytest.mark.parametrize(
    ("mean", "gain"),
    [
        (0.5, Estimate(0.1, -0.01, 0.2, (0.1,), 0.01)),
        (0.5, Estimate(0.1, 0.0, 0.2, (0.1,), 0.01)),
        (0.5, Estimate(0.1, 0.05, 0.2, (0.1,), 0.1)),
    ],
)
def test_a_headline_claims_no_difference_that_may_be_none(mean: float, gain: Estimate) -> None:
    sentence = "On xing, the difference between arnn and its session encoder gru4rec is not significant: MRR@20 "
    assert headline(mean, gain).startswith(sentence)


def test_a_headline_has_the_p_value_of_its_own_difference_alone() -> None:
    estimate = Estimate(0.1, 0.05, 0.2, (0.1,), 0.002, adjusted_p=0.126)
    assert headline(0.5, estimate).endswith("one seed; p = .002).")


def test_a_headline_states_that_there_are_too_few_users() -> None:
    estimate = Estimate(0.1, math.nan, math.nan, (0.1,), math.nan)
    expected = "On xing, the difference between arnn and its session encoder gru4rec is not tested: there are fewer "
    assert headline(0.5, estimate) == f"{expected}than 10 users."


def few_users(n_users: int, *seeds: float) -> SectionView:
    """A model whose hits at 20 are a share of its predictions, by seed, and one that is always right."""
    n = 20 * n_users
    keys = {"session": range(n), "position": 1, "user": [index % n_users for index in range(n)]}
    shares = {"arnn": seeds, "gru4rec": [1.0] * len(seeds)}
    made = {
        name: {
            seed: EvaluationResult(name, pl.DataFrame(keys | {"rank": [1 + 29 * (i >= share * n) for i in range(n)]}))
            for seed, share in enumerate(by_seed)
        }
        for name, by_seed in shares.items()
    }
    variants = [Variant(name, {}, name, True, by_seed) for name, by_seed in made.items()]
    main = SimpleNamespace(result=made["arnn"][0])
    runs: Any = [SimpleNamespace(metrics={"data": "xing"}, config={}, main=main)]
    bootstrap = {"unit": "user", "confidence": 0.95, "resamples": 60}
    settings = replace(SETTINGS, metrics=["recall@20"], base="gru4rec", bootstrap=bootstrap)
    return compare(Section("", {}, runs, variants), settings)


def test_intervals_of_metrics_are_within_their_range() -> None:
    """The shifts by the variation of three seeds would exceed 1; differences may."""
    arnn, gru4rec = few_users(12, 0.9, 1.0, 0.5).rows
    assert (arnn.metrics["recall@20"].low, arnn.metrics["recall@20"].high) == (pytest.approx(0.15, abs=0.1), 1.0)
    assert arnn.gains["gru4rec"]["recall@20"].high > 0
    assert gru4rec.metrics["recall@20"].high == 1.0


def test_nine_users_have_neither_intervals_nor_p_values() -> None:
    view = few_users(9, 0.9)
    gain = view.rows[0].gains["gru4rec"]["recall@20"]
    assert all(map(math.isnan, (gain.low, gain.high, gain.p, gain.adjusted_p)))
    table = page_table(view.section, view.rows, ["recall@20"], 0.95)
    assert table.rows[0][1:3] == [Cell("0.9000"), Cell("-0.1000", "(-10.0%)")]
    assert "With fewer than 10 users" in table.caption
    assert "| 0.9000 |  | -0.1000 |" in markdown([(view.section, view.rows)], ["recall@20"], 0.95)
    (line, _) = csv.DictReader(io.StringIO(csv_text([(view.section, view.rows)], ["recall@20"])))
    assert line["recall@20_low"] == line["recall@20_gain_high"] == line["recall@20_gain_p"] == ""
    assert not math.isnan(few_users(10, 0.9).rows[0].gains["gru4rec"]["recall@20"].adjusted_p)
