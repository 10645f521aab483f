"""The canonical graph and those of engines pass; what is made for onnxruntime is refused in words."""

from pathlib import Path

import onnx_ir as ir
import pytest

from export.half import to_half
from export.int8_body import quantize_body
from export.lint import lint
from export.lint.files import files_of
from export.variants import HalfKind
from recommender.errors import InputError

AXES = ("batch", "length", "seen")


def errors(path: Path, **asked: object) -> list[str]:
    return [each.rule for each in lint(path, **asked) if each.severity == "error"]  # type: ignore[arg-type]


def test_the_canonical_graph_passes(exported: Path) -> None:
    path = exported / "catalogue-1/fp32.onnx"
    assert errors(path, precision="fp32", profiled=AXES) == []
    assert errors(path, precision="int8") == ["precision"]
    assert errors(path, tensorrt=(10, 12)) == ["parser-version"]  # Attention


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_graphs_of_engines_pass_for_the_oldest_version(kind: str, scoring: dict[str, Path]) -> None:
    assert errors(scoring[kind], precision=kind, profiled=["batch"], tensorrt=(10, 12)) == []


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_precision_for_onnxruntime_is_refused_for_its_softmax(
    kind: HalfKind, exported: Path, tmp_path: Path
) -> None:
    ir.save(to_half(ir.load(exported / "catalogue-1/fp32.onnx"), kind), tmp_path / "half.onnx")
    found = [each for each in lint(tmp_path / "half.onnx", precision=kind) if each.severity == "error"]
    assert {each.rule for each in found} == {"attention-attribute"}
    assert all("softmax_precision" in each.text and "tensorrt-*" in each.fix for each in found)


def test_an_axis_without_a_profile_is_an_error(exported: Path) -> None:
    path = exported / "catalogue-1/fp32.onnx"
    found = [each for each in lint(path, profiled=["batch", "length"]) if each.severity == "error"]
    assert [each.rule for each in found] == ["profile"] and "seen" in found[0].text


def test_bodies_for_onnxruntime_are_refused_and_told_what_to_take(exported: Path) -> None:
    found = [each for each in lint(exported / "body-fast.onnx") if each.severity == "error"]
    assert {each.rule for each in found} == {"attention-rank"}  # heads are split inside of it
    assert all("split the heads" in each.fix for each in found)


def test_8_bit_bodies_for_onnxruntime_are_refused(exported: Path, tmp_path: Path) -> None:
    quantize_body(exported / "body.onnx", tmp_path / "int8.onnx")
    found = [each for each in lint(tmp_path / "int8.onnx") if each.severity == "error"]
    assert {each.rule for each in found} & {"domain", "operator"}
    assert any("fp16" in each.fix for each in found)


def test_of_an_artifact_the_canonical_graph_is_checked_unless_a_variant_is_named(exported: Path) -> None:
    assert files_of(exported) == ([exported / "catalogue-1/fp32.onnx"], "fp32")
    files, promised = files_of(exported, "fast")
    assert [file.name for file in files] == ["body-fast.onnx", "head-exact.onnx"] and promised == "fp32"


def test_a_variant_that_is_not_there_or_is_built_already_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no variant 'fats'.*'fast'"):
        files_of(folder, "fats")
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace("fp32.onnx", "tensorrt-fp16.plan"))
    with pytest.raises(InputError, match="built already"):
        files_of(folder)
    with pytest.raises(InputError, match="is of an artifact"):
        files_of(folder / "body.onnx", "fast")


@pytest.mark.parametrize("content", [b"", b"no onnx at all", b"\x08\x0a", None])
def test_a_file_that_is_no_onnx_is_an_input_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no ONNX file|cannot be read"):
        lint(path)


def test_a_file_beyond_protobuf_is_told_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"0" * 101)
    monkeypatch.setattr("export.lint.graph.LARGEST", 100)
    with pytest.raises(InputError, match="protobuf ends at 2 GiB"):
        lint(tmp_path / "model.onnx")
