from xml.etree import ElementTree

import pytest

from bench.report.blocks import Figures
from bench.report.figures import change_figures, kept_figures, pareto_figures, share_figures, slice_figures
from bench.report.schema import Report
from tests.bench.report.full import full_report

MAKERS = (pareto_figures, kept_figures, slice_figures, share_figures, change_figures)


@pytest.fixture(scope="module")
def full() -> Report:
    return full_report()


def captions(found: Figures) -> list[str]:
    return [figure.caption for figure in found.figures]


def names(found: Figures) -> set[str]:
    roots = [ElementTree.fromstring(figure.svg) for figure in found.figures]
    return {str(text.text) for root in roots for text in root.iter("text")}


def test_there_is_a_scatter_for_every_load_and_batch_size_real_traffic_first(full: Report) -> None:
    found = pareto_figures(full)
    assert captions(found)[0] == "Batch 1, real histories, 1 thread"
    assert captions(found)[3:] == [f"Batch {batch}, full histories, 1 thread" for batch in (1, 32, 256)]
    assert {"teacher", "student-onnx:int8"} <= names(found)


def test_kept_and_won_are_shown_for_each_batch_size(full: Report) -> None:
    assert captions(kept_figures(full)) == [
        "NDCG@10 kept, against teacher",
        *(f"Speed at batch {batch}, real histories, against teacher" for batch in (1, 32, 256)),
    ]
    assert {"101.1% (99.6 to 102.6)", "4.10x (3.94 to 4.30)"} <= names(kept_figures(full))


def test_slices_have_one_figure_per_candidate_over_the_same_axis(full: Report) -> None:
    found = slice_figures(full)
    assert len(found.figures) == 4
    ticks = [
        [
            text.text
            for text in ElementTree.fromstring(figure.svg).iter("text")
            if text.attrib["class"] == "tick"
        ]
        for figure in found.figures
    ]
    assert all(each == ticks[0] for each in ticks)
    assert "cold items, 331 users" in names(found) and "history 20+, 831 users" in names(found)


def test_shares_of_shelves_are_drawn_for_all_that_have_lists(full: Report) -> None:
    (figure,) = share_figures(full).figures
    assert "first 10 places" in figure.caption and "64%" in names(share_figures(full))
    assert "student-w4" not in names(share_figures(full))


def test_changes_have_one_histogram_per_pair(full: Report) -> None:
    assert captions(change_figures(full))[0] == "pruned, against teacher"
    assert {"same 21%", "same 20%"} <= names(change_figures(full))


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_measured_is_nothing_drawn(make: object) -> None:
    document = full_report().as_json()
    document["sections"], document["comparisons"] = {}, []
    for each in document["candidates"]:
        each["coverage"] = {}
    assert callable(make) and make(Report.model_validate(document)).figures == []
