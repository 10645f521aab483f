"""Messages between the bench and its children: a length, a JSON header, then the bytes of arrays.

Nothing is pickled: a header holds plain values, an array is a type out of a short list, a shape and bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recommender.scoring import HistoryArrays

Array = NDArray[Any]
Read = Callable[[int], bytes]
"""read(n) gives exactly n bytes, or raises EOFError."""

TYPES = frozenset({"<i8", "<f8"})
PREFIX = 8


class Message(NamedTuple):
    """What is sent at once."""

    header: Mapping[str, Any]
    arrays: tuple[Array, ...] = ()


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises TypeError for an array of a type that is not sent."""
    arrays = [np.ascontiguousarray(each) for each in message.arrays]
    kinds = [each.dtype.newbyteorder("<").str for each in arrays]
    if wrong := set(kinds) - TYPES:
        raise TypeError(f"arrays of {', '.join(sorted(wrong))} are not sent")
    said = {
        "header": message.header,
        "arrays": [[kind, each.shape] for kind, each in zip(kinds, arrays, strict=True)],
    }
    text = json.dumps(said, separators=(",", ":")).encode()
    bodies = [each.astype(kind, copy=False).tobytes() for kind, each in zip(kinds, arrays, strict=True)]
    return b"".join([len(text).to_bytes(PREFIX, "big"), text, *bodies])


def decode(read: Read) -> Message:
    """The next message. Raises EOFError where there is none, ValueError where it is broken."""
    said = json.loads(read(int.from_bytes(read(PREFIX), "big")))
    arrays = []
    for kind, shape in said["arrays"]:
        if kind not in TYPES:
            raise ValueError(f"an array of {kind!r} is not accepted")
        data = read(np.dtype(kind).itemsize * int(np.prod(shape, dtype=np.int64)))
        arrays.append(np.frombuffer(data, kind).reshape(shape))
    return Message(said["header"], tuple(arrays))


def pack(batches: Sequence[HistoryArrays]) -> tuple[list[list[str]], list[Array]]:
    """(names of the arrays that each batch has, the arrays in that order)."""
    names = [[name for name, value in each._asdict().items() if value is not None] for each in batches]
    arrays = [getattr(each, name) for each, own in zip(batches, names, strict=True) for name in own]
    return names, arrays


def unpack(names: Sequence[Sequence[str]], arrays: Sequence[Array]) -> list[HistoryArrays]:
    """The batches again; scorers may write into them, as into any array of their own."""
    left = iter(arrays)
    return [HistoryArrays(**{name: next(left).copy() for name in own}) for own in names]
