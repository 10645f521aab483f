from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.candidates import Candidate, check_answers, device_of, left_out, resolve
from bench.facts import facts, stored_precision, training
from bench.report.parts import Zeros
from bench.sparse_kernels import with_kernels
from recommender.errors import InputError, StageError
from recommender.files import read_json, write_json
from recommender.scoring import ScorerRef
from recommender.stage import Bound
from tests.bench.fakes import artifact, checkpoint


@pytest.fixture
def bounds(tmp_path: Path) -> dict[str, Bound]:
    return {
        "teacher": checkpoint(tmp_path / "t", "teacher", [1], parameters=4000),
        "student": checkpoint(tmp_path / "s", "student", [1], of="teacher"),
        "onnx": artifact(tmp_path / "o", "onnx", [1], of="student"),
        "two": artifact(tmp_path / "two", "two", [1], of="student", variants=("fp32", "int8")),
    }


def only(bounds: dict[str, Bound], name: str) -> Candidate:
    return resolve([name], {1: bounds})[0]


def test_a_name_gives_one_candidate_per_way_to_open_it(bounds: dict[str, Bound]) -> None:
    found = resolve(["two", "onnx", "teacher"], {1: bounds, 2: bounds})
    assert [each.name for each in found] == ["two", "two:int8", "onnx", "teacher"]
    assert [each.variant for each in found] == ["fp32", "int8", "fp32", None]
    assert all(list(each.refs) == [1, 2] for each in found)


def test_an_unknown_name_is_an_input_error_with_the_nearest_one(bounds: dict[str, Bound]) -> None:
    with pytest.raises(InputError, match=r"studnt.*did you mean 'student'"):
        resolve(["studnt"], {1: bounds})


def test_variants_that_every_seed_has_are_compared(bounds: dict[str, Bound]) -> None:
    (found,) = resolve(["two"], {1: bounds, 2: {"two": bounds["onnx"]}})
    assert (found.name, found.variant) == ("two", "fp32")
    assert [str(ref.path) for ref in found.refs.values()] == [
        str(bounds[name].path) for name in ("two", "onnx")
    ]


def test_what_only_some_seeds_have_is_said(bounds: dict[str, Bound]) -> None:
    by_seed = {1: {"two": bounds["two"]}, 2: {"two": bounds["onnx"]}}
    assert left_out(["two"], by_seed) == [
        "two:int8 is not compared: the artifact of seed 2 does not hold it."
    ]
    turned = replace(bounds["two"], scorers=bounds["two"].scorers[::-1])
    (said,) = left_out(["two"], {1: {"two": bounds["two"]}, 2: {"two": turned}})
    assert said == "The default variant of two differs between seeds: fp32 (seed 1), int8 (seed 2)."
    assert left_out(["onnx", "teacher"], {1: bounds, 2: bounds}) == []


def test_seeds_that_share_no_way_to_open_a_name_cannot_be_pooled(bounds: dict[str, Bound]) -> None:
    with pytest.raises(StageError, match=r"nothing opens 'onnx' .*seed 1: fp32; seed 2: torch"):
        resolve(["onnx"], {1: bounds, 2: {"onnx": bounds["teacher"]}})


def test_facts_of_a_checkpoint_come_from_its_config_and_its_stage(bounds: dict[str, Bound]) -> None:
    found = facts(only(bounds, "student"))
    assert (found.of, found.parameters, found.body_parameters, found.size_bytes) == (
        "teacher",
        1000,
        500,
        4000,
    )
    assert found.train is not None
    assert found.train.model_dump() == {"seconds": 6.0, "epochs": 3.0, "seconds_per_epoch": 2.0}
    assert found.precision is None  # no weights lie there


def test_facts_of_an_artifact_come_from_its_manifest(bounds: dict[str, Bound]) -> None:
    found = facts(only(bounds, "onnx"))
    assert (found.of, found.precision, found.size_bytes) == ("student", "fp32", 2000)
    assert (found.parameters, found.train) == (None, None)


def test_every_file_of_a_variant_counts_as_its_size(bounds: dict[str, Bound]) -> None:
    path = bounds["onnx"].path / "manifest.json"
    files = {
        "g.onnx": {"size_bytes": 5},
        "g.onnx.data": {"size_bytes": 70},
        "items.parquet": {"size_bytes": 900},
    }
    variants = [{"name": "fp32", "files": ["g.onnx", "g.onnx.data"], "parameters": 12}]
    write_json(path, {"default_variant": "fp32", "variants": variants, "files": files})
    found = facts(only(bounds, "onnx"))
    assert (found.size_bytes, found.parameters) == (75, 12)


@pytest.mark.parametrize(
    "manifest", [{}, {"variants": []}, {"variants": [{"name": "fp32"}], "files": {}}, []]
)
def test_a_broken_manifest_is_an_input_error_that_names_it(
    bounds: dict[str, Bound], manifest: object
) -> None:
    path = bounds["onnx"].path / "manifest.json"
    write_json(path, manifest)
    with pytest.raises(InputError, match=r"broken manifest") as error:
        facts(only(bounds, "onnx"))
    assert error.value.where == str(path)


def test_a_checkpoint_that_no_stage_made_has_no_parent_and_no_training(bounds: dict[str, Bound]) -> None:
    (bounds["student"].stage_folder / "stage.json").unlink()
    found = facts(only(bounds, "student"))
    assert (found.of, found.train, found.parameters) == (None, None, 1000)


SPARSE = {
    "method": "wanda", "pattern": "2:4", "sparsity": 0.5, "matrices": {"0.up": 0.5},
    "zeros": 100, "weights": 200,
}  # fmt: skip


def test_zeros_are_those_that_the_checkpoint_and_the_manifest_note(bounds: dict[str, Bound]) -> None:
    assert facts(only(bounds, "student")).zeros is None and facts(only(bounds, "onnx")).zeros is None
    for name, file in (("student", "config.json"), ("onnx", "manifest.json")):
        document = read_json(bounds[name].path / file)
        (document.setdefault("about", {}) if name == "student" else document)["sparsity"] = SPARSE
        write_json(bounds[name].path / file, document)
    found = facts(only(bounds, "student")).zeros
    assert found == Zeros(pattern="2:4", of_body_matrices=0.5, of_body_parameters=0.2, of_everything=0.1)
    assert facts(only(bounds, "onnx")).zeros == Zeros(pattern="2:4", of_body_matrices=0.5)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"flags": {"sparse": False}}, False),
        ({"flags": {"sparse": True}}, True),
        ({"flags": {}}, None),
        ({"flags": {"sparse": "no"}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_an_engine_says_in_the_manifest_whether_it_skips_zeros(
    engine: object, expected: bool | None, bounds: dict[str, Bound]
) -> None:
    file = bounds["onnx"].path / "manifest.json"
    manifest = read_json(file)
    manifest["variants"][0]["engine"] = engine
    write_json(file, manifest)
    zeros = Zeros(pattern="2:4", of_body_matrices=0.5)
    found = with_kernels(zeros, only(bounds, "onnx"))
    assert found is not None and found.sparse_kernels is expected
    assert with_kernels(None, only(bounds, "onnx")) is None
    assert with_kernels(zeros, only(bounds, "student")) == zeros


def test_training_is_the_mean_over_seeds_and_absent_without_epochs() -> None:
    found = training(
        [{"epochs": 2, "seconds": 10.0}, {"epochs": 4, "seconds": 30.0, "seconds_per_epoch": 7.5}]
    )
    assert found is not None
    assert found.model_dump(exclude_none=True) == {"epochs": 3.0, "seconds": 20.0}
    assert training([{"seconds": 1.0}]) is None


def test_precision_is_read_from_the_weights(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    save_file({"w": np.ones(2, np.float32), "rows": np.ones(2, np.int64)}, tmp_path / "model.safetensors")
    assert stored_precision(tmp_path) == "fp32"
    save_file({"w": np.ones(2, np.float16)}, tmp_path / "backbone" / "model.safetensors")
    assert stored_precision(tmp_path) == "fp16 + fp32"


def test_an_artifact_with_short_lists_is_refused_with_the_length_it_needs(bounds: dict[str, Bound]) -> None:
    check_answers(only(bounds, "onnx"), 9, sampled_negatives=None)
    with pytest.raises(InputError, match="top_k: 50"):
        check_answers(only(bounds, "onnx"), 50, sampled_negatives=None)
    check_answers(only(bounds, "teacher"), 50, sampled_negatives=9)


def test_an_artifact_cannot_rank_among_sampled_items(bounds: dict[str, Bound]) -> None:
    with pytest.raises(InputError, match="not ranks among sampled"):
        check_answers(only(bounds, "onnx"), 5, sampled_negatives=9)


def test_onnxruntime_without_cuda_runs_on_the_cpu(
    bounds: dict[str, Bound], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    ref: ScorerRef = only(bounds, "onnx").ref
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert device_of(ref, "cuda") == "cpu"
    assert device_of(replace(ref, runtime="torch"), "cuda") == "cuda"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert device_of(ref, "cuda") == "cuda"


def test_every_way_to_run_a_checkpoint_is_a_candidate_and_artifacts_have_none(
    bounds: dict[str, Bound],
) -> None:
    found = resolve(["teacher", "onnx"], {1: bounds}, ["eager", "bf16", "compile-bf16"])
    assert [each.name for each in found] == ["teacher", "teacher:bf16", "teacher:compile-bf16", "onnx"]
    assert [each.way for each in found] == [None, "bf16", "compile-bf16", None]
    assert [dict(each.ref.options) for each in found[:2]] == [{}, {"way": "bf16"}]
    assert facts(found[1]).precision == "bf16" and facts(found[1]).of == facts(found[0]).of


def test_a_compiled_checkpoint_is_not_asked_for_ranks_among_sampled_items(bounds: dict[str, Bound]) -> None:
    _, bf16, compiled = resolve(["teacher"], {1: bounds}, ["eager", "bf16", "compile"])
    check_answers(bf16, 10, sampled_negatives=99)
    check_answers(compiled, 10, sampled_negatives=None)
    with pytest.raises(InputError, match="'teacher:compile' gives its best items"):
        check_answers(compiled, 10, sampled_negatives=99)
