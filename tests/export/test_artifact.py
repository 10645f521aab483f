import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from export import runtime
from export.artifact import Origin, keep_variants, open_artifact, seal, write_artifact
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import sha256_file
from recommender.models.interface import SequentialRecommender
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, TOP_K, make_artifact, tiny_model

CATALOGUE = (
    "fp32.onnx items.parquet item_table.npy golden.json manifest.json head-exact.onnx "
    "ids.utf8 ids.npy ids.order.npy titles.utf8 titles.npy"
)
FILES = {f"catalogue-1/{name}" for name in CATALOGUE.split()} | {
    "runtime.py",
    "manifest.json",
    "body.onnx",
    "body-fast.onnx",
}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_an_artifact_holds_these_files_and_digests_of_all_but_the_manifest(exported: Path) -> None:
    found = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert found == FILES
    listed = manifest(exported)["files"]
    assert set(listed) == {name for name in FILES if not name.endswith("manifest.json")}
    for name, entry in listed.items():
        assert entry == {
            "size_bytes": (exported / name).stat().st_size,
            "sha256": sha256_file(exported / name),
        }


def test_the_manifest_says_what_it_is_and_where_it_comes_from(exported: Path, prepared: Prepared) -> None:
    said = manifest(exported)
    assert said["schema_version"] == 2 and said["name"] == "tiny-onnx"
    assert said["parents"] == {"tiny": "0" * 64} and said["recipe"] == {"name": "test"}
    assert said["data"]["catalogue_digest"] == prepared.catalogue_digest
    assert {"python", "torch", "onnx", "onnxruntime", "numpy"} <= set(said["versions"])
    assert said["machine"]["onnx"]["ir_version"] == onnx.load(exported / "catalogue-1/fp32.onnx").ir_version
    variant, fast = said["variants"]
    assert said["default_variant"] == variant["name"] == "fp32"
    assert fast["name"] == "fast" and fast["top_k"] == TOP_K
    assert fast["files"] == ["body-fast.onnx", "catalogue-1/head-exact.onnx", "catalogue-1/item_table.npy"]
    assert (variant["opset"], variant["top_k"], variant["max_length"]) == (23, TOP_K, MAX_LENGTH)
    assert variant["precision"] == "fp32" and list(variant["inputs"]) == ["items", "seen"]


def test_the_runtime_is_a_verbatim_copy(exported: Path) -> None:
    assert (exported / "runtime.py").read_bytes() == Path(runtime.__file__).read_bytes()


def test_items_stand_by_row_in_all_forms(exported: Path, sasrec: SequentialRecommender) -> None:
    table = pl.read_parquet(exported / "catalogue-1/items.parquet")
    opened = open_artifact(exported)
    assert table["row"].to_list() == list(range(1, N_ITEMS + 1))
    assert table["item_id"].to_list() == list(opened.item_ids)
    assert table["title"].to_list() == list(opened.titles)
    assert [opened.rows[name] for name in opened.item_ids] == list(range(1, N_ITEMS + 1))
    vectors = np.load(exported / "catalogue-1/item_table.npy", allow_pickle=False)
    assert vectors.dtype == np.float32 and not vectors[N_ITEMS + 1 :].any()
    np.testing.assert_array_equal(vectors[: N_ITEMS + 1], sasrec.item_table().detach().numpy())


def test_a_catalogue_without_titles_is_served_without_titles(prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.path, tmp_path / "bare")
    prepared.catalogue.drop("title").write_parquet(tmp_path / "bare" / "items.parquet")
    folder = make_artifact(tiny_model("popularity"), tmp_path / "artifact", Prepared(tmp_path / "bare"))
    assert {item["title"] for item in open_artifact(folder).recommend(["i1"], 3)} == {None}


def test_golden_requests_are_made_up_and_answered(exported: Path, prepared: Prepared) -> None:
    golden = json.loads((exported / "catalogue-1/golden.json").read_text())
    histories = {tuple(f"i{row}" for row in prepared.history(user)) for user in range(prepared.n_users)}
    assert {len(request["history"]) for request in golden["requests"]} >= {1, MAX_LENGTH}
    for request in golden["requests"]:
        assert len(request["items"]) == len(request["scores"]) == TOP_K
        assert len(request["history"]) == 1 or tuple(request["history"]) not in histories


def test_two_exports_of_one_model_are_equal_byte_for_byte(prepared: Prepared, tmp_path: Path) -> None:
    one, two = (
        manifest(make_artifact(tiny_model("popularity"), tmp_path / name / "a", prepared))["files"]
        for name in "xy"
    )
    assert one == two


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(prepared: Prepared, tmp_path: Path) -> None:
    folder = make_artifact(tiny_model("popularity"), tmp_path / "artifact", prepared)
    before = manifest(folder)
    origin = Origin(name="again", parents={}, recipe={})
    with pytest.raises(InputError, match="top_k is 99"):
        write_artifact(tiny_model("popularity"), folder, prepared=prepared, origin=origin, top_k=99, opset=23)
    assert manifest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_stray_file_is_not_sealed_and_may_come_and_go(folder: Path) -> None:
    strays = [folder / "serve.log", folder / ".manifest.json.77.tmp", folder / "catalogue-1" / "notes.txt"]
    for stray in strays:
        stray.write_text("a")
    seal(folder, manifest(folder))
    assert set(manifest(folder)["files"]) == {name for name in FILES if not name.endswith("manifest.json")}
    for stray in strays:
        stray.unlink()
    assert open_artifact(folder).n_items == N_ITEMS


def test_a_file_that_is_named_and_not_there_is_not_sealed_over(folder: Path) -> None:
    (folder / "catalogue-1" / "head-exact.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"head-exact\.onnx"):
        seal(folder, manifest(folder))


def test_card_md_may_come_later(folder: Path) -> None:
    (folder / "card.md").write_text("measured numbers")
    assert open_artifact(folder).n_items == N_ITEMS


@pytest.mark.parametrize("fault", ["truncated", "altered", "missing", "absent"])
def test_a_broken_artifact_is_an_input_error(folder: Path, fault: str) -> None:
    path = folder / "catalogue-1/fp32.onnx"
    content = path.read_bytes()
    match fault:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "altered":
            path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "missing":
            path.unlink()
        case "absent":
            folder = folder / "nowhere"
    with pytest.raises(InputError, match=r"fp32\.onnx|no artifact") as caught:
        open_artifact(folder)
    assert caught.value.exit_code == 2


def test_a_file_is_digested_once_in_an_export_however_often_it_is_sealed(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("export.artifact.sha256_file", counted)
    folder = make_artifact(tiny_model("sasrec"), tmp_path / "artifact", prepared)
    keep_variants(folder, ["fp32", "fast"], "fast", {})
    assert {name for name in read if read.count(name) > 1} == {"golden.json"}  # of another default variant
    open_artifact(folder)  # compares every digest
    assert {path.name for path in folder.rglob("*") if path.is_file()} - {"manifest.json"} == set(read)
