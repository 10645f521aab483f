"""Recommend from an artifact folder; needs numpy and onnxruntime, nothing else (the variant ann: faiss).

A copy of this file lies in every artifact, which is why it is one file:

    python runtime.py --history "item-1,item-2" -k 10

    from runtime import Artifact
    Artifact("student-onnx").recommend(["item-1", "item-2"], k=10)

An open `Artifact` may be used by several threads at once, and keeps serving the catalogue that it was opened
with while another one is put in its place.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import sys
import threading
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

SCHEMA_VERSION = 2
TOKENS_PER_CALL = 1200  # more leave the L2 cache, fewer waste calls
PADDING_PER_CALL = 128  # tokens of padding that cost as much as a call of their own
USERS_PER_PRODUCT = 64  # user vectors that are scored together
SCORES_PER_CALL = 32_000_000  # 128 MB of scores: bounds the batch where the catalogue is large
CANDIDATES_PER_CALL = 4_000_000  # values of gathered item vectors: 16 MB
MASKED_PER_SEARCH = 1000  # rows to mask beyond which a user is scored in full instead
TEXTS_AT_ONCE = 1 << 16  # that are read when all are wanted
SHOWN = 3  # unknown ids that are named
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
"""Of onnxruntime, by device; what the first cannot run, the next does."""
CUDA_OPTIONS = {
    "use_tf32": "0",  # float32 products as on a CPU: lists must not depend on where they are made
    "enable_cuda_graph": "0",  # it wants one shape, and calls have many
    "arena_extend_strategy": "kSameAsRequested",  # the other doubles its memory whenever it grows
}
ON_CPU_BY_DESIGN = frozenset({
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Greater",
    "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "MemcpyFromHost", "MemcpyToHost", "Min",
    "Mod", "Mul", "Neg", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze",
    "Sub", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators of shape arithmetic, which onnxruntime puts on the CPU beside a GPU because they are small."""
TENSORRT_USERS, TENSORRT_SEEN = 256, 4096  # in a call; larger shapes would build its engine anew
NEIGHBOURS = 200  # ids that are looked through for one that an unknown id may have meant


ITEM_TABLE = "item_table.npy"
CATALOGUE_FILES = ("ids.utf8", "ids.npy", "ids.order.npy", "titles.utf8", "titles.npy")
"""What every version of the catalogue holds for this file: ids and titles by row."""


class ArtifactError(ValueError):
    """The artifact is broken or altered, or a request does not fit it; the text says which and what to do."""


class Histories(Protocol):
    """What `Artifact.top_k` reads: `recommender.scoring.HistoryArrays`, or anything with the same names."""

    @property
    def items(self) -> Int64:
        """[B, L] rows, left-padded with 0."""

    @property
    def seen(self) -> Int64 | None:
        """[B, S] rows that must not come back, padded with 0."""


class TopK(NamedTuple):
    """The best k rows per user, best first; row 0 with score -inf where fewer than k are left."""

    items: Int64  # [B, k]
    scores: Float32  # [B, k]


class Recommendation(TypedDict):
    """One line of an answer."""

    item_id: str
    title: str | None
    score: float
    row: int


def read_manifest(folder: Path, version: int | None = None) -> dict[str, Any]:
    """The manifest of an artifact, or that of one version of its catalogue.

    Raises ArtifactError when it is missing, broken, or of another form.
    """
    path = (folder if version is None else folder / f"catalogue-{version}") / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        if version == SCHEMA_VERSION:
            for entry in manifest["files"].values():
                _ = entry["size_bytes"], entry["sha256"]
            for entry in manifest["variants"]:
                _ = entry["name"], entry["files"][0], entry["top_k"] + entry["max_length"]
                _ = entry["graph"] if "graph" in entry else (entry["body"], entry["head"])
                _ = entry["ann"]["candidates"] + 0 if "index" in entry else None
                _ = (entry["table"]["numbers"], entry["table"]["scales"]) if "table" in entry else None
            catalogue = manifest["catalogue"]
            _ = catalogue["items"] + catalogue["width"], manifest["body"]
            if catalogue["folder"] != f"catalogue-{catalogue['version']}":
                raise ValueError(f"version {catalogue['version']} in {catalogue['folder']}")
            _ = manifest["default_variant"], manifest["mask_seen"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is no artifact: it has no {path.relative_to(folder)}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is broken ({error!r}); copy or export the artifact again") from error
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema_version {version}, this runtime.py reads {SCHEMA_VERSION}; export it again"
        )
    return manifest


def catalogue_files(manifest: Mapping[str, Any]) -> list[str]:
    """What the catalogue of an artifact holds for this file, the vectors unless every variant has its own."""
    shared = any("table" not in entry for entry in manifest["variants"])
    return [*([ITEM_TABLE] if shared else []), *CATALOGUE_FILES]


def check_files(folder: Path, manifest: dict[str, Any], *, digests: bool = True) -> None:
    """Raise ArtifactError naming every listed file that is missing, truncated or (with `digests`) altered."""
    needed = {manifest["body"], *(name for variant in manifest["variants"] for name in variant["files"])}
    opened = ("graph", "body", "head", "index")
    needed |= {variant[key] for variant in manifest["variants"] for key in opened if key in variant}
    needed |= {f"{manifest['catalogue']['folder']}/{name}" for name in catalogue_files(manifest)}
    faults = [f"the manifest has no digest of {name}" for name in sorted(needed - set(manifest["files"]))]
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{name} lies outside of the artifact")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != entry["size_bytes"]:
            faults.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size_bytes']}")
        elif digests and _sha256(path) != entry["sha256"]:
            faults.append(f"{name} was altered (its SHA-256 differs)")
    if faults:
        raise ArtifactError(f"{folder}: {'; '.join(faults)}; copy or export the artifact again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_NO_BYTES = np.empty(0, np.uint8)  # an empty file cannot be mapped


class Texts(Sequence[str]):
    """Texts by index, read where they lie on the disk: `NAME.utf8`; `NAME.npy` says where each begins."""

    def __init__(self, folder: Path, name: str) -> None:
        self._starts: Int64 = _mapped(folder / f"{name}.npy")
        file = folder / f"{name}.utf8"
        self._bytes = np.memmap(file, np.uint8, "r").view(np.ndarray) if self._starts[-1] else _NO_BYTES
        if self._starts[-1] != len(self._bytes):
            raise ArtifactError(
                f"{folder / name}.utf8 and .npy do not fit each other; copy the artifact again"
            )

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._bytes[self._starts[place] : self._starts[place + 1]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), TEXTS_AT_ONCE):  # several times faster than one by one
            starts = self._starts[first : first + TEXTS_AT_ONCE + 1]
            content = self._bytes[starts[0] : starts[-1]].tobytes()
            for start, stop in pairwise((starts - starts[0]).tolist()):
                yield content[start:stop].decode("utf-8")


class Rows(Mapping[str, int]):
    """Item id -> row (1 is the first item), found by bisection, so that no table of ids lies in memory."""

    def __init__(self, folder: Path, ids: Texts) -> None:
        self.ids, self._order = ids, _mapped(folder / "ids.order.npy")

    def __getitem__(self, item_id: str) -> int:
        if not isinstance(item_id, str):
            raise KeyError(item_id)
        place = self._place(item_id)
        if place < len(self._order) and self.ids[int(self._order[place])] == item_id:
            return int(self._order[place]) + 1
        raise KeyError(item_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def around(self, item_id: str) -> list[str]:
        """Ids that stand near this one in the order of their bytes."""
        first = max(0, self._place(item_id) - NEIGHBOURS // 2)
        return [self.ids[int(place)] for place in self._order[first : first + NEIGHBOURS]]

    def _place(self, item_id: str) -> int:
        wanted = item_id.encode("utf-8", "surrogatepass")
        return bisect_left(self._order, wanted, key=lambda place: self.ids[int(place)].encode("utf-8"))


class Session(Protocol):
    """An open graph: onnxruntime's sessions, and what other engines open (`ENGINES`)."""

    def run(self, outputs: Sequence[str], given: Mapping[str, Any]) -> Sequence[Any]:
        """The named outputs, numpy in and out."""


ENGINES: dict[str, str] = {".plan": "tensorrt", ".pt2": "aot"}
"""Suffix of a graph that is not onnxruntime's -> the module that opens it: beside this file in the package, a
copy named `runtime_MODULE.py` beside it in an artifact. It has `open_engine(path, entry, threads, device)`,
where `entry` is the variant's in the manifest, and raises a ValueError for what does not fit; what it opens
says in `runtime` which engine it is, and perhaps in `per_call` up to how many (tokens, tokens of padding,
scores) a batch stays whole."""


class Body(NamedTuple):
    """Histories to user vectors."""

    session: onnxruntime.InferenceSession
    reads_vectors: bool  # False for a model that only counts (popularity)


class Index:
    """An approximate index (faiss) of the item vectors.

    `threads`: of one search; None leaves the choice to faiss. Raises ArtifactError when faiss is missing or
    the file is not the index of `n_items` vectors of `width` numbers.
    """

    def __init__(self, path: Path, *, n_items: int, width: int, candidates: int, threads: int | None) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ArtifactError(
                f"{path} is read with faiss, which is not installed: pip install faiss-cpu "
                "(or recpress[ann]), or open another variant"
            ) from error
        self._faiss: Any = faiss
        self.candidates, self._threads = candidates, threads
        try:
            self._index: Any = faiss.read_index(str(path))
        except RuntimeError as error:  # what all exceptions of faiss become
            raise ArtifactError(f"faiss {faiss.__version__} cannot open {path}: {error}") from error
        if (self._index.ntotal, self._index.d) != (n_items, width):
            raise ArtifactError(
                f"{path} holds {self._index.ntotal} vectors of {self._index.d}, not {n_items} of {width}; "
                "copy the artifact again"
            )

    def nearest(self, vectors: Float32, more: int) -> Int64:
        """Rows [B, candidates + more] that may score best, in no useful order; 0 where none was found."""
        count = min(self.candidates + more, self._index.ntotal)
        threads = self._faiss.omp_get_max_threads()  # of the calling thread
        self._faiss.omp_set_num_threads(self._threads or threads)
        try:
            places: Int64 = self._index.search(np.ascontiguousarray(vectors), count)[1]
        finally:
            self._faiss.omp_set_num_threads(threads)
        return places + 1


class FewBits:
    """Item vectors [rows, D] held in 8 or 4 bits with a scale per row; what is indexed becomes float32.

    numbers: int8 [rows, D], or uint8 [rows, blocks, block / 2], two to a byte, 8 more than they are; scales:
    float32 [rows, blocks], one like the other. `rows`: only so many of the first; None: all. Raises
    ArtifactError where the files do not fit each other.
    """

    def __init__(self, numbers: Path, scales: Path, width: int, rows: int | None = None) -> None:
        stored, steps = _mapped(numbers), _mapped(scales)
        self._packed = stored.ndim == 3 and stored.dtype == np.uint8
        if self._packed:
            fits = 2 * stored.shape[1] * stored.shape[2] >= width
        else:
            fits = stored.shape[1:] == (width,) and stored.dtype == np.int8
        if not fits or steps.ndim != 2 or not len(steps) == len(stored) >= (rows or 0):
            raise ArtifactError(f"{numbers} and {scales} do not fit each other; copy the artifact again")
        self._numbers, self._scales = stored[:rows], steps[:rows]
        self.shape = (len(self._numbers), width)

    def __len__(self) -> int:
        return self.shape[0]

    def numbers(self, rows: "Int64 | slice") -> NDArray[np.int8]:
        """The whole numbers of these rows, [..., D]."""
        found = self._numbers[rows]
        if self._packed:
            pairs = np.stack((found & 15, found >> 4), axis=-1)
            found = pairs.reshape(*found.shape[:-2], -1)[..., : self.shape[1]].astype(np.int8) - np.int8(8)
        whole: NDArray[np.int8] = found
        return whole

    def scales(self, rows: "Int64 | slice") -> Float32:
        """Their scales, [..., 1]."""
        steps: Float32 = self._scales[rows][..., :1]
        return steps

    def __getitem__(self, rows: "Int64 | slice") -> Float32:
        return self.numbers(rows).astype(np.float32) * self.scales(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self[:].astype(dtype or np.float32, copy=False)


class Artifact:
    """One variant of an artifact, open for scoring.

    `verify`: compare the SHA-256 of every file (sizes only when False). `threads`: of one call; None leaves
    the choice to onnxruntime. `device`: cpu, cuda, or tensorrt (onnxruntime's provider, for whole graphs; the
    first call builds an engine, kept in `provider_cache`); None: the only one that the variant runs on, else
    cpu. `version`: of the catalogue; None: the one in use.
    Raises ArtifactError for whatever does not fit.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        variant: str | None = None,
        threads: int | None = None,
        device: str | None = None,
        verify: bool = True,
        version: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ArtifactError(f"threads is {threads}; give 1 or more, or None for onnxruntime's choice")
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, version)
        check_files(self.folder, self.manifest, digests=verify)
        variants = {entry["name"]: entry for entry in self.manifest["variants"]}
        self.variant = variant or self.manifest["default_variant"]
        if self.variant not in variants:
            raise ArtifactError(f"no variant {self.variant!r} in {folder} (it has: {', '.join(variants)})")
        chosen = variants[self.variant]
        device = device or str(chosen.get("device", "cpu"))
        self._check_device(chosen, device)
        self.limit, self.max_length = int(chosen["top_k"]), int(chosen["max_length"])
        self.users_per_call: int | None = chosen.get("users_per_call")
        self.fixed_length: int | None = chosen.get("fixed_length")
        self._open_with = (threads, device)  # graphs of onnxruntime
        self._opening = threading.Lock()
        self._read_catalogue(chosen)
        self.graph = self._open_graph(chosen) if "graph" in chosen else None
        self._body = None if "graph" in chosen else self._open_body(chosen["body"])
        self._index = self._open_index(chosen) if "index" in chosen else None
        self._head_file: str | None = chosen.get("head")
        self._head = None if "graph" in chosen or self._index else self._session(chosen["head"])
        reads = [] if self._head is None else [value.name for value in self._head.get_inputs()]
        self._head_reads = {"table": self._stored} if "table" in reads else {}

    def _check_device(self, chosen: Mapping[str, Any], device: str) -> None:
        """Raise ArtifactError where a variant is for another device, naming what is for this one."""
        if device == "cpu" and not chosen.get("on_cpu", True):
            fit = [entry["name"] for entry in self.manifest["variants"] if entry.get("on_cpu", True)]
            raise ArtifactError(
                f"{chosen['graph']} of {self.folder} is for {chosen['runs_on']}; open it there, or open "
                f"another variant here ({', '.join(fit)})"
            )
        suffix = Path(chosen.get("graph", "")).suffix
        if device == "tensorrt" and (not suffix or suffix in ENGINES):
            raise ArtifactError(
                f"the device tensorrt is for whole ONNX graphs, and {self.variant} is none; open fp32, fp16 "
                "or bf16, or open it with the device cuda"
            )

    def _read_catalogue(self, chosen: Mapping[str, Any]) -> None:
        told = self.manifest["catalogue"]
        folder = self.folder / told["folder"]
        self.version = int(told["version"])
        self.item_ids, self.titles = Texts(folder, "ids"), Texts(folder, "titles")  # row 1 first
        self.rows = Rows(folder, self.item_ids)
        table = self._open_table(chosen)
        counts = (len(self.item_ids), len(self.titles), told["items"])
        if len(set(counts)) != 1 or len(table) <= told["items"] or table.shape[1:] != (told["width"],):
            raise ArtifactError(f"the files of {folder} do not fit each other; copy the artifact again")
        self._stored = table  # with the rows that fill up the last block
        self.table = table if isinstance(table, FewBits) else table[: told["items"] + 1]

    def _open_table(self, chosen: Mapping[str, Any]) -> "Float32 | FewBits":
        """Item vectors by row: those that all variants share, or the variant's own."""
        told = self.manifest["catalogue"]
        if "table" not in chosen:
            table: Float32 = _mapped(self.folder / told["folder"] / ITEM_TABLE)
            return table
        own = chosen["table"]
        paths = (self.folder / own["numbers"], self.folder / own["scales"])
        return FewBits(*paths, int(told["width"]), int(told["items"]) + 1)

    @property
    def n_items(self) -> int:
        """Number of items; rows are 1..n_items."""
        return len(self.item_ids)

    @property
    def body(self) -> "Body":
        """The graph that turns histories into user vectors; opened when it is needed."""
        if self._body is None:
            with self._opening:
                if self._body is None:
                    self._body = self._open_body(self._unchanged(self.manifest["body"]))
        return self._body

    def _open_graph(self, chosen: Mapping[str, Any]) -> Session:
        """The whole graph of a variant, by onnxruntime or another engine."""
        path = self.folder / chosen["graph"]
        if path.suffix not in ENGINES:
            if self._open_with[1] != "tensorrt":
                session: Session = self._session(chosen["graph"])
                return session
            self.users_per_call = min(self.users_per_call or TENSORRT_USERS, TENSORRT_USERS)
            options = tensorrt_options(
                self.max_length, provider_cache(self.manifest["files"][chosen["graph"]])
            )
            session = open_session(path, *self._open_with, options=options)
            self._open_with = (self._open_with[0], "cuda")  # for the body, which `score` and `allow` want
            return session
        threads, device = self._open_with
        self._open_with = (threads, "cpu")  # what onnxruntime does beside another engine, it does there
        try:
            opened: Session = _engine(path.suffix).open_engine(path, chosen, threads, device)
        except ValueError as error:
            raise ArtifactError(f"{path} cannot be opened here: {error}") from error
        return opened

    def _open_body(self, name: str) -> "Body":
        session = self._session(name)
        return Body(session, "vectors" in [value.name for value in session.get_inputs()])

    def _open_index(self, chosen: Mapping[str, Any]) -> Index:
        sizes = {"n_items": self.n_items, "width": self.table.shape[1]}
        candidates, threads = int(chosen["ann"]["candidates"]), self._open_with[0]
        return Index(self.folder / chosen["index"], **sizes, candidates=candidates, threads=threads)

    @property
    def _exact(self) -> onnxruntime.InferenceSession:
        """The head; beside an index it is opened when somebody has to be scored in full."""
        if self._head is None:
            with self._opening:
                if self._head is None:
                    assert self._head_file is not None
                    self._head = self._session(self._unchanged(self._head_file))
        return self._head

    def _unchanged(self, name: str) -> str:
        """The name of a file that is opened late, if it is still the one that the manifest told of."""
        path = self.folder / name
        if not path.is_file() or _sha256(path) != self.manifest["files"][name]["sha256"]:
            raise ArtifactError(f"{path} was replaced since the artifact was opened; open the artifact anew")
        return name

    def is_current(self) -> bool:
        """False once another catalogue or model is in use here; open the artifact anew to serve that one."""
        return bool(read_manifest(self.folder)["files"] == self.manifest["files"])

    def warm_up(self) -> None:
        """Answer one short and one long history, so that the first real request does not pay for it."""
        for length in (1, self.max_length):
            self.top_k(_History(np.ones((1, length), np.int64)), 1)

    def run(self, items: Int64, seen: Int64) -> TopK:
        """One call: items [B, L <= max_length], seen [B, S >= 1] -> the `limit` best per user."""
        items, seen = _rows("items", items, self.n_items), _rows("seen", seen, self.n_items)
        if items.shape[1] > self.max_length:
            raise ArtifactError(
                f"{items.shape[1]} items are longer than the {self.max_length} that the model reads"
            )
        if self.graph is not None:
            return self._answer(self.graph, {"items": items, "seen": seen})
        return self._lists(self._vectors(items), seen)

    def _answer(self, graph: Session, given: dict[str, Any]) -> TopK:
        rows, scores = _run(graph, ("top_items", "scores"), given)
        self._check_scores(scores)
        return TopK(np.where(np.isneginf(scores), 0, rows), scores)

    def _lists(self, vectors: Float32, blocked: Int64) -> TopK:
        """The `limit` best of one batch of user vectors [B, D], without the rows of blocked [B, S]."""
        if self._index is None:
            return self._answer(self._exact, {"user": vectors, "seen": blocked} | self._head_reads)
        masked = (blocked != 0).sum(axis=1)
        heavy = masked > MASKED_PER_SEARCH
        rows = self._index.nearest(vectors, int(masked[~heavy].max(initial=0)))
        best = self._best_of(self._products(vectors, rows), rows, blocked, self.limit)
        full = heavy | (best.items == 0).any(axis=1)  # what the index found does not fill the list
        if full.any():
            exact = self._answer(self._exact, {"user": vectors[full], "seen": blocked[full]})
            best.items[full], best.scores[full] = exact
        return best

    def _products(self, vectors: Float32, rows: Int64) -> Float32:
        """Scores [B, n] of given rows [B, n], in float32; row 0 scores -inf."""
        scores = np.empty(rows.shape, np.float32)
        step = max(1, CANDIDATES_PER_CALL // max(1, rows.shape[1] * self.table.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            scores[part] = np.einsum("bd,bnd->bn", vectors[part], self.table[rows[part]])
        self._check_scores(scores)
        scores[rows == 0] = -np.inf
        return scores

    def _check_scores(self, scores: Float32) -> None:
        if np.isnan(scores).any() or np.isposinf(scores).any():
            raise ArtifactError(
                f"{self.variant} of {self.folder} answers NaN or infinity: its weights are broken"
            )

    def _vectors(self, items: Int64) -> Float32:
        """User vectors [B, D] of one call of the body."""
        given: dict[str, Any] = {"items": items}
        if self.body.reads_vectors:
            given["vectors"] = self.table[items]
        vectors: Float32 = _run(self.body.session, ("user",), given)[0]
        return vectors

    def user_vectors(self, history: Histories) -> Float32:
        """[B, D]: what each history is turned into before it meets the catalogue."""
        items = _rows("items", history.items, self.n_items)[:, -self.max_length :]
        vectors = np.zeros((len(items), self.table.shape[1]), np.float32)
        for users, width in self._calls(items):
            vectors[users] = self._vectors(np.ascontiguousarray(items[users, -width:]))
        return vectors

    def top_k(
        self, history: Histories, k: int, *, allow: Int64 | None = None, deny: Int64 | None = None
    ) -> TopK:
        """The k best rows of each history, [B, k]; of a history longer than the model reads the newest count.

        `deny` [B, n] rows (padded with 0) that must not come back, besides `seen`. `allow` [B, n]: only these
        rows may come back; their products with the user vector are float32 in every variant. Padding is
        stripped and users of like length share a call; the answers are those of one call per user.
        """
        self._check_k(k)
        items = _rows("items", history.items, self.n_items)[:, -self.max_length :]
        blocked = self._blocked(len(items), {"seen": history.seen, "deny": deny})
        if allow is not None:
            rows = self._for_each("allow", allow, len(items))
            return self._best_of(self._products(self.user_vectors(history), rows), rows, blocked, k)
        best = TopK(np.zeros((len(items), k), np.int64), np.zeros((len(items), k), np.float32))
        parts: Iterator[tuple[Any, TopK]]
        if self.graph is not None:
            plan = self._calls(items) if self.fixed_length is None else self._one_call(items)
            calls = ((users, np.ascontiguousarray(items[users, -width:])) for users, width in plan)
            parts = ((users, self.run(rows, _used_columns(blocked[users]))) for users, rows in calls)
        else:
            parts = self._scored(self.user_vectors(history), blocked)
        for users, answer in parts:
            best.items[users], best.scores[users] = answer.items[:, :k], answer.scores[:, :k]
        return best

    def score(self, history: Histories, items: Int64) -> Float32:
        """Scores [B, n] of given rows [B, n] for each history, in float32; row 0 scores -inf."""
        rows = self._for_each("items to score", items, len(history.items))
        return self._products(self.user_vectors(history), rows)

    def recommend(
        self,
        history_ids: Sequence[str],
        k: int = 10,
        *,
        mask_seen: bool | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] = (),
    ) -> list[Recommendation]:
        """The k best items after a history of item ids (oldest first), with titles.

        `mask_seen`: never recommend what the history holds; None: as the artifact was evaluated. `allow`,
        `deny`: ids that alone may, or must not, be recommended. Raises ArtifactError for unknown ids, an
        empty history, or a k that the artifact cannot serve.
        """
        if not len(history_ids):
            raise ArtifactError("the history is empty; give one item id at least")
        rows = self._rows_of(history_ids)
        self._check_k(k)
        mask = self.manifest["mask_seen"] if mask_seen is None else mask_seen
        history = _History(rows, rows if mask else None)
        only = None if allow is None else self._rows_of(allow)
        best = self.top_k(history, k, allow=only, deny=self._rows_of(deny))
        return [
            {
                "item_id": self.item_ids[row - 1],
                "title": self.titles[row - 1] or None,
                "score": score,
                "row": row,
            }
            for row, score in zip(best.items[0].tolist(), best.scores[0].tolist(), strict=True)
            if row
        ]

    def _rows_of(self, item_ids: Sequence[str]) -> Int64:
        """[1, n] rows of item ids."""
        if isinstance(item_ids, str):
            raise ArtifactError(f"{item_ids!r} is one text; give a list of item ids")
        found = [self.rows.get(item_id) for item_id in item_ids]
        unknown = [item_id for item_id, row in zip(item_ids, found, strict=True) if row is None]
        if unknown:
            named = [f"unknown item {name!r}{self._nearest(name)}" for name in unknown[:SHOWN]]
            more = [f"and {len(unknown) - SHOWN} more"] if len(unknown) > SHOWN else []
            raise ArtifactError("; ".join([*named, *more]))
        return np.array([found], np.int64)

    def _for_each(self, name: str, values: Int64, users: int) -> Int64:
        """Rows [B, n], a line for each history."""
        rows = _rows(name, values, self.n_items)
        if len(rows) != users:
            raise ArtifactError(f"{users} histories but {len(rows)} lines of {name}")
        return rows

    def _blocked(self, users: int, lists: Mapping[str, Int64 | None]) -> Int64:
        """[B, >= 1] rows that must not come back, of all lists together."""
        parts = [self._for_each(name, rows, users) for name, rows in lists.items() if rows is not None]
        return np.concatenate(parts, axis=1) if parts else np.zeros((users, 1), np.int64)

    def _scored(self, vectors: Float32, blocked: Int64) -> Iterator[tuple[slice, TopK]]:
        """The `limit` best of slices of user vectors."""
        step = max(1, min(USERS_PER_PRODUCT, SCORES_PER_CALL // (self.n_items + 1)))
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            yield part, self._lists(vectors[part], _used_columns(blocked[part]))

    @staticmethod
    def _best_of(scores: Float32, rows: Int64, blocked: Int64, k: int) -> TopK:
        """The k best of given rows [B, n] by score, equal ones by row, each row once."""
        by_row = np.argsort(rows, axis=1, kind="stable")
        rows, scores = np.take_along_axis(rows, by_row, 1), np.take_along_axis(scores, by_row, 1)
        scores[:, 1:][rows[:, 1:] == rows[:, :-1]] = -np.inf
        for line, banned in enumerate(blocked):
            scores[line, np.isin(rows[line], banned)] = -np.inf
        missing = max(0, k - rows.shape[1])
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, 1)
        chosen = np.take_along_axis(np.pad(rows, ((0, 0), (0, missing))), order, 1)
        return TopK(np.where(np.isneginf(best), 0, chosen), best)

    def _check_k(self, k: int) -> None:
        if not isinstance(k, int | np.integer) or isinstance(k, bool):
            raise ArtifactError(f"k is {k!r}; give a whole number from 1 to {self.limit}")
        if not 1 <= k <= self.limit:
            raise ArtifactError(f"k is {k}, but {self.folder} was exported for lists of 1 to {self.limit}")

    def _calls(self, items: Int64) -> Iterator[tuple[Int64, int]]:
        """Cut users into (indices, width) of like length, within TOKENS_PER_CALL; empty ones apart."""
        real = items != 0
        if len(items) == 1:  # nothing to sort: a single request is not to pay for it
            yield np.zeros(1, np.int64), items.shape[1] - int(real[0].argmax()) if real.any() else 1
            return
        usual = (TOKENS_PER_CALL, PADDING_PER_CALL, SCORES_PER_CALL)
        tokens, most_padding, scores = getattr(self.graph, "per_call", None) or usual
        lengths = np.where(real.any(axis=1), items.shape[1] - real.argmax(axis=1), 0)
        order = np.argsort(-lengths, kind="stable")
        ordered, filled, start = lengths[order], int((lengths > 0).sum()), 0
        while start < len(order):
            width, stop = max(int(ordered[start]), 1), filled if start < filled else len(order)
            size = max(1, min(tokens // width, scores // (self.n_items + 1)))
            size = min(size, self.users_per_call or size)
            padding = np.cumsum(width - np.maximum(ordered[start : min(start + size, stop)], 1))
            stop = start + int(np.searchsorted(padding, most_padding, side="right"))
            yield order[start:stop], width
            start = stop

    @staticmethod
    def _one_call(items: Int64) -> Iterator[tuple[Int64, int]]:
        """All users at once: what pads to one length and cuts batches itself gains nothing from sorting."""
        if len(items):
            yield np.arange(len(items)), items.shape[1]

    def _nearest(self, item_id: str) -> str:
        if not isinstance(item_id, str):
            return " (ids are texts)"
        close = difflib.get_close_matches(item_id, self.rows.around(item_id), n=1)
        return f" (did you mean {close[0]!r}?)" if close else f" (ids look like {self.item_ids[0]!r})"

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        return open_session(self.folder / name, *self._open_with)


class _History(NamedTuple):
    """One padded batch of histories."""

    items: Int64
    seen: Int64 | None = None


def _mapped(path: Path) -> Any:
    """An array that stays on the disk until it is read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); copy the artifact again") from error


def _rows(name: str, values: Int64, n_items: int) -> Int64:
    try:
        given = np.asarray(values)
    except ValueError as error:  # lines of different length
        raise ArtifactError(f"{name} must be [users, length]: {error}") from error
    if given.size and given.dtype.kind not in "iu":
        raise ArtifactError(f"{name} must be whole numbers (rows), not {given.dtype}")
    rows = given.astype(np.int64, copy=False)
    if rows.ndim != 2:
        raise ArtifactError(f"{name} must be [users, length], not {rows.shape}")
    if not rows.shape[1]:
        return np.zeros((len(rows), 1), np.int64)
    if rows.size and not (rows.min() >= 0 and rows.max() <= n_items):
        raise ArtifactError(
            f"{name}: rows {rows.min()} to {rows.max()}, but the catalogue has 1 to {n_items}"
        )
    return rows


def _used_columns(seen: Int64) -> Int64:
    used = (seen != 0).any(axis=0)
    return np.ascontiguousarray(seen[:, used]) if used.any() else np.zeros((len(seen), 1), np.int64)


def _engine(suffix: str) -> Any:
    """The module that opens graphs of this suffix."""
    name = f"export.{ENGINES[suffix]}" if __name__ == "export.runtime" else f"runtime_{ENGINES[suffix]}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise ArtifactError(f"{name}.py is missing beside runtime.py; copy the artifact again") from error
        raise ArtifactError(
            f"a graph {suffix} is run with {error.name}, which is not installed: pip install {error.name}, "
            "or open another variant"
        ) from error


def _run(session: Session, outputs: Sequence[str], given: dict[str, Any]) -> Any:
    """Run a graph. Raises ArtifactError where the runtime does."""
    try:
        return session.run(outputs, given)
    except Exception as error:  # onnxruntime raises a class per status code, all of them plain Exceptions
        told = getattr(session, "runtime", f"onnxruntime {onnxruntime.__version__}")
        raise ArtifactError(f"{told} could not answer: {error}") from error


def provider_cache(entry: Mapping[str, Any]) -> Path:
    """Where onnxruntime's TensorRT provider keeps the engine of a file, by its entry among the digests."""
    named = os.environ.get("RECPRESS_CACHE")
    root = Path(named) if named else Path.home() / ".cache" / "recpress"
    return root / "tensorrt-provider" / str(entry["sha256"])[:16]


def tensorrt_options(max_length: int, cache: Path) -> dict[str, str]:
    """Of onnxruntime's TensorRT provider: one engine for all shapes that calls may have, and where it lies.

    Its types are the graph's: TensorRT 11 has no flags of precision.
    """
    shapes = {
        "min": (1, 1, 1),
        "opt": (16, max_length, 64),
        "max": (TENSORRT_USERS, max_length, TENSORRT_SEEN),
    }
    profiles = {
        f"trt_profile_{which}_shapes": f"items:{users}x{length},seen:{users}x{seen}"
        for which, (users, length, seen) in shapes.items()
    }
    return profiles | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_cuda_graph_enable": "0",
    }


def open_session(
    path: Path, threads: int | None, device: str, *, options: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """A session of one graph. `options`: of the first provider of the device, in the place of ours.

    Warns (RuntimeWarning) where operators of a graph for a GPU are computed on the CPU, shapes aside.
    Raises ArtifactError when this onnxruntime cannot open it, or would run it on another device.
    """
    if device not in PROVIDERS:
        raise ArtifactError(f"device {device!r} is unknown ({', '.join(PROVIDERS)})")
    wanted, given = PROVIDERS[device], {"CUDAExecutionProvider": CUDA_OPTIONS}
    if wanted[0] not in onnxruntime.get_available_providers():
        more = " and tensorrt" if device == "tensorrt" else ""
        raise ArtifactError(
            f"this onnxruntime has no {wanted[0]}; first pip uninstall onnxruntime, the same module, then "
            f"pip install onnxruntime-gpu{more}"
        )
    if device != "cpu":
        _load_cuda()
    chosen = [(name, dict(given.get(name, {}))) for name in wanted]
    if options is not None:
        chosen[0] = (wanted[0], dict(options))
    session = _new_session(path, threads, chosen)
    if wanted[0] not in session.get_providers():  # it falls back without a word where a library is missing
        raise ArtifactError(
            f"onnxruntime {onnxruntime.__version__} cannot load its {wanted[0]} (are CUDA, cuDNN and, for "
            f"tensorrt, TensorRT of the versions that it wants installed?); open {path} with device cpu"
        )
    if device != "cpu":
        _warn_of_cpu(path, session, wanted[0])
    return session


@cache
def _load_cuda() -> None:
    """Load CUDA and cuDNN from Python packages (nvidia-*), where onnxruntime does not look by itself.

    What it prints of those that are missing goes to stderr; an answer on stdout stays one document.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def _warn_of_cpu(path: Path, session: onnxruntime.InferenceSession, provider: str) -> None:
    """Warn where operators are on the CPU in spite of a GPU; older versions of onnxruntime do not tell.

    `session.disable_cpu_ep_fallback` would refuse instead, but every graph of dynamic lengths: what follows
    from shapes is put on the CPU on purpose.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return
    found = computed_on_cpu(session.get_provider_graph_assignment_info())
    if found:
        told = ", ".join(f"{count} {name}" for name, count in found.items())
        warnings.warn(
            f"{path}: onnxruntime {onnxruntime.__version__} computes {told} on the CPU in spite of "
            f"{provider}, with copies to and fro: measure it, or open another variant",
            RuntimeWarning,
            stacklevel=3,
        )


def computed_on_cpu(assigned: Iterable[Any]) -> dict[str, int]:
    """{operator: nodes} on the CPU among the parts of a graph by provider, what follows from shapes aside."""
    on_cpu = (part for part in assigned if part.ep_name == "CPUExecutionProvider")
    names = (node.op_type for part in on_cpu for node in part.get_nodes())
    return dict(sorted(Counter(name for name in names if name not in ON_CPU_BY_DESIGN).items()))


def _new_session(
    path: Path, threads: int | None, providers: Sequence[tuple[str, dict[str, str]]]
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # a plan per shape keeps memory for every shape that was ever seen
    # Idle threads that spin take the cores of whoever else serves on this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else products with dequantized weights round their inputs to 8 bits, which no graph asks for.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if len(providers) > 1:  # which operators are on which
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime raises a class per status code, all of them plain Exceptions
        raise ArtifactError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {error}") from error


def open_scorer(
    path: Path, *, variant: str | None = None, threads: int | None = None, device: str | None = None
) -> Artifact:
    """Open an artifact as a scorer."""
    return Artifact(path, variant=variant, threads=threads, device=device)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a copied runtime; returns the exit code (2 for bad input)."""
    parser = argparse.ArgumentParser(description="Recommend from the artifact folder that this file lies in.")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("-k", type=int, default=10, help="number of recommendations")
    parser.add_argument("--artifact", default=Path(__file__).resolve().parent, help="another folder")
    parser.add_argument("--variant", help="a variant of the artifact; default: the manifest's")
    parser.add_argument("--device", choices=tuple(PROVIDERS), help="where to compute")
    parser.add_argument("--threads", type=int, help="threads of one call")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    history = [part.strip() for part in given.history.split(",") if part.strip()]
    try:
        opened = Artifact(given.artifact, variant=given.variant, threads=given.threads, device=given.device)
        best = opened.recommend(history, given.k)
    except ArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps({"history": history, "recommendations": best}, ensure_ascii=False))
    else:
        for place, item in enumerate(best, start=1):
            print(f"{place:>3}  {item['score']:>9.4f}  {item['item_id']}  {item['title'] or ''}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
