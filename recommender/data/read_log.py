"""From the files of an interaction log to a `Log`: which column is what, and what must be a number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.config import Columns, DataConfig
from recommender.data.log import Log, Numbers, category, encode
from recommender.data.readers import Scan, as_id, reading, require_column, scan
from recommender.errors import InputError

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class Wanted:
    """The numeric columns that preparation will use, beside user and item; None: not wanted."""

    time: str | None
    position: str | None
    rating: str | None

    def named(self) -> dict[str, str]:
        """{role: column} of the wanted columns."""
        roles = {"time": self.time, "position": self.position, "rating": self.rating}
        return {role: column for role, column in roles.items() if column is not None}


def read_log(files: Sequence[Path], config: DataConfig, open_file: Scan = scan) -> Log:
    """Read the files of one log, in the given order, into codes and numbers.

    Raises InputError for a file that cannot be read, a missing column, a number that is none, an empty log.
    """
    plans = [_wanted(config, file, open_file) for file in files]
    for file, plan in zip(files, plans, strict=True):
        if plan != plans[0]:
            raise InputError(
                f"the files of the log differ in their columns: {plans[0].named()} against {plan.named()}",
                where=str(file),
                fix="give all files the same columns, or set data.order_by",
            )
    ids = (category(), category())  # shared by all files, so that their codes agree
    frames = [_read(file, config.columns, plans[0], ids, open_file) for file in files]
    place = str(files[0] if len(files) == 1 else files[0].parent)
    frame = _stacked(frames)
    del frames
    log = _log_of(frame, plans[0], place)
    ticks = UNITS[config.columns.time_unit]
    return log if log.time is None or ticks == 1 else replace(log, time=log.time / ticks)


def _wanted(config: DataConfig, file: Path, open_file: Scan) -> Wanted:
    """Which of the mapped columns to read.

    Raises InputError when `order_by` or `min_rating` needs a column that is not there, or when a column that
    was mapped by hand does not exist.
    """
    columns, mapped = config.columns, config.columns.model_fields_set
    names = reading(file, lambda: open_file(file, None).collect_schema().names())
    require_column(columns.user, names, file, "user")
    require_column(columns.item, names, file, "item")
    needed = {
        "time": config.order_by == "time",
        "position": config.order_by == "position",
        "rating": config.min_rating is not None,
    }
    found: dict[str, str | None] = {}
    for role, need in needed.items():
        name: str | None = getattr(columns, role)
        if need and name is None:
            raise InputError(f"no {role} column is mapped, but it is needed", where=f"data.columns.{role}")
        if name is not None and (need or role in mapped):
            require_column(name, names, file, role)
        found[role] = name if name in names else None
    if config.min_rating is None:
        found["rating"] = None
    if config.order_by in ("time", "file") or (config.order_by == "auto" and found["time"] is not None):
        found["position"] = None
    return Wanted(**found)


def _read(
    file: Path, columns: Columns, plan: Wanted, ids: tuple[pl.Categorical, pl.Categorical], open_file: Scan
) -> pl.DataFrame:
    """One file as user and item (integers, or categoricals for all other ids) and the wanted numbers.

    Ids are the user's strings. A column that looks like integers is read as such, which is several times
    faster, when every id reads back as the very same text: '7' does, '007' and '+7' do not.
    """
    names = {"user": columns.user, "item": columns.item}
    untyped = dict.fromkeys([*names.values(), *plan.named().values()])
    guessed = reading(file, lambda: open_file(file, untyped).collect_schema())
    integers = {role for role, name in names.items() if guessed[name].is_integer()}

    def collect(number_type: Any) -> pl.DataFrame:
        types = dict.fromkeys(plan.named().values(), number_type) | dict.fromkeys(names.values(), pl.String)
        lazy = open_file(file, types)
        schema = lazy.collect_schema()
        columns = [
            column
            for (role, name), to in zip(names.items(), ids, strict=True)
            for column in _id_columns(name, role, schema[name], role in integers, to)
        ]
        columns += [pl.col(name).alias(role) for role, name in plan.named().items()]
        return lazy.select(columns).collect(engine="streaming")

    frame = _numbers_or_text(file, collect)
    inexact = {role for role in integers if not frame[f"{role}_exact"].all()}
    if inexact:
        integers -= inexact
        frame = _numbers_or_text(file, collect)
    return frame.select("user", "item", *plan.named())


def _numbers_or_text(file: Path, collect: Callable[[Any], pl.DataFrame]) -> pl.DataFrame:
    """Collect with the guessed types of numbers; if a later row differs from the guess, take them as text."""
    try:
        return collect(None)
    except pl.exceptions.PolarsError:
        return reading(file, lambda: collect(pl.String))
    except OSError as error:
        raise InputError(f"cannot be read: {error}", where=str(file)) from error


def _id_columns(
    column: str, role: str, dtype: pl.DataType, integer: bool, to: pl.Categorical
) -> tuple[pl.Expr, ...]:
    """The id column under its role, and beside an integer one whether it says the same as the text."""
    if not integer:
        return (as_id(column, dtype, to).alias(role),)
    number = pl.col(column).cast(pl.Int64, strict=False)
    same = number.cast(pl.String).eq_missing(pl.col(column).cast(pl.String))
    return number.alias(role), same.alias(f"{role}_exact")


def _stacked(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """The files' frames under one another; an id column that is not of integers everywhere becomes text."""
    if len(frames) == 1:
        return frames[0]
    for role in ("user", "item"):
        if len({frame[role].dtype for frame in frames}) > 1:
            frames = [frame.with_columns(pl.col(role).cast(pl.String)) for frame in frames]
    return pl.concat(frames, how="vertical_relaxed")


def _log_of(frame: pl.DataFrame, plan: Wanted, place: str) -> Log:
    """Codes and numbers; takes the frame's columns out one by one, so that they need not exist twice."""
    if frame.is_empty():
        raise InputError("the log holds no interactions", where=place, fix="give a log with rows")
    total, rows = len(frame), None
    if frame["user"].null_count() or frame["item"].null_count():
        mask = frame["user"].is_not_null() & frame["item"].is_not_null()
        rows, frame = mask.arg_true().to_numpy(), frame.filter(mask)
        if frame.is_empty():
            raise InputError("no row names both a user and an item", where=place, fix="check data.columns")
    dropped = total - len(frame)
    numbers: dict[str, Any] = {}
    for role, column in plan.named().items():
        numbers[role] = as_numbers(frame.drop_in_place(role), f"{place}, column {column!r}", rows)
    users, user_ids = encode(frame.drop_in_place("user"))
    items, item_ids = encode(frame.drop_in_place("item"))
    return Log(users, items, user_ids, item_ids, dropped=dropped, **numbers)


def as_numbers(values: pl.Series, where: str, rows: NDArray[Any] | None = None) -> Numbers:
    """A column as int64 or float64; dates become unix seconds. `rows`: each value's row, if not its index.

    Raises InputError that names the first row without a finite number, or with a whole one beyond 2**63.
    """
    dtype = values.dtype
    if isinstance(dtype, pl.Datetime | pl.Date):
        numbers = values.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
    elif dtype.is_integer():
        numbers = values.cast(pl.Int64, strict=False)  # beyond 2**63 it is null
    elif dtype.is_float() or dtype == pl.String:
        numbers = values.cast(pl.Float64, strict=False)
        if dtype == pl.String and not numbers.has_nulls():
            whole = values.cast(pl.Int64, strict=False)  # exact above 2**53
            numbers = numbers if whole.has_nulls() else whole
    else:
        raise InputError(f"holds {dtype}, not numbers", where=where, fix="give unix time or whole positions")
    good = numbers.is_finite().fill_null(False) if numbers.dtype.is_float() else numbers.is_not_null()
    if not good.all():
        bad = int(np.flatnonzero(~good.to_numpy())[0])
        has = values[bad] is not None
        raise InputError(
            f"row {1 + (bad if rows is None else int(rows[bad]))} (the header not counted) has "
            f"{values[bad]!r}, which is {'too large' if dtype.is_integer() and has else 'not a number'}",
            where=where,
            fix="give numbers: unix time, or whole numbers for a position; or map another column",
        )
    array: Numbers = numbers.to_numpy()
    return array
