"""The reader of MovieLens-100K and -1M."""

import zipfile
from pathlib import Path

import pytest

from arnn_lightning.errors import UserError
from arnn_lightning.readers.movielens import MovieLensReader
from arnn_lightning.readers.schema import RawData, validate_events

ML_100K = {
    "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
    "u.user": "186|24|M|technician|85711\n196|53|F|other|T8H1N\n",
    "u.item": f'242|Léon: "The" (1994)|01-Jan-1994||http://x{"|0" * 19}\n302|L.A.|01-Jan-1997||http://y{"|1" * 19}\n',
}
ML_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n",
    "users.dat": "1::F::1::10::48067\n",
    "movies.dat": "661::James and the Giant Peach (1996)::Animation|Musical\n1193::Cuckoo: 1975::Drama\n",
}


def read(folder: Path, files: dict[str, str], archive: str | None = None) -> RawData:
    for name, text in files.items():
        if archive is None:
            (folder / name).write_text(text, encoding="latin-1")
        else:
            with zipfile.ZipFile(folder / archive, "a") as zipped:
                zipped.writestr(f"{archive[:-4]}/{name}", text.encode("latin-1"))
    reader = MovieLensReader(str(folder))
    raw = validate_events(reader.read(), next(iter(reader.files().values())))
    raw.users(), raw.items()  # checked too
    return raw


@pytest.mark.parametrize("archive", [None, "ml-100k.zip"])
def test_100k_is_read_plain_and_from_its_archive(tmp_path: Path, archive: str | None) -> None:
    raw = read(tmp_path, ML_100K, archive)
    assert raw.events.rows() == [(196, 242, 881250949), (186, 302, 891717742)]
    assert raw.users().collect().rows() == [(186, "24", "M", "technician", "85711"), (196, "53", "F", "other", "T8H1N")]
    items = raw.items()
    assert items is not None
    assert items.rows() == [(242, 'Léon: "The" (1994)'), (302, "L.A.")]


@pytest.mark.parametrize("archive", [None, "ml-1m.zip"])
def test_1m_is_read_plain_and_from_its_archive(tmp_path: Path, archive: str | None) -> None:
    raw = read(tmp_path, ML_1M, archive)
    assert raw.events.rows() == [(1, 1193, 978300760), (1, 661, 978302109)]
    assert raw.users().collect().to_dicts() == [
        {"user": 1, "gender": "F", "age": "1", "occupation": "10", "zip_code": "48067"}
    ]
    items = raw.items()
    assert items is not None
    assert items["title"].to_list() == ["James and the Giant Peach (1996)", "Cuckoo: 1975"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1\t2\t3", r"row 3 of u\.data has 3 fields, expected are 4"),
        ("1\tx\t3\t5", r"column 'item', row 3 of u\.data: 'x' is not an integer"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, ML_100K | {"u.data": ML_100K["u.data"] + row + "\n"})


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no u\.data, u\.user, u\.item.*grouplens"):
        MovieLensReader(str(tmp_path)).files()
