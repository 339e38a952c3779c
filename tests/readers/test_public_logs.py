"""The configs of public logs, on small files in exactly the form in which they are published."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from arnn_lightning.config import check_settings, instantiate
from arnn_lightning.errors import UserError
from arnn_lightning.preprocessing.dataset import prepare
from arnn_lightning.readers.schema import RawData, validate_events
from helpers import compose_config

CONF = Path(__file__).parents[2] / "conf" / "data"
DAY = 86_400
RSC15 = """1,2014-04-07T10:51:09.277Z,214536502,0
1,2014-04-07T10:54:09.868Z,214536500,0
1,2014-04-07T10:54:46.998Z,214536506,S
2,2014-04-07T13:56:37.614Z,214662742,0
2,2014-04-07T13:56:37.014Z,214662743,12
"""
DIGINETICA = """sessionId;userId;itemId;timeframe;eventdate
1;NA;81766;526309;2016-05-09
1;NA;31331;1031018;2016-05-09
1;NA;32118;243569;2016-05-09
2;17;9654;75848;2016-05-09
"""
RETAILROCKET = """timestamp,visitorid,event,itemid,transactionid
1433221332117,257597,view,355908,
1433224214164,992329,view,248676,
1433221999827,111016,addtocart,318965,
1433221955914,483717,transaction,253185,4000
"""
LASTFM = (
    "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\t\tFlashdance (Vocal Mix)\n"
    'user_000001\t2009-05-04T13:54:10Z\ta7f7df4a\t坂本龍一\tf7c1f8f8\t"Merry Christmas\n'
    "user_000001\t2009-05-04T13:52:04Z\t\tNobody\t475d4e50\tSelf-Portrait\n"
    'user_000002\t2009-05-04T13:42:52Z\tf1b1cf71\tDeep Dish\tdc394163\tStill "Life\n'
)
PROFILES = "#id\tgender\tage\tcountry\tregistered\nuser_000001\tm\t\tJapan\tAug 13, 2006\nuser_000002\tf\t22\t\t\n"
GOWALLA = (
    "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n0\t2010-10-18T22:17:43Z\t30.26\t-97.7\t420315\n"
)
KION = (
    "user_id,item_id,last_watch_dt,total_dur,watched_pct\n176549,9506,2021-05-11,4250,72.0\n699317,1659,2021-05-29,8,\n"
)
KION_USERS = "user_id,age,income,sex,kids_flg\n176549,age_25_34,income_60_90,\u041c,1\n699317,,,,0\n"
ML_100K = {
    "u.data": "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
    "u.user": "186|24|M|technician|85711\n196|53|F|other|T8H1N\n",
    "u.item": f'242|Léon: "The" (1994)|01-Jan-1994||http://x{"|0" * 19}\n302|L.A.|01-Jan-1997||http://y{"|1" * 19}\n',
}
RECBOLE = {
    "ml-100k.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n186\t302\t3\t891717742\n"
    ),
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "186\t24\tM\ttechnician\t85711\n196\t53\tF\tother\tT8H1N\n"
    ),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '242\tLéon: "The"\t1994\tCrime Drama\n302\tL.A.\t1997\tCrime\n'
    ),
}
ML_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n",
    "users.dat": "1::F::1::10::48067\n",
    "movies.dat": "661::James and the Giant Peach (1996)::Animation|Musical\n1193::Cuckoo: Léon 1975::Drama\n",
}


def read(name: str, folder: Path, files: dict[str, str], encoding: str = "utf-8") -> RawData:
    for file, text in files.items():
        (folder / file).write_text(text, encoding=encoding)
    return validated(name, folder)


def validated(name: str, folder: Path) -> RawData:
    config = compose_config(f"data={name}", f"data.raw_dir={folder}")
    reader: Any = instantiate(config.data.reader)
    raw = validate_events(reader.read(), next(iter(reader.files().values())))
    raw.users(), raw.items()  # checked too
    return raw


def test_rsc15_is_read_as_anonymous_sessions(tmp_path: Path) -> None:
    raw = read("rsc15", tmp_path, {"yoochoose-clicks.dat": RSC15})
    assert raw.events.filter(session="1")["item"].to_list() == ["214536502", "214536500", "214536506"]
    assert raw.events.filter(session="2")["item"].to_list() == ["214662743", "214662742"]  # by milliseconds
    assert raw.events["user"].to_list() == raw.events["session"].to_list()
    assert raw.events["time"][0] == 1_396_867_869


def test_diginetica_is_ordered_by_its_timeframe(tmp_path: Path) -> None:
    raw = read("diginetica", tmp_path, {"train-item-views.csv": DIGINETICA})
    assert raw.events.filter(session="1")["item"].to_list() == ["32118", "81766", "31331"]
    assert raw.events["time"].unique().to_list() == [16_930 * DAY]


def test_retailrocket_keeps_views_and_counts_the_others(tmp_path: Path) -> None:
    raw = read("retailrocket", tmp_path, {"events.csv": RETAILROCKET})
    assert raw.events.drop("instant").rows() == [
        ("257597", "355908", 1_433_221_332),
        ("992329", "248676", 1_433_224_214),
    ]
    assert (raw.rows, dict(raw.dropped)) == (4, {"with event=view": 2})


def test_lastfm1k_has_quotes_gaps_and_profiles(tmp_path: Path) -> None:
    files = {"userid-timestamp-artid-artname-traid-traname.tsv": LASTFM, "userid-profile.tsv": PROFILES}
    raw = read("lastfm1k", tmp_path, files)
    assert raw.events.select("user", "item").rows() == [
        ("user_000001", "f1b1cf71"),
        ("user_000001", "a7f7df4a"),
        ("user_000002", "f1b1cf71"),
    ]
    assert dict(raw.dropped) == {"without missing values": 1}
    assert raw.users().collect().rows() == [("user_000001", "m", "Japan"), ("user_000002", "f", None)]


def test_gowalla_is_read_packed_as_released(tmp_path: Path) -> None:
    (tmp_path / "loc-gowalla_totalCheckins.txt.gz").write_bytes(gzip.compress(GOWALLA.encode()))
    assert validated("gowalla", tmp_path).events.rows() == [
        ("0", "22847", 1287532527),
        ("0", "420315", 1287440263),
    ]


def test_kion_is_read_from_its_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data_original.zip", "w") as archive:
        archive.writestr("data_original/interactions.csv", KION)
        archive.writestr("data_original/users.csv", KION_USERS)
        archive.writestr("data_original/items.csv", "item_id,title\n")
    raw = validated("kion", tmp_path)
    assert raw.events.select("user", "item").rows() == [("176549", "9506"), ("699317", "1659")]
    assert raw.users().collect().rows()[1] == ("699317", None, None, None, "0")


def test_movielens_of_recbole_equals_the_released_files(tmp_path: Path) -> None:
    recbole, released = read("movielens_recbole", tmp_path, RECBOLE), read("movielens", tmp_path, ML_100K, "latin-1")
    assert recbole.events.equals(released.events)
    assert recbole.users().collect().rows() == released.users().collect().rows()
    items = recbole.items()
    assert items is not None
    assert items.rows() == [("242", 'Léon: "The"'), ("302", "L.A.")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "files"), [("movielens", ML_100K), ("movielens_1m", ML_1M)])
def test_movielens_is_read_plain_and_from_its_archive(
    tmp_path: Path, name: str, files: dict[str, str], packed: bool
) -> None:
    if packed:
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
            for file, text in files.items():
                archive.writestr(f"ml/{file}", text.encode("latin-1"))
        raw = validated(name, tmp_path)
    else:
        raw = read(name, tmp_path, files, "latin-1")
    items = raw.items()
    assert items is not None
    if name == "movielens":
        assert raw.events.rows() == [("196", "242", 881250949), ("186", "302", 891717742)]
        assert raw.users().collect().rows()[1] == ("196", "53", "F", "other", "T8H1N")
        assert items.rows() == [("242", 'Léon: "The" (1994)'), ("302", "L.A.")]
    else:
        assert raw.events.rows() == [("1", "1193", 978300760), ("1", "661", 978302109)]
        assert raw.users().collect().to_dicts() == [
            {"user": "1", "age": "1", "gender": "F", "occupation": "10", "zip_code": "48067"}
        ]
        assert items["title"].to_list() == ["James and the Giant Peach (1996)", "Cuckoo: Léon 1975"]
        assert items["genres"].to_list() == [["Animation", "Musical"], ["Drama"]]


def test_a_row_of_an_archive_is_named_by_its_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        for file, text in ML_1M.items():
            archive.writestr(f"ml-1m/{file}", text.replace("978302109", "soon").encode("latin-1"))
    with pytest.raises(UserError, match=r"ml-1m\.zip/ratings\.dat: column 'time', row 2: 'soon' is not a unix time"):
        validated("movielens_1m", tmp_path)


PUBLIC = (
    "rsc15",
    "diginetica",
    "retailrocket",
    "lastfm1k",
    "gowalla",
    "kion",
    "movielens",
    "movielens_1m",
    "movielens_recbole",
)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_missing_public_log_names_its_source(tmp_path: Path, name: str) -> None:
    config = compose_config(f"data={name}", f"data.raw_dir={tmp_path}")
    check_settings(config, [], [])
    with pytest.raises(UserError, match=r"data\.events: .* is not a file; .* from [\w./-]+\.\w+/.*set data\.raw_dir"):
        instantiate(config.data.reader).files()


def settings_above(name: str) -> dict[str, Any]:
    """What a data set's YAML overrides: the settings of the first of its defaults, and of those above."""
    above = yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("defaults", ["_self_"])[0]
    if above == "_self_":
        return {}
    return {**settings_above(above), **yaml.safe_load((CONF / f"{above}.yaml").read_text())}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_log_repeats_no_value_of_its_base(name: str) -> None:
    values, base = yaml.safe_load((CONF / f"{name}.yaml").read_text()), settings_above(name)
    assert "reader" not in values
    for key, value in values.items():
        assert key == "raw_dir" or key in base, key
        if isinstance(value, dict):
            assert all((base[key] or {}).get(inner) != setting for inner, setting in value.items()), key
        elif key != "defaults":
            assert base.get(key) != value, key


def test_rsc15_is_prepared_without_users(tmp_path: Path) -> None:
    rows = [
        f"{10 * day + session},2014-04-{1 + day:02}T10:00:{second:02}.500Z,{item},0\n"
        for day in range(5)
        for session in range(9)
        for second, item in ((2, 7), (1, 8), (3, 9))
    ]
    (tmp_path / "yoochoose-clicks.dat").write_text("".join(rows))
    config = compose_config("data=rsc15", f"data.raw_dir={tmp_path}")
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    prepared = prepare(plain, tmp_path)
    assert {name: split["sessions"] for name, split in prepared.manifest["splits"].items()} == {
        "train": 27,
        "val": 9,
        "test": 9,
    }
    assert prepared.sessions("test").item.tolist() == [1, 0, 2] * 9
