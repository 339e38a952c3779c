"""Time columns of any kind -> unix seconds, and the nanoseconds within them, by which events are ordered."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NoReturn, cast
from zoneinfo import ZoneInfo

import polars as pl

from arnn_lightning.errors import UserError

NANOSECOND = "nanosecond"
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
MAX_SECONDS = 10**11  # the year 5138: greater numbers have a finer unit
FIRST_YEAR, MAX_SPAN_YEARS = 1990, 30
ANY_YEARS = (1700, 2260)  # that a date-time in nanoseconds can have
EPOCH, SECONDS_PER_YEAR = datetime(1970, 1, 1, tzinfo=UTC), 31_556_952  # on average
# A date and, optionally, the time of day with a fraction, and the offset from UTC, which the name of a zone may follow.
ISO8601 = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9})\d*)?)?)?"
    r"\s*(?:(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)(?:\[[^\]]*\])?)?$"
)
NUMBER = r"^[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?$"
DECIMAL = r"^(\d+)(?:[.,](\d{0,9})\d*)?$"
# Digits that are a date: their formats by their number.
COMPACT_DATES = {
    8: ("%Y%m%d",),
    10: ("%Y%m%d%H", "%y%m%d%H%M"),
    12: ("%Y%m%d%H%M",),
    14: ("%Y%m%d%H%M%S",),
    17: ("%Y%m%d%H%M%S%f",),
}
TICKS = (621_355_968 * 10**9, 10**7)  # .NET counts from the year 1: ticks of 1970, and of a second
EXCEL_DAYS = (20_000, 80_000)  # day numbers of spreadsheets for the years 1954 to 2119


@dataclass(frozen=True)
class TimeParser:
    """Parses time columns.

    Attributes:
        time_format: strftime format; None: unix times or ISO 8601.
        time_unit: s, ms, us or ns of unix times; auto: by their magnitude.
        timezone: IANA name of the zone of times without an offset.
        years: first and last plausible year; None: from 1990 until now, and at most 30 years.
    """

    time_format: str | None
    time_unit: str
    timezone: str
    years: Sequence[int] | None

    def parse(self, column: pl.Series, row_location: Callable[[int], str]) -> tuple[pl.Series, pl.Series | None]:
        """Seconds and nanoseconds of a column.

        Args:
            column: numbers, strings, dates or date-times; null means missing.
            row_location: the file, column and row of an index, for errors.

        Returns:
            Int64 unix seconds, rounded down, null where the time is missing; Int64 nanoseconds within the second, None
            where all are 0.

        Raises:
            UserError: a time that is invalid, ambiguous or implausible; names its row, its value and a setting.
        """

        def fail(is_invalid: pl.Series, problem: str, advice: str) -> NoReturn:
            row = is_invalid.arg_true()[0]
            raise UserError(f"{row_location(row)}: {column[row]!r} is {problem}; {advice}")

        if column.dtype.is_nested():
            raise UserError(f"{row_location(0)}: contains {column.dtype}; times must be numbers, strings or dates")
        seconds, nanosecond = self._parse(column, fail)
        self._require_plausible(seconds, fail)
        is_whole = nanosecond is None or not (nanosecond != 0).any()
        return seconds, None if is_whole else nanosecond

    def _parse(self, column: pl.Series, fail: Callable[..., NoReturn]) -> tuple[pl.Series, pl.Series | None]:
        dtype = column.dtype
        if dtype == pl.Date or isinstance(dtype, pl.Datetime):
            return self._from_datetimes(column)
        known = column.is_not_null()
        problem = "a 32-bit float, which cannot represent the seconds of unix times"
        fail_if(known & (dtype == pl.Float32), fail, problem, "store them as integers or 64-bit floats")
        advice = "times must be numbers, strings, dates or date-times"
        fail_if(known & (dtype != pl.String and not dtype.is_numeric()), fail, f"a value of type {dtype}", advice)
        if self.time_format is not None:
            return self._from_format(column.cast(pl.String).str.strip_chars(), fail)
        if dtype.is_integer() and dtype != pl.UInt64:
            return self._from_unix(column.cast(pl.Int64), None, fail)
        if dtype.is_float():
            fail_if(known & ~(column.abs() < 2**63), fail, "not a unix time", "fix or remove the row")
            whole = column.floor().cast(pl.Int64)
            return self._from_unix(whole, ((column - whole) * 1e9).round().cast(pl.Int64), fail)
        text = column.cast(pl.String).str.strip_chars()
        number = text.cast(pl.Int64, strict=False)
        if number.null_count() == text.null_count():
            return self._from_unix(number, None, fail)
        if 2 * (text.str.contains(NUMBER).sum() or 0) < known.sum():
            return self._from_iso8601(text, fail)
        whole, fraction = text.str.extract_groups(DECIMAL).struct.unnest().get_columns()
        number = number.fill_null(whole.cast(pl.Int64, strict=False))
        is_scientific = number.is_null() & text.str.contains("[eE]") & text.str.contains(NUMBER)
        advice = "export the column again as integers"
        fail_if(is_scientific.fill_null(False), fail, "in scientific notation, which drops digits", advice)
        advice = "fix or remove the row, or set data.time_format"
        fail_if(number.is_null() & known, fail, "not a unix time", advice)
        return self._from_unix(number, _nanoseconds(fraction), fail)

    def _from_unix(
        self, number: pl.Series, fraction: pl.Series | None, fail: Callable[..., NoReturn]
    ) -> tuple[pl.Series, pl.Series | None]:
        """From unix times in one unit; ``fraction``: billionths of the unit."""
        low, high = number.min(), number.max()
        if low is None or high is None:
            return number, None
        unit = self.time_unit
        if unit == "auto":
            self._require_no_dates(number, fail)
            unit, other = _unit_of(cast(int, high)), _unit_of(cast(int, low))
            if unit != other:
                is_finer = number.abs() >= MAX_SECONDS * UNITS[min(unit, other, key=UNITS.__getitem__)]
                minority = is_finer if is_finer.sum() <= len(number) / 2 else ~is_finer
                problem = f"not in the unit of the other rows (some are unix times in {other}, some in {unit})"
                fail(minority, problem, "use one unit, or set data.time_unit")
        per_second = UNITS[unit]
        if per_second == 1:
            return number, fraction
        seconds = number // per_second
        nanosecond = (number - seconds * per_second) * (10**9 // per_second)
        return seconds, nanosecond if fraction is None else nanosecond + fraction // per_second

    def _require_no_dates(self, number: pl.Series, fail: Callable[..., NoReturn]) -> None:
        """Refuses numbers whose digits are dates, and day numbers of spreadsheets: as unix times they are far off."""
        low, high = cast(int, number.min()), cast(int, number.max())
        for time_format in COMPACT_DATES.get(len(str(low)), ()):
            if not all(_is_date(digits, time_format) for digits in (str(low), str(high))):
                continue
            # Two digits of a year are also the first two of plausible unix times: then every time must be a date.
            digits = number.drop_nulls().unique().cast(pl.String) if "%y" in time_format else None
            if digits is None or not digits.str.to_datetime(time_format, strict=False).has_nulls():
                problem = f"ambiguous: could be a date ({time_format.replace('%', '')}), not a unix time"
                fail(number.is_not_null(), problem, f"set data.time_format, such as '{time_format}', or data.time_unit")
        start, per_second = TICKS
        if _year_of_ticks(low) >= FIRST_YEAR and _year_of_ticks(high) <= datetime.now(UTC).year:
            problem = (
                f"ambiguous: could be .NET ticks of {self._day((low - start) // per_second)}, not unix nanoseconds"
            )
            advice = f"export unix times, (ticks - {start}) / {per_second} seconds, or set data.time_unit=ns"
            fail(number.is_not_null(), problem, advice)
        if EXCEL_DAYS[0] <= low <= high <= EXCEL_DAYS[1]:
            problem = "ambiguous: could be an Excel serial date, not a unix time"
            fail(number.is_not_null(), problem, "format the column as date and time there, or set data.time_unit=s")

    def _from_format(self, text: pl.Series, fail: Callable[..., NoReturn]) -> tuple[pl.Series, pl.Series | None]:
        assert self.time_format is not None
        # Python's %f are the digits after the point; polars' are a number of nanoseconds.
        time_format, original = self.time_format.replace(".%f", "%.f").replace("%f", "%3f"), text
        if re.search("%[-_0]?[HIkl]", time_format) and not re.search("%[-_0]?[MRTXcr]", time_format):
            text, time_format = text + " 00", f"{time_format} %M"  # polars reads no hours without minutes
        try:
            time = text.str.to_datetime(time_format, strict=False, time_unit="us")
            finest = text.str.to_datetime(time_format, strict=False, time_unit="ns") if "f" in time_format else time
        except pl.exceptions.PolarsError as error:
            raise UserError(f"data.time_format={self.time_format}: {str(error).splitlines()[0]}") from error
        if "%Z" in time_format and self.timezone == "UTC":  # polars ignores the name
            is_zone = ~original.str.contains(r"(UTC|GMT|[\d\s]Z)$")
            advice = "set data.timezone, such as Europe/Berlin, in which all times are interpreted"
            fail_if(is_zone.fill_null(False), fail, "not in UTC, and time zone names are ambiguous", advice)
        is_invalid = text.is_not_null() & (time.dt.year() < 1000).fill_null(True)  # %Y accepts two digits too
        fail_if(is_invalid, fail, f"not in the format {self.time_format}", "fix the row or data.time_format")
        return self._from_datetimes(time)[0], finest.dt.nanosecond().cast(pl.Int64)

    def _from_iso8601(self, text: pl.Series, fail: Callable[..., NoReturn]) -> tuple[pl.Series, pl.Series | None]:
        # A regular expression, since polars' inference accepts ambiguous dates such as 03/11/2015.
        fields = ("date", "hour", "minute", "second", "fraction", "offset")
        parts = text.str.extract_groups(ISO8601).struct.rename_fields(fields).struct.unnest()
        hour, minute, second = (pl.col(name).cast(pl.Int64).fill_null(0) for name in fields[1:4])
        digits = pl.col("offset").str.replace("Z|UTC|GMT", "+0000").str.replace(":", "").str.pad_end(5, "0")
        minutes = 60 * digits.str.slice(1, 2).cast(pl.Int64) + digits.str.slice(3, 2).cast(pl.Int64)
        offset = pl.when(digits.str.starts_with("-")).then(-minutes).otherwise(minutes)
        midnight = pl.col("date").str.to_date("%Y-%m-%d", strict=False).dt.epoch("s")
        local = pl.when((hour < 24) & (minute < 60) & (second <= 60)).then(
            midnight + 3_600 * hour + 60 * minute + second
        )
        times = parts.select("fraction", local=local, offset=60 * offset)
        seconds = times["local"] - times["offset"].fill_null(0)
        if self.timezone != "UTC" and times["offset"].has_nulls():
            seconds = times.select(
                pl.when(pl.col("offset").is_null()).then(self._localize(times["local"])).otherwise(seconds)
            ).to_series()
        is_invalid = seconds.is_null() & text.is_not_null()
        if is_invalid.any():
            problem, advice = "not an ISO 8601 time (2015-11-03 17:05) or a unix time", "fix it or set data.time_format"
            basic = (text.str.contains(r"^\d{8}T\d{6}Z?$") & is_invalid).fill_null(False)
            if basic.any():
                end = "Z" if text[basic.arg_true()[0]].endswith("Z") else ""
                fail(basic, problem, f"set data.time_format, such as '%Y%m%dT%H%M%S{end}'")
            zone_name = (
                text.str.contains(r"\d\s*[A-Za-z]+[A-Za-z/_\[\]]*$") & ~text.str.contains(r"(?i)[ap]m$") & is_invalid
            ).fill_null(False)
            if zone_name.any():
                advice = "set data.timezone, and data.time_format with %Z for the name, such as '%Y-%m-%d %H:%M:%S %Z'"
                fail(zone_name, f"{problem}: time zone names are ambiguous", advice)
            fail(is_invalid, problem, advice)
        has_fraction = times["fraction"].null_count() < len(times)
        return seconds, _nanoseconds(times["fraction"]) if has_fraction else None

    def _from_datetimes(self, column: pl.Series) -> tuple[pl.Series, pl.Series | None]:
        seconds = column.dt.epoch("s")
        if self.timezone != "UTC" and getattr(column.dtype, "time_zone", None) is None:
            seconds = self._localize(seconds)
        return seconds, None if column.dtype == pl.Date else column.dt.nanosecond().cast(pl.Int64)

    def _localize(self, seconds: pl.Series) -> pl.Series:
        """Unix seconds of local times: the earlier of two, and the time an hour later of one that a clock skips."""

        def in_zone(local: pl.Series) -> pl.Series:
            time = pl.from_epoch(local)
            return time.dt.replace_time_zone(self.timezone, ambiguous="earliest", non_existent="null").dt.epoch("s")

        return in_zone(seconds).fill_null(in_zone(seconds + 3_600))

    def _require_plausible(self, seconds: pl.Series, fail: Callable[..., NoReturn]) -> None:
        low, high = cast(int | None, seconds.min()), cast(int | None, seconds.max())
        if low is None or high is None:
            return
        if self.years is None:
            first, last = self._start_of(FIRST_YEAR), int(datetime.now(UTC).timestamp()) + 86_400
        else:
            first, last = self._start_of(self.years[0]), self._start_of(self.years[1] + 1) - 1
        advice = "fix it, or set data.time_unit, data.time_format or data.years, as in data.years=[1990,2030]"
        for is_outside, relation, limit in ((seconds < first, "before", first), (seconds > last, "after", last)):
            if is_outside.any():
                day = self._day(seconds[is_outside.arg_true()[0]])
                fail(is_outside, f"{day}, {relation} {self._day(limit)}", advice)
        if self.years is None and high - low > MAX_SPAN_YEARS * 366 * 86_400:
            problem = f"{self._day(low)}, more than {MAX_SPAN_YEARS} years before the last time ({self._day(high)})"
            fail(seconds == low, problem, "fix it, or set data.years to the first and the last year")

    @property
    def _zone(self) -> tzinfo:
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

    def _start_of(self, year: int) -> int:
        return int(datetime(year, 1, 1, tzinfo=self._zone).timestamp())

    def _day(self, seconds: int) -> str:
        """The day in the time zone, or the year where Python has no date for it."""
        try:
            return (EPOCH + timedelta(seconds=seconds)).astimezone(self._zone).date().isoformat()
        except OverflowError:
            return f"the year {1970 + seconds // SECONDS_PER_YEAR}"


def fail_if(is_invalid: pl.Series, fail: Callable[..., NoReturn], problem: str, advice: str) -> None:
    if is_invalid.any():
        fail(is_invalid, problem, advice)


def _nanoseconds(digits: pl.Series) -> pl.Series:
    """Nanoseconds of the digits after a decimal point; 0 for null."""
    return digits.str.pad_end(9, "0").cast(pl.Int64).fill_null(0)


def _unit_of(number: int) -> str:
    return next((unit for unit, per_second in UNITS.items() if abs(number) < MAX_SECONDS * per_second), "ns")


def _is_date(digits: str, time_format: str) -> bool:
    try:
        return FIRST_YEAR <= datetime.strptime(digits, time_format).year <= datetime.now(UTC).year
    except ValueError:
        return False


def _year_of_ticks(number: int) -> int:
    """The year of .NET ticks; 0 for numbers of another magnitude."""
    start, per_second = TICKS
    seconds = (number - start) // per_second
    return datetime.fromtimestamp(seconds, UTC).year if 0 <= seconds < MAX_SECONDS else 0
