"""The built-in recipes, the schema for editors, the stage table, and the wheel that carries all of it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import recpress
from recpress.fingerprint import version
from recpress.folders import recipes_folder
from recpress.recipe import load_recipe, recipe_model
from recpress.stages import STAGES
from tests.recpress.fakes import FAKES

ROOT = Path(__file__).parents[2]
RECIPES = sorted(recipes_folder().glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
DEPENDENCIES = {
    re.split(r"[^\w.-]", line)[0]
    for line in [*PROJECT["dependencies"], *OPTIONAL["quantize"], *OPTIONAL["ann"]]
}
PACKAGES = ("recpress", "compress", "export", "bench", "recommender")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_built_in_recipe_is_right_short_and_says_what_it_does(file: Path) -> None:
    recipe = load_recipe(file.stem).recipe
    assert recipe.name == file.stem
    assert recipe.description
    assert file.read_text().startswith("#")
    assert len(file.read_text().splitlines()) < 60


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_built_in_recipe_agrees_with_the_schema(file: Path) -> None:
    schema = recipe_model().model_json_schema(by_alias=True)
    document = yaml.safe_load(file.read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "satges": []}, schema)


def test_the_changelog_names_every_built_in_recipe() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    listed = text.partition("- Built-in recipes: ")[2].partition("\n- ")[0]
    assert sorted(re.findall(r"`([^`]+)`", listed)) == sorted(file.stem for file in RECIPES)


def test_a_union_of_one_stage_works_too() -> None:
    assert recipe_model({"grow": FAKES["grow"]}).model_fields["stages"].is_required()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_of_the_table_is_there_and_says_its_name(name: str) -> None:
    kind = STAGES[name]
    config = kind.config_class()
    assert config.model_json_schema()["properties"]["stage"]["const"] == name
    assert callable(kind.function())
    assert set(kind.packages) <= DEPENDENCIES


def test_the_fingerprint_of_a_training_covers_what_quantizes() -> None:
    for stage in ("train", "distill", "depth-profile"):
        assert "bitsandbytes" in STAGES[stage].packages
    assert version("not-a-distribution") is None  # as bitsandbytes where the extra is not installed


def test_stage_configs_import_no_torch() -> None:
    code = (
        "import sys\nfrom recpress.stages import STAGES\n"
        "[kind.config_class() for kind in STAGES.values()]\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'plotly', 'accelerate', 'peft'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_resolve_lazily() -> None:
    code = "import sys, recpress\nassert not {'torch', 'polars', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    for name in recpress.__all__:
        assert callable(getattr(recpress, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = recpress.nothing


def test_the_list_of_packages_is_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for file in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found | {"recpress.recipes"}
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()


def test_data_files_of_the_packages_travel_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                assert any(file.match(pattern) for pattern in patterns), f"{file} is in no wheel"


def test_imports_go_down_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_wheel_carries_recipes_and_templates(tmp_path: Path) -> None:
    import zipfile

    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("recpress-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "recpress/recipes/quickstart.yaml",
        "recpress/py.typed",
        "bench/report/report.html.jinja",
    } <= names
    assert not any(name.startswith("tests/") for name in names)
