"""The plan: what is finished, why the rest runs, what it costs and how that is known; nothing is written."""

from pathlib import Path
from typing import Any

import pytest

from recommender.files import read_json, write_json
from recpress.plan import Plan, PlannedStep, plan
from recpress.probe import Clock
from recpress.recipe import load_recipe
from recpress.runner import Settings, run
from tests.recpress.fakes import FAKES, RECIPE


def planned(tmp_path: Path, text: str = RECIPE, *sets: str, fresh: bool = False, **more: Any) -> Plan:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    loaded = load_recipe(file, sets, stages=FAKES)
    return plan(loaded, tmp_path / "run", device="cpu", fresh=fresh, stages=FAKES, **more)


def go(tmp_path: Path) -> None:
    loaded = load_recipe(tmp_path / "recipe.yaml", stages=FAKES)
    run(loaded, tmp_path / "run", Settings(), stages=FAKES)


def line(found: Plan, name: str) -> PlannedStep:
    return next(step for step in found.steps if step.name == name)


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = planned(tmp_path, cache=cache)
    assert [step.name for step in found.steps] == ["00-big", "01-small", "02-packed", "03-weigh"]
    assert not any(step.cached for step in found.steps)
    assert {step.why for step in found.steps} == {"not run yet"}
    assert not (tmp_path / "run").exists()
    assert not list(cache.glob("data/*"))
    assert "would be prepared first" in found.notes[0]


def test_a_plan_after_a_run_says_that_nothing_is_left(tmp_path: Path) -> None:
    planned(tmp_path)
    go(tmp_path)
    found = planned(tmp_path)
    assert all(step.cached for step in found.steps)
    assert found.notes[-1] == "everything is finished: a run would change nothing"
    assert (line(found, "00-big").disk_bytes or 0) > 0


def test_a_plan_agrees_with_the_run_that_follows(tmp_path: Path) -> None:
    planned(tmp_path)
    go(tmp_path)
    found = planned(tmp_path, RECIPE, "stages.small.keep=1")
    assert [step.cached for step in found.steps] == [True, False, False, False]
    assert line(found, "01-small").why == "keep: 2 -> 1"
    assert line(found, "02-packed").why == "input 'small' changed"


def test_times_come_from_an_earlier_run_of_the_same_stage(tmp_path: Path) -> None:
    planned(tmp_path)
    go(tmp_path)
    record = tmp_path / "run/stages/02-packed/stage.json"
    write_json(record, {**read_json(record), "seconds": 77.0})
    found = planned(tmp_path, RECIPE, "stages.small.keep=1")
    packed = line(found, "02-packed")
    assert (packed.seconds, packed.basis) == (77.0, "an earlier run")
    assert line(found, "01-small").seconds is None  # its options changed, so the old time says nothing
    assert "77 s for 3 of 4 steps" in found.notes[-1] and "01-small" in found.notes[-1]


def test_fresh_plans_everything(tmp_path: Path) -> None:
    planned(tmp_path)
    go(tmp_path)
    assert {step.why for step in planned(tmp_path, fresh=True).steps} == {"--fresh"}


def test_missing_data_is_listed_and_the_order_still_shown(tmp_path: Path) -> None:
    found = planned(tmp_path, RECIPE, "data={source: beauty}")
    assert [step.stage for step in found.steps] == ["grow", "cut", "pack", "weigh"]
    assert "RECPRESS_DATA" in found.missing[0]
    assert found.as_document()["missing"] == found.missing


def test_a_few_real_steps_tell_the_time_of_a_training(tmp_path: Path) -> None:
    text = """
name: real
data: {source: synthetic, synthetic: {users: 60, items: 40}, max_length: 8}
stages:
  - {stage: train, as: teacher, model: {kind: sasrec, layers: 2, hidden: 8}, epochs: 7, batch_size: 16}
  - {stage: prune-depth, of: teacher, as: pruned, keep: 1}
  - stage: distill
    of: pruned
    teacher: teacher
    as: student
    blocks: 1
    weights: {ms: 0}
    epochs: 3
    batch_size: 16
  - {stage: bench, compare: [teacher, student]}
"""
    (tmp_path / "real.yaml").write_text(text)
    said: list[Any] = []
    found = plan(
        load_recipe(tmp_path / "real.yaml"), tmp_path / "run", device="cpu",
        progress=lambda event, values: said.append((event, values["text"])),
    )  # fmt: skip
    assert found.missing == ()
    assert said == [("note", f"trying {name}") for name in ("00-teacher", "01-pruned", "02-student")]
    for name in ("00-teacher", "02-student"):
        assert line(found, name).basis == "probe of a few steps; at most"
        assert (line(found, name).seconds or 0) > 0
        assert (line(found, name).memory_bytes or 0) > 1_000_000
        assert (line(found, name).disk_bytes or 0) > 1_000
    assert line(found, "01-pruned").basis == "trial"
    assert line(found, "03-bench").seconds is None
    assert "03-bench" in found.notes[-1]
    assert not (tmp_path / "run").exists()


def test_a_probe_ignores_the_first_steps() -> None:
    clock = Clock()
    clock.ends = [0.0, 5.0, 9.0, 10.0, 11.0, 12.0]
    assert clock.seconds_per_step() == 1.0
    clock.ends = [0.0]
    assert clock.seconds_per_step() is None


def test_a_stage_that_cannot_start_is_listed_as_missing(tmp_path: Path) -> None:
    text = """
name: real
data: {source: synthetic, synthetic: {users: 60, items: 40}, max_length: 8}
stages:
  - {stage: train, as: teacher, model: {kind: llm, backbone: ./no-such-model}, epochs: 1}
"""
    (tmp_path / "real.yaml").write_text(text)
    found = plan(load_recipe(tmp_path / "real.yaml"), tmp_path / "run", device="cpu")
    assert len(found.missing) == 1 and "no-such-model" in found.missing[0]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    from recommender.errors import InputError

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run folder"):
        planned(tmp_path)
