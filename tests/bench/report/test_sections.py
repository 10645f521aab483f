from collections.abc import Callable
from typing import Any

import pytest

from bench.report.schema import Report
from bench.report.sections import sections
from tests.bench.report.full import full_report
from tests.bench.report.variations import bare_report

ALL = [
    "failed", "findings", "against-speed", "kept", "candidates", "quality", "slices", "coverage", "changes",
    "speed", "load", "roofline", "cost", "training", "depth", "samples", "notes", "origin",
]  # fmt: skip


def anchors(report: Report) -> list[str]:
    return [section.anchor for section in sections(report)]


def test_a_full_report_has_every_section_in_order() -> None:
    assert anchors(full_report()) == ALL


def test_a_bare_report_has_those_only_that_it_has_numbers_for() -> None:
    assert anchors(bare_report()) == ["kept", "candidates", "quality", "speed", "origin"]


def drop(*names: str) -> Callable[[dict[str, Any]], None]:
    def harm(document: dict[str, Any]) -> None:
        for name in names:
            del document["sections"][name]

    return harm


def each_candidate(**values: Any) -> Callable[[dict[str, Any]], None]:
    def harm(document: dict[str, Any]) -> None:
        for each in document["candidates"]:
            for name, value in values.items():
                each.pop(name, None)
                if value is not None:
                    each[name] = value

    return harm


def no_open_loop(document: dict[str, Any]) -> None:
    for each in document["candidates"]:
        each["latency"] = [entry for entry in each["latency"] if entry["load"] != "open-loop"]
    del document["sections"]["saturation"]


def no_cost(document: dict[str, Any]) -> None:
    each_candidate(energy=None)(document)
    del document["sections"]["cost"]


def no_slices(document: dict[str, Any]) -> None:
    each_candidate(slices=[])(document)
    del document["sections"]["slice_ratios"]


@pytest.mark.parametrize(
    ("missing", "harm"),
    [
        ("failed", each_candidate(failed=None)),
        ("findings", drop("findings")),
        ("against-speed", drop("pareto")),
        ("slices", no_slices),
        ("coverage", each_candidate(coverage={})),
        ("changes", drop("rank_changes")),
        ("load", no_open_loop),
        ("roofline", drop("roofline")),
        ("cost", no_cost),
        ("training", each_candidate(train=None)),
        ("depth", drop("depth_profile")),
        ("samples", drop("samples")),
        ("notes", drop("notes")),
    ],
)
def test_a_part_that_was_not_measured_has_no_heading(
    missing: str, harm: Callable[[dict[str, Any]], None]
) -> None:
    document = full_report().as_json()
    harm(document)
    assert anchors(Report.model_validate(document)) == [anchor for anchor in ALL if anchor != missing]


def test_what_fails_has_a_list_of_its_own_like_what_holds() -> None:
    (findings,) = [section for section in sections(full_report()) if section.anchor == "findings"]
    assert [(getattr(b, "title", ""), len(getattr(b, "lines", ()))) for b in findings.blocks] == [
        ("Holds", 2), ("Fails", 2), ("Open", 1),
    ]  # fmt: skip


def test_several_profiles_have_sections_of_their_own() -> None:
    document = full_report().as_json()
    document["sections"]["depth_profile"] *= 2
    assert {"depth-1", "depth-2"} <= set(anchors(Report.model_validate(document)))


def test_parts_that_the_page_does_not_know_are_mentioned() -> None:
    document = full_report().as_json()
    document["sections"]["carbon"] = {"x": 1}
    text = str(sections(Report.model_validate(document)))
    assert "further parts that this page does not show: carbon." in text
