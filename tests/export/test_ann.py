"""The variant `ann`: what the index finds is scored exactly, what it misses is measured, lists are whole."""

import dataclasses
import importlib.util
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
from export.ann import INDEX, AnnConfig, default_index, gate_recall, made_up, measure_recall, write_index
from export.artifact import keep_variants, open_artifact, seal
from export.catalogue import write_catalogue
from export.refresh import refresh_items, versions
from export.runtime import Artifact, ArtifactError
from export.stage import ExportConfig, run
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from recommender.stage import Bound
from tests.export.fixtures import (
    MAX_LENGTH,
    MODELS,
    TOP_K,
    left_padded,
    make_artifact,
    reseal,
    tiny_model,
)
from tests.export.test_refresh import present
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from

N = 3000
COARSE = AnnConfig(index="IVF100,Flat", search="nprobe=1")  # looks into one hundredth of the items
NOT_INSTALLED = importlib.util.find_spec("faiss") is None
needs_faiss = pytest.mark.skipif(NOT_INSTALLED, reason="needs recpress[ann] (faiss-cpu)")


@pytest.fixture(scope="module")
def model() -> SequentialRecommender:
    return tiny_model("sasrec", n_items=N)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("many") / "data"
    return prepared_from(folder, cyclic_histories(60, N, 20), N)


@pytest.fixture(scope="module")
def made(model: SequentialRecommender, many: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the index that is chosen for this size; read only."""
    folder = tmp_path_factory.mktemp("ann") / "artifact"
    return make_artifact(model, folder, many, variants=("fast", "ann"))


@pytest.fixture(scope="module")
def make(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same artifact with another index."""

    def make(ann: AnnConfig) -> Path:
        folder = copy(made, tmp_path_factory.mktemp("ann"))
        manifest = read_json(folder / "manifest.json")
        entry = next(entry for entry in manifest["variants"] if entry["name"] == "ann")
        entry["ann"] = write_index(folder / "catalogue-1", ann, n_items=N, top_k=TOP_K)
        seal(folder, manifest)
        return folder

    return make


@pytest.fixture(scope="module")
def coarse(make: Callable[..., Path]) -> Path:
    """With an index that misses most; read only."""
    return make(COARSE)


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "artifact")
    return to / "artifact"


def both(folder: Path) -> tuple[Artifact, Artifact]:
    return Artifact(folder, variant="ann", threads=1), Artifact(folder, variant="fast", threads=1)


def entry_of(folder: Path) -> dict:
    manifest = json.loads((folder / "manifest.json").read_text())
    return next(entry for entry in manifest["variants"] if entry["name"] == "ann")


@needs_faiss
def test_lists_are_mostly_those_of_the_exact_head_and_scored_as_there(made: Path) -> None:
    ann, fast = both(made)
    history = HistoryArrays(left_padded(80, MAX_LENGTH, n_items=N), left_padded(80, 5, seed=1, n_items=N))
    found, exact = ann.top_k(history, TOP_K), fast.top_k(history, TOP_K)
    shared = [len(set(one) & set(other)) / TOP_K for one, other in zip(found.items, exact.items, strict=True)]
    assert np.mean(shared) > 0.97
    np.testing.assert_allclose(found.scores, ann.score(history, found.items), rtol=1e-6)
    np.testing.assert_allclose(found.scores[:, 0], exact.scores[:, 0], rtol=0.05)
    assert (np.diff(found.scores) <= 0).all()


@needs_faiss
def test_the_index_is_a_listed_part_of_the_catalogue(made: Path) -> None:
    manifest, entry = json.loads((made / "manifest.json").read_text()), entry_of(made)
    assert entry["index"] == f"catalogue-1/{INDEX}" and entry["precision"] == "fp32, ann"
    assert set(entry["files"]) >= {entry["index"], "catalogue-1/item_table.npy", entry["head"], entry["body"]}
    for name in entry["files"]:
        assert manifest["files"][name]["size_bytes"] == (made / name).stat().st_size
    assert entry["ann"]["index"] == "PQ8x4fs" and entry["ann"]["candidates"] == 200
    assert manifest["default_variant"] == "fp32"
    verify_artifact(made)


@needs_faiss
def test_the_whole_form_is_kept_and_two_indexes_are_equal_byte_for_byte(make: Callable[..., Path]) -> None:
    config = AnnConfig(index="HNSW16_SQ8", search="efSearch=77", candidates=33)
    one, two = make(config), make(config)
    assert (one / "catalogue-1" / INDEX).read_bytes() == (two / "catalogue-1" / INDEX).read_bytes()
    assert entry_of(one)["ann"]["asked"] == config.model_dump()
    opened = Artifact(one, variant="ann")
    assert opened._index is not None and opened._index._index.hnsw.efSearch == 77
    assert opened._index.nearest(np.ones((2, 16), np.float32), 5).shape == (2, 38)


@needs_faiss
def test_masked_rows_never_come_back_and_lists_stay_whole(coarse: Path) -> None:
    ann, _ = both(coarse)
    history = HistoryArrays(left_padded(6, MAX_LENGTH, n_items=N))
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
    seen = np.tile(np.random.default_rng(0).permutation(np.arange(1, N + 1)), (3, 1))[:, left:]
    seen[1] = 0  # the neighbour in the batch has nothing to mask
    history = HistoryArrays(left_padded(3, MAX_LENGTH, n_items=N), seen)
    found, exact = ann.top_k(history, TOP_K), fast.top_k(history, TOP_K)
    np.testing.assert_array_equal(found.items[[0, 2]], exact.items[[0, 2]])
    np.testing.assert_allclose(found.scores[[0, 2]], exact.scores[[0, 2]], rtol=1e-5)
    assert (found.items[0] == 0).sum() == max(0, TOP_K - left)


@needs_faiss
def test_a_list_that_the_index_cannot_fill_is_the_exact_one(make: Callable[..., Path]) -> None:
    """A cell of 3000 that holds one item or two."""
    ann, fast = both(make(AnnConfig(index="IVF1500,Flat", search="nprobe=1")))
    history = HistoryArrays(left_padded(20, MAX_LENGTH, n_items=N))
    assert (ann._index.nearest(ann.user_vectors(history), 0) == 0).any()
    np.testing.assert_array_equal(ann.top_k(history, TOP_K).items, fast.top_k(history, TOP_K).items)


@needs_faiss
def test_the_exact_head_is_opened_only_when_somebody_needs_it(made: Path) -> None:
    ann = Artifact(made, variant="ann")
    ann.top_k(HistoryArrays(left_padded(4, MAX_LENGTH, n_items=N)), TOP_K)
    assert ann._head is None
    ann.top_k(HistoryArrays(np.array([[3]]), np.arange(1, N)[None]), TOP_K)
    assert ann._head is not None


@needs_faiss
def test_equal_scores_stand_by_row(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path / "data", cyclic_histories(20, N, 9), N)
    folder = make_artifact(
        tiny_model("popularity", n_items=N), tmp_path / "a", prepared, variants=("fast", "ann"),
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
    history = HistoryArrays(left_padded(5, MAX_LENGTH, n_items=N))
    allow = np.tile(np.arange(1, 60), (5, 1))
    found, exact = (each.top_k(history, TOP_K, allow=allow) for each in (ann, fast))
    np.testing.assert_array_equal(found.items, exact.items)


@needs_faiss
def test_batches_threads_and_padding_change_nothing(made: Path) -> None:
    import faiss

    ann = Artifact(made, variant="ann", threads=1)
    items, seen = left_padded(40, MAX_LENGTH, n_items=N), left_padded(40, 6, seed=3, n_items=N)
    together = ann.top_k(HistoryArrays(items, seen), TOP_K)
    before = faiss.omp_get_max_threads()
    two = Artifact(made, variant="ann", threads=2).top_k(HistoryArrays(items, seen), TOP_K)
    assert faiss.omp_get_max_threads() == before  # of whoever else uses faiss in this process
    np.testing.assert_array_equal(together.items, two.items)
    padded = ann.run(np.ascontiguousarray(items), np.ascontiguousarray(seen))
    np.testing.assert_array_equal(together.items, padded.items)
    with ThreadPoolExecutor(4) as pool:
        batches = [HistoryArrays(items[i : i + 10], seen[i : i + 10]) for i in range(0, 40, 10)]
        parts = list(pool.map(lambda batch: ann.top_k(batch, TOP_K).items, batches))
    np.testing.assert_array_equal(together.items, np.concatenate(parts))


@needs_faiss
def test_recall_counts_what_is_missed_and_not_what_is_tied(made: Path, coarse: Path) -> None:
    for folder, low, high in ((made, 0.97, 1.0), (coarse, 0.0, 0.9)):
        ann, fast = both(folder)
        history = made_up(ann)
        found = measure_recall(ann, history, histories="made-up histories")
        assert low <= found["recall"] <= high and found["forbidden_items"] == 0
        assert (found["depth"], found["users"], found["histories"]) == (10, 256, "made-up histories")
        best, exact = ann.top_k(history, 10).items, fast.top_k(history, 10).items
        share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best, exact, strict=True)])
        assert found["recall"] == pytest.approx(share, abs=2e-3)
        assert measure_recall(fast, history, histories="")["recall"] == 1


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, model: SequentialRecommender, many: Prepared) -> Bound:
    folder = tmp_path_factory.mktemp("stages") / "00-student"
    save_checkpoint(model, folder / "checkpoint", prepared=many, model_config=MODELS["sasrec"])
    return Bound("student", "checkpoint", folder / "checkpoint", folder)


def config(**ann: object) -> ExportConfig:
    given = {"of": "student", "as": "onnx", "top_k": TOP_K, "variants": ["ann"], "ann": ann}
    return ExportConfig.model_validate(given | {"parity": {"users": 40, "max_ndcg_change": 1}})


@needs_faiss
def test_the_stage_measures_recall_on_test_histories(student: Bound, many: Prepared, tmp_path: Path) -> None:
    context = dataclasses.replace(context_for(many, tmp_path, max_length=MAX_LENGTH), threads=1)
    metrics = run(config(), {"student": student}, context).metrics
    entry = entry_of(context.folder / "artifact")
    assert entry["recall"] == metrics["variants"]["ann"]["recall"]
    assert entry["recall"]["histories"] == "test histories" and entry["recall"]["users"] == 40
    assert 0.95 <= entry["recall"]["recall"] <= 1 and entry["speedup"]["mean"] > 0
    assert metrics["default_variant"] == "fp32"


@needs_faiss
def test_an_index_that_finds_too_little_fails_the_stage(
    student: Bound, many: Prepared, tmp_path: Path
) -> None:
    context = dataclasses.replace(context_for(many, tmp_path, max_length=MAX_LENGTH), threads=1)
    with pytest.raises(
        GateError, match=r"IVF100,Flat finds 0\.\d+ of the exact 10 best .*>= 0\.95"
    ) as caught:
        run(config(index=COARSE.index, search=COARSE.search), {"student": student}, context)
    assert "ann.candidates" in str(caught.value) and caught.value.exit_code == 1


@needs_faiss
def test_a_recall_of_nothing_passes_only_where_nothing_is_asked(coarse: Path) -> None:
    ann, entry = Artifact(coarse, variant="ann"), entry_of(coarse)
    found = measure_recall(ann, made_up(ann, users=20), histories="made-up histories")
    with pytest.raises(GateError, match="finds"):
        gate_recall(found, entry)
    with pytest.raises(GateError, match="finds nan"):
        gate_recall(found | {"recall": float("nan")}, entry)
    entry["ann"]["asked"]["min_recall"] = 0
    gate_recall(found, entry)
    with pytest.raises(GateError, match="2 items came back that were masked"):
        gate_recall(found | {"forbidden_items": 2.0}, entry)


@needs_faiss
def test_a_refresh_makes_the_index_anew_and_measures_it_again(made: Path, tmp_path: Path) -> None:
    folder = copy(made, tmp_path)
    keep_variants(folder, ["fp32", "fast", "ann"], "fast", {})
    items, vectors = present(folder)
    added = pl.concat([items, pl.DataFrame({"item_id": ["new"]})])
    table = np.concatenate((vectors[::-1], vectors[:1] * 9))
    refresh_items(folder, added, table.astype(np.float32))
    entry = entry_of(folder)
    assert entry["index"] == f"catalogue-2/{INDEX}" and entry["recall"]["histories"] == "made-up histories"
    assert entry["recall"]["recall"] > 0.95
    ann, fast = both(folder)
    assert ann.n_items == N + 1
    history = made_up(ann, users=30)
    shared = [
        len(set(a) & set(b)) / 10
        for a, b in zip(ann.top_k(history, 10).items, fast.top_k(history, 10).items, strict=True)
    ]
    assert np.mean(shared) > 0.95
    assert entry_of(folder / "catalogue-1")["index"] == f"catalogue-1/{INDEX}"
    verify_artifact(folder)


@needs_faiss
def test_a_refresh_that_finds_too_little_changes_nothing(coarse: Path, tmp_path: Path) -> None:
    folder = copy(coarse, tmp_path)
    keep_variants(folder, ["fp32", "fast", "ann"], "fast", {})
    items, vectors = present(folder)
    with pytest.raises(GateError, match=r"ann, 256 made-up histories: .*of the exact 10 best"):
        refresh_items(folder, items, vectors)
    assert versions(folder) == [1] and not (folder / "catalogue-2").exists()


@needs_faiss
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"index": "Nonsense7"}, r"cannot make Nonsense7 of 3,000 vectors of 16 numbers"),
        ({"index": "PQ7x4fs"}, r"cannot make PQ7x4fs"),
        ({"index": "HNSW16", "search": "depth=3"}, r"cannot make HNSW16 with depth=3"),
    ],
)
def test_an_index_that_cannot_be_made_is_named(made: Path, tmp_path: Path, wrong: dict, message: str) -> None:
    folder = copy(made, tmp_path) / "catalogue-1"
    with pytest.raises(InputError, match=message) as caught:
        write_index(folder, AnnConfig(**wrong), n_items=N, top_k=TOP_K)
    assert "index-factory" in str(caught.value)


@needs_faiss
def test_an_index_of_other_vectors_and_a_broken_one_are_refused(made: Path, tmp_path: Path) -> None:
    folder = copy(made, tmp_path)
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
    model: SequentialRecommender, many: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="faiss") as caught:
        make_artifact(model, tmp_path / "artifact", many, variants=("ann",))
    assert "recpress[ann]" in str(caught.value) and not list(tmp_path.iterdir())


@needs_faiss
def test_an_artifact_opened_without_faiss_names_the_extra_and_serves_its_other_variants(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ArtifactError, match=r"pip install faiss-cpu \(or recpress\[ann\]\)"):
        Artifact(made, variant="ann")
    assert Artifact(made, variant="fast").top_k(HistoryArrays(np.array([[3]])), 5).items.all()


def test_the_index_is_chosen_by_size() -> None:
    assert default_index(999, 128) == "SQ8" and default_index(1_000, 128) == "PQ64x4fs"
    assert default_index(1_000_000, 33) == "PQ33x4fs"
    assert runtime.MASKED_PER_SEARCH < N  # the tests above reach it
