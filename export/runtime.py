"""Recommend from an artifact folder; needs numpy and onnxruntime, nothing else.

A copy of this file lies in every artifact:

    python runtime.py --history "item-1,item-2" -k 10

    from runtime import Artifact
    Artifact("student-onnx").recommend(["item-1", "item-2"], k=10)
"""

import argparse
import difflib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

SCHEMA_VERSION = 1
TOKENS_PER_CALL = 1200  # more leave the L2 cache, fewer waste calls
PADDING_PER_CALL = 128  # tokens of padding that cost as much as a call of their own
SCORES_PER_CALL = 32_000_000  # 128 MB of scores: bounds the batch where the catalogue is large


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact. Raises ArtifactError when it is missing, broken, or of another form."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        for entry in manifest["files"].values():
            _ = entry["size_bytes"], entry["sha256"]
        for entry in manifest["variants"]:
            _ = entry["name"], entry["file"], entry["top_k"] + entry["max_length"]
        _ = manifest["default_variant"], manifest["mask_seen"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is no artifact: it has no manifest.json") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is broken ({error!r}); copy or export the artifact again") from error
    if version != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema_version {version}, this runtime.py reads {SCHEMA_VERSION}")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], *, digests: bool = True) -> None:
    """Raise ArtifactError naming every listed file that is missing, truncated or (with `digests`) altered."""
    needed = {"catalogue.json", *(variant["file"] for variant in manifest["variants"])}
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


class Artifact:
    """One variant of an artifact, open for scoring.

    `verify`: compare the SHA-256 of every file (sizes only when False). `threads`: of one call; None leaves
    the choice to onnxruntime. `device`: cpu or cuda. Raises ArtifactError for whatever does not fit.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        variant: str | None = None,
        threads: int | None = None,
        device: str = "cpu",
        verify: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        check_files(self.folder, self.manifest, digests=verify)
        variants = {entry["name"]: entry for entry in self.manifest["variants"]}
        self.variant = variant or self.manifest["default_variant"]
        if self.variant not in variants:
            raise ArtifactError(f"no variant {self.variant!r} in {folder} (it has: {', '.join(variants)})")
        chosen = variants[self.variant]
        self.limit, self.max_length = int(chosen["top_k"]), int(chosen["max_length"])
        catalogue = _read_catalogue(self.folder / "catalogue.json")
        self.item_ids: list[str] = catalogue["item_ids"]  # row 1 first
        self.titles: list[str | None] = catalogue["titles"]
        self.rows = {item_id: row for row, item_id in enumerate(self.item_ids, start=1)}
        self.session = _session(self.folder / chosen["file"], threads, device)

    @property
    def n_items(self) -> int:
        """Number of items; rows are 1..n_items."""
        return len(self.item_ids)

    def run(self, items: Int64, seen: Int64) -> TopK:
        """One call of the graph: items [B, L], seen [B, S >= 1] -> the `limit` best per user."""
        rows, scores = self.session.run(("top_items", "scores"), {"items": items, "seen": seen})
        if np.isnan(scores).any():
            raise ArtifactError(f"{self.variant} of {self.folder} answers NaN: its weights are broken")
        return TopK(np.where(np.isneginf(scores), 0, rows), scores)

    def top_k(self, history: Histories, k: int) -> TopK:
        """The k best rows of each history, [B, k]; of a history longer than the model reads the newest count.

        Padding is stripped and users of like length share a call; the answers are those of one call per user.
        """
        self._check_k(k)
        items = _rows("items", history.items, self.n_items)[:, -self.max_length :]
        nothing = np.zeros((len(items), 1), np.int64)
        seen = nothing if history.seen is None else _rows("seen", history.seen, self.n_items)
        if len(seen) != len(items):
            raise ArtifactError(f"{len(items)} histories but {len(seen)} lines of seen rows")
        best = TopK(np.zeros((len(items), k), np.int64), np.zeros((len(items), k), np.float32))
        for users, width in self._calls(items):
            answer = self.run(np.ascontiguousarray(items[users, -width:]), _used_columns(seen[users]))
            best.items[users], best.scores[users] = answer.items[:, :k], answer.scores[:, :k]
        return best

    def recommend(
        self, history_ids: Sequence[str], k: int = 10, *, mask_seen: bool | None = None
    ) -> list[Recommendation]:
        """The k best items after a history of item ids (oldest first), with titles.

        `mask_seen`: never recommend what the history holds; None: as the artifact was evaluated. Raises
        ArtifactError for unknown ids, an empty history, or a k that the artifact cannot serve.
        """
        unknown = [item_id for item_id in history_ids if item_id not in self.rows]
        if unknown:
            raise ArtifactError("; ".join(f"unknown item {name!r}{self._nearest(name)}" for name in unknown))
        if not history_ids:
            raise ArtifactError("the history is empty; give one item id at least")
        self._check_k(k)
        rows = np.array([[self.rows[item_id] for item_id in history_ids]], np.int64)
        mask = self.manifest["mask_seen"] if mask_seen is None else mask_seen
        seen = rows if mask else np.zeros((1, 1), np.int64)
        best = self.run(np.ascontiguousarray(rows[:, -self.max_length :]), seen)
        return [
            {"item_id": self.item_ids[row - 1], "title": self.titles[row - 1], "score": score, "row": row}
            for row, score in zip(best.items[0, :k].tolist(), best.scores[0, :k].tolist(), strict=True)
            if row
        ]

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.limit:
            raise ArtifactError(f"k is {k}, but {self.folder} was exported for lists of 1 to {self.limit}")

    def _calls(self, items: Int64) -> Iterator[tuple[Int64, int]]:
        """Cut users into (indices, width) of like length, within TOKENS_PER_CALL; empty ones apart."""
        real = items != 0
        lengths = np.where(real.any(axis=1), items.shape[1] - real.argmax(axis=1), 0)
        order = np.argsort(-lengths, kind="stable")
        ordered, filled, start = lengths[order], int((lengths > 0).sum()), 0
        while start < len(order):
            width, stop = max(int(ordered[start]), 1), filled if start < filled else len(order)
            size = max(1, min(TOKENS_PER_CALL // width, SCORES_PER_CALL // (self.n_items + 1)))
            padding = np.cumsum(width - np.maximum(ordered[start : min(start + size, stop)], 1))
            stop = start + int(np.searchsorted(padding, PADDING_PER_CALL, side="right"))
            yield order[start:stop], width
            start = stop

    def _nearest(self, item_id: str) -> str:
        near = [known for known in self.item_ids if known[:2] == item_id[:2]] or self.item_ids
        close = difflib.get_close_matches(item_id, near[:20_000], n=1)
        return f" (did you mean {close[0]!r}?)" if close else f" (ids look like {self.item_ids[0]!r})"


def _rows(name: str, values: Int64, n_items: int) -> Int64:
    rows = np.asarray(values, dtype=np.int64)
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


def _read_catalogue(path: Path) -> dict[str, Any]:
    try:
        catalogue = json.loads(path.read_text(encoding="utf-8"))
        if len(catalogue["item_ids"]) == len(catalogue["titles"]) > 0:
            return dict(catalogue)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); copy the artifact again") from error
    raise ArtifactError(f"{path} does not give every item an id and a title; copy the artifact again")


def _session(path: Path, threads: int | None, device: str) -> onnxruntime.InferenceSession:
    providers = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    if device not in providers:
        raise ArtifactError(f"device {device!r} is unknown (cpu or cuda)")
    if providers[device][0] not in onnxruntime.get_available_providers():
        raise ArtifactError(f"this onnxruntime has no {providers[device][0]}; pip install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # Idle threads that spin take the cores of whoever else serves on this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers[device])
    except Exception as error:  # onnxruntime raises a class per status code, all of them plain Exceptions
        raise ArtifactError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {error}") from error


def open_scorer(
    path: Path, *, variant: str | None = None, threads: int | None = None, device: str = "cpu"
) -> Artifact:
    """Open an artifact as a scorer."""
    return Artifact(path, variant=variant, threads=threads, device=device)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a copied runtime; returns the exit code (2 for bad input)."""
    parser = argparse.ArgumentParser(description="Recommend from the artifact folder that this file lies in.")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("-k", type=int, default=10, help="number of recommendations")
    parser.add_argument("--artifact", default=Path(__file__).resolve().parent, help="another folder")
    parser.add_argument("--threads", type=int, help="threads of one call")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    history = [part.strip() for part in given.history.split(",") if part.strip()]
    try:
        best = Artifact(given.artifact, threads=given.threads).recommend(history, given.k)
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
