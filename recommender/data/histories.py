"""From a log to histories: rating filter, order, repeats, k-core."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.config import DataConfig
from recommender.data.filters import chronological, count_ties, k_core, without_repeats
from recommender.data.log import Log
from recommender.data.ties import tie_noise
from recommender.errors import InputError

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Histories:
    """User after user (ids ascending), each oldest first; `items` are codes into the log's item ids."""

    offsets: Int64  # [U + 1]
    items: Int32  # [N]
    times: Int64 | None  # [N] unix seconds
    user_ids: pl.Series  # [U] strings
    ties: int
    duplicates: int
    order_by: str


def build_histories(log: Log, config: DataConfig, place: str) -> Histories:
    """Apply the data section to a log. Raises InputError (naming `place`) when nothing is left."""
    if config.min_rating is not None:
        assert log.rating is not None  # the reader saw to it
        log = replace(log.take(log.rating >= config.min_rating), rating=None)
        _require(log, place, f"no interaction is rated {config.min_rating} or more", "lower data.min_rating")
    order_by = _order_of(log, config)
    _check_times(log, order_by, config, place)
    if config.time_resolution is not None and log.time is not None:
        log = replace(log, time=log.time // config.time_resolution * config.time_resolution)
    if config.duplicates == "keep":  # what k-core drops need not be sorted
        log, duplicates = _sorted(_core(log, config, place), order_by, config), 0
    else:
        log = _sorted(log, order_by, config)
        keep = without_repeats(log.users, log.items, config.duplicates)
        duplicates = len(keep) - int(np.count_nonzero(keep))
        log = _core(log.take(keep) if duplicates else log, config, place)
    key = _key(log, order_by)
    counts = np.bincount(log.users, minlength=len(log.user_ids))
    present = np.flatnonzero(counts)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(counts[present])]).astype(np.int64),
        items=log.items,
        times=_seconds(log, order_by),
        user_ids=log.user_ids.gather(present),
        ties=0 if key is None else count_ties(log.users, key),
        duplicates=duplicates,
        order_by=order_by,
    )


def _order_of(log: Log, config: DataConfig) -> str:
    """What orders the histories: time, position or file; `auto` takes the first that the log has."""
    if config.order_by != "auto":
        return config.order_by
    if log.time is not None:
        return "time"
    return "file" if log.position is None else "position"


def _check_times(log: Log, order_by: str, config: DataConfig, place: str) -> None:
    """Refuse what asks for times where there are none: a position does not tell which times were equal."""
    for setting, without in (("shuffle_ties", order_by != "time"), ("time_resolution", log.time is None)):
        if getattr(config, setting) is not None and without:
            state = "has no times" if log.time is None else f"is ordered by {order_by}"
            raise InputError(
                f"data.{setting} needs interactions in the order of their times, but this log {state}, so "
                "nothing tells which are equal",
                where=place,
                fix=f"use a log with times (data.columns.time; data.order_by: time), or drop data.{setting}",
            )


def _key(log: Log, order_by: str) -> NDArray[Any] | None:
    return {"time": log.time, "position": log.position, "file": None}[order_by]


def _sorted(log: Log, order_by: str, config: DataConfig) -> Log:
    noise = None if config.shuffle_ties is None else tie_noise(log, config.shuffle_ties)
    return log.take(chronological(log.users, _key(log, order_by), noise))


def _core(log: Log, config: DataConfig, place: str) -> Log:
    core = k_core(log.users, log.items, config.min_user, config.min_item)
    if not core.all():
        log = log.take(core)
    least = f"{config.min_user} interactions with items that have {config.min_item} each"
    what = f"no user has {least} (iterated k-core)"
    _require(log, place, what, "lower data.min_user and data.min_item, or give a log with longer histories")
    return log


def _require(log: Log, place: str, what: str, fix: str) -> None:
    if not len(log.users):
        raise InputError(f"nothing is left of the log: {what}", where=place, fix=fix)


def _seconds(log: Log, order_by: str) -> Int64 | None:
    """Times in whole seconds; None when there are none or the chosen order runs against them."""
    if log.time is None:
        return None
    times = log.time if log.time.dtype == np.int64 else np.floor(log.time).astype(np.int64)
    if order_by != "time" and np.any((log.users[1:] == log.users[:-1]) & (times[1:] < times[:-1])):
        logger.warning("times run backwards in the order by %s, so they are left out", order_by)
        return None
    return times.astype(np.int64, copy=False)
