"""Artifacts of checkpoints whose item table is quantized, too: what is on the disk, what is answered."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.quantization.apply import round_table
from export.catalogue import padded_rows
from export.refresh import refresh_items, restore
from export.runtime import Artifact
from export.stage import run
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.cost import CostFormulas
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.quantization_scheme import ITEM_TABLE, Quantization, TableBits
from recommender.scoring import HistoryArrays
from recommender.stage import Bound
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, left_padded
from tests.export.test_quantized_body import quantized_model
from tests.export.test_quantized_stage import _context, config_for, entries_of
from tests.export.test_refresh import present

pytestmark = pytest.mark.slow

HEADER = 128  # of a .npy file
OWN = {"catalogue-1/item_table.recorded.npy", "catalogue-1/item_table.recorded.scales.npy"}


def exported(prepared: Prepared, folder: Path, bits: TableBits, **values: Any) -> Path:
    """The artifact of a SASRec with matrices in 4 bits and an item table in `bits`."""
    model, found = quantized_model("sasrec", "int4-16")
    scales = {**found.scales, ITEM_TABLE: round_table(model, bits).numpy()}
    scheme = found.scheme.model_copy(update={"item_table": bits})
    place = folder / "small" / "checkpoint"
    save_checkpoint(
        model, place, prepared=prepared, model_config=MODELS["sasrec"],
        quantization=Quantization(scheme, scales),
    )  # fmt: skip
    context = _context(prepared, folder)
    run(config_for(**values), {"small": Bound("small", "checkpoint", place, place.parent)}, context)
    return context.folder / "artifact"


@pytest.fixture(scope="module")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with the variant quantized alone; read only."""
    return exported(prepared, tmp_path_factory.mktemp("alone"), "int4", only="quantized")


@pytest.fixture
def copied(alone: Path, tmp_path: Path) -> Path:
    shutil.copytree(alone, tmp_path / "artifact")
    return tmp_path / "artifact"


def test_the_variant_quantized_has_a_table_of_its_own_and_answers_as_the_model(
    prepared: Prepared, tmp_path: Path
) -> None:
    folder, history = (
        exported(prepared, tmp_path, "int8", variants=["quantized"]),
        left_padded(20, MAX_LENGTH),
    )
    entry = entries_of(folder)["quantized"]
    assert set(entry["files"]) == {"body-quantized.onnx", "catalogue-1/head-recorded.onnx", *OWN}
    assert entry["table"]["bits"] == "int8" and entry["precision"] == "body quantized, items int8"
    wanted, found = (Artifact(folder, variant=name, threads=1) for name in ("fp32", "quantized"))
    assert np.array_equal(np.asarray(found.table), wanted.table)
    expected, lists = (each.top_k(HistoryArrays(history), 10) for each in (wanted, found))
    assert np.array_equal(lists.items, expected.items)
    assert np.allclose(lists.scores, expected.scores, atol=1e-5)
    rows = np.tile(np.arange(1, 9), (20, 1))
    asked = HistoryArrays(history)
    assert np.allclose(found.score(asked, rows), wanted.score(asked, rows), atol=1e-5)
    cost = CostFormulas.model_validate(entry["cost"])
    sizes = read_json(folder / "manifest.json")["files"]
    whole = sum(sizes[name]["size_bytes"] - HEADER for name in OWN)
    assert cost.parts["scoring"].bytes["row"] == whole / padded_rows(N_ITEMS)
    assert (cost.precision, cost.table_precision) == ("fp32", "int8")
    items, vectors = present(folder)  # float32, on the grid: nothing is rounded a second time
    refresh_items(folder, items, vectors)
    again = Artifact(folder, variant="quantized", threads=1)
    assert np.array_equal(np.asarray(again.table), wanted.table)
    assert np.array_equal(again.top_k(asked, 10).items, expected.items)
    assert entries_of(folder)["quantized"]["agreement"]["recall"] == 1


def test_an_artifact_of_it_alone_holds_nothing_in_float32_that_is_large(alone: Path) -> None:
    manifest = read_json(alone / "manifest.json")
    assert [entry["name"] for entry in manifest["variants"]] == ["quantized"]
    assert manifest["default_variant"] == "quantized" and manifest["body"] == "body-quantized.onnx"
    assert "fp32" in manifest["dropped"]
    there = {path.relative_to(alone).as_posix() for path in alone.rglob("*") if path.is_file()}
    assert there > OWN
    assert not there & {"body.onnx", "body-fast.onnx", "catalogue-1/fp32.onnx", "catalogue-1/item_table.npy"}
    found = verify_artifact(alone)
    assert found.unlisted == () and found.requests > 1
    assert read_json(alone / "catalogue-1" / "golden.json")["variant"] == "quantized"


def test_its_copied_runtime_answers(alone: Path) -> None:
    command = [sys.executable, str(alone / "runtime.py"), "--history", "i3,i4", "-k", "5", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    wanted = Artifact(alone).recommend(["i3", "i4"], 5)
    assert [item["item_id"] for item in told["recommendations"]] == [item["item_id"] for item in wanted]


def test_its_catalogue_can_be_swapped_and_put_back(copied: Path) -> None:
    items, vectors = present(copied)
    before = Artifact(copied).recommend(["i3"], 5)
    told = refresh_items(copied, items, vectors)
    assert (told.version, told.changed) == (2, 0)
    assert Artifact(copied).recommend(["i3"], 5) == before
    assert (copied / "catalogue-2" / "item_table.recorded.npy").read_bytes() == (
        copied / "catalogue-1" / "item_table.recorded.npy"
    ).read_bytes()
    vectors[6] *= -1.7
    assert refresh_items(copied, items, vectors).changed == 1
    assert not (copied / "catalogue-3" / "item_table.npy").exists()
    table = Artifact(copied).table
    assert np.abs(table[7:8] - vectors[6]).max() < np.abs(vectors[6]).max() / 7
    verify_artifact(copied)
    restore(copied, 1)
    assert Artifact(copied).recommend(["i3"], 5) == before


def test_vectors_that_its_bits_cannot_tell_apart_are_refused(copied: Path) -> None:
    items, vectors = present(copied)
    near = np.abs(vectors[:1]) + 1e-3 * np.random.default_rng(0).normal(size=vectors.shape)
    with pytest.raises(GateError, match=r"vectors rounded to int4 hold 0\.\d+ of the exact 10 best"):
        refresh_items(copied, items, near.astype(np.float32))
    assert Artifact(copied).version == 1 and not (copied / "catalogue-2").exists()


def test_a_broken_table_is_named(copied: Path) -> None:
    path = copied / "catalogue-1" / "item_table.recorded.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match=r"item_table\.recorded\.npy was altered"):
        verify_artifact(copied)


def test_a_float32_item_table_stays_where_the_scheme_has_none(prepared: Prepared, tmp_path: Path) -> None:
    from tests.export.test_quantized_stage import export

    folder, _ = export("int4-16", prepared, tmp_path, only="quantized")
    assert (folder / "catalogue-1" / "item_table.npy").is_file() and not (folder / "body.onnx").exists()
    verify_artifact(folder)
    items, vectors = present(folder)
    refresh_items(folder, items, vectors * 2)
    assert np.array_equal(Artifact(folder).table[1:], vectors * 2)


def test_only_and_variants_exclude_one_another_and_a_plain_checkpoint_is_refused(
    prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="only: quantized keeps no other variant: leave variants out"):
        config_for(only="quantized", variants=["fast"])
    from tests.export.test_quantized_stage import export

    with pytest.raises(InputError, match="is not quantized, and quantized holds what a checkpoint records"):
        export(None, prepared, tmp_path, only="quantized")
