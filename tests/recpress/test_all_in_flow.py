"""The built-in recipe all-in on made-up data: depth, width, zeros and bits, and two distillations."""

from pathlib import Path

import pytest
import yaml

from export.runtime import Artifact
from recommender.checkpoint import load_checkpoint, read_info
from recommender.files import read_json
from recommender.models.linears import body_linears
from recommender.models.zeros import is_2_to_4
from recommender.quantization_scheme import read_scheme
from tests.recpress.finished import checkpoint, finished, tiny

pytestmark = pytest.mark.slow  # a whole chain; its parts have tests of their own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run."""
    home = finished(tmp_path_factory.mktemp("all-in"), yaml.safe_dump(tiny("all-in")), cache_of_session)
    return home / "run"


def test_what_comes_out_is_shallow_narrow_sparse_and_on_its_grid(run: Path) -> None:
    folder = checkpoint(run, "small")
    info, scheme = read_info(folder), read_scheme(folder)
    assert info.blocks == {"user": 4} and info.quantized == "int8-dynamic"
    assert scheme is not None and scheme.item_table == "int8"
    linears = body_linears(load_checkpoint(folder).bodies()["user"])
    assert all(is_2_to_4(linear.matrix()) for linear in linears.values())
    assert linears["0.mlp.up_proj"].matrix().shape[0] < 64 and len(linears) == len(scheme.matrices)


def test_both_artifacts_answer_alike_and_one_is_small(run: Path) -> None:
    small, tiny = (run / "artifacts" / name for name in ("small-onnx", "tiny-onnx"))
    history = list(Artifact(small).item_ids)[:3]
    wanted = Artifact(small, variant="quantized").recommend(history, 5)
    assert Artifact(tiny).recommend(history, 5) == wanted
    assert not list(tiny.rglob("item_table.npy")) and not list(tiny.rglob("fp32.onnx"))
    size = {folder: sum(path.stat().st_size for path in folder.rglob("*.onnx")) for folder in (small, tiny)}
    assert size[tiny] < size[small] / 2


def test_the_report_tells_what_every_link_costs(run: Path) -> None:
    report = read_json(run / "report.json")
    names = [each["name"] for each in report["candidates"]]
    assert names[:6] == ["teacher", "narrow", "student", "sparse", "bits", "small"]
    assert {"small-onnx:quantized", "tiny-onnx"} <= set(names)
    by_name = {each["name"]: each for each in report["candidates"]}
    assert by_name["tiny-onnx"]["size_bytes"] == by_name["small-onnx:quantized"]["size_bytes"]
    assert by_name["tiny-onnx"]["quality"]["ndcg@10"] == by_name["small-onnx:quantized"]["quality"]["ndcg@10"]
