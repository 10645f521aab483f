"""The built-in recipes of quantization and width on made-up data, from the teacher to the report.

`all-in` and `slmrec-2to4` have files of their own (test_all_in_flow, test_sparse_flow).
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.runtime import Artifact
from recommender.checkpoint import load_checkpoint, read_info
from recommender.files import read_json
from recommender.models.linears import body_linears
from recommender.quantization_scheme import read_scheme
from tests.recpress.finished import checkpoint, finished, tiny

pytestmark = pytest.mark.slow  # whole chains; their parts have tests of their own


def ran(name: str, factory: pytest.TempPathFactory, cache: Path, **mended: Any) -> Path:
    """The folder of a finished run; `mended` replaces settings of the stage of that name."""
    recipe = tiny(name)
    for stage in recipe["stages"]:
        if stage.get("as") == "mended":
            stage |= mended
    return finished(factory.mktemp(name), yaml.safe_dump(recipe), cache) / "run"


def variants(run: Path, name: str) -> set[str]:
    """Of an artifact."""
    return {each["name"] for each in read_json(run / "artifacts" / name / "manifest.json")["variants"]}


def candidates(run: Path) -> dict[str, Any]:
    """Of a report, by name."""
    return {each["name"]: each for each in read_json(run / "report.json")["candidates"]}


class TestInt8:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
        return ran("slmrec-int8", tmp_path_factory, cache_of_session, batch_size=16, learning_rate=0.01)

    def test_every_checkpoint_is_in_the_bits_that_the_recipe_says(self, run: Path) -> None:
        small, small_tiny, mended = (checkpoint(run, name) for name in ("small", "tiny", "mended"))
        assert read_info(checkpoint(run, "student")).quantized is None
        assert read_info(small).quantized == "int8-dynamic"
        scheme = read_scheme(small_tiny)
        assert scheme is not None and (scheme.method, scheme.item_table) == ("gptq", "int8")
        assert {each.weights for each in scheme.matrices.values()} == {"int4"}
        after = read_scheme(mended)
        assert after is not None and after.item_table == "int8"
        assert after.matrices.keys() == scheme.matrices.keys()

    def test_training_through_the_rounding_moves_weights_and_stays_on_few_levels(self, run: Path) -> None:
        before, after = (
            body_linears(load_checkpoint(checkpoint(run, name)).bodies()["user"])
            for name in ("tiny", "mended")
        )
        moved = {
            name: float((each.matrix() - after[name].matrix()).abs().max()) for name, each in before.items()
        }
        assert min(moved.values()) > 1e-3  # more than scales that are found anew
        scheme = read_scheme(checkpoint(run, "mended"))
        assert scheme is not None
        for name, each in after.items():
            group = scheme.matrices[name].group
            assert group is not None
            parts = [part for row in each.matrix() for part in row.split(group)]
            assert max(len(part.unique()) for part in parts) <= 16

    def test_artifacts_hold_what_was_recorded_and_the_report_has_all_of_it(self, run: Path) -> None:
        assert variants(run, "student-onnx") >= {"fp32", "fast"}
        assert variants(run, "small-onnx") >= {"fp32", "fast", "quantized"}
        assert variants(run, "mended-onnx") >= {"fp32", "fast", "quantized", "qdq"}
        found = candidates(run)
        assert {"teacher", "student", "small", "tiny", "mended", "mended-onnx:quantized"} <= found.keys()
        quality = {name: found[name]["quality"]["ndcg@10"] for name in ("mended", "mended-onnx:quantized")}
        assert quality["mended-onnx:quantized"] == pytest.approx(quality["mended"], abs=0.02)
        assert all("failed" not in each for each in found.values())


class TestWidth:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
        return ran("slmrec-width", tmp_path_factory, cache_of_session)

    def test_what_comes_out_has_half_the_depth_and_half_the_width(self, run: Path) -> None:
        pruned, narrow, student = (
            read_info(checkpoint(run, name)) for name in ("pruned", "narrow", "student")
        )
        assert [each.blocks["user"] for each in (pruned, narrow, student)] == [4, 4, 4]
        assert narrow.body_parameters == student.body_parameters < 0.6 * pruned.body_parameters
        matrices = body_linears(load_checkpoint(checkpoint(run, "student")).bodies()["user"])
        assert matrices["0.mlp.up_proj"].matrix().shape == (24, 16)
        assert matrices["0.self_attn.q_proj"].matrix().shape == (8, 16)

    def test_the_artifact_answers_and_the_report_has_all_of_it(self, run: Path) -> None:
        artifact = Artifact(run / "artifacts/student-onnx")
        assert len(artifact.recommend(list(artifact.item_ids)[:3], 5)) == 5
        found = candidates(run)
        assert {"teacher", "pruned", "narrow", "student", "student-onnx"} <= found.keys()
        assert all("failed" not in each for each in found.values())

    def test_the_control_is_the_same_training_without_the_cut(self, run: Path) -> None:
        found = candidates(run / "variants/wide")
        assert found["student"]["body_parameters"] == found["pruned"]["body_parameters"]


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'recpress[quantize]'",
)
class TestNf4:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
        return ran("slmrec-nf4", tmp_path_factory, cache_of_session)

    def test_every_format_is_recorded_and_rounds_the_weights(self, run: Path) -> None:
        student = body_linears(load_checkpoint(checkpoint(run, "student")).bodies()["user"])
        for name in ("nf4", "llm-int8", "int4"):
            folder = checkpoint(run, name)
            assert read_info(folder).quantized == name
            rounded = body_linears(load_checkpoint(folder).bodies()["user"])
            for matrix, each in rounded.items():
                error = (each.matrix() - student[matrix].matrix()).norm() / student[matrix].matrix().norm()
                assert 0 < error < 0.5

    def test_the_artifact_ranks_as_the_checkpoint_and_the_report_has_all_of_it(self, run: Path) -> None:
        assert variants(run, "nf4-onnx") >= {"fp32", "fast"}
        found = candidates(run)
        assert {"teacher", "student", "nf4", "llm-int8", "int4", "nf4-onnx"} <= found.keys()
        quality = {name: found[name]["quality"]["ndcg@10"] for name in ("nf4", "nf4-onnx")}
        assert quality["nf4-onnx"] == pytest.approx(quality["nf4"], abs=1e-3)
        assert all("failed" not in each for each in found.values())
