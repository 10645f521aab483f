import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import runtime
from export.runtime import Artifact, ArtifactError, open_scorer
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
