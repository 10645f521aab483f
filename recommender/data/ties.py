"""A shuffled order of interactions of equal time that a longer log does not shuffle anew."""

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recommender.data.log import Log

UInt64 = NDArray[np.uint64]


def tie_noise(log: Log, seed: int) -> UInt64:
    """A number [N] for every interaction, that hangs on the seed, its user, item and second and nothing else.

    So what was before something else yesterday still is in today's longer log, and nothing that was trained
    on yesterday is held out today. The log has times.
    """
    assert log.time is not None
    seconds = np.floor(log.time).astype(np.int64).view(np.uint64)
    users, items = _digests(log.user_ids, f"{seed} user "), _digests(log.item_ids, f"{seed} item ")
    return _mixed(_mixed(users[log.users] + seconds) ^ items[log.items])


def _digests(ids: pl.Series, salt: str) -> UInt64:
    """[ids] the first 8 bytes of BLAKE2b: polars' own hash differs between versions."""
    found = (hashlib.blake2b((salt + each).encode(), digest_size=8).digest() for each in ids)
    return np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64)


def _mixed(numbers: UInt64) -> UInt64:
    """The finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), modulo 2^64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
