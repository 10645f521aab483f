import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import numpy_helper

from export import runtime
from export.catalogue import write_catalogue
from export.runtime import Artifact, ArtifactError, Rows, Texts, open_scorer
from recommender.scoring import HistoryArrays
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, TOP_K, left_padded, make_artifact, reseal, tiny_model


@pytest.fixture(scope="module")
def artifact(exported: Path) -> Artifact:
    return Artifact(exported, threads=1)


def test_micro_batches_answer_as_one_user_at_a_time(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, seen = left_padded(50, MAX_LENGTH, seed=1), left_padded(50, 5, seed=2)
    items[7] = 0  # an empty history among the others
    alone = [artifact.top_k(HistoryArrays(items[i : i + 1], seen[i : i + 1]), 10) for i in range(50)]
    for tokens in (1, 30, 1200):
        monkeypatch.setattr(runtime, "TOKENS_PER_CALL", tokens)
        together = artifact.top_k(HistoryArrays(items, seen), 10)
        np.testing.assert_array_equal(together.items, np.concatenate([one.items for one in alone]))
        np.testing.assert_allclose(together.scores, np.concatenate([one.scores for one in alone]), atol=1e-5)


def test_calls_keep_within_the_budget_and_serve_everyone_once(artifact: Artifact) -> None:
    items = left_padded(500, MAX_LENGTH)
    served = []
    for users, width in artifact._calls(items):
        assert len(users) * width <= runtime.TOKENS_PER_CALL
        assert (items[users, : MAX_LENGTH - width] == 0).all()
        assert (items[users, -width:] == 0).sum() <= runtime.PADDING_PER_CALL
        served.extend(users.tolist())
    assert sorted(served) == list(range(500))


def test_a_large_catalogue_bounds_the_batch(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "SCORES_PER_CALL", 3 * (N_ITEMS + 1))
    assert max(len(users) for users, _ in artifact._calls(left_padded(20, 4))) == 3


def test_padding_in_front_changes_nothing(artifact: Artifact) -> None:
    items = left_padded(6, 5)
    wide = np.pad(items, ((0, 0), (30, 0)))
    np.testing.assert_array_equal(
        artifact.top_k(HistoryArrays(items), 5).items, artifact.top_k(HistoryArrays(wide), 5).items
    )


def test_only_the_newest_items_of_a_long_history_are_read_but_all_are_masked(artifact: Artifact) -> None:
    newest = np.arange(8, 8 + MAX_LENGTH)[None]
    short = artifact.top_k(HistoryArrays(newest, newest), TOP_K)
    forgotten = short.items[0, 0]  # the best item, once it is seen, gives way to the next
    long = np.concatenate([np.full((1, 10), forgotten), newest], axis=1)
    best = artifact.top_k(HistoryArrays(long, long), TOP_K)
    np.testing.assert_array_equal(best.items[0, :-1], short.items[0, 1:])
    ids = [f"i{row}" for row in long[0]]
    assert [item["row"] for item in artifact.recommend(ids, TOP_K)] == best.items[0].tolist()


def test_seen_rows_and_row_zero_never_come_back(artifact: Artifact) -> None:
    items = left_padded(20, MAX_LENGTH)
    best = artifact.top_k(HistoryArrays(items, items), TOP_K)
    for line, history in zip(best.items, items, strict=True):
        assert not set(line) & set(history)
        assert len(set(line)) == TOP_K


def test_fewer_items_than_k_are_filled_up_with_row_zero(artifact: Artifact) -> None:
    seen = np.arange(1, N_ITEMS - 1)[None]  # all but two
    best = artifact.top_k(HistoryArrays(np.array([[3]]), seen), 5)
    assert set(best.items[0, :2]) == {N_ITEMS - 1, N_ITEMS}
    assert best.items[0, 2:].tolist() == [0, 0, 0]
    assert np.isneginf(best.scores[0, 2:]).all()
    answer = artifact.recommend(artifact.item_ids[: N_ITEMS - 2], 5)
    assert {item["row"] for item in answer} == {N_ITEMS - 1, N_ITEMS}


def test_ties_stand_in_row_order(tmp_path: Path, prepared) -> None:
    tied = Artifact(make_artifact(tiny_model("popularity"), tmp_path / "popular", prepared))
    best = tied.top_k(HistoryArrays(np.array([[1], [2]])), TOP_K)
    order = np.lexsort((best.items[0], -best.scores[0]))
    assert (np.diff(best.scores[0]) == 0).any()
    np.testing.assert_array_equal(order, np.arange(TOP_K))


def test_recommend_gives_ids_titles_scores_and_rows(artifact: Artifact) -> None:
    answer = artifact.recommend(["i3", "i4"], 4)
    best = artifact.top_k(HistoryArrays(np.array([[3, 4]]), np.array([[3, 4]])), 4)
    assert [item["row"] for item in answer] == best.items[0].tolist()
    np.testing.assert_allclose([item["score"] for item in answer], best.scores[0], atol=1e-6)
    assert [item["item_id"] for item in answer] == [f"i{item['row']}" for item in answer]
    assert [item["title"] for item in answer] == [f"Item i{item['row']}" for item in answer]


def test_recommend_masks_the_history_as_the_artifact_was_evaluated(folder: Path) -> None:
    artifact = Artifact(folder)
    everything = artifact.top_k(HistoryArrays(np.array([[3]])), TOP_K).items[0].tolist()
    masked = artifact.top_k(HistoryArrays(np.array([[3]]), np.array([[3]])), TOP_K).items[0].tolist()
    for mask_seen, expected in ((True, masked), (False, everything)):
        change_manifest(folder, mask_seen=mask_seen)
        assert [item["row"] for item in Artifact(folder).recommend(["i3"], TOP_K)] == expected
        overridden = artifact.recommend(["i3"], TOP_K, mask_seen=mask_seen)
        assert [item["row"] for item in overridden] == expected


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        (["i3", "i4000"], 5, r"unknown item 'i4000' \(did you mean 'i40'\?\)"),
        (["?", "!"], 5, r"unknown item '\?' \(ids look like 'i1'\); unknown item '!'"),
        ([], 5, "the history is empty"),
        (["i3"], 0, "k is 0"),
        (["i3"], TOP_K + 1, f"lists of 1 to {TOP_K}"),
    ],
)
def test_bad_requests_say_what_is_wrong(artifact: Artifact, history: list[str], k: int, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifact.recommend(history, k)


@pytest.mark.parametrize(
    ("items", "seen", "message"),
    [
        ([[1, N_ITEMS + 1]], None, "items: rows 1 to 41, but the catalogue has 1 to 40"),
        ([[-1, 1]], None, "items: rows -1 to 1"),
        ([[1]], [[99]], "seen: rows 99 to 99"),
        ([1, 2], None, "items must be"),
        ([[1], [2]], [[1]], "2 histories but 1 lines of seen"),
    ],
)
def test_rows_outside_of_the_catalogue_are_refused(artifact: Artifact, items, seen, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        artifact.top_k(HistoryArrays(np.array(items), None if seen is None else np.array(seen)), 3)


def test_histories_without_columns_or_users_are_served(artifact: Artifact) -> None:
    assert artifact.top_k(
        HistoryArrays(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64)), 3
    ).items.shape == (2, 3)
    assert artifact.top_k(HistoryArrays(np.zeros((0, 4), np.int64)), 3).items.shape == (0, 3)


@pytest.mark.parametrize(
    "name",
    [
        "catalogue-1/fp32.onnx",
        "catalogue-1/ids.npy",
        "catalogue-1/item_table.npy",
        "catalogue-1/items.parquet",
        "runtime.py",
    ],
)
def test_a_file_that_is_missing_truncated_or_altered_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{name} has {len(content) - 1} bytes instead of {len(content)}"):
        Artifact(folder, verify=False)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{name} was altered"):
        open_scorer(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Artifact(folder, verify=False)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "is no artifact"),
        ("{", "is broken"),
        ("[]", "is broken"),
        ('{"schema_version": 2, "files": {}}', "is broken"),
        (
            '{"schema_version": 1, "files": {}, "variants": [], "default_variant": "a", "mask_seen": true}',
            "schema_version 1",
        ),
    ],
)
def test_a_broken_manifest_is_an_error_of_its_own(folder: Path, manifest: str | None, message: str) -> None:
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ArtifactError, match=message):
        Artifact(folder)


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_files_without_a_digest_or_outside_of_the_folder_are_refused(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files={name: files[name] for name in files if name != "catalogue-1/fp32.onnx"})
    with pytest.raises(ArtifactError, match=r"no digest of catalogue-1/fp32\.onnx"):
        Artifact(folder)
    change_manifest(folder, files=files | {"../secret": files["catalogue-1/fp32.onnx"]})
    with pytest.raises(ArtifactError, match=r"\.\./secret lies outside"):
        Artifact(folder)


def test_an_unknown_variant_or_device_is_named(exported: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no variant 'int8' .* \(it has: fp32, fast\)"):
        open_scorer(exported, variant="int8")
    with pytest.raises(ArtifactError, match="device 'tpu' is unknown"):
        open_scorer(exported, device="tpu")


def test_a_graph_that_onnxruntime_cannot_read_is_an_artifact_error(folder: Path) -> None:
    (folder / "catalogue-1/fp32.onnx").write_bytes(b"not a graph")
    reseal(folder)
    with pytest.raises(ArtifactError, match="cannot open"):
        Artifact(folder)


def test_weights_that_are_not_numbers_are_found_in_the_answer(folder: Path) -> None:
    model = onnx.load(folder / "catalogue-1/fp32.onnx")
    table = next(entry for entry in model.graph.initializer if list(entry.dims) == [N_ITEMS + 1, 16])
    broken = numpy_helper.to_array(table).copy()
    broken[5] = np.nan
    table.CopyFrom(numpy_helper.from_array(broken, table.name))
    onnx.save(model, folder / "catalogue-1/fp32.onnx")
    reseal(folder)
    with pytest.raises(ArtifactError, match="NaN"):
        Artifact(folder).recommend(["i5"], 3)


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
