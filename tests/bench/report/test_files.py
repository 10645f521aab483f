import json
import shutil
from pathlib import Path

import pytest

from bench.report import read, rebuild
from bench.report.files import write
from recommender.errors import InputError
from recommender.files import write_json
from tests.bench.report.full import full_report
from tests.bench.report.variations import bare_report


@pytest.fixture
def run_folder(bench_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bench_folder / "run", tmp_path / "run"))


def test_pages_are_made_again_as_they_were(run_folder: Path) -> None:
    pages = {name: (run_folder / name).read_text() for name in ("report.md", "report.html")}
    for name in pages:
        (run_folder / name).unlink()
    before = (run_folder / "report.json").read_bytes()
    rebuild(run_folder)
    assert {name: (run_folder / name).read_text() for name in pages} == pages
    assert (run_folder / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("version", "said"), [(2, "schema_version 2"), ("1", "schema_version '1'"), (None, "no schema")]
)
def test_another_schema_version_is_refused_and_nothing_is_written(
    run_folder: Path, version: object, said: str
) -> None:
    document = json.loads((run_folder / "report.json").read_text())
    document["schema_version"] = version
    write_json(run_folder / "report.json", document)
    (run_folder / "report.md").unlink()
    with pytest.raises(InputError, match=said) as error:
        rebuild(run_folder)
    assert error.value.fix and "reads schema_version 1" in error.value.what
    assert not (run_folder / "report.md").exists()


def test_a_broken_report_is_refused_with_the_places(run_folder: Path) -> None:
    document = json.loads((run_folder / "report.json").read_text())
    document["candidates"][0]["quality"] = "good"
    del document["dataset"]["name"]
    write_json(run_folder / "report.json", document)
    with pytest.raises(InputError, match=r"dataset\.name.*candidates\.0\.quality"):
        read(run_folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_what_is_no_report_is_refused(run_folder: Path, text: str) -> None:
    (run_folder / "report.json").write_text(text)
    with pytest.raises(InputError):
        read(run_folder)


def test_a_run_without_a_report_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no report yet"):
        rebuild(tmp_path)
    with pytest.raises(InputError, match="no such run folder"):
        rebuild(tmp_path / "missing")


def test_a_full_report_is_written_read_and_made_again(tmp_path: Path) -> None:
    write(full_report(), tmp_path)
    assert read(tmp_path) == full_report()
    before = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    rebuild(tmp_path)
    assert (tmp_path / "report.html").read_text() == before


def test_a_report_from_before_there_were_optional_parts_is_made_again(tmp_path: Path) -> None:
    """Keys that earlier writers of version 1 did not know are missing in the file, not empty."""
    document = bare_report().as_json()
    assert document["sections"] == {} and "failed" not in document["candidates"][0]
    for each in document["comparisons"]:
        for ratio in each["quality"].values():
            del ratio["aa_half_width"]
        for speed in each["speedup"]:
            del speed["aa_floor"]
    write_json(tmp_path / "report.json", document)
    rebuild(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "A/A" not in page and "Findings" not in page and "Ranking quality" in page
    assert "Ranking quality" in (tmp_path / "report.md").read_text()
