"""The variant `ann`: what the index finds is scored exactly, what it misses is measured, lists are whole."""

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export import runtime
from export.ann import INDEX, AnnConfig, default_index, made_up, measure_recall, write_index
from export.artifact import open_artifact
from export.catalogue import write_catalogue
from export.runtime import Artifact, ArtifactError
from export.verify import verify_artifact
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from tests.export.ann_fixtures import MANY, both, copy, entry_of, needs_faiss
from tests.export.fixtures import (
    MAX_LENGTH,
    TOP_K,
    left_padded,
    make_artifact,
    reseal,
    tiny_model,
)
from tests.recommender.fixtures import cyclic_histories, prepared_from


@needs_faiss
def test_lists_are_mostly_those_of_the_exact_head_and_scored_as_there(indexed: Path) -> None:
    ann, fast = both(indexed)
    history = HistoryArrays(
        left_padded(80, MAX_LENGTH, n_items=MANY), left_padded(80, 5, seed=1, n_items=MANY)
    )
    found, exact = ann.top_k(history, TOP_K), fast.top_k(history, TOP_K)
    shared = [len(set(one) & set(other)) / TOP_K for one, other in zip(found.items, exact.items, strict=True)]
    assert np.mean(shared) > 0.97
    np.testing.assert_allclose(found.scores, ann.score(history, found.items), rtol=1e-6)
    np.testing.assert_allclose(found.scores[:, 0], exact.scores[:, 0], rtol=0.05)
    assert (np.diff(found.scores) <= 0).all()


@needs_faiss
def test_the_index_is_a_listed_part_of_the_catalogue(indexed: Path) -> None:
    manifest, entry = json.loads((indexed / "manifest.json").read_text()), entry_of(indexed)
    assert entry["index"] == f"catalogue-1/{INDEX}" and entry["precision"] == "fp32, ann"
    assert set(entry["files"]) >= {entry["index"], "catalogue-1/item_table.npy", entry["head"], entry["body"]}
    for name in entry["files"]:
        assert manifest["files"][name]["size_bytes"] == (indexed / name).stat().st_size
    assert entry["ann"]["index"] == "PQ8x4fs" and entry["ann"]["candidates"] == 200
    assert manifest["default_variant"] == "fp32"
    verify_artifact(indexed)


@needs_faiss
def test_the_whole_form_is_kept_and_two_indexes_are_equal_byte_for_byte(
    indexed_by: Callable[[AnnConfig], Path],
) -> None:
    config = AnnConfig(index="HNSW16_SQ8", search="efSearch=77", candidates=33)
    one, two = indexed_by(config), indexed_by(config)
    assert (one / "catalogue-1" / INDEX).read_bytes() == (two / "catalogue-1" / INDEX).read_bytes()
    assert entry_of(one)["ann"]["asked"] == config.model_dump()
    opened = Artifact(one, variant="ann")
    assert opened._index is not None and opened._index._index.hnsw.efSearch == 77
    assert opened._index.nearest(np.ones((2, 16), np.float32), 5).shape == (2, 38)


@needs_faiss
def test_masked_rows_never_come_back_and_lists_stay_whole(coarse: Path) -> None:
    ann, _ = both(coarse)
    history = HistoryArrays(left_padded(6, MAX_LENGTH, n_items=MANY))
    denied = ann.top_k(history, TOP_K).items
    for _ in range(12):  # deny whatever came back, again and again
        best = ann.top_k(history, TOP_K, deny=denied)
        for line, banned in zip(best.items, denied, strict=True):
            assert len(set(line)) == TOP_K and not set(line) & {0, *banned}
        denied = np.concatenate((denied, best.items), axis=1)


@needs_faiss
@pytest.mark.parametrize("left", [4, 1500])
def test_whoever_has_much_to_mask_is_scored_in_full(coarse: Path, left: int) -> None:
    ann, fast = both(coarse)
    seen = np.tile(np.random.default_rng(0).permutation(np.arange(1, MANY + 1)), (3, 1))[:, left:]
    seen[1] = 0  # the neighbour in the batch has nothing to mask
    history = HistoryArrays(left_padded(3, MAX_LENGTH, n_items=MANY), seen)
    found, exact = ann.top_k(history, TOP_K), fast.top_k(history, TOP_K)
    np.testing.assert_array_equal(found.items[[0, 2]], exact.items[[0, 2]])
    np.testing.assert_allclose(found.scores[[0, 2]], exact.scores[[0, 2]], rtol=1e-5)
    assert (found.items[0] == 0).sum() == max(0, TOP_K - left)


@needs_faiss
def test_a_list_that_the_index_cannot_fill_is_the_exact_one(indexed_by: Callable[[AnnConfig], Path]) -> None:
    """A cell of 3000 that holds one item or two."""
    ann, fast = both(indexed_by(AnnConfig(index="IVF1500,Flat", search="nprobe=1")))
    history = HistoryArrays(left_padded(20, MAX_LENGTH, n_items=MANY))
    assert (ann._index.nearest(ann.user_vectors(history), 0) == 0).any()
    np.testing.assert_array_equal(ann.top_k(history, TOP_K).items, fast.top_k(history, TOP_K).items)


@needs_faiss
def test_the_exact_head_is_opened_only_when_somebody_needs_it(indexed: Path) -> None:
    ann = Artifact(indexed, variant="ann")
    ann.top_k(HistoryArrays(left_padded(4, MAX_LENGTH, n_items=MANY)), TOP_K)
    assert ann._head is None
    ann.top_k(HistoryArrays(np.array([[3]]), np.arange(1, MANY)[None]), TOP_K)
    assert ann._head is not None


@needs_faiss
def test_equal_scores_stand_by_row(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path / "data", cyclic_histories(20, MANY, 9), MANY)
    folder = make_artifact(
        tiny_model("popularity", n_items=MANY), tmp_path / "a", prepared, variants=("fast", "ann"),
        ann=AnnConfig(index="Flat"),
    )  # fmt: skip
    ann, fast = both(folder)
    history = HistoryArrays(np.array([[1], [2]]), np.array([[5], [0]]))
    found = ann.top_k(history, TOP_K)
    np.testing.assert_array_equal(found.items, fast.top_k(history, TOP_K).items)
    assert (np.diff(found.scores[0]) == 0).any()


@needs_faiss
def test_an_allowed_list_does_not_ask_the_index(coarse: Path) -> None:
    ann, fast = both(coarse)
    history = HistoryArrays(left_padded(5, MAX_LENGTH, n_items=MANY))
    allow = np.tile(np.arange(1, 60), (5, 1))
    found, exact = (each.top_k(history, TOP_K, allow=allow) for each in (ann, fast))
    np.testing.assert_array_equal(found.items, exact.items)


@needs_faiss
def test_batches_threads_and_padding_change_nothing(indexed: Path) -> None:
    import faiss

    ann = Artifact(indexed, variant="ann", threads=1)
    items, seen = left_padded(40, MAX_LENGTH, n_items=MANY), left_padded(40, 6, seed=3, n_items=MANY)
    together = ann.top_k(HistoryArrays(items, seen), TOP_K)
    before = faiss.omp_get_max_threads()
    two = Artifact(indexed, variant="ann", threads=2).top_k(HistoryArrays(items, seen), TOP_K)
    assert faiss.omp_get_max_threads() == before  # of whoever else uses faiss in this process
    np.testing.assert_array_equal(together.items, two.items)
    padded = ann.run(np.ascontiguousarray(items), np.ascontiguousarray(seen))
    np.testing.assert_array_equal(together.items, padded.items)
    with ThreadPoolExecutor(4) as pool:
        batches = [HistoryArrays(items[i : i + 10], seen[i : i + 10]) for i in range(0, 40, 10)]
        parts = list(pool.map(lambda batch: ann.top_k(batch, TOP_K).items, batches))
    np.testing.assert_array_equal(together.items, np.concatenate(parts))


@needs_faiss
def test_recall_counts_what_is_missed_and_not_what_is_tied(indexed: Path, coarse: Path) -> None:
    for folder, low, high in ((indexed, 0.97, 1.0), (coarse, 0.0, 0.9)):
        ann, fast = both(folder)
        history = made_up(ann)
        found = measure_recall(ann, history, histories="made-up histories")
        assert low <= found["recall"] <= high and found["forbidden_items"] == 0
        assert (found["depth"], found["users"], found["histories"]) == (10, 256, "made-up histories")
        best, exact = ann.top_k(history, 10).items, fast.top_k(history, 10).items
        share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best, exact, strict=True)])
        assert found["recall"] == pytest.approx(share, abs=2e-3)
        assert measure_recall(fast, history, histories="")["recall"] == 1


@needs_faiss
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"index": "Nonsense7"}, r"cannot make Nonsense7 of 3,000 vectors of 16 numbers"),
        ({"index": "PQ7x4fs"}, r"cannot make PQ7x4fs"),
        ({"index": "HNSW16", "search": "depth=3"}, r"cannot make HNSW16 with depth=3"),
    ],
)
def test_an_index_that_cannot_be_made_is_named(
    indexed: Path, tmp_path: Path, wrong: dict, message: str
) -> None:
    folder = copy(indexed, tmp_path) / "catalogue-1"
    with pytest.raises(InputError, match=message) as caught:
        write_index(folder, AnnConfig(**wrong), n_items=MANY, top_k=TOP_K)
    assert "index-factory" in str(caught.value)


@needs_faiss
def test_an_index_of_other_vectors_and_a_broken_one_are_refused(indexed: Path, tmp_path: Path) -> None:
    folder = copy(indexed, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    ids = pl.DataFrame({"item_id": [str(i) for i in range(50)]})
    write_catalogue(other, ids, np.random.default_rng(0).normal(size=(51, 16)).astype(np.float32))
    write_index(other, AnnConfig(), n_items=50, top_k=5)
    shutil.copyfile(other / INDEX, folder / "catalogue-1" / INDEX)
    with pytest.raises(InputError, match=r"ann\.faiss has"):
        open_artifact(folder, variant="ann")
    reseal(folder)
    with pytest.raises(ArtifactError, match="holds 50 vectors of 16, not 3000 of 16"):
        Artifact(folder, variant="ann")
    (folder / "catalogue-1" / INDEX).write_bytes(b"no index")
    reseal(folder)
    with pytest.raises(ArtifactError, match="cannot open"):
        Artifact(folder, variant="ann")


def test_an_export_without_faiss_names_the_extra_and_leaves_nothing(
    large_model: SequentialRecommender, many_items: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="faiss") as caught:
        make_artifact(large_model, tmp_path / "artifact", many_items, variants=("ann",))
    assert "recpress[ann]" in str(caught.value) and not list(tmp_path.iterdir())


@needs_faiss
def test_an_artifact_opened_without_faiss_names_the_extra_and_serves_its_other_variants(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ArtifactError, match=r"pip install faiss-cpu \(or recpress\[ann\]\)"):
        Artifact(indexed, variant="ann")
    assert Artifact(indexed, variant="fast").top_k(HistoryArrays(np.array([[3]])), 5).items.all()


def test_the_index_is_chosen_by_size() -> None:
    assert default_index(999, 128) == "SQ8" and default_index(1_000, 128) == "PQ64x4fs"
    assert default_index(1_000_000, 33) == "PQ33x4fs"
    assert runtime.MASKED_PER_SEARCH < MANY  # the tests above reach it
