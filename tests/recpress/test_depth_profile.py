"""The depth profile in recipes: bound by name, kept, shown by the bench, refused where it is of no use."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recommender.errors import InputError
from recommender.files import read_json, write_json
from recpress import plan as plans
from recpress.cli.app import main
from recpress.given import bind, kind_of, shape_of
from recpress.recipe import load_recipe

DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"

RECIPE = f"""
name: tiny
data: {DATA}
evaluation: {{ks: [1, 5, 10]}}
stages:
  - {{stage: train, as: teacher, model: {{kind: sasrec, layers: 2, hidden: 16}}, epochs: 1}}
  - {{stage: depth-profile, of: teacher, as: profile, keep: [1, 2], retrain: true, epochs: 1}}
  - {{stage: bench, compare: [teacher], profiles: [profile], batch_sizes: [1], rounds: 2, latency_seconds: 1,
     draws: 100, threads: 1, aa: false}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cache_of_session: Path) -> Path:
    """A finished run of the tiny recipe in `home/run`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECPRESS_CACHE", str(cache_of_session))
        assert main(["run", str(folder / "tiny.yaml"), "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def checked(text: str, tmp_path: Path) -> str:
    """What is wrong with a recipe."""
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "wrong.yaml")
    return str(caught.value)


def test_the_bench_shows_the_profile_and_a_second_run_keeps_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = read_json(home / "run/stages/01-profile/profile/profile.json")
    assert read_json(home / "run/report.json")["sections"]["depth_profile"] == [
        {key: value for key, value in made.items() if value is not None}
        | {"depths": [{k: v for k, v in each.items() if v is not None} for each in made["depths"]]}
    ]
    assert [each["blocks"] for each in made["depths"] if each["retrained"]] == [1, 2]
    command = ["run", str(home / "tiny.yaml"), "--device", "cpu", "--out", str(home / "run"), "--json"]
    assert main(command) == 0
    assert {stage["status"] for stage in last_json(capsys)["stages"]} == {"cached"}


def test_a_profile_that_lost_its_page_is_made_again(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    page = tmp_path / "run/stages/01-profile/profile/profile.md"
    before = page.read_text()
    page.unlink()
    assert main(["run", str(home / "tiny.yaml"), "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert before.splitlines()[0] == page.read_text().splitlines()[0] == "# Depth profile of teacher"


def test_a_profile_is_no_checkpoint_and_a_checkpoint_no_profile(tmp_path: Path) -> None:
    more = "  - {stage: prune-depth, of: profile, as: pruned, keep: 1}\n"
    more += "  - {stage: bench, compare: [teacher, profile], profiles: [teacher]}\n"
    told = checked(RECIPE + more, tmp_path)
    assert "stages.3.of: 'profile' is a profile, but this stage needs a checkpoint" in told
    assert "stages.4.compare" in told and "stages.4.profiles" in told


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("[1, 1]", "stages.1.keep: 1 blocks are listed more than once"),
        ("[]", "stages.1.keep: an empty list names no depth"),
        ("[1, 3]", "stages.1.keep: cannot keep 3 of the 2 blocks of 'teacher'"),
        ("[0]", "stages.1.keep.0"),
    ],
)
def test_wrong_depths_are_refused_before_anything_runs(keep: str, message: str, tmp_path: Path) -> None:
    assert message in checked(RECIPE.replace("keep: [1, 2]", f"keep: {keep}"), tmp_path)
    popular = RECIPE.replace("{kind: sasrec, layers: 2, hidden: 16}", "{kind: popularity}")
    assert "stages.1.of: 'teacher' has no blocks" in checked(popular, tmp_path)


def test_the_verb_profiles_a_checkpoint_of_a_run(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(home / "run/stages/00-teacher/checkpoint")
    command = ["depth-profile", teacher, "--data", DATA, "--out", str(tmp_path / "one"), "--json"]
    assert main([*command, "--set", "keep=[1]"]) == 0
    made = Path(last_json(capsys)["stages"][0]["folder"], "profile")
    assert {file.name for file in made.iterdir()} == {"profile.json", "profile.md", "plan.yaml"}
    assert main([*command, "--set", "keep=[3]"]) == 2
    assert "cannot keep 3 of the 2 blocks of 'teacher'" in capsys.readouterr().err
    bench = ["bench", teacher, f"shape={made}", "--data", DATA, "--out", str(tmp_path / "two")]
    quick = ("rounds=2", "latency_seconds=1", "draws=100", "batch_sizes=[1]", "threads=1", "aa=false")
    assert main([*bench, *(part for each in quick for part in ("--set", each))]) == 0
    assert len(read_json(tmp_path / "two/report.json")["sections"]["depth_profile"]) == 1


def test_a_given_profile_is_checked(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    shutil.copytree(home / "run/stages/01-profile/profile", folder)
    assert kind_of(folder) == shape_of(folder).kind == "profile"
    assert bind("shape", folder).scorers == ()
    document = read_json(folder / "profile.json")
    write_json(folder / "profile.json", {**document, "blocks": "many"})
    with pytest.raises(InputError, match="is no depth profile: blocks"):
        shape_of(folder)
    write_json(folder / "profile.json", {**document, "catalogue_digest": "of another"})
    (tmp_path / "given.yaml").write_text(
        f"name: given\ndata: {DATA}\n"
        f"inputs: {{shape: {folder}, t: {home}/run/stages/00-teacher/checkpoint}}\n"
        "stages:\n  - {stage: bench, compare: [t], profiles: [shape]}\n"
    )
    assert main(["run", str(tmp_path / "given.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_a_plan_does_not_try_the_searches(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[str] = []

    def probe(kind: Any, config: Any, *_: Any) -> Any:
        tried.append(config.stage)
        return plans.UNKNOWN

    monkeypatch.setattr(plans, "probe", probe)
    loaded = load_recipe(home / "tiny.yaml", ["stages.teacher.epochs=2"])
    teacher, profile, _ = plans.plan(loaded, tmp_path / "new", device="cpu").steps
    assert tried == ["train"] and (teacher.cached, profile.cached) == (False, False)
    assert profile.seconds is None


def test_the_built_in_recipe_runs_on_small_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = tmp_path / "data" / "amazon-beauty"
    shop.mkdir(parents=True)
    rows = [(f"u{user}", f"i{(user + time) % 40:05d}", time) for user in range(40) for time in range(7)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_csv(shop / "interactions.csv")
    pl.DataFrame({"item_id": sorted(set(log["item_id"])), "title": "a thing"}).write_csv(shop / "items.csv")
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path / "data"))
    small = ["stages.teacher.epochs=1", "stages.profile.epochs=1", "stages.teacher.model.hidden=16"]
    small += ["stages.bench.latency_seconds=1", "stages.bench.draws=100", "stages.bench.batch_sizes=[1]"]
    sets = [part for each in (*small, "stages.bench.aa=false") for part in ("--set", each)]
    assert main(["run", "depth-profile", "--device", "cpu", "--out", str(tmp_path / "run"), *sets]) == 0
    (profile,) = read_json(tmp_path / "run/report.json")["sections"]["depth_profile"]
    trained = [each["kept"] for each in profile["depths"] if each["retrained"]]
    assert trained == [[0], [0, 1], [0, 1, 2, 3], list(range(8))]
    assert len(profile["cuts"]) == 35
    assert "keep" in (tmp_path / "run/stages/01-profile/profile/plan.yaml").read_text()
