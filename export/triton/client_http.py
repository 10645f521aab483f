"""Recommend through a Triton server over HTTP; needs Python and numpy.

    python client_http.py --url http://localhost:8000 --history "item-1,item-2" -k 10

A complete client: item ids go in, titles come out. Copy what you need of it.
"""

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
TYPES = {"INT64": np.int64, "FP32": np.float32}
HERE = Path(__file__).resolve().parent


class Catalogue:
    """Item ids and titles by row (1 is the first item), and how requests are padded, from the repository."""

    def __init__(self, repository: Path = HERE, model: str | None = None) -> None:
        manifest = json.loads((repository / "repository.json").read_text(encoding="utf-8"))
        models = {entry["name"]: entry for entry in manifest["models"]}
        if model is not None and model not in models:
            raise SystemExit(f"no model {model!r} in {repository} (it has: {', '.join(models)})")
        self.model: dict[str, Any] = models[model] if model else manifest["models"][0]
        self.mask_seen = bool(manifest["mask_seen"])
        self.step = int(manifest["seen_step"])
        self.ids = _texts(repository / "catalogue", "ids")
        self.titles = _texts(repository / "catalogue", "titles")
        self.rows = {item_id: row for row, item_id in enumerate(self.ids, start=1)}

    def request(self, history: Sequence[str]) -> tuple[Int64, Int64]:
        """Item ids, oldest first, as the two inputs: the newest items with zeros in front, and rows that must
        not come back with zeros behind. Requests of one shape share a call of the server.
        """
        unknown = [item_id for item_id in history if item_id not in self.rows]
        if unknown or not history:
            raise SystemExit(f"unknown items: {', '.join(unknown)}" if unknown else "the history is empty")
        rows = [self.rows[item_id] for item_id in history]
        length = int(self.model["items"])
        items = np.zeros((1, length), np.int64)
        items[0, max(0, length - len(rows)) :] = rows[-length:]
        masked = sorted(set(rows)) if self.mask_seen else []
        places = self.model["seen"] or self.step * max(1, -(-len(masked) // self.step))
        seen = np.zeros((1, places), np.int64)
        seen[0, : len(masked[:places])] = masked[:places]
        return items, seen

    def answer(self, rows: Int64, scores: NDArray[np.float32], k: int) -> list[dict[str, Any]]:
        """The k best of one list, with titles; rows that score -inf (or NaN) are no recommendations."""
        best = zip(rows.reshape(-1)[:k].tolist(), scores.reshape(-1)[:k].tolist(), strict=True)
        return [
            {"item_id": self.ids[row - 1], "title": self.titles[row - 1] or None, "score": score}
            for row, score in best
            if np.isfinite(score)
        ]


def _texts(folder: Path, name: str) -> list[str]:
    starts = np.load(folder / f"{name}.npy").tolist()
    content = (folder / f"{name}.utf8").read_bytes()
    return [content[a:b].decode() for a, b in pairwise(starts)]


def recommend(url: str, catalogue: Catalogue, history: Sequence[str], k: int) -> list[dict[str, Any]]:
    """Ask the server. Raises SystemExit with a text when it does not answer."""
    model = catalogue.model
    inputs = [
        {"name": told["name"], "datatype": told["type"], "shape": list(array.shape), "data": array.tolist()}
        for told, array in zip(model["inputs"], catalogue.request(history), strict=True)
    ]
    address = f"{url.rstrip('/')}/v2/models/{model['name']}/versions/{model['version']}/infer"
    body = json.dumps({"inputs": inputs}).encode()
    asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=10) as response:
            told = json.load(response)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"the server refuses: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise SystemExit(f"no server answers at {url}: {error}") from error
    except (ValueError, http.client.HTTPException) as error:
        raise SystemExit(f"what answers at {url} does not speak HTTP and JSON") from error
    # A score of -inf comes as -Infinity from Triton, as null from others: then it is NaN here.
    outputs = {each["name"]: np.asarray(each["data"], TYPES[each["datatype"]]) for each in told["outputs"]}
    rows, scores = (outputs[each["name"]] for each in model["outputs"])
    return catalogue.answer(rows, scores, k)


def options(about: str, url: str) -> argparse.Namespace:
    """The command line of both clients."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", default=url, help="where the server listens")
    parser.add_argument("--model", help="another model of the repository")
    parser.add_argument("--history", required=True, help="item ids, oldest first, separated by commas")
    parser.add_argument("-k", type=int, default=10, help="number of recommendations")
    return parser.parse_args()


def show(best: Sequence[dict[str, Any]]) -> None:
    """Print a list for people."""
    for place, item in enumerate(best, start=1):
        print(f"{place:>3}  {item['score']:>9.4f}  {item['item_id']}  {item['title'] or ''}".rstrip())


def main() -> int:
    """One request."""
    given = options("Recommend through a Triton server over HTTP.", "http://localhost:8000")
    history = [part.strip() for part in given.history.split(",") if part.strip()]
    show(recommend(given.url, Catalogue(model=given.model), history, given.k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
