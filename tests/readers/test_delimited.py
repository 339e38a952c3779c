"""Reading delimited files: valid input and errors."""

import bz2
import errno
import gzip
import lzma
import shutil
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.errors import UserError
from arnn_lightning.readers import delimited
from arnn_lightning.readers.delimited import read_delimited, require_files, require_one_of

COLUMNS = {"user_id": pl.Int64(), "name": pl.String()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log.csv"


def read(file: Path, text: str | bytes, separator: str = "\t") -> list[tuple[int | None, str | None]]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_delimited(file, COLUMNS, separator=separator, quote=None if separator == "\t" else '"').rows()


# --- what is accepted ---


@pytest.mark.parametrize(
    "text",
    [
        "user_id\tname\n1\ta\n2\tb\n",
        "user_id\tname\n1\ta\n2\tb",
        "user_id\tname\r\n1\ta\r\n2\tb\r\n",
        "\ufeffuser_id\tname\n1\ta\n2\tb\n",
        "name\tother\tuser_id\na\t\t1\nb\tx\t2\n",
        "users.user_id\tusers.name\n1\ta\n2\tb\n",
        "export.v2.user_id\texport.v2.name\n1\ta\n2\tb\n",
    ],
    ids=["plain", "no last newline", "windows", "byte order mark", "other columns", "prefix", "long prefix"],
)
def test_columns_are_read_in_the_requested_order(file: Path, text: str) -> None:
    assert read(file, text) == [(1, "a"), (2, "b")]


def test_columns_have_the_requested_types(file: Path) -> None:
    file.write_text("user_id\tname\n1\t2\n")
    assert read_delimited(file, COLUMNS, separator="\t").schema == COLUMNS


def test_null_and_empty_values_are_missing(file: Path) -> None:
    assert read(file, "user_id\tname\nNULL\ta\n2\tNULL\n\tb\n4\t\n") == [(None, "a"), (2, None), (None, "b"), (4, None)]
    assert read(file, "user_id\tname\n1\tNULL\n") == [(1, None)]


def test_a_row_may_lack_its_trailing_empty_field(file: Path) -> None:
    assert read(file, "user_id\tname\n1\ta\n2\n3\tc\n4") == [(1, "a"), (2, None), (3, "c"), (4, None)]


def test_quotes_have_no_meaning_without_a_quote_character(file: Path) -> None:
    assert read(file, 'user_id\tname\n1\t"a\n2\tb"c\n') == [(1, '"a'), (2, 'b"c')]


def test_quoted_fields_may_contain_the_separator(file: Path) -> None:
    assert read(file, 'user_id,name\n1,"a, b"\n', separator=",") == [(1, "a, b")]


def test_an_alias_is_read_only_if_the_name_is_missing(file: Path) -> None:
    columns, aliases = {"id": pl.Int64()}, {"id": ["user_id"]}
    for text, value in [("user_id\tx\n1\t2\n", 1), ("table.user_id\tx\n1\t2\n", 1), ("user_id\tid\n1\t2\n", 2)]:
        file.write_text(text)
        assert read_delimited(file, columns, separator="\t", aliases=aliases).rows() == [(value,)]


def test_a_full_name_precedes_a_prefixed_one(file: Path) -> None:
    assert read(file, "other.user_id\tuser_id\tname\n7\t1\ta\n") == [(1, "a")]


def test_other_columns_may_hold_anything(file: Path) -> None:
    assert read(file, "user_id\tx\tname\n1\t2\ta\n2\tthree\tb\n") == [(1, "a"), (2, "b")]


def test_a_header_alone_is_a_table_without_rows(file: Path) -> None:
    assert read(file, "user_id\tname\n") == []


def test_rows_come_in_the_order_of_the_file(file: Path) -> None:
    rows = 300_000
    text = "user_id\tname\n" + "\n".join(f"{row}\tx" for row in range(rows))
    assert read(file, text) == [(row, "x") for row in range(rows)]


# --- errors ---


def test_an_empty_file_is_named(file: Path) -> None:
    with pytest.raises(UserError, match=r"log\.csv: the file or its first line is empty"):
        read(file, "")


def test_missing_column_error_suggests_and_lists_columns(file: Path) -> None:
    with pytest.raises(
        UserError, match=r"log\.csv: no column 'user_id' \(did you mean \"usr_id\"\?\); its columns: usr_id, name"
    ):
        read(file, "t.usr_id\tt.name\n1\ta\n")


@given(before=st.integers(0, 30), value=st.sampled_from(["x", "1.5", "1e3", "12a", "99999999999999999999"]))
def test_invalid_value_is_named_with_file_column_and_row(
    tmp_path_factory: pytest.TempPathFactory, before: int, value: str
) -> None:
    file = tmp_path_factory.mktemp("log") / "log.csv"
    lines = ["user_id\tname", *["1\ta"] * before, f"{value}\tb", "2\tc", "worse\td"]
    with pytest.raises(UserError) as error:
        read(file, "\n".join(lines))
    assert f"{file}: column 'user_id', row {before + 2}: '{value}' is not an integer" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_row_is_right_far_down_the_file(file: Path) -> None:
    with pytest.raises(UserError, match="row 200002: 'bad'"):
        read(file, "user_id\tname\n" + "1\ta\n" * 200_000 + "bad\ta\n")


def test_empty_lines_count_as_rows(file: Path) -> None:
    with pytest.raises(UserError, match="row 5: 'bad'"):
        read(file, "user_id\tname\n1\ta\n\n2\tb\nbad\tc\n")


def test_a_valid_value_before_the_invalid_one_is_not_named(file: Path) -> None:
    # The spaces are accepted when the file is read, so row 4 is the invalid one.
    assert read(file, "user_id\tname\n 1\ta\n2\tb\n") == [(1, "a"), (2, "b")]
    with pytest.raises(UserError, match="row 4: 'bad'"):
        read(file, "user_id\tname\n 1\ta\n2\tb\nbad\tc\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user_id\tname\n1\ta\tb\n", "row 2 has more fields"),
        (b"user_id\tname\n1\t\xe4\n", "line 2 is not UTF-8"),
        ("user_id\tname\tname\n1\ta\tb\n", "2 columns are named 'name'"),
        ("user_id\tname\n".encode("utf-16"), r"encoded in UTF-16, .* \(iconv -f utf-16 -t utf-8\)"),
        (b"\0", "a binary file"),
        (b"\0\0\1", "a binary file"),
    ],
    ids=["a field too many", "not UTF-8", "a column twice", "UTF-16", "a byte of 0", "binary"],
)
def test_unreadable_table_is_one_line(file: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=rf"log\.csv: .*{words}") as error:
        read(file, text)
    assert "\n" not in str(error.value)


# --- require_files ---

EXPECTED = {"a.csv": "events", "b.csv": "users"}


def test_files_are_in_the_requested_order(tmp_path: Path) -> None:
    for name in ("b.csv", "c.csv", "a.csv"):
        (tmp_path / name).touch()
    files = require_files(tmp_path, EXPECTED, "from there")
    assert list(files.items()) == [("a.csv", tmp_path / "a.csv"), ("b.csv", tmp_path / "b.csv")]


def test_missing_folder_error_names_files_and_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        require_files(tmp_path / "none", EXPECTED, "from there")
    for word in (str(tmp_path / "none"), "a.csv (events)", "b.csv (users)", "from there", "data.raw_dir", "ARNN_DATA"):
        assert word in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").mkdir()
    words = r"no b\.csv; expected: a\.csv \(events\), b\.csv \(users\), plain, compressed .* zip archive; from there"
    with pytest.raises(UserError, match=words):
        require_files(tmp_path, EXPECTED, "from there")


def test_optional_files_may_be_missing(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).touch()
    files = require_files(tmp_path, EXPECTED, "from there", optional=["c.csv", "d.csv"])
    assert list(files) == ["a.csv", "b.csv", "c.csv"]


# --- packed files ---

TABLE = "user\titem\n1\tx\n2\ty\n"


def pack(folder: Path, name: str, kind: str, text: str = TABLE) -> None:
    if kind == "plain":
        (folder / name).write_text(text)
    elif kind == "gz":
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        with zipfile.ZipFile(folder / "data_format1.zip", "a") as archive:
            archive.writestr(f"data_format1/{name}", text)


@pytest.mark.parametrize("kind", ["plain", "gz", "zip"])
def test_files_are_read_plain_gz_or_from_a_zip_archive(tmp_path: Path, kind: str) -> None:
    pack(tmp_path, "a.csv", kind)
    pack(tmp_path, "b.csv", kind, TABLE.replace("1", "3"))
    files = require_files(tmp_path, EXPECTED, "from there")
    for name, user in (("a.csv", 1), ("b.csv", 3)):
        frame = read_delimited(files[name], {"user": pl.Int64, "item": pl.String}, separator="\t", name=name)
        assert frame.rows() == [(user, "x"), (2, "y")]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(TABLE.encode() * 1000)
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.zip").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"a\.csv\.gz: cannot be decompressed"):
        read_delimited(tmp_path / "a.csv.gz", {"user": pl.Int64}, separator="\t")
    with pytest.raises(UserError, match=r"no b\.csv \(damaged, download or create again: b\.zip\); expected"):
        require_files(tmp_path, EXPECTED, "from there")


def damaged(packed: bytes) -> bytes:
    return packed[:30] + b"\xff" * 30 + packed[60:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (damaged(gzip.compress(TABLE.encode() * 1000)), "decompressing data"),
        (damaged(lzma.compress(TABLE.encode() * 1000)), "Corrupt input data"),
        (damaged(bz2.compress(TABLE.encode() * 1000)), "Invalid data stream"),
        (b"\x28\xb5\x2f\xfd\xff\xff\xff", "incomplete frame"),
    ],
    ids=["gz", "xz", "bz2", "zst"],
)
def test_why_a_file_cannot_be_decompressed_is_said(file: Path, content: bytes, reason: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"log\.csv: cannot be decompressed \(.*{reason}.*\); download or create it"):
        read_delimited(file, COLUMNS, separator="\t")


def test_an_encrypted_archive_is_one_line(tmp_path: Path) -> None:
    pack(tmp_path, "log.csv", "zip")
    archive = tmp_path / "data_format1.zip"
    content = bytearray(archive.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"data_format1\.zip: cannot be decompressed \(.* is encrypted, password"):
        read_delimited(archive, COLUMNS, separator="\t")


def test_folders_of_an_archive_are_no_files(tmp_path: Path) -> None:
    archive = tmp_path / "log.zip"
    zipfile.ZipFile(archive, "w").close()
    with pytest.raises(UserError, match=r"log\.zip: contains no file"):
        read_delimited(archive, {"user": pl.Int64}, separator="\t")
    with zipfile.ZipFile(archive, "w") as file:
        file.mkdir("export")
        file.writestr("export/log.csv", TABLE)
    assert read_delimited(archive, {"user": pl.Int64}, separator="\t").rows() == [(1,), (2,)]


def test_an_error_in_an_archive_names_its_file(tmp_path: Path) -> None:
    for name in EXPECTED:
        pack(tmp_path, name, "zip", TABLE.replace("2", "two"))
    with pytest.raises(UserError, match=r"data_format1\.zip/b\.csv: column 'user', row 3: 'two' is not an integer"):
        read_delimited(tmp_path / "data_format1.zip", {"user": pl.Int64}, separator="\t", name="b.csv")


def test_a_plain_file_precedes_its_compressed_form(tmp_path: Path) -> None:
    for kind in ("gz", "plain"):
        pack(tmp_path, "a.csv", kind)
    assert require_files(tmp_path, {"a.csv": "events"}, "from there") == {"a.csv": tmp_path / "a.csv"}


def test_a_name_with_brackets_packed_by_zstd_is_no_pattern(tmp_path: Path) -> None:
    file = tmp_path / "log[1].csv.zst"
    pl.DataFrame({"user_id": [1], "name": ["a"]}).write_csv(file, compression="zstd")
    assert read_delimited(file, COLUMNS, separator=",").rows() == [(1, "a")]


# --- invalid rows ---


@pytest.mark.parametrize(("encoding", "byte"), [("cp1252", b"\x81"), ("utf-8", b"\xe4")])
def test_bytes_that_the_encoding_lacks_are_one_line(file: Path, encoding: str, byte: bytes) -> None:
    file.write_bytes(b"user_id::name\n1::" + byte + b"\n")
    with pytest.raises(UserError, match=rf"log\.csv: is not in data\.encoding={encoding}: "):
        read_delimited(file, COLUMNS, separator="::", encoding=encoding)


@pytest.mark.parametrize("header", [None, ["user_id", "name"]])
def test_rows_are_counted_from_the_first_line(file: Path, header: list[str] | None) -> None:
    lines, first = ("", 1) if header else ("user_id,name\n", 2)
    errors = {",b": "is empty in row {}", "2,b,c": "row {} has more fields", "x,b": "row {}: 'x' is not an integer"}
    for row, error in errors.items():
        file.write_text(f"{lines}1,a\n{row}\n")
        with pytest.raises(UserError, match=error.format(first + 1)):
            read_delimited(file, COLUMNS, separator=",", header=header, required=["user_id"])


def test_a_quote_that_joins_rows_up_to_the_last_character_is_named(file: Path) -> None:
    with pytest.raises(UserError, match="row 2: a quote opens in '1,\"a' and joins 2 rows"):
        read(file, 'user_id,name\n1,"a\n2,b"', ",")


def test_a_backslash_before_a_quote_is_found_between_chunks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'user_id,name\n1,"a\\" b""\n'
    monkeypatch.setattr(delimited, "SCAN_BYTES", text.index("\\") + 1)
    with pytest.raises(UserError, match=r"row 2, .* double a quote within quotes"):
        read(file, text, ",")


def test_a_long_line_that_is_not_utf8_is_shortened(file: Path) -> None:
    with pytest.raises(UserError, match=r"line 2 is not UTF-8") as error:
        read(file, b"user_id\tname\n1\t" + b"\xe4" * 1000)
    assert len(str(error.value)) < 600


def test_blank_lines_at_the_end_may_have_spaces(file: Path) -> None:
    assert read(file, "user_id\tname\n1\ta\n  \n \n") == [(1, "a")]


def test_a_damaged_archive_of_other_files_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "notes.zip").write_bytes(b"PK no archive")
    for name in EXPECTED:
        (tmp_path / name).write_text("x")
    assert list(require_files(tmp_path, EXPECTED, "from there", optional=["c.csv"])) == [*EXPECTED]


def test_a_parquet_file_where_text_is_expected_is_one_line(file: Path) -> None:
    pl.DataFrame({"user_id": [1], "name": ["a"]}).write_parquet(file)
    with pytest.raises(UserError, match=r"log\.csv: is a parquet file; this file must be text"):
        read_delimited(file, COLUMNS, separator=",")


def test_an_archive_without_the_file_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("other.csv", "user_id,name\n1,a\n")
    with pytest.raises(UserError, match=r"all\.zip: contains no log\.csv"):
        read_delimited(tmp_path / "all.zip", COLUMNS, separator=",", name="log.csv")


@pytest.mark.parametrize("n_rows", [1, 50, 20_000])  # the last one: more characters than Python's csv module reads
@pytest.mark.parametrize("separator", [",", None])
def test_a_quote_that_stays_open_in_the_header_is_named(file: Path, n_rows: int, separator: str | None) -> None:
    file.write_text('user_id,"name,time\n' + "1,abc,2\n" * n_rows)
    with pytest.raises(UserError, match=r"row 1: a quote opens in 'user_id,\"name,time' and does not close") as error:
        read_delimited(file, COLUMNS, separator=separator)
    assert len(str(error.value)) < 300


def test_a_quoted_name_of_several_lines_is_a_name(file: Path) -> None:
    assert read(file, 'user_id,name,"a\nb"\n1,x,y\n', ",") == [(1, "x")]


def test_long_quoted_fields_are_read(file: Path) -> None:
    long = "line, one\n" * 20_000
    assert read(file, f'user_id,name\n1,"{long}"\n2,b\n', ",") == [(1, long), (2, "b")]


def test_a_separator_of_two_characters_may_be_within_quotes(file: Path) -> None:
    text = 'user_id::name::x\n1::"Star::Trek"::\n2::a::b\n3::"a ""b"" :: c"::"::"\n'
    assert read(file, text, "::") == [(1, "Star::Trek"), (2, "a"), (3, 'a "b" :: c')]
    assert read(file, 'user_id::name\r\n1::"a\r\nb"\r\n', "::") == [(1, "a\r\nb")]
    assert read(file, 'user_id::name::x::y\n1::5" a::6"::b\n', "::") == [(1, '5" a')]


def test_text_in_another_encoding_packed_by_zstd_is_one_line(file: Path) -> None:
    pl.DataFrame({"user_id": [1], "name": ["é"]}).write_csv(file, compression="zstd", check_extension=False)
    assert read_delimited(file, COLUMNS, separator=",").rows() == [(1, "é")]
    with pa.output_stream(str(file), compression="zstd") as output:
        output.write("user_id,name\n1,é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"log\.csv: zst is read in UTF-8 only; decompress it"):
        read_delimited(file, COLUMNS, separator=",", encoding="latin-1")


def test_a_full_temporary_folder_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file.write_bytes(gzip.compress(TABLE.encode()))
    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(UserError, match=r"cannot be decompressed in .*, which is full; set TMPDIR"):
        read_delimited(file, COLUMNS, separator="\t")


def test_a_row_with_too_many_fields_is_named(file: Path) -> None:
    for separator, text in (("\t", "user_id\tname\n1\tx\n2\ty\tz\n"), (",", 'user_id,name\n1,"x,\ny"\n2,y,z\n')):
        with pytest.raises(UserError, match=r"row 3 has more fields than the 2 columns"):
            read(file, text, separator)


def test_an_empty_extra_field_is_accepted(file: Path) -> None:
    assert read(file, "user_id\tname\n1\tx\t\n2\ty\n") == [(1, "x"), (2, "y")]


def test_null_values_in_integer_columns_are_missing(file: Path) -> None:
    numbers = {"user_id": pl.Int32(), "item_id": pl.Int64()}
    file.write_text("user_id\titem_id\n1\tNULL\n\t4\n")
    assert read_delimited(file, numbers, separator="\t").rows() == [(1, None), (None, 4)]
    assert read_delimited(file, numbers, separator="\t", null_values=["NULL"]).rows() == [(1, None), (None, 4)]
    with pytest.raises(UserError, match=r"column 'item_id', row 2: 'NULL' is not an integer"):
        read_delimited(file, numbers, separator="\t", null_values=["-"])
    file.write_text("user_id\titem_id\n1\t0\n")
    assert read_delimited(file, numbers, separator="\t", null_values=["0"]).rows() == [(1, None)]


def test_missing_required_value_is_named_with_its_row(file: Path) -> None:
    file.write_text("user_id\tname\n1\tx\nNULL\ty\n\tz\n")
    with pytest.raises(UserError, match=r"column 'user_id' is empty in 2 rows, the first is row 3"):
        read_delimited(file, COLUMNS, separator="\t", required=["user_id"])


def test_a_repeated_name_of_a_read_column_is_rejected(file: Path) -> None:
    with pytest.raises(UserError, match=r"2 columns are named 'user_id' \(a\.user_id, b\.user_id\)"):
        read(file, "a.user_id\tb.user_id\tname\n1\t2\tx\n")


def test_names_of_unread_columns_may_repeat(file: Path) -> None:
    assert read(file, "other\tuser_id\tother\tname\n9\t1\t8\tx\n") == [(1, "x")]


def test_the_separator_of_rows_without_a_header_is_found(file: Path) -> None:
    file.write_text("1,a;b;c;d\n")
    assert read_delimited(file, COLUMNS, separator=None, header=["user_id", "name"]).rows() == [(1, "a;b;c;d")]


def test_a_header_may_begin_with_a_hash(file: Path) -> None:
    assert read(file, "#,user_id,name\n0,1,a\n", ",") == [(1, "a")]


def test_a_similar_name_is_suggested_beside_a_name_of_digits(file: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'user_id' \(did you mean \"usr_id\"\?\); its columns: usr_id, 1"):
        read(file, "usr_id,1\n2,b\n", ",")


def test_quoted_names_are_names(file: Path) -> None:
    assert read(file, '"user_id";"name"\n1;"x;y"\n', ";") == [(1, "x;y")]


def test_value_not_in_the_list_is_named_with_its_row(file: Path) -> None:
    frame = pl.DataFrame({"kind": [1, None, 2, 7]})
    require_one_of(frame, "kind", (1, 2, 7), file)
    with pytest.raises(UserError, match=r"column 'kind', row 5: 7 is not one of 1, 2; fix or remove the row"):
        require_one_of(frame, "kind", (1, 2), file)
