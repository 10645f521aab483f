"""`format: triton` of the export stage: from an artifact, in a recipe, refused where it does not fit."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.artifact import seal
from export.config import ExportConfig
from export.runtime import read_manifest
from export.stage import run
from export.triton.golden import TOLERANCES
from export.triton.verify import verify_repository
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.stage import Bound, Context, Shape
from recpress.given import bind, kind_of, shape_of
from recpress.messages import RecipeError
from recpress.recipe import load_recipe
from tests.export.fixtures import MAX_LENGTH, make_artifact
from tests.recommender.fixtures import context_for


def config(**values: Any) -> ExportConfig:
    return ExportConfig.model_validate(
        {"of": "student-onnx", "as": "student-triton", "format": "triton"} | values
    )


@pytest.fixture
def context(tmp_path: Path, prepared: Prepared) -> Context:
    made = context_for(prepared, tmp_path, max_length=MAX_LENGTH)
    return dataclasses.replace(made, command="recpress run tiny", threads=1)


def bound(folder: Path) -> Bound:
    return bind("student-onnx", folder)


def test_the_stage_writes_a_repository_that_answers_as_its_artifact(exported: Path, context: Context) -> None:
    outputs = run(config(), {"student-onnx": bound(exported)}, context)
    folder = context.folder / "artifact"
    assert outputs.metrics["models"] == outputs.metrics["replayed"] == ["student-triton"]
    assert outputs.metrics["max_score_difference"] < 1e-5 and outputs.metrics["size_bytes"] > 0
    assert kind_of(folder) == "repository" and shape_of(folder) == Shape("repository")
    assert json.loads((folder / "repository.json").read_text())["command"] == "recpress run tiny"


def test_each_variant_is_a_model_and_the_first_has_the_plain_name(
    context: Context, sasrec: Any, prepared: Prepared, tmp_path: Path
) -> None:
    made = make_artifact(sasrec, tmp_path / "two", prepared, variants=("fp16",))
    triton = {"name": "shop", "variants": ["fp32", "fp16"]}
    run(config(triton=triton), {"student-onnx": bound(made)}, context)
    folder = context.folder / "artifact"
    golden = json.loads((folder / "golden.json").read_text())["answers"]
    assert {name: each["answered_by"] for name, each in golden.items()} == {
        "shop": "fp32",
        "shop-fp16": "fp16",
    }
    assert golden["shop"]["tolerance"] < golden["shop-fp16"]["tolerance"]
    assert verify_repository(folder).replayed == ("shop", "shop-fp16")


@pytest.mark.parametrize(("variant", "suffix"), [("tensorrt-fp16", "plan"), ("aot", "pt2")])
def test_what_does_not_run_here_is_held_against_the_canonical_graph(
    variant: str, suffix: str, context: Context, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "engine")
    folder = tmp_path / "engine"
    shutil.copyfile(folder / "catalogue-1/fp32.onnx", folder / f"catalogue-1/{variant}.{suffix}")
    manifest = read_manifest(folder)
    entry = manifest["variants"][0] | {
        "name": variant, "precision": "fp16", "device": "cuda", "on_cpu": False, "runs_on": "a GPU",
        "graph": f"catalogue-1/{variant}.{suffix}", "files": [f"catalogue-1/{variant}.{suffix}"],
    }  # fmt: skip
    manifest["variants"].append(entry)
    seal(folder, manifest)
    made = config().model_copy(update={"triton": config().triton.model_copy(update={"variants": (variant,)})})
    outputs = run(made, {"student-onnx": bound(folder)}, context)
    golden = json.loads((context.folder / "artifact/golden.json").read_text())["answers"]["student-triton"]
    assert golden["answered_by"] == "fp32" and golden["tolerance"] == TOLERANCES["fp16"]
    assert outputs.metrics["replayed"] == [] and set(outputs.metrics["not_replayed"]) == {"student-triton"}
    assert (context.folder / f"artifact/models/student-triton/1/model.{suffix}").is_file()


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
def test_each_format_takes_what_it_is_for(kind: Any) -> None:
    known = {"student-onnx": Shape(kind)}
    told = dict(config().problems(known))
    assert ("of" in told) == (kind == "checkpoint")
    onnx = ExportConfig.model_validate({"of": "student-onnx", "as": "x"})
    assert ("of" in dict(onnx.problems(known))) == (kind == "artifact")


def test_settings_of_the_other_format_are_refused_by_name() -> None:
    told = dict(config(top_k=5, variants=["fp16"]).problems({"student-onnx": Shape("artifact")}))
    assert set(told) == {"top_k", "variants"}
    onnx = ExportConfig.model_validate({"of": "a", "as": "x", "triton": {"instances": 2}})
    assert set(dict(onnx.problems({"a": Shape("checkpoint")}))) == {"triton"}


@pytest.mark.parametrize("variants", [["fast"], ["fp32", "fp32"]])
def test_variants_that_no_server_can_serve_are_refused_before_anything_runs(variants: list[str]) -> None:
    told = dict(config(triton={"variants": variants}).problems({"student-onnx": Shape("artifact")}))
    assert set(told) == {"triton.variants"}


def test_a_checkpoint_for_triton_is_refused_when_the_stage_is_run(context: Context, tmp_path: Path) -> None:
    given = Bound("student-onnx", "checkpoint", tmp_path, tmp_path)
    with pytest.raises(InputError, match="format triton takes an artifact"):
        run(config(), {"student-onnx": given}, context)


def recipe(tmp_path: Path, stages: list[dict[str, Any]]) -> Path:
    document = {"name": "serve", "data": {"source": "synthetic"}, "stages": stages}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "serve.yaml"


TRAIN = {"stage": "train", "as": "student", "model": {"kind": "sasrec"}}
ONNX = {"stage": "export", "of": "student", "as": "student-onnx"}
TRITON = {"stage": "export", "of": "student-onnx", "as": "student-triton", "format": "triton"}


def test_a_recipe_may_go_on_from_an_artifact_to_a_repository(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, [TRAIN, ONNX, TRITON]))
    assert loaded.recipe.stages[2].produces == "student-triton"


@pytest.mark.parametrize(
    ("stages", "what"),
    [
        (
            [TRAIN, TRITON | {"of": "student"}],
            "format triton takes an artifact: export 'student'",
        ),
        ([TRAIN, ONNX, {"stage": "export", "of": "student-onnx", "as": "x"}], "is an artifact already"),
        (
            [TRAIN, ONNX, TRITON, {"stage": "bench", "compare": ["student-triton"]}],
            "'student-triton' is a repository, but this stage needs",
        ),
        ([TRAIN, ONNX, TRITON | {"triton": {"kind": "tpu"}}], "kind"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    stages: list[dict[str, Any]], what: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=what):
        load_recipe(recipe(tmp_path, stages))
