"""The runner: what is finished stays, what changed runs again and says why, nothing is left half-done."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from recommender.errors import InputError
from recommender.files import read_json
from recpress.folders import check_run_folder
from recpress.recipe import load_recipe
from recpress.runner import Settings, run
from tests.recpress.fakes import FAKES, RECIPE
from tests.recpress.running import Events, everything, go, ran, why


def test_a_run_leaves_the_folder_that_is_documented(tmp_path: Path) -> None:
    result = go(tmp_path)
    top = tmp_path / "run"
    names = {f.relative_to(top).as_posix() for f in top.rglob("*") if f.is_file()} - {".lock"}
    assert names == {
        "recipe.yaml",
        "report.json",
        "report.md",
        "report.html",
        "artifacts/packed/manifest.json",
        "artifacts/packed/graph.onnx",
        "artifacts/packed/card.md",
        "stages/00-big/stage.json",
        "stages/00-big/checkpoint/config.json",
        "stages/01-small/stage.json",
        "stages/01-small/checkpoint/config.json",
        "stages/02-packed/stage.json",
        "stages/03-weigh/stage.json",
        "stages/03-weigh/report.json",
        "stages/03-weigh/report.md",
        "stages/03-weigh/report.html",
    }
    assert ran(result) == ["00-big", "01-small", "02-packed", "03-weigh"]
    assert result.report == top / "report.json"


def test_stage_json_says_what_was_done(tmp_path: Path) -> None:
    go(tmp_path)
    record = read_json(tmp_path / "run/stages/00-big/stage.json")
    assert record["config"]["size"] == 8
    assert record["metrics"] == {"size": 8, "resumed_at": 0, "seed": 42}
    assert set(record["parts"]) == {"config", "inputs", "data", "evaluation", "seed", "code", "versions"}
    assert set(record["parts"]["code"]) == {"recommender", "tests"}
    assert record["parts"]["versions"]["numpy"]
    assert record["seconds"] >= 0
    assert read_json(tmp_path / "run/stages/02-packed/stage.json")["artifact"]["path"] == "artifacts/packed"
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["evaluation"]["ks"] == [1, 5, 10, 20]


def test_the_bench_sees_checkpoints_and_every_variant_of_artifacts(tmp_path: Path) -> None:
    go(tmp_path)
    seen = read_json(tmp_path / "run/report.json")["seen"]["42"]
    assert seen == {
        "big": ["recommender.checkpoint:open_scorer"],
        "small": ["recommender.checkpoint:open_scorer"],
        "packed": ["export.artifact:open_artifact"] * 2,
    }


def test_a_second_run_runs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    go(tmp_path)
    before = everything(tmp_path / "run")
    assert ran(go(tmp_path)) == []
    assert everything(tmp_path / "run") == before


def test_a_changed_stage_runs_again_with_all_that_follows_and_says_why(tmp_path: Path) -> None:
    go(tmp_path)
    assert why(go(tmp_path, RECIPE, "stages.small.keep=3")) == {
        "01-small": "keep: 2 -> 3",
        "02-packed": "input 'small' changed",
        "03-weigh": "input 'small' changed; input 'packed' changed",
    }
    assert read_json(tmp_path / "run/stages/01-small/checkpoint/config.json")["size"] == 3


def test_a_change_at_the_end_runs_only_the_end(tmp_path: Path) -> None:
    go(tmp_path)
    assert why(go(tmp_path, RECIPE, "stages.weigh.rounds=5")) == {"03-weigh": "rounds: 1 -> 5"}
    assert read_json(tmp_path / "run/report.json")["rounds"] == 5


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ("data.synthetic.users=90", "the data changed"),
        ("data.max_length=9", "data.max_length: 8 -> 9"),
        ("evaluation.mask_seen=false", "evaluation.mask_seen: True -> False"),
        ("seeds=[7]", "seed: 42 -> 7"),
    ],
)
def test_what_every_stage_hangs_on_is_in_every_fingerprint(tmp_path: Path, sets: str, expected: str) -> None:
    go(tmp_path)
    again = why(go(tmp_path, RECIPE, sets))
    assert again["00-big"] == expected
    assert set(again) == {"00-big", "01-small", "02-packed", "03-weigh"}


def test_other_code_and_other_packages_run_a_stage_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path)
    monkeypatch.setattr("recpress.fingerprint.code_digest", lambda package: "edited")
    assert why(go(tmp_path))["00-big"] == "code of recommender changed; code of tests changed"
    monkeypatch.setattr("recpress.fingerprint.version", lambda name: "9.9")
    assert (why(go(tmp_path))["00-big"] or "").endswith("-> 9.9")


def test_the_device_matters_only_where_speed_is_measured(tmp_path: Path) -> None:
    go(tmp_path)
    loaded = load_recipe(tmp_path / "recipe.yaml", stages=FAKES)
    result = run(loaded, tmp_path / "run", Settings(device="cuda"), stages=FAKES)
    assert why(result) == {"03-weigh": "device: cpu -> cuda"}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("stages/00-big/checkpoint/config.json", "checkpoint/config.json is missing"),
        ("artifacts/packed/manifest.json", "artifacts/packed is missing or was replaced"),
        ("artifacts/packed/graph.onnx", "artifacts/packed/graph.onnx is missing or cut"),
    ],
)
def test_a_deleted_file_runs_its_stage_again_and_no_other(tmp_path: Path, damage: str, expected: str) -> None:
    go(tmp_path)
    (tmp_path / "run" / damage).unlink()
    assert list(why(go(tmp_path)).values()) == [expected]


def test_lists_longer_than_the_catalogue_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lists of 99999 items"):
        go(tmp_path, RECIPE, "stages.packed.top_k=99999")
    assert not (tmp_path / "run").exists()


def test_a_cut_artifact_is_made_again(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / "run/artifacts/packed/graph.onnx").write_text("gra")
    assert list(why(go(tmp_path)).values()) == ["artifacts/packed/graph.onnx is missing or cut"]
    assert (tmp_path / "run/artifacts/packed/graph.onnx").read_text() == "graph"


@pytest.mark.parametrize("name", ["2024", "on", "null", "two words: and a colon"])
def test_a_recipe_with_a_name_that_yaml_quotes_resumes(tmp_path: Path, name: str) -> None:
    check = partial(check_run_folder, tmp_path, fresh=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": name}))
    check(name)
    with pytest.raises(InputError, match="another recipe"):
        check("other")


def test_what_a_kill_left_of_the_very_first_write_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / ".recipe.yaml.123.tmp").write_text("na")
    check_run_folder(tmp_path, "mine", fresh=False)


def test_a_truncated_file_runs_its_stage_again(tmp_path: Path) -> None:
    go(tmp_path)
    file = tmp_path / "run/stages/01-small/checkpoint/config.json"
    file.write_text(file.read_text()[:5])
    (again,) = why(go(tmp_path)).items()
    assert again[0] == "01-small" and "has 5 bytes, not" in (again[1] or "")


def test_a_card_that_is_written_later_is_no_damage(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / "run/artifacts/packed/card.md").write_text("another text")
    assert ran(go(tmp_path)) == []


def test_fresh_runs_everything_and_spares_what_is_not_ours(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert len(ran(go(tmp_path, fresh=True))) == 4
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run folder"):
        go(tmp_path)
    assert list(everything(tmp_path / "run")) == ["thesis.txt"]


def test_a_folder_that_holds_an_input_of_the_run_is_left_alone(tmp_path: Path) -> None:
    go(tmp_path)
    text = RECIPE + f"inputs: {{given: {tmp_path / 'run/artifacts/packed'}}}\n"
    with pytest.raises(InputError, match="lies inside the run folder"):
        go(tmp_path, text, fresh=True)
    assert (tmp_path / "run/artifacts/packed/graph.onnx").exists()


def test_a_run_that_was_killed_at_its_first_file_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.123.tmp").write_text("name: fa")
    assert len(ran(go(tmp_path))) == 4
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_run_of_another_recipe_is_left_alone_unless_fresh(tmp_path: Path) -> None:
    go(tmp_path)
    other = RECIPE.replace("name: fake", "name: other")
    with pytest.raises(InputError, match="another recipe"):
        go(tmp_path, other)
    assert len(ran(go(tmp_path, other, fresh=True))) == 4


def test_a_report_that_no_stage_writes_any_more_goes_away(tmp_path: Path) -> None:
    go(tmp_path)
    shorter = RECIPE.replace("  - {stage: weigh, compare: [big, small, packed]}\n", "")
    assert go(tmp_path, shorter).report is None
    assert not (tmp_path / "run/report.html").exists()


SEVERAL = RECIPE.replace("name: fake", "name: fake\nseeds: [1, 2]")


def test_seeds_run_every_seeded_stage_and_pool_in_the_bench(tmp_path: Path) -> None:
    result = go(tmp_path, SEVERAL)
    assert ran(result) == [
        "00-big-seed1", "00-big-seed2", "01-small-seed1", "01-small-seed2",
        "02-packed-seed1", "02-packed-seed2", "03-weigh",
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "run/artifacts").iterdir()) == ["packed-seed1", "packed-seed2"]
    assert list(read_json(tmp_path / "run/report.json")["seen"]) == ["1", "2"]
    for seed in (1, 2):
        assert read_json(tmp_path / f"run/stages/01-small-seed{seed}/checkpoint/config.json")["seed"] == seed


def test_a_seed_more_runs_only_that_seed_and_the_bench(tmp_path: Path) -> None:
    go(tmp_path, RECIPE.replace("name: fake", "name: fake\nseeds: [1]"))
    assert ran(go(tmp_path, SEVERAL)) == ["00-big-seed2", "01-small-seed2", "02-packed-seed2", "03-weigh"]
    assert list(read_json(tmp_path / "run/report.json")["seen"]) == ["1", "2"]


VARIANTS = RECIPE + "variants:\n  last: {stages.small.method: last}\n"


def test_variants_share_what_does_not_differ(tmp_path: Path) -> None:
    result = go(tmp_path, VARIANTS)
    assert [(step.name, step.status) for step in result.steps if step.variant] == [
        ("last/00-big", "cached"),
        ("last/01-small", "done"),
        ("last/02-packed", "done"),
        ("last/03-weigh", "done"),
    ]
    top = tmp_path / "run/variants/last"
    assert sorted(p.name for p in (top / "stages").iterdir()) == ["01-small", "02-packed", "03-weigh"]
    assert read_json(top / "artifacts/packed/manifest.json")["parent"]["method"] == "last"
    assert read_json(tmp_path / "run/artifacts/packed/manifest.json")["parent"]["method"] == "first"
    assert read_json(top / "report.json")["variant"] == "last"
    assert read_json(tmp_path / "run/report.json")["variant"] is None
    assert ran(go(tmp_path, VARIANTS)) == []


def test_a_variant_may_have_other_data(tmp_path: Path) -> None:
    result = go(tmp_path, RECIPE + "variants:\n  more: {data.synthetic.users: 90}\n")
    assert len(ran(result)) == 8
    first, second = (
        read_json(tmp_path / "run" / place / "stages/00-big/checkpoint/config.json")["data"]
        for place in ("", "variants/more")
    )
    assert first != second


def test_progress_tells_stages_with_their_reason(tmp_path: Path) -> None:
    events = Events()
    go(tmp_path, progress=events)
    told = [values for event, values in events.seen if event == "stage"]
    assert [each["name"] for each in told] == ["00-big", "01-small", "02-packed", "03-weigh"]
    assert all(each["why"] == "not run yet" and each["of"] == 4 for each in told)


def test_the_document_of_a_run_is_json(tmp_path: Path) -> None:
    document = json.loads(json.dumps(go(tmp_path).as_document()))
    assert (document["status"], len(document["stages"])) == ("done", 4)
