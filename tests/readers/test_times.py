"""Time columns of every kind: units, precision, zones, and what is refused as ambiguous or implausible."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnn_lightning.errors import UserError
from arnn_lightning.readers.times import UNITS, TimeParser

NOON = int(datetime(2015, 11, 3, 12, 0, tzinfo=UTC).timestamp())
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse(values: Any, dtype: Any = None, **settings: Any) -> list[tuple[int, int]]:
    defaults: dict[str, Any] = {"time_format": None, "time_unit": "auto", "timezone": "UTC", "years": None}
    parser = TimeParser(**(defaults | settings))
    column = pl.Series("time", values, dtype=dtype)
    seconds, nanosecond = parser.parse(column, lambda row: f"log.csv: column 'time', row {row + 2}")
    return list(zip(seconds, nanosecond if nanosecond is not None else [0] * len(seconds), strict=True))


# --- precision ---


@given(
    st.lists(st.integers(631_152_000 * 10**9, NOON * 10**9)),
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.sampled_from(["integer", "text", "decimal", "iso", "datetime", "format"]),
)
def test_every_form_keeps_all_its_digits(times: list[int], unit: str, form: str) -> None:
    per_second = UNITS[unit]
    step = 10**9 // per_second
    times = [time // step * step for time in (NOON * 10**9, *times)]  # NOON's digits are no date
    expected = [divmod(time, 10**9) for time in times]
    settings: dict[str, Any] = {"years": [1990, 2030], "time_unit": unit if form in ("integer", "text") else "auto"}
    digits = len(str(per_second)) - 1
    dtype = None
    values: list[Any]
    if form in ("integer", "text"):
        values = [time // step if form == "integer" else f" {time // step}" for time in times]
    elif form == "decimal":
        values = [f"{second}.{nanosecond:09}"[: len(str(second)) + 1 + digits] for second, nanosecond in expected]
    elif form == "datetime":
        if unit == "s":  # polars has no datetimes of seconds: those of milliseconds that are whole seconds
            unit, step = "ms", 10**6
        values, dtype = [time // step for time in times], pl.Int64
        column = pl.Series(values, dtype=dtype).cast(pl.Datetime(unit))  # type: ignore[arg-type]
        assert parse(column, **settings) == expected
        return
    else:
        fraction = [f".{nanosecond:09}"[: 1 + digits] if digits else "" for _, nanosecond in expected]
        form_of = "%Y-%m-%dT%H:%M:%S"
        values = [
            (EPOCH + timedelta(seconds=second)).strftime(form_of) + part
            for (second, _), part in zip(expected, fraction, strict=True)
        ]
        if form == "format":
            settings["time_format"] = form_of + ("%.f" if digits else "")
    assert parse(values, dtype, **settings) == expected


def test_floats_keep_milliseconds() -> None:
    values = [NOON + 0.25, NOON + 0.125, float(NOON)]
    assert parse(values) == [(NOON, 250_000_000), (NOON, 125_000_000), (NOON, 0)]


def test_fractions_of_milliseconds_are_kept() -> None:
    assert parse([f"{NOON}123.456", f"{NOON}000"]) == [(NOON, 123_456_000), (NOON, 0)]


def test_times_before_1970_are_rounded_down() -> None:
    assert parse([-0.5], years=[1969, 1970]) == [(-1, 500_000_000)]
    assert parse([-126_230_400_001], years=[1965, 1970]) == [(-126_230_401, 999_000_000)]


def test_missing_times_are_null() -> None:
    assert [second for second, _ in parse([str(NOON), None])] == [NOON, None]
    assert parse([f"{NOON}.5", None]) == [(NOON, 500_000_000), (None, 0)]
    assert parse([None], pl.Int64) == parse([None], pl.String) == [(None, 0)]
    assert [second for second, _ in parse(["2015-11-03 12:00", None])] == [NOON, None]


# --- offsets and zones ---


@pytest.mark.parametrize(
    "text",
    [
        "2015-11-03 13:00:00+01",
        "2015-11-03T13:00:00.000+01:00",
        "2015-11-03 12:00:00 UTC",
        "2015-11-03 12:00:00,0 GMT",
        "2015-11-03 06:30:00-0530",
    ],
)
def test_offsets_have_several_forms(text: str) -> None:
    assert parse([text]) == parse([text], timezone="Asia/Tokyo") == [(NOON, 0)]


@given(st.integers(946_684_800, NOON), st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "Asia/Kolkata"]))
def test_local_times_are_those_of_their_zone(second: int, zone: str) -> None:
    local = datetime.fromtimestamp(second, ZoneInfo(zone)).replace(fold=0)
    expected = [(int(local.timestamp()), 0)]
    text = local.strftime("%Y-%m-%d %H:%M:%S")
    assert parse([text], timezone=zone) == expected
    assert parse([text], timezone=zone, time_format="%Y-%m-%d %H:%M:%S") == expected
    assert parse([local.replace(tzinfo=None)], timezone=zone) == expected


def test_a_time_that_a_clock_skips_is_an_hour_later() -> None:
    berlin, sao_paulo = "Europe/Berlin", "America/Sao_Paulo"
    assert parse(["2015-03-29 02:30"], timezone=berlin) == parse(["2015-03-29 03:30"], timezone=berlin)
    assert parse([date(2015, 10, 18)], timezone=sao_paulo) == parse(["2015-10-18 03:00Z"])  # no midnight there


def test_of_two_times_that_a_clock_repeats_the_earlier_is_read() -> None:
    assert parse(["2015-10-25 02:30"], timezone="Europe/Berlin") == parse(["2015-10-25 00:30Z"])


def test_an_offset_in_the_time_wins_over_the_zone() -> None:
    times = ["2015-11-03 13:00:00", "2015-11-03 12:00:00Z", "2015-11-03T17:00:00+05:00"]
    assert parse(times, timezone="Europe/Berlin") == [(NOON, 0)] * 3


def test_names_of_zones_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"row 2: '2015-11-03 12:00:00 CET' .*set data\.timezone, and data\.time_format"
    ):
        parse(["2015-11-03 12:00:00 CET"])
    times, with_name = ["2015-11-03 12:00:00 MEZ", "2015-07-03 12:00:00 MESZ"], "%Y-%m-%d %H:%M:%S %Z"
    winter, summer = (second for second, _ in parse(times, timezone="Europe/Berlin", time_format=with_name))
    assert (winter, summer) == (NOON - 3_600, int(datetime(2015, 7, 3, 10, tzinfo=UTC).timestamp()))
    for name in ("UTC", "GMT", "Z"):
        assert parse([f"2015-11-03 12:00:00 {name}"], time_format=with_name) == [(NOON, 0)]
    with pytest.raises(UserError, match=r"row 2: '2015-11-03 12:00:00 MEZ' is not in UTC.*; set data\.timezone"):
        parse(times, time_format=with_name)


def test_a_name_after_the_offset_and_further_digits_are_ignored() -> None:
    assert parse(["2015-11-03T13:00:00.1234567891+01:00[Europe/Berlin]"]) == [(NOON, 123_456_789)]
    assert parse([f"{NOON},5"]) == [(NOON, 500_000_000)]


def test_unix_times_that_are_not_all_dates_are_unix_times() -> None:
    assert parse([1511031200, 1511031299, 1511041759])[1] == (1511031299, 0)


def test_a_column_of_date_times_with_a_zone_has_that_zone() -> None:
    column = pl.Series([datetime.fromtimestamp(NOON, UTC)])
    assert parse(column, timezone="Europe/Berlin") == [(NOON, 0)]


def test_a_leap_second_is_the_first_of_the_next_minute() -> None:
    assert parse(["2015-06-30 23:59:60Z"]) == parse(["2015-07-01 00:00:00Z"])


def test_clocks_may_be_hours_ahead_of_this_one() -> None:
    soon = int(datetime.now(UTC).timestamp()) + 3_600
    assert parse([soon]) == [(soon, 0)]


# --- ambiguous and implausible ---


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        (["20151103"], None, r"'20151103' is ambiguous: could be a date \(Ymd\).*data\.time_format, such as '%Y%m%d'"),
        ([201511031705], None, r"201511031705 is ambiguous: could be a date \(YmdHM\).*'%Y%m%d%H%M'"),
        (["20151103170509"], None, r"is ambiguous: could be a date \(YmdHMS\).*'%Y%m%d%H%M%S'"),
        ([2015110317], None, r"is ambiguous: could be a date \(YmdH\)"),
        (["20151103170509123"], None, r"is ambiguous: could be a date \(YmdHMSf\)"),
        (["1511031200", "1511041759"], None, r"'1511031200' is ambiguous: could be a date \(ymdHM\).*'%y%m%d%H%M'"),
        (
            [635_821_488 * 10**9],
            None,
            r"could be \.NET ticks of 2015-11-03, not unix nanoseconds; .*data\.time_unit=ns",
        ),
        (["20151103T120000Z"], None, r"set data\.time_format, such as '%Y%m%dT%H%M%SZ'"),
        (["20151103T120000"], None, r"set data\.time_format, such as '%Y%m%dT%H%M%S'"),
        (["2015-11-03 12:00 UTC", "2015-11-03 25:00"], None, r"(?<=row 3: )'2015-11-03 25:00' is not an ISO 8601 time"),
        ([42311.71, 45292.0], None, r"42311\.71 is ambiguous: could be an Excel serial date.*time_unit"),
        (["42311.71"], None, r"could be an Excel serial date"),
        ([NOON], pl.Float32, r"a 32-bit float, which cannot represent the seconds"),
        (["1.44724E+12", "1.44725E+12"], None, r"'1\.44724E\+12' is in scientific notation"),
        ([20151103, 20151399], None, r"20151103 is 1970-08-22, before 1990-01-01"),
        ([20150099, 20151103], None, r"20150099 is 1970-08-22, before 1990-01-01"),
        ([526309, 1031018], None, r"526309 is 1970-01-07, before 1990-01-01; .*data\.time_unit.*data\.years"),
        (["2015-11-03 17:60"], None, r"'2015-11-03 17:60' is not an ISO 8601 time"),
        (["2015-11-03", "1970-01-01"], None, r"'1970-01-01' is 1970-01-01, before 1990"),
        (["2015-11-03", "2999-12-31"], None, r"'2999-12-31' is 2999-12-31, after 20\d\d-"),
        ([datetime(1990, 5, 1), datetime(2023, 5, 1)], None, r"1990-05-01, more than 30 years before"),
        ([True], None, r"True is a value of type Boolean"),
        ([float("inf")], None, r"inf is not a unix time"),
        ([float(NOON), -1e30], None, r"-1e\+30 is not a unix time"),
        ([NOON * 1000, 0, NOON * 1000], None, r"(?<=row 3: )0 is not in the unit of the other rows"),
        ([2**63], pl.UInt64, r"is not a unix time"),
    ],
)
def test_a_doubtful_time_names_value_and_setting(values: list[Any], dtype: Any, words: str) -> None:
    with pytest.raises(UserError, match=r"^log\.csv: column 'time', row \d: .*" + words) as error:
        parse(values, dtype)
    assert "\n" not in str(error.value)


def test_the_named_setting_resolves_the_doubt() -> None:
    assert parse(["20151103"], time_format="%Y%m%d") == [(NOON - 43_200, 0)]
    assert parse([201511031200], time_format="%Y%m%d%H%M") == [(NOON, 0)]
    assert parse(["1511031200"], time_format="%y%m%d%H%M") == [(NOON, 0)]
    assert parse(["1511031200"], time_unit="s") == [(1511031200, 0)]
    assert parse([526309], time_unit="ms", years=[1970, 1970]) == [(526, 309_000_000)]
    assert parse(["1970-01-01"], years=[1970, 2030]) == [(0, 0)]
    assert parse([datetime(1990, 5, 1), datetime(2023, 5, 1)], years=[1990, 2023])[0] == (641_520_000, 0)


@given(st.lists(st.integers(NOON - 5 * 10**8, NOON), min_size=1), st.sampled_from(list(UNITS)))
def test_the_unit_of_unix_times_is_detected(seconds: list[int], unit: str) -> None:
    seconds = [*seconds, NOON - 10**8]  # not the digits of a date
    times = [second * UNITS[unit] for second in seconds]
    assert parse(times) == parse([str(time) for time in times]) == [(second, 0) for second in seconds]


@pytest.mark.parametrize(
    ("texts", "time_format"),
    [
        (["03.11.2015 17:05:06.5", "03.11.2015 17:05:06.45"], "%d.%m.%Y %H:%M:%S.%f"),
        (["20151103170506500", "20151103170506450"], "%Y%m%d%H%M%S%f"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_fractions_of_python_formats_are_decimal(texts: list[str], time_format: str) -> None:
    _, nanosecond = TimeParser(time_format, "auto", "UTC", None).parse(pl.Series(texts), str)
    assert nanosecond is not None
    assert nanosecond.to_list() == [500_000_000, 450_000_000]


def test_am_and_pm_are_not_names_of_zones() -> None:
    with pytest.raises(UserError, match=r"not an ISO 8601 time .* or a unix time; fix it or set data\.time_format"):
        TimeParser(None, "auto", "UTC", None).parse(pl.Series(["3/4/2024 5:00 PM"]), str)


@pytest.mark.parametrize(
    ("number", "year"), [(1_447_243_200_123, "47831"), (-(10**12), "-29719"), (2**63 - 1, "292277026596")]
)
def test_a_time_in_too_large_a_unit_is_named(number: int, year: str) -> None:
    with pytest.raises(UserError, match=rf"row 2: {number} is the year {year}, (before|after) .*data\.time_unit"):
        parse([number], time_unit="s")


@pytest.mark.parametrize(
    ("text", "time_format"),
    [
        ("2015110312", "%Y%m%d%H"),
        ("03.11.2015 12h", "%d.%m.%Y %Hh"),
        ("2015-11-03 14 +0200", "%Y-%m-%d %H %z"),
        ("11/3/2015 12 PM", "%m/%d/%Y %I %p"),
        ("2015-11-03 12", "%Y-%m-%d %k"),
        ("11/3/2015 12 PM", "%m/%d/%Y %l %p"),
    ],
)
def test_a_format_may_end_with_the_hour(text: str, time_format: str) -> None:
    assert parse([text], time_format=time_format) == [(NOON, 0)]


def test_a_year_of_two_digits_is_not_one_of_four() -> None:
    with pytest.raises(UserError, match=r"'15-11-03' is not in the format %Y-%m-%d"):
        parse(["15-11-03"], time_format="%Y-%m-%d")


def test_a_format_that_polars_refuses_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^data\.time_format=%Y-%m-%d %M: Invalid format string.*$"):
        parse(["2015-11-03 12"], time_format="%Y-%m-%d %M")


def test_spaces_around_a_formatted_time_are_ignored() -> None:
    assert parse([" 2015-11-03 12:00 "], time_format="%Y-%m-%d %H:%M") == [(NOON, 0)]


def test_years_are_those_of_the_time_zone() -> None:
    in_2023: dict[str, Any] = {"timezone": "Europe/Berlin", "years": [2023, 2023]}
    first, last = ["2023-01-01 00:00:00", "2023-12-31 23:59:59"]
    assert len(parse([first, last], **in_2023)) == 2
    with pytest.raises(UserError, match=r"is 2022-12-31, before 2023-01-01"):
        parse(["2022-12-31 23:50:00"], **in_2023)
    with pytest.raises(UserError, match=r"is 2024-01-01, after 2023-12-31"):
        parse(["2023-12-31 23:10:00Z"], **in_2023)
