import io

import numpy as np
import pytest

from bench import wire
from recommender.scoring import HistoryArrays


def reader(data: bytes) -> wire.Read:
    stream = io.BytesIO(data)

    def read(count: int) -> bytes:
        part = stream.read(count)
        if len(part) < count:
            raise EOFError
        return part

    return read


def test_messages_come_out_as_they_went_in_one_after_the_other() -> None:
    first = wire.Message({"order": "x", "text": "ü", "none": None}, (np.arange(6).reshape(2, 3),))
    second = wire.Message({}, (np.array([0.5, np.nan]), np.empty((0, 4), dtype=np.int64)))
    read = reader(wire.encode(first) + wire.encode(second))
    got = wire.decode(read)
    assert got.header == first.header
    np.testing.assert_array_equal(got.arrays[0], first.arrays[0])
    again = wire.decode(read)
    np.testing.assert_array_equal(again.arrays[0], second.arrays[0])
    assert again.arrays[1].shape == (0, 4)
    with pytest.raises(EOFError):
        wire.decode(read)


def test_a_message_that_breaks_off_is_the_end() -> None:
    data = wire.encode(wire.Message({}, (np.arange(3),)))
    for length in range(len(data)):
        with pytest.raises(EOFError):
            wire.decode(reader(data[:length]))


def test_objects_are_neither_sent_nor_accepted() -> None:
    with pytest.raises(TypeError, match="not sent"):
        wire.encode(wire.Message({}, (np.array([None]),)))
    data = wire.encode(wire.Message({}, (np.arange(2),))).replace(b'"<i8"', b'"|O8"')
    data = (int.from_bytes(data[:8], "big")).to_bytes(8, "big") + data[8:]
    with pytest.raises(ValueError, match="not accepted"):
        wire.decode(reader(data))


def test_batches_keep_what_they_have_and_what_they_lack_and_can_be_written_to() -> None:
    items = np.array([[0, 1], [2, 3]])
    batches = [
        HistoryArrays(items, items + 1),
        HistoryArrays(items.T, times=items),
        HistoryArrays(items[:, :1]),
    ]
    names, arrays = wire.pack(batches)
    got = wire.unpack(names, wire.decode(reader(wire.encode(wire.Message({}, tuple(arrays))))).arrays)
    for new, old in zip(got, batches, strict=True):
        for a, b in zip(new, old, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                np.testing.assert_array_equal(a, b)
                a += 1
