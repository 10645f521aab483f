"""What an open artifact is asked: given lists, allowed and denied items, and requests that do not fit."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export import runtime
from export.catalogue import write_catalogue
from export.runtime import Artifact, ArtifactError, Rows, Texts
from recommender.scoring import HistoryArrays
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, TOP_K, left_padded, make_artifact, reseal, tiny_model
from tests.export.test_runtime import change_manifest


@pytest.fixture(scope="module", params=["fp32", "fast"])
def opened(exported: Path, request: pytest.FixtureRequest) -> Artifact:
    return Artifact(exported, variant=request.param, threads=1)


def test_given_items_score_as_in_the_list(opened: Artifact) -> None:
    items = left_padded(9, MAX_LENGTH, seed=4)
    best = opened.top_k(HistoryArrays(items), TOP_K)
    np.testing.assert_allclose(opened.score(HistoryArrays(items), best.items), best.scores, atol=1e-5)
    shuffled = opened.score(HistoryArrays(items), best.items[:, ::-1])
    np.testing.assert_allclose(shuffled[:, ::-1], best.scores, atol=1e-5)
    assert np.isneginf(opened.score(HistoryArrays(items[:1]), np.array([[3, 0]]))[0, 1])


def test_an_allowed_list_gives_the_best_of_it(opened: Artifact) -> None:
    items, seen = left_padded(9, MAX_LENGTH, seed=4), left_padded(9, 4, seed=5)
    everything = opened.top_k(HistoryArrays(items, seen), TOP_K)
    allow = np.tile(np.arange(N_ITEMS + 1), (9, 1))
    found = opened.top_k(HistoryArrays(items, seen), TOP_K, allow=allow)
    np.testing.assert_array_equal(found.items, everything.items)
    few = opened.top_k(HistoryArrays(items, seen), 4, allow=np.array([[7, 7, 0, 9]] * 9))
    for line, banned in zip(few.items, seen, strict=True):
        assert set(line) - {0} == {7, 9} - set(banned)  # each once, none that was seen
        assert (np.diff((line == 0).astype(int)) >= 0).all()


def test_denied_items_never_come_back(opened: Artifact) -> None:
    history = HistoryArrays(np.array([[3, 4]]), np.array([[3]]))
    best = opened.top_k(history, TOP_K).items[0]
    left = opened.top_k(history, TOP_K, deny=best[None, :2]).items[0]
    np.testing.assert_array_equal(left[:-2], best[2:])
    ids = [opened.item_ids[row - 1] for row in best[:2]]
    answer = opened.recommend(["i3", "i4"], 3, deny=ids, mask_seen=False)
    assert not {item["item_id"] for item in answer} & set(ids)
    only = opened.recommend(["i3", "i4"], 3, allow=["i7", "i9", "i3"])
    assert {item["item_id"] for item in only} == {"i7", "i9"}  # i3 was seen
    with pytest.raises(ArtifactError, match="unknown item 'nonsense'"):
        opened.recommend(["i3"], 3, deny=["nonsense"])
    with pytest.raises(ArtifactError, match="1 histories but 2 lines of deny"):
        opened.top_k(history, 3, deny=np.ones((2, 1), np.int64))
    with pytest.raises(ArtifactError, match="1 histories but 2 lines of items to score"):
        opened.score(history, np.ones((2, 1), np.int64))


def test_both_variants_answer_alike_and_as_padded(exported: Path) -> None:
    items, seen = left_padded(60, MAX_LENGTH, seed=8), left_padded(60, 6, seed=9)
    whole, fast = (Artifact(exported, variant=name, threads=1) for name in ("fp32", "fast"))
    padded = whole.run(items, seen)
    for artifact in (whole, fast):
        found = artifact.top_k(HistoryArrays(items, seen), TOP_K)
        np.testing.assert_array_equal(found.items, padded.items)
        np.testing.assert_allclose(found.scores, padded.scores, atol=1e-5)


def test_one_artifact_serves_many_threads(exported: Path) -> None:
    artifact = Artifact(exported, threads=1)
    artifact.warm_up()
    batches = [HistoryArrays(left_padded(5, MAX_LENGTH, seed=seed)) for seed in range(8)]
    alone = [artifact.top_k(batch, 5).items for batch in batches]
    scores = [artifact.score(batch, items) for batch, items in zip(batches, alone, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda batch: artifact.top_k(batch, 5).items, batches))
            assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
            again = list(pool.map(artifact.score, batches, alone))
            assert all(np.array_equal(one, other) for one, other in zip(again, scores, strict=True))


@pytest.mark.parametrize("at_once", [1, 3, 4, 100])
def test_texts_in_turn_are_those_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    ids = ["b", "ä", "", "aa", "日本", "a b", "Z", "ü"]
    frame = pl.DataFrame({"item_id": ids, "title": ids})
    write_catalogue(tmp_path, frame, np.zeros((len(ids) + 1, 2), np.float32))
    monkeypatch.setattr(runtime, "TEXTS_AT_ONCE", at_once)
    texts = Texts(tmp_path, "ids")
    assert list(texts) == [texts[place] for place in range(len(texts))] == ids


def test_ids_are_found_by_bisection_whatever_they_are_made_of(tmp_path: Path) -> None:
    ids = ["b", "ä", "a", "", "aa", "ab", "Z", "10", "9", "日本", "a b"]
    titles = ["x"] * len(ids)
    write_catalogue(tmp_path, pl.DataFrame({"item_id": ids, "title": titles}), np.zeros((12, 2), np.float32))
    texts = Texts(tmp_path, "ids")
    rows = Rows(tmp_path, texts)
    assert list(texts) == ids and texts[-1] == "a b" and texts[1:3] == ["ä", "a"]
    assert dict(rows) == {name: row for row, name in enumerate(ids, start=1)}
    assert "c" not in rows and rows.get("aaa") is None and len(rows) == len(ids)
    with pytest.raises(IndexError):
        texts[len(ids)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[3.7, 4.2]], "items must be whole numbers"),
        ([["3", "4"]], "items must be whole numbers"),
        ([[3], [4, 5]], "items must be"),
        ([[None]], "items must be whole numbers"),
        ([[True]], "items must be whole numbers"),
    ],
)
def test_rows_that_are_no_whole_numbers_are_refused(opened: Artifact, given: object, message: str) -> None:
    for ask in (lambda h: opened.top_k(h, 3), opened.user_vectors, lambda h: opened.run(h.items, h.items)):
        with pytest.raises(ArtifactError, match=message):
            ask(HistoryArrays(given))  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [2.5, "3", None, True])
def test_a_k_that_is_no_whole_number_is_refused(opened: Artifact, k: object) -> None:
    with pytest.raises(ArtifactError, match="k is"):
        opened.recommend(["i3"], k)  # type: ignore[arg-type]


def test_ids_that_are_no_texts_are_unknown(opened: Artifact) -> None:
    assert 3 not in opened.rows
    for given in ([3], [None]):
        with pytest.raises(ArtifactError, match=r"unknown item .* \(ids are texts\)"):
            opened.recommend(given, 3)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="'i3' is one text; give a list"):
        opened.recommend("i3", 3)
    with pytest.raises(ArtifactError, match=r"unknown item 'x2'.*and 2 more"):
        opened.recommend(["x0", "x1", "x2", "x3", "x4"], 3)
    assert opened.recommend(np.array(["i3"]), 3)  # type: ignore[arg-type]


def test_a_raw_call_may_be_no_longer_than_the_model_reads(opened: Artifact) -> None:
    with pytest.raises(ArtifactError, match=f"{MAX_LENGTH + 1} items are longer than the {MAX_LENGTH}"):
        opened.run(np.ones((1, MAX_LENGTH + 1), np.int64), np.zeros((1, 1), np.int64))
    narrow = opened.run(np.ones((1, 3), np.int32), np.zeros((1, 1), np.int32))
    assert narrow.items.shape == (1, TOP_K)


def test_lists_may_be_given_for_arrays(opened: Artifact) -> None:
    found = opened.top_k(HistoryArrays([[3, 4]]), 2, allow=[[7, 9, 8]])  # type: ignore[arg-type]
    assert set(found.items[0]) <= {7, 8, 9}


def test_an_artifact_that_was_exported_again_is_not_mixed_with_the_old_one(folder: Path, prepared) -> None:
    whole = Artifact(folder, variant="fp32")
    before = whole.top_k(HistoryArrays(np.array([[3, 4]])), 5).items
    make_artifact(tiny_model("sasrec-pre"), folder, prepared)
    np.testing.assert_array_equal(whole.top_k(HistoryArrays(np.array([[3, 4]])), 5).items, before)
    assert not whole.is_current()
    with pytest.raises(ArtifactError, match="was replaced since the artifact was opened"):
        whole.score(HistoryArrays(np.array([[3, 4]])), np.array([[5]]))


def test_threads_are_one_or_more(exported: Path) -> None:
    with pytest.raises(ArtifactError, match="threads is -1"):
        Artifact(exported, threads=-1)


def test_a_graph_that_no_digest_covers_is_not_opened(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["variants"][0]["graph"] = "../evil.onnx"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"no digest of \.\./evil\.onnx"):
        Artifact(folder)


@pytest.mark.parametrize("told", [{"folder": "catalogue-1"}, {"version": 2, "folder": "catalogue-1"}])
def test_a_catalogue_is_the_one_of_its_version(folder: Path, told: dict) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    rest = {key: manifest["catalogue"][key] for key in ("items", "width")}
    change_manifest(folder, catalogue=told | rest)
    with pytest.raises(ArtifactError, match="is broken"):
        Artifact(folder)


def test_a_score_that_is_infinite_is_an_error(folder: Path) -> None:
    path = folder / "catalogue-1" / "item_table.npy"
    table = np.load(path)
    table[5] = 3e38
    np.save(path, table)
    reseal(folder)
    artifact = Artifact(folder, variant="fast")
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        artifact.score(HistoryArrays(np.full((1, 4), 5)), np.full((1, 3), 5))
