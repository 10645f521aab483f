"""A scheme in a file beside the recipe is read when the recipe is checked, so nothing escapes the checks."""

from pathlib import Path

import pytest

from recpress.messages import RecipeError
from recpress.recipe import load_recipe

HEAD = """
name: files
data: {source: synthetic}
stages:
  - {stage: train, as: teacher, model: {kind: llm, layers: 2, hidden: 16, heads: 2, item_dim: 8}, epochs: 1}
"""
NF4 = "matrices: {'*': {weights: nf4}}"
GPTQ = "matrices: {'*': {weights: int4, group: 16}}\nmethod: gptq"
SMALL = "  - {stage: quantize, of: teacher, as: small, scheme: mine.yaml}\n"
EXPORT = "  - {stage: export, of: small, as: onnx, variants: [quantized]}\n"
DISTIL = "  - {stage: distill, of: small, teacher: teacher, as: mended, method: logits, epochs: 1}\n"
SPARSE = (
    "  - {stage: sparsify, of: teacher, as: sparse, method: magnitude}\n"
    "  - {stage: quantize, of: sparse, as: small, scheme: mine.yaml}\n"
)
WRONG = [
    (NF4, SMALL + EXPORT, "cannot hold nf4: no variant can"),
    (NF4, SMALL + DISTIL, "nf4"),
    (GPTQ, SPARSE, "'sparse' is sparse, and gptq feeds rounding errors back into its zeros"),
]


def check(folder: Path, scheme: str, stages: str, *sets: str) -> list[str]:
    (folder / "mine.yaml").write_text(scheme)
    (folder / "recipe.yaml").write_text(HEAD + stages)
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "recipe.yaml", sets)
    return list(caught.value.problems)


@pytest.mark.parametrize(("scheme", "stages", "expected"), WRONG, ids=["export", "distill", "sparse"])
def test_what_a_file_asks_for_is_checked_with_the_stages_around_it(
    tmp_path: Path, scheme: str, stages: str, expected: str
) -> None:
    (found,) = check(tmp_path, scheme, stages)
    assert expected in found and "recipe.yaml:" in found


def test_it_is_checked_beside_other_errors_and_relative_to_who_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check(tmp_path, NF4, SMALL + EXPORT + "  - {stage: bench, compare: [nobody]}\n")
    assert len(found) == 2 and "cannot hold nf4" in found[0] and "nobody" in found[1]
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "given.yaml").write_text(GPTQ)
    fitting = "matrices: {'*': {weights: int8}}"
    (told,) = check(tmp_path, fitting, SPARSE, "stages.small.scheme=given.yaml")
    assert "gptq feeds rounding errors back" in told


def test_a_file_that_fits_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("matrices: {'*': {weights: int8}}")
    (tmp_path / "recipe.yaml").write_text(HEAD + SMALL + EXPORT + DISTIL)
    assert len(load_recipe(tmp_path / "recipe.yaml").recipe.stages) == 4


def test_a_file_that_cannot_be_read_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(HEAD + SMALL)
    with pytest.raises(RecipeError, match=r"cannot read the scheme file .*mine\.yaml"):
        load_recipe(tmp_path / "recipe.yaml")
