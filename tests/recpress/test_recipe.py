"""Recipes: every error at once, with its line; values replaced from outside; paths anchored."""

from pathlib import Path

import pytest

from recommender.errors import InputError
from recpress.messages import RecipeError
from recpress.recipe import Loaded, load_recipe
from tests.recpress.fakes import FAKES, RECIPE


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def load(folder: Path, text: str = RECIPE, *sets: str) -> Loaded:
    return load_recipe(written(folder, text), sets, stages=FAKES)


def problems(folder: Path, text: str, *sets: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *sets)
    assert caught.value.exit_code == 2
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


def test_a_right_recipe_has_its_defaults_filled_in(tmp_path: Path) -> None:
    recipe = load(tmp_path).recipe
    assert recipe.seeds == (42,)
    assert recipe.evaluation.ks == (1, 5, 10, 20)
    assert [stage.produces for stage in recipe.stages] == ["big", "small", "packed", None]


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    import yaml

    recipe = load(tmp_path).recipe
    again = load(tmp_path, yaml.safe_dump(recipe.resolved())).recipe
    assert again.resolved() == recipe.resolved()


def test_all_errors_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
name: fake
data: {sorce: synthetic}
stages:
  - {stage: grow, as: big, body: {layers: many}}
  - {stage: ctu, of: big, as: small, keep: 2}
  - {stage: cut, of: bgi, as: other, keep: 2}
  - stage: cut
    of: big
    as: big
    keep: 2
varants: {}
""",
    )
    assert found == [
        "recipe.yaml:3 data.sorce: unknown key (did you mean 'source'?)",
        "recipe.yaml:5 stages.0.body.layers: should be a valid integer, unable to parse string as an integer"
        ", not 'many'",
        "recipe.yaml:6 stages.1.stage: unknown stage 'ctu' (did you mean 'cut'?)",
        "recipe.yaml:7 stages.2.of: no earlier stage binds the name 'bgi' (did you mean 'big'?)",
        "recipe.yaml:10 stages.3.as: the name 'big' is already bound; a name is bound once",
        "recipe.yaml:12 varants: unknown key (did you mean 'variants'?)",
    ]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("{stage: grow, as: big, siez: 3}", "stages.0.siez: unknown key (did you mean 'size'?)"),
        (
            "{stage: grow, as: big, body: {layer: 3}}",
            "stages.0.body.layer: unknown key (did you mean 'layers'?)",
        ),
        ("{stage: grow, as: big, size: 0}", "stages.0.size: should be greater than or equal to 1, not 0"),
        ("{stage: grow, as: big, fails: gat}", "stages.0.fails: cannot be 'gat' (did you mean 'gate'?)"),
        ("{stage: grow}", "stages.0.as: this key is required"),
        ("{as: big}", "stages.0.stage: this key is required"),
        ("{stage: grow, as: ../big}", "stages.0.as: '../big' cannot be a name"),
        ("{stage: grow, as: .big}", "stages.0.as: '.big' cannot be a name"),
        ("{stage: grow, as: big, body: 4}", "stages.0.body: must be a mapping (key: value), not 4"),
        ("seven", "stages.0: must be a mapping (key: value), not 'seven'"),
    ],
)
def test_a_wrong_stage_is_told_with_place_and_spelling(tmp_path: Path, stage: str, expected: str) -> None:
    text = f"name: fake\ndata: {{source: synthetic}}\nstages:\n  - {stage}\n"
    found = problems(tmp_path, text)
    assert any(line.startswith(f"recipe.yaml:4 {expected}") for line in found), found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("keep: 2", "keep: 9", "recipe.yaml:6 stages.1.keep: cannot keep 9 of 4"),
        (
            "of: small",
            "of: smal",
            "stages.2.of: no earlier stage binds the name 'smal' (did you mean 'small'?)",
        ),
        (
            "of: big,",
            "of: packed,",
            "stages.1.of: no earlier stage binds the name 'packed'; it is bound by a later",
        ),
        ("as: packed", "as: small", "stages.2.as: the name 'small' is already bound"),
        ("compare: [big", "compare: [bigg", "stages.3.compare.0: no earlier stage binds the name 'bigg'"),
        (
            "layers: 4}",
            "layers: 4, source: none}",
            "stages.0.body.source: no earlier stage binds the name 'none'",
        ),
        ("name: fake", "seeds: [1, 1]\nname: fake", "recipe.yaml:2 seeds: seeds must be different"),
        ("name: fake", "seeds: []\nname: fake", "recipe.yaml:2 seeds: "),
        ("name: fake", "name: a/b", "recipe.yaml:2 name: 'a/b' cannot be a name"),
        ("source: synthetic,", "", "recipe.yaml:3 data: give exactly one of `source` and `interactions`"),
        (
            "max_length: 8",
            "max_length: 0",
            "recipe.yaml:3 data.max_length: should be greater than or equal to 1",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in RECIPE
    found = problems(tmp_path, RECIPE.replace(old, new))
    assert any(expected in line for line in found), found


def test_an_artifact_is_refused_where_a_checkpoint_is_needed(tmp_path: Path) -> None:
    text = RECIPE + "  - {stage: cut, of: packed, as: less, keep: 1}\n"
    assert problems(tmp_path, text) == [
        "recipe.yaml:9 stages.4.of: 'packed' is an artifact, but this stage needs a checkpoint"
    ]


def test_an_artifact_with_lists_too_short_for_the_evaluation_is_refused(tmp_path: Path) -> None:
    text = RECIPE.replace("as: packed}", "as: packed, top_k: 10}")
    assert problems(tmp_path, text) == [
        "recipe.yaml:8 stages.3.compare.2: 'packed' answers 10 items, but evaluation.ks asks for 20: "
        "raise its top_k"
    ]
    assert load(tmp_path, text, "evaluation.ks=[5, 10]").recipe.evaluation.ks == (5, 10)


def test_an_artifact_is_refused_where_ranks_among_sampled_items_are_asked_for(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, RECIPE + "evaluation: {sampled_negatives: 5}\n")
    assert "'packed' gives only its best items" in problem


def test_the_chain_of_shapes_is_followed(tmp_path: Path) -> None:
    text = RECIPE + "  - {stage: cut, of: small, as: tiny, keep: 3}\n"
    assert problems(tmp_path, text) == ["recipe.yaml:9 stages.4.keep: cannot keep 3 of 2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "is a list; a recipe is a mapping"),
        ("name: [", "is not valid YAML"),
        ("name: a\nname: b\n", "recipe.yaml:2 name: this key is given twice"),
        ("name: &a [*a]\n", "holds itself"),
        ("name: !!python/object/apply:os.system [ls]\n", "is not allowed in a recipe"),
        ("name: !!python/name:os.system\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)


def test_missing_and_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file not found"):
        load_recipe(tmp_path / "none.yaml", stages=FAKES)
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path, stages=FAKES)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_recipe(tmp_path / "latin.yaml", stages=FAKES)
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        load_recipe("quickstrt", stages=FAKES)


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(InputError, match="expands to more than"):
        load(tmp_path, "\n".join(lines))


def test_merge_keys_work_and_own_keys_win(tmp_path: Path) -> None:
    text = RECIPE.replace("{stage: grow, as: big,", "{<<: &g {stage: grow, size: 3}, as: big,")
    text += "  - {<<: *g, as: third, size: 5}\n  - {<<: *g, as: fourth}\n"
    recipe = load(tmp_path, text).recipe
    assert [stage.model_dump().get("size") for stage in recipe.stages] == [8, None, None, None, 5, 3]


def test_set_replaces_by_index_name_and_kind(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE, "stages.0.size=3", "stages.small.keep=1", "stages.weigh.rounds=7").recipe
    values = [stage.model_dump() for stage in recipe.stages]
    assert (values[0]["size"], values[1]["keep"], values[3]["rounds"]) == (3, 1, 7)


def test_set_replaces_a_whole_section_and_makes_missing_ones(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE, "data={source: synthetic, max_length: 3}", "evaluation.ks=[2, 3]").recipe
    assert (recipe.data.max_length, recipe.data.synthetic.users) == (3, 3000)
    assert recipe.evaluation.ks == (2, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stages.big.sise=3", "--set stages.big.sise=3: stages.0.sise: unknown key (did you mean 'size'?)"),
        ("stages.bgi.size=3", "no stage is called 'bgi' (did you mean 'big'?)"),
        ("stages.9.size=3", "stages has only 4 entries"),
        ("sed=[1]", "--set sed=[1]: sed: unknown key (did you mean 'seeds'?)"),
        ("name.x=3", "name is 'fake', so it has no 'x' inside"),
        ("seeds", "is not of the form KEY=VALUE"),
        ("seeds=[1", "is not valid YAML"),
    ],
)
def test_a_wrong_set_is_told(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, RECIPE, text)
    assert caught.value.exit_code == 2
    assert expected in str(caught.value)


def test_a_set_value_is_yaml(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE, "seeds=[1, 2]", "description=a: b=c".replace(": ", "-")).recipe
    assert (recipe.seeds, recipe.description) == ((1, 2), "a-b=c")


def test_relative_paths_belong_to_the_file_or_to_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = RECIPE.replace("source: synthetic, synthetic: {users: 80, items: 40}", "interactions: log.csv")
    recipe = load(tmp_path / "recipes", text).recipe
    assert recipe.data.interactions == tmp_path / "recipes" / "log.csv"
    recipe = load(tmp_path / "recipes", text, "data.items=../items.csv").recipe
    assert recipe.data.items == tmp_path / "items.csv"
    assert recipe.data.interactions == tmp_path / "recipes" / "log.csv"


def test_variants_are_the_recipe_with_values_replaced(tmp_path: Path) -> None:
    text = RECIPE + "variants:\n  last: {stages.small.method: last}\n  short: {data.max_length: 3}\n"
    loaded = load(tmp_path, text)
    assert list(loaded.variants) == ["last", "short"]
    assert loaded.variants["last"].stages[1].model_dump()["method"] == "last"
    assert loaded.variants["short"].data.max_length == 3
    assert loaded.recipe.stages[1].model_dump()["method"] == "first"


def test_a_wrong_variant_is_told_with_its_line(tmp_path: Path) -> None:
    text = RECIPE + "variants:\n  deep:\n    stages.small.keep: 7\n"
    (found,) = problems(tmp_path, text)
    assert found.startswith("recipe.yaml:11 variants.deep.stages.small.keep")
    assert found.endswith("stages.1.keep: cannot keep 7 of 4")
    (found,) = problems(tmp_path, RECIPE + "variants: {../x: {}}\n")
    assert "'../x' cannot be a name" in found


def test_inputs_must_exist_and_be_checkpoints_or_artifacts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = problems(tmp_path, RECIPE + "inputs: {a: nowhere, b: empty}\n")
    assert found == [
        "recipe.yaml:9 inputs.a: nowhere: no such checkpoint or artifact folder",
        "recipe.yaml:9 inputs.b: empty: is neither an artifact (manifest.json) nor a repository "
        "(repository.json) nor a checkpoint (config.json) nor a profile (profile.json) nor a report "
        "(report.json); to mend it, give the `checkpoint` folder of a stage, or a folder below `artifacts`",
    ]
