"""Time and memory of preparing a full-size log, compared with its typed parse alone and the same steps in pandas.

    python benchmarks/prepare.py --events 5000000 20000000 54925330     # simulated, in a temporary folder
    python benchmarks/prepare.py data/raw/tmall [--data tmall] [--rounds 3] [--only parse arnn-lightning]

Every contestant runs in a process of its own, interleaved; medians are printed, in all and per million rows.

- parse: polars reads the columns that the reader needs, of all its files, with its types, and nothing else: the floor.
- arnn-lightning: hashing, reading and preparing (the manifest's ``seconds``), beginning with an empty cache.
- pandas: the same steps without hash, contexts and manifest, written straightforwardly (needs pandas and pyarrow).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

LOG = {"tmall": "user_log_format1.csv", "xing": "interactions.csv"}
SEPARATOR = {"tmall": ",", "xing": "\t"}
COLUMNS: dict[str, dict[str, Any]] = {
    "tmall": {"user_id": pl.Int32, "item_id": pl.Int32, "time_stamp": pl.Int16, "action_type": pl.Int8},
    "xing": dict.fromkeys(("user_id", "item_id", "created_at", "interaction_type"), pl.Int64),
}
OTHERS: dict[str, dict[str, list[str]]] = {  # file -> columns read as texts; [] means all
    "tmall": {"user_info_format1.csv": []},
    "xing": {"users.csv": [], "items.csv": ["id", "title"]},
}
CLICK = {"tmall": 0, "xing": 1}
DAY = 86_400


def parse(data: str, folder: Path, _: Path) -> float:
    files = {LOG[data]: list(COLUMNS[data])} | OTHERS[data]
    started = time.perf_counter()
    for name, columns in files.items():
        header = (folder / name).open().readline().rstrip("\n").split(SEPARATOR[data])
        schema = dict.fromkeys(header, pl.String()) | (COLUMNS[data] if name == LOG[data] else {})
        quote = None if data == "xing" else '"'
        scan = pl.scan_csv(folder / name, separator=SEPARATOR[data], schema=schema, quote_char=quote)
        scan.select(columns or header).collect()
    return time.perf_counter() - started


def ours(data: str, folder: Path, output: Path) -> float:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from arnn_lightning.preprocessing.dataset import prepare

    with initialize_config_module("arnn_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=[f"data={data}", f"data.raw_dir={folder}"])
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    return float(sum(prepare(plain, output).manifest["seconds"].values()))


def pandas(data: str, folder: Path, output: Path) -> float:
    import pandas as pd

    started = time.perf_counter()
    types = {name: dtype.__name__.lower() for name, dtype in COLUMNS[data].items()}
    user, item, when, kind = types
    log = pd.read_csv(folder / LOG[data], sep=SEPARATOR[data], usecols=list(types), dtype=types)
    log = log[log[kind] == CLICK[data]].drop(columns=kind)
    if data == "tmall":
        stamps = log[when].unique()
        days = {stamp: pd.Timestamp(2014, stamp // 100, stamp % 100).value // 10**9 for stamp in stamps}
        log["time"] = log[when].map(days)
    else:
        log["time"] = log[when]
    log = log[log["time"] // DAY > log["time"].max() // DAY - 30]
    log = log.sort_values([user, "time"], kind="stable")
    same = log[user] == log[user].shift()
    pause = (log["time"].diff() > 3_600) if data == "xing" else (log["time"] // DAY != log["time"].shift() // DAY)
    log["session"] = (~same | pause).cumsum()
    counts = log[item].value_counts()
    needed = counts.iloc[int((counts.cumsum() < counts.sum() / 2).sum())]
    log = log[log[item].isin(counts.index[counts >= needed])]
    log = log[log.groupby("session")[item].transform("size") > 1]
    start = log.groupby("session")["time"].transform("first") // DAY
    test = start > start.max() - 3
    log = log[log[item].isin(log.loc[~test, item].unique())]
    log = log[log.groupby("session")[item].transform("size") > 1]
    for column in (user, item):
        log[column] = log[column].astype("category").cat.codes
    test = test.loc[log.index]
    log[~test].to_parquet(output / "train.parquet")
    log[test].to_parquet(output / "test.parquet")
    return time.perf_counter() - started


CONTESTANTS = {"parse": parse, "arnn-lightning": ours, "pandas": pandas}


def peak() -> float:
    """The process's peak memory in GB (Linux)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


def compare(data: str, folder: Path, contestants: list[str], rounds: int) -> None:
    """Prints the median seconds and memory of every contestant on one log."""
    results: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, runs in results.items():
            command = [sys.executable, __file__, str(folder), "--data", data, "--run", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            elif not runs:
                print(f"{name}: {done.stderr.splitlines()[-1]}")
    with (folder / LOG[data]).open("rb") as file:
        rows = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b"")) - 1
    print(f"{rows:,} rows, {(folder / LOG[data]).stat().st_size / 1e9:.2f} GB")
    floor = statistics.median(seconds for seconds, _ in results["parse"])
    for name, runs in results.items():
        if runs:
            seconds, memory = (statistics.median(values) for values in zip(*runs, strict=True))
            print(
                f"  {name:15} {seconds:6.1f} s  {seconds / floor:5.1f} x parse  {memory:5.2f} GB at the most;  "
                f"per million rows {seconds / rows * 1e6:6.3f} s  {memory / rows * 1e9:5.0f} MB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the raw files")
    parser.add_argument("--events", type=int, nargs="+", help="instead of a folder: sizes of simulated logs")
    parser.add_argument("--data", choices=LOG, default="tmall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--run", choices=CONTESTANTS, help="run one contestant once, print seconds and GB, and end")
    options = parser.parse_args()
    if (options.folder is None) == (options.events is None):
        parser.error("give a folder of raw files, or --events")
    if options.run:
        output = Path(tempfile.mkdtemp(prefix="arnn-"))
        try:
            seconds = CONTESTANTS[options.run](options.data, options.folder.absolute(), output)
        finally:
            shutil.rmtree(output)
        print(json.dumps([seconds, peak()]))
        return
    contestants = list(dict.fromkeys(["parse", *options.only]))  # the others are multiples of it
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, polars {pl.__version__}")
    if options.folder is not None:
        compare(options.data, options.folder.absolute(), contestants, options.rounds)
    for events in options.events or ():
        with tempfile.TemporaryDirectory(prefix="arnn-raw-") as folder:
            made = [f"schema={options.data}", f"events={events}", f"output={folder}/raw", f"hydra.run.dir={folder}/run"]
            subprocess.run(
                [sys.executable, "-m", "arnn_lightning", "task=generate", *made], check=True, capture_output=True
            )
            compare(options.data, Path(folder) / "raw", contestants, options.rounds)


if __name__ == "__main__":
    main()
