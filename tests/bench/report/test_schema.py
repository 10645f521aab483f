import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import bench.report.schema as subject
from bench.report.schema import Report, json_schema, schema_text

WRITTEN = Path(subject.__file__).with_name("report.schema.json")
REWRITE = 'python -c "from bench.report.schema import *; print(schema_text(), end=str())" > ' + WRITTEN.name


@pytest.fixture
def document(bench_folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((bench_folder / "run" / "report.json").read_text())
    return loaded


def errors(document: object) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(WRITTEN.read_text()))
    return [error.message for error in validator.iter_errors(document)]


def test_the_written_schema_is_that_of_the_code() -> None:
    assert WRITTEN.read_text() == schema_text(), f"write it anew: {REWRITE}"
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_a_report_validates(document: dict[str, Any]) -> None:
    assert errors(document) == []


def test_a_report_read_back_is_the_same(document: dict[str, Any]) -> None:
    assert Report.model_validate(document).as_json() == document


def test_optional_sections_may_be_added(document: dict[str, Any]) -> None:
    document["sections"]["carbon"] = {"anything": [1, 2]}
    document["environment"]["kernel"] = "6.1"
    assert errors(document) == []
    assert Report.model_validate(document).as_json() == document


def break_version(d: dict[str, Any]) -> None:
    d["schema_version"] = 2


def drop_version(d: dict[str, Any]) -> None:
    del d["schema_version"]


def null_instead_of_absent(d: dict[str, Any]) -> None:
    d["candidates"][0]["peak_memory_bytes"] = None


def null_percentile(d: dict[str, Any]) -> None:
    d["candidates"][0]["latency"][0]["p99_ms"] = None


def unknown_key(d: dict[str, Any]) -> None:
    d["candidates"][0]["size"] = 3


def no_quality(d: dict[str, Any]) -> None:
    del d["candidates"][0]["quality"]


def text_metric(d: dict[str, Any]) -> None:
    d["candidates"][0]["quality"]["hr@1"] = "0.5"


def text_metric_of_a_seed(d: dict[str, Any]) -> None:
    d["candidates"][0]["quality_by_seed"][0]["hr@1"] = "0.5"


def one_bound(d: dict[str, Any]) -> None:
    d["comparisons"][0]["speedup"][0]["ci95"] = [1.0]


def other_kind(d: dict[str, Any]) -> None:
    d["candidates"][0]["kind"] = "engine"


@pytest.mark.parametrize(
    "breakage",
    [
        break_version, drop_version, null_instead_of_absent, null_percentile, unknown_key, no_quality,
        text_metric, text_metric_of_a_seed, one_bound, other_kind,
    ],
)  # fmt: skip
def test_a_broken_report_does_not_validate(
    document: dict[str, Any], breakage: Callable[[dict[str, Any]], None]
) -> None:
    breakage(document)
    assert errors(document)


def test_design_names_are_all_there(document: dict[str, Any]) -> None:
    assert set(document) >= {
        "schema_version", "recipe", "variant", "seeds", "created", "command", "environment", "dataset",
        "evaluation", "candidates", "comparisons", "sections",
    }  # fmt: skip
    assert set(document["candidates"][1]) >= {
        "name", "of", "kind", "runtime", "device", "threads", "parameters", "body_parameters", "size_bytes",
        "quality", "quality_by_seed", "slices", "coverage", "latency", "train",
    }  # fmt: skip
    assert set(document["comparisons"][0]) == {
        "candidate", "against", "quality", "size_ratio", "parameter_ratio", "speedup",
    }  # fmt: skip
