"""Every command of README and of the manual runs, on small data; of make commands, the recipes are read (--dry-run).

Those marked "not run by the tests" are left out.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from commandline import SMALL, Command, arnn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "not run by the tests"
PROGRAM = re.compile(r"(python3? -m|make|pip|uv|docker|curl|torchrun|srun|unzip)\b")
START = datetime(2015, 11, 1, tzinfo=UTC)
# Sizes of the documents' commands, in the tests.
SMALLER = {
    r"\bevents=\d+": "events=20000",
    r"\btrials=\d+": "trials=2",
    r"\bworkers=4": "workers=2",
    r"\bbudget=2h": "budget=2h max_seeds=2",
    r"\bseed=1,2,3": "seed=1,2",
    r"hydra\.launcher\.n_jobs=4": "hydra.launcher.n_jobs=2",
}


def blocks(text: str) -> Iterator[list[str]]:
    """The commands of each indented block; a mark above a block leaves it out, one in a comment its line."""
    for above, block in re.findall(r"((?:^\S.*\n)*)\n((?:^ {4,}\S.*\n)+)", text.replace("\\\n", " "), re.MULTILINE):
        lines = [line.strip() for line in block.splitlines() if MARK not in above + line]
        yield [line for line in lines if PROGRAM.match(line)]


def commands(page: Path) -> list[str]:
    return [command for block in blocks(page.read_text()) for command in block]


def write_tables(folder: Path) -> None:
    """The files that the manual's commands read, of one simulated shop."""
    rng = np.random.default_rng(3)
    rows = []
    for session in range(500):
        user, start = int(rng.integers(0, 60)), START + timedelta(minutes=40 * session)
        item = 0
        for step in range(int(rng.integers(2, 6))):
            item = (item + int(rng.zipf(1.5)) + user % 3) % 40
            rows.append((f"C-{user}", session, item, start + timedelta(minutes=step), step))
    clicks = pl.DataFrame(rows, ["customer", "session", "product", "clicked_at", "offset"], orient="row").with_columns(
        pl.format("sku-{}", "product").alias("product")
    )
    number = pl.col("customer").str.strip_prefix("C-").cast(pl.Int64)
    country = pl.when(number % 2 == 0).then(pl.lit("de")).otherwise(pl.lit("at")).alias("country")
    clicks.with_columns(
        country, pl.format("{}-", number % 5).alias("age"), user="customer", item="product", time="clicked_at"
    ).write_csv(folder / "clicks.csv")
    customers = clicks.select("customer").unique(maintain_order=True).with_columns(country, age=number % 5)
    customers.select(
        "country", "age", id="customer", interests=pl.when(number % 3 == 0).then(pl.lit("garden,light"))
    ).write_csv(folder / "customers.csv")
    skus = pl.DataFrame({"sku": [f"sku-{item}" for item in range(45)]}).with_row_index("n")
    skus.select(
        "sku", category=pl.col("n") % 4, brand=pl.col("n") % 7, colours=pl.lit("red,blue"), price=pl.col("n") * 1.5
    ).write_csv(folder / "products.csv")

    # data.md's recipes
    iso = pl.col("clicked_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
    clicks.select("session", iso, item="product", category=pl.lit(0)).write_csv(
        folder / "clicks.dat", include_header=False
    )
    (folder / "logs").mkdir()
    local = pl.col("clicked_at").dt.strftime("%Y-%m-%d %H:%M:%S")
    for day, part in enumerate((clicks[:1000], clicks[1000:])):
        views = part.with_row_index().select(
            pl.when(pl.col("index") % 9 > 0).then("customer").alias("visitor"),
            item="product",
            time=local,
            event=pl.when(pl.col("index") % 5 > 0).then(pl.lit("view")).otherwise(pl.lit("cart")),
        )
        views.write_csv(folder / "logs" / f"{day}.csv.gz", compression="gzip")
    export = clicks.select(
        user="customer", item="product", time=pl.col("clicked_at").dt.strftime("%m/%d/%Y %H:%M"), title=pl.lit('5" Rör')
    )
    (folder / "export.txt").write_text(export.write_csv(separator="\t", quote_style="never"), encoding="cp1252")
    german = "%d.%m.%Y %H:%M:%S%.3f"
    clicks.select(Kunde="customer", Artikel="product", Zeitpunkt=pl.col("clicked_at").dt.strftime(german)).write_csv(
        folder / "klicks.csv.gz", separator=";", compression="gzip"
    )
    customers.select(
        Kunde="customer",
        Interessen=pl.lit("Garten,Licht"),
        Geburtsdatum=pl.format("01.02.19{}", 50 + number % 40),
        Einkommen=pl.format("{}.500,50", 20 + number % 40),
    ).write_csv(folder / "kunden.csv", separator=";")
    clicks.select("session", "offset", user="customer", item="product", day=pl.col("clicked_at").dt.date()).write_csv(
        folder / "views.csv"
    )

    # docs/recommend.md and docs/report.md
    visits = pl.DataFrame({"session_id": [1, 1, 2], "item_id": ["sku-3", "sku-7", "sku-1"]})
    visits.write_csv(folder / "sessions.csv")
    visits.write_parquet(folder / "sessions.parquet")
    pl.DataFrame({"session_id": [1, 2], "country": ["de", None], "age": ["3-", "9-"]}).write_csv(
        folder / "profiles.csv"
    )

    # Complete Journey and MovieLens
    (folder / "journey").mkdir()
    baskets = clicks.with_columns(household_id=number, basket_id=100 + pl.col("session")).join(
        skus.select("n", product="sku"), "product", maintain_order="left"
    )
    baskets.select(
        *("household_id", "basket_id"),
        product_id=pl.col("n").cast(pl.Int64),
        transaction_timestamp=pl.col("clicked_at").dt.replace_time_zone(None).cast(pl.Datetime("ns"))
        + (pl.col("clicked_at") - START) * 4,
    ).write_parquet(folder / "journey" / "transactions.parquet")
    from arnn_lightning.readers.complete_journey import ATTRIBUTES

    households = baskets.select("household_id").unique(maintain_order=True)
    households.with_columns(
        pl.format("{}", pl.col("household_id") % 3).alias(name) for name in ATTRIBUTES
    ).write_parquet(folder / "journey" / "demographics.parquet")
    movies = folder / "data" / "raw" / "movielens"
    movies.mkdir(parents=True)
    baskets.select(
        pl.col("household_id").alias("user_id:token"),
        pl.col("n").alias("item_id:token"),
        pl.lit(4).alias("rating:float"),
        ((pl.col("clicked_at") - START) * 10 + START).dt.epoch("s").alias("timestamp:float"),
    ).write_csv(movies / "ml-100k.inter", separator="\t")
    households.with_columns(
        pl.lit(value).alias(f"{name}:token")
        for name, value in {"age": "30", "gender": "F", "occupation": "other", "zip_code": "85711"}.items()
    ).rename({"household_id": "user_id:token"}).write_csv(movies / "ml-100k.user", separator="\t")
    skus.select(
        pl.col("n").alias("item_id:token"),
        pl.col("sku").alias("movie_title:token_seq"),
        pl.lit("1994").alias("release_year:token"),
        pl.lit("Crime Drama").alias("class:token_seq"),
    ).write_csv(movies / "ml-100k.item", separator="\t")


def small(command: list[str]) -> list[str]:
    """Settings that make a command small, where it trains."""
    text = " ".join(command)
    if (
        "resume=" in text
        or "--" in text
        or re.search(r"task=(prepare|generate|evaluate|recommend|serve|export|report)", text)
    ):
        is_made = "task=prepare" in text or "lists=" in text
        return ["data.generate.events=5000"] if is_made and "data=tabular" not in text else []
    settings = [setting for setting in SMALL if not setting.startswith("data.")]
    if "data=tabular" not in text and "data=movielens" not in text and "data=completejourney" not in text:
        settings += ["data.generate.events=5000"]
    settings += ["seed=1"] if "experiment=" in text else []
    return [*settings, *(["data.raw_dir=journey", "data.items.min_events=1"] if "data=completejourney" in text else [])]


STRONG = "data=tabular data.events=clicks.csv 'data.contexts.single=[country]' model=arnn_strong"
# What was there before the first command of a page.
BEFORE: dict[str, list[str]] = {
    "README.md": ["model=arnn hydra.run.dir=RUN"],
    "export.md": [
        f"{STRONG} hydra.run.dir=RUN",
        f"{STRONG} hydra.run.dir=outputs/monday",
    ],
    "many-devices.md": ["model=gru4rec hydra.run.dir=outputs/train/synthetic/gru4rec/TIME"],
    "recommend.md": [
        "model=arnn_strong data=tabular data.events=clicks.csv data.columns.item=product "
        "'data.contexts.single=[country,age]' hydra.run.dir=outputs/train/tabular/arnn_strong/TIME"
    ],
    "report.md": [
        "data=completejourney hydra.run.dir=RUN",
        "-m model=pop,itemknn hydra.sweep.dir=multirun/TIME",
        "task=prepare data=tabular data.events=clicks.csv id_tables=shop-ids",
    ],
    "training.md": ["model=arnn hydra.run.dir=RUN"],
}


def run(folder: Path, command: str) -> None:
    for pattern, value in SMALLER.items():
        command = re.sub(pattern, value, command)
    words = shlex.split(command, comments=True)
    if words[0] == "make":  # it started these tests
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return
    arguments = words[words.index("arnn_lightning") + 1 :] if "arnn_lightning" in words else words
    arguments += small(arguments)
    if "task=serve" not in arguments:
        arnn(folder, *arguments)
        return
    port = next((word for word in arguments if word.startswith("port=")), "port=8000")
    served = Command(folder, *arguments)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port[5:]}/health").close()
            break
        except OSError:
            assert served.is_running()
            time.sleep(0.1)
    os.kill(served.pid, signal.SIGTERM)
    assert served.wait().returncode == -signal.SIGTERM


def write_files_of_runs(folder: Path) -> None:
    """A checkpoint in the current folder, and lists of another program."""
    for checkpoint in folder.glob("outputs/train/tabular/*/*/checkpoints/best.ckpt"):
        shutil.copy(checkpoint, folder)
    if (folder / "shop-ids").exists():
        events = pl.read_parquet(folder / "shop-ids" / "test.parquet").filter(pl.col("position") > 0)
        events.select("session_id", "position", "item_id", score=pl.lit(1.0)).write_parquet(folder / "vstan.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    write_tables(tmp_path)
    for command in BEFORE.get(page.name, []):
        run(tmp_path, command)
    write_files_of_runs(tmp_path)
    for command in commands(page):
        run(tmp_path, command)
