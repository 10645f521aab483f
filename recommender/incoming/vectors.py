"""Tables of item vectors: safetensors, NumPy and Parquet."""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recommender.data.prepared import Prepared
from recommender.data.readers import as_id, reading, require_column
from recommender.errors import InputError, nearest
from recommender.incoming.items import Alignment, Missing, align, check_rows, read_map
from recommender.incoming.tensors import finite, refuse_pickle, tensors_of

KNOWN = ".safetensors, .npy, .parquet"


class Vectors(NamedTuple):
    """A table as it stands in a file."""

    table: Tensor  # [N, D] float32
    ids: pl.Series | None  # [N] item ids, where the file has them


def read_vectors(file: Path, tensor: str | None = None) -> Vectors:
    """Read a table; `tensor` chooses one of a safetensors file that holds several.

    Raises InputError for a file that cannot be read, a table of another form, and NaN or inf.
    """
    refuse_pickle(file)
    if not file.is_file():
        raise InputError("no such file of item vectors", where=str(file))
    match file.suffix.lower():
        case ".safetensors":
            vectors = Vectors(_chosen(tensors_of(file), tensor, file), None)
        case ".npy":
            vectors = Vectors(_array(file), None)
        case ".parquet":
            vectors = _from_parquet(file)
        case _:
            raise InputError(
                f"unknown kind of item vectors {file.suffix!r}",
                where=str(file),
                fix=f"known endings: {KNOWN}",
            )
    if vectors.table.dim() != 2 or not vectors.table.numel():
        shape = " x ".join(map(str, vectors.table.shape))
        raise InputError(f"item vectors are a table of items x width, this is {shape}", where=str(file))
    return vectors


def match_vectors(
    vectors: Vectors, file: Path, items: Path | None, prepared: Prepared, *, missing: Missing
) -> Alignment:
    """Match the rows of a table to our catalogue: by the ids in the file, else by the item map `items`.

    Raises InputError where neither tells the ids, or they do not fit.
    """
    if vectors.ids is not None:
        rows = np.arange(len(vectors.ids), dtype=np.int64)
        return align(vectors.ids.to_list(), rows, prepared, missing=missing, where=file)
    if items is None:
        raise InputError(
            "nothing tells which row of the table is which item",
            where=str(file),
            fix="give `items`, a file with the columns index (the row) and item_id (your id), or a Parquet "
            "table with a column item_id",
        )
    numbers = read_map(items)
    check_rows(numbers["index"], len(vectors.table), items, file.name)
    return align(
        numbers["item_id"].to_list(), numbers["index"].to_numpy(), prepared, missing=missing, where=items
    )


def _chosen(found: dict[str, Tensor], name: str | None, file: Path) -> Tensor:
    if name is not None and name not in found:
        raise InputError(f"no tensor {name!r}{nearest(name, found)}", where=str(file))
    if name is None and len(found) != 1:
        raise InputError(
            f"holds {len(found)} tensors",
            where=str(file),
            fix=f"choose one: tensor: {' | '.join(sorted(found))}",
        )
    chosen = name if name is not None else next(iter(found))
    return finite(found[chosen], chosen, file)


def _array(file: Path) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False, mmap_mode="c")  # private pages: the file stays as it is
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"cannot be read as a NumPy array: {error}", where=str(file)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(
            "is an archive of arrays (.npz), not one array",
            where=str(file),
            fix="write the table with np.save",
        )
    if array.dtype.kind != "f":
        raise InputError(f"holds {array.dtype}, not numbers with a fraction", where=str(file))
    return finite(torch.from_numpy(array.astype(np.float32, copy=False)), "the array", file)


def _from_parquet(file: Path) -> Vectors:
    frame = reading(file, lambda: pl.read_parquet(file, glob=False))
    require_column("item_id", frame.columns, file, "item_key")
    ids = frame.select(as_id("item_id", frame.schema["item_id"], pl.String()))["item_id"]
    if ids.null_count() or ids.is_duplicated().any():
        wrong = "is empty" if ids.null_count() else f"{ids.filter(ids.is_duplicated())[0]!r} is repeated"
        raise InputError(f"an item_id {wrong}", where=str(file), fix="every item may stand there once")
    return Vectors(finite(_columns(frame, file), "the vectors", file), ids)


def _columns(frame: pl.DataFrame, file: Path) -> Tensor:
    """[N, D] from a column `vector` of lists, or the columns vector_0, vector_1, ..."""
    if "vector" in frame.columns:
        vector = frame["vector"]
        lengths = vector.list.len() if vector.dtype == pl.List else None
        if lengths is not None and lengths.n_unique() == 1 and lengths[0]:
            vector = vector.list.to_array(int(lengths[0]))
        if not isinstance(vector.dtype, pl.Array) or vector.null_count():
            raise InputError(
                "the column vector must hold lists of numbers, all of one length", where=str(file)
            )
        numbers = pl.Array(pl.Float32, vector.dtype.shape)
        array = reading(file, lambda: vector.cast(numbers)).to_numpy()
        return torch.from_numpy(array.copy())
    names = [f"vector_{place}" for place in range(len(frame.columns))]
    present = [name for name in names if name in frame.columns]
    if not present or present != names[: len(present)]:
        raise InputError(
            f"no column 'vector', and no row of columns vector_0, vector_1, ... (columns: "
            f"{', '.join(frame.columns[:8])})",
            where=str(file),
        )
    columns = reading(file, lambda: frame.select(pl.col(present).cast(pl.Float32)))
    return torch.from_numpy(columns.to_numpy().copy())
