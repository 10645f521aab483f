from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from bench.candidates import Candidate
from bench.provenance import provenance
from recommender.errors import InputError
from recommender.files import folder_digest, sha256_file, write_json, write_text
from recommender.scoring import ScorerRef
from recommender.stage import Bound
from tests.bench.fakes import OPENER, tiny_log


def made(
    run: Path, name: str, mark: str, inputs: Mapping[str, str], *, artifact: bool = False, folder: str = ""
) -> Bound:
    """A finished stage of a run, as far as provenance reads it."""
    stage = run / "stages" / (folder or name)
    write_json(
        stage / "stage.json",
        {"name": name, "fingerprint": mark, "parts": {"inputs": dict(inputs)}, "config": {}},
    )
    path = run / "artifacts" / name if artifact else stage / "checkpoint"
    if artifact:
        write_json(path / "manifest.json", {"parents": {"elsewhere": "f" * 64}, "mark": mark})
    else:
        write_json(path / "config.json", {"about": {}, "mark": mark})
    return bound(name, path, stage, artifact=artifact)


def bound(name: str, path: Path, stage: Path, *, artifact: bool = False) -> Bound:
    kind: Literal["artifact", "checkpoint"] = "artifact" if artifact else "checkpoint"
    return Bound(name, kind, path, stage, (ScorerRef(name, kind, "torch", path, OPENER),))


def candidate(*bounds: Bound) -> Candidate:
    return Candidate(
        bounds[0].name, dict(enumerate(bounds, 1)), {i: each.scorers[0] for i, each in enumerate(bounds, 1)}
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_parents_are_told_up_to_the_first_also_of_what_is_not_compared(run: Path, tmp_path: Path) -> None:
    made(run, "teacher", "t1", {})
    made(run, "pruned", "p1", {"teacher": "t1"})
    student = made(run, "student", "s1", {"pruned": "p1", "teacher": "t1"})
    onnx = made(run, "onnx", "o1", {"student": "s1"}, artifact=True)
    found = provenance([candidate(student), candidate(onnx)], tiny_log(tmp_path / "log"))
    assert found.data_digest == "d"
    assert found.parents == {
        "teacher": [], "pruned": ["teacher"], "student": ["pruned", "teacher"], "onnx": ["student"],
    }  # fmt: skip
    assert found.digests == {
        "teacher (seed 1)": "t1", "pruned (seed 1)": "p1", "student (seed 1)": "s1",
        "onnx (seed 1)": sha256_file(onnx.path / "manifest.json"),
    }  # fmt: skip


def test_each_seed_has_digests_of_its_own_and_both_the_same_parents(run: Path, tmp_path: Path) -> None:
    seeds = []
    for seed in ("1", "2"):
        made(run, "teacher", f"t{seed}", {}, folder=f"00-teacher-seed{seed}")
        seeds.append(
            made(run, "student", f"s{seed}", {"teacher": f"t{seed}"}, folder=f"01-student-seed{seed}")
        )
    found = provenance([candidate(*seeds)], tiny_log(tmp_path / "log"))
    assert found.parents == {"teacher": [], "student": ["teacher"]}
    assert found.digests["teacher (seed 2)"] == "t2" and found.digests["student (seed 1)"] == "s1"


def test_a_variant_finds_the_parents_that_the_recipe_itself_made(run: Path, tmp_path: Path) -> None:
    made(run, "teacher", "t1", {})
    made(run, "pruned", "p1", {"teacher": "t1"})
    student = made(run / "variants" / "ce", "student", "s1", {"pruned": "p1"})
    found = provenance([candidate(student)], tiny_log(tmp_path / "log"))
    assert found.parents == {"teacher": [], "pruned": ["teacher"], "student": ["pruned"]}


def test_a_given_folder_that_no_stage_made_is_told_by_its_files(tmp_path: Path) -> None:
    path = tmp_path / "given" / "mine"
    write_json(path / "config.json", {"about": {"of": "base", "teacher": "big"}})
    found = provenance([candidate(bound("mine", path, path.parent))], tiny_log(tmp_path / "log"))
    assert found.parents == {"base": [], "big": [], "mine": ["base", "big"]}
    assert found.digests == {"mine (seed 1)": folder_digest(path)}


def test_a_given_artifact_is_told_by_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "onnx"
    write_json(path / "manifest.json", {"parents": {"student": "5" * 64}})
    found = provenance([candidate(bound("onnx", path, tmp_path, artifact=True))], tiny_log(tmp_path / "log"))
    assert found.parents == {"student": [], "onnx": ["student"]}
    assert found.digests["student (seed 1)"] == "5" * 64


def test_a_given_teacher_that_another_run_made_is_one_and_the_same(run: Path, tmp_path: Path) -> None:
    """The child knows it by its files, the other run by its stage."""
    teacher = made(tmp_path / "other", "teacher", "t-other", {})
    student = made(run, "student", "s1", {"teacher": folder_digest(teacher.path)})
    found = provenance([candidate(teacher), candidate(student)], tiny_log(tmp_path / "log"))
    assert found.parents == {"teacher": [], "student": ["teacher"]}
    assert found.digests["teacher (seed 1)"] == "t-other"


def test_two_things_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    teacher = made(tmp_path / "other", "teacher", "t-other", {})
    made(run, "teacher", "t-mine-and-more", {})
    student = made(run, "student", "s1", {"teacher": "t-mine-and-more"})
    found = provenance([candidate(teacher), candidate(student)], tiny_log(tmp_path / "log"))
    assert found.parents == {"teacher": [], "teacher (t-mine-a)": [], "student": ["teacher (t-mine-a)"]}
    assert found.digests["teacher (seed 1)"] == "t-other"


def test_a_half_written_stage_beside_it_is_no_parent_but_a_broken_own_record_is_an_error(
    run: Path, tmp_path: Path
) -> None:
    student = made(run, "student", "s1", {"teacher": "t1"})
    write_text(run / "stages" / "teacher" / "stage.json", "{")
    log = tiny_log(tmp_path / "log")
    assert provenance([candidate(student)], log).parents == {"teacher": [], "student": ["teacher"]}
    write_text(student.stage_folder / "stage.json", "{")
    with pytest.raises(InputError, match="not valid JSON"):
        provenance([candidate(student)], log)


def test_records_that_name_each_other_come_to_an_end(run: Path, tmp_path: Path) -> None:
    made(run, "a", "a1", {"b": "b1"})
    b = made(run, "b", "b1", {"a": "a1"})
    assert provenance([candidate(b)], tiny_log(tmp_path / "log")).parents == {"a": ["b"], "b": ["a"]}
