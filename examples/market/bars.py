"""The market data: reads the daily bars of the index and the volatility index from their CSV files.

Every value is checked on the way in, so that the computations need not doubt it: a wrong field is reported
with file and line, not as a strange number three modules later.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

DATA = Path(__file__).parent / "data"
INDEX_COLUMNS = ("Date", "Open", "High", "Low", "Close", "Adj Close", "Volume")
VIX_COLUMNS = ("Date", "vix")
NO_VALUE = "."
"""What the volatility file writes on a day without trading, as FRED does."""


class BadBars(ValueError):
    """The data cannot be used; the message names the file, the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One trading day of the index; prices in index points, volume in shares."""

    date: date
    open: float
    high: float
    low: float
    close: float
    volume: int


def load_bars(path: Path = DATA / "sp500.csv.gz") -> tuple[Bar, ...]:
    """Read the index bars, oldest first.

    Raises:
        BadBars: the file is missing, not gzip, has other columns, or holds a value that cannot be a price.
    """
    bars: list[Bar] = []
    for where, row in _rows(path, INDEX_COLUMNS):
        day = _date(row[0], where)
        opened, high, low, close = (_positive(text, where) for text in row[1:5])
        if not low <= min(opened, close) <= max(opened, close) <= high:
            raise BadBars(f"{where}: open and close must lie between low and high")
        if bars and day <= bars[-1].date:
            raise BadBars(f"{where}: {day} does not come after {bars[-1].date}")
        bars.append(Bar(day, opened, high, low, close, int(_positive(row[6], where))))
    if not bars:
        raise BadBars(f"{path.name}: no bars in it")
    return tuple(bars)


def load_vix(path: Path = DATA / "vix.csv.gz") -> Mapping[date, float]:
    """Read the volatility index by day, in percent a year; days without a value are left out.

    Raises:
        BadBars: as `load_bars`.
    """
    values: dict[date, float] = {}
    for where, row in _rows(path, VIX_COLUMNS):
        day = _date(row[0], where)
        if day in values:
            raise BadBars(f"{where}: {day} is there twice")
        if row[1] == NO_VALUE:
            continue
        values[day] = _positive(row[1], where)
    return MappingProxyType(values)


def closes(bars: Sequence[Bar]) -> FloatArray:
    """The closing prices as one array."""
    return np.array([bar.close for bar in bars], dtype=np.float64)


def simple_returns(prices: FloatArray) -> FloatArray:
    """The return of each day against the day before: one element fewer than prices."""
    return np.asarray(prices[1:] / prices[:-1] - 1.0, dtype=np.float64)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield each line of the file after its header, with the words that name it in an error."""
    try:
        with gzip.open(path, "rt", encoding="ascii", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if tuple(header) != columns:
                raise BadBars(f"{path.name}: its columns are {header}, expected {list(columns)}")
            for row in reader:
                where = f"{path.name}, line {reader.line_num}"
                if len(row) != len(columns):
                    raise BadBars(f"{where}: {len(row)} fields, expected {len(columns)}")
                yield where, row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise BadBars(f"{path}: cannot be read: {error}") from error


def _date(text: str, where: str) -> date:
    try:
        return datetime.strptime(text, "%m/%d/%Y").date()
    except ValueError:
        raise BadBars(f"{where}: {text!r} is not a date as month/day/year") from None


def _positive(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BadBars(f"{where}: {text!r} is not a positive number")
    return value
