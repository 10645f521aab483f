"""One stage alone: the recipe that a verb makes from its options."""

from pathlib import Path

import pytest

from recommender.errors import InputError
from recommender.files import write_json
from recpress.single import data_config, data_section, named_folders, single_stage
from tests.recpress.fakes import FAKES


def checkpoint(folder: Path, name: str | None = None) -> Path:
    """A folder that passes for an artifact, whose shape needs no reading."""
    write_json(folder / "manifest.json", {"variants": [], "data": {"catalogue_digest": ""}})
    if name is not None:
        write_json(folder.parent / "stage.json", {"name": name})
    return folder


def test_a_stage_gets_its_folder_its_data_and_its_options(tmp_path: Path) -> None:
    given = checkpoint(tmp_path / "given")
    loaded = single_stage(
        "weigh", [str(given)], data="synthetic", sets=["rounds=3", "evaluation.ks=[2]"], stages=FAKES
    )
    recipe = loaded.recipe
    assert recipe.inputs == {"given": given}
    assert recipe.stages[0].model_dump()["compare"] == ("given",)
    assert recipe.stages[0].model_dump()["rounds"] == 3
    assert (recipe.name, recipe.data.source, recipe.evaluation.ks) == ("weigh", "synthetic", (2,))


def test_folders_are_named_by_their_stage_by_hand_or_by_themselves(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "00-teacher" / "checkpoint", "teacher")
    second = checkpoint(tmp_path / "b" / "student-onnx")
    found = named_folders([str(first), str(second), f"mine={second}"])
    assert found == {"teacher": str(first), "student-onnx": str(second), "mine": str(second)}
    with pytest.raises(InputError, match="two folders are called"):
        named_folders([str(second), str(second)])


def test_a_wrong_option_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'size'"):
        single_stage("grow", [], data="synthetic", sets=["siez=3"], stages=FAKES)


def test_a_stage_without_its_folder_says_which_key_is_missing() -> None:
    with pytest.raises(InputError, match=r"of: this key is required"):
        single_stage("cut", [], data="synthetic", sets=["keep=1"], stages=FAKES)


def test_data_is_a_name_a_file_a_folder_or_a_section(tmp_path: Path) -> None:
    log = tmp_path / "interactions.csv"
    log.write_text("user_id,item_id\n")
    assert data_section("ml-1m") == {"source": "ml-1m"}
    assert data_section("amazon-reviews-2014-5core:Beauty") == {"source": "amazon-reviews-2014-5core:Beauty"}
    assert data_section(str(log)) == {"interactions": str(log)}
    assert data_section(str(tmp_path)) == {"interactions": str(log)}
    (tmp_path / "items.csv").write_text("item_id\n")
    assert data_section(str(tmp_path)) == {"interactions": str(log), "items": str(tmp_path / "items.csv")}
    assert data_section("{source: synthetic, max_length: 9}") == {"source": "synthetic", "max_length": 9}
    parts = tmp_path / "parts"
    parts.mkdir()
    assert data_section(str(parts)) == {"interactions": str(parts)}


def test_a_data_section_takes_values_and_tells_wrong_ones() -> None:
    assert data_config("synthetic", ["max_length=9", "synthetic.users=50"]).synthetic.users == 50
    with pytest.raises(InputError, match=r"data.max_lenght: unknown key \(did you mean 'max_length'\?\)"):
        data_config("synthetic", ["max_lenght=9"])
