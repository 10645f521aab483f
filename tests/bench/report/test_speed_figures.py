from xml.etree import ElementTree

from bench.report.blocks import Figures
from bench.report.schema import Report
from bench.report.speed_figures import batch_figures, rate_figures
from tests.bench.report.full import full_report
from tests.bench.report.variations import bare_report


def texts(found: Figures) -> set[str]:
    return {str(t.text) for f in found.figures for t in ElementTree.fromstring(f.svg).iter("text")}


def test_time_against_batch_is_drawn_for_each_closed_load() -> None:
    found = batch_figures(full_report())
    assert [figure.caption for figure in found.figures] == [
        "Time of a call, full histories",
        "Time of a call, real histories",
    ]
    assert {"teacher", "1", "32", "256"} <= texts(found)


def test_a_single_batch_size_makes_no_line() -> None:
    document = full_report().as_json()
    for each in document["candidates"]:
        each["latency"] = [entry for entry in each["latency"] if entry["batch"] == 1]
    assert batch_figures(Report.model_validate(document)).figures == []


def test_latency_against_rate_marks_the_saturation_point_and_the_limit() -> None:
    found = rate_figures(full_report())
    assert len(found.figures) == 5
    assert {"p50", "p95", "p99", "keeps up to 842 / s", "limit 60.0 ms"} <= texts(found)


def test_without_a_saturation_point_none_is_drawn() -> None:
    document = full_report().as_json()
    del document["sections"]["saturation"]
    assert not any("keeps up" in text for text in texts(rate_figures(Report.model_validate(document))))


def test_without_an_open_loop_there_is_no_such_figure() -> None:
    assert rate_figures(bare_report()).figures == []


def test_a_percentile_that_no_rate_has_is_no_line() -> None:
    document = full_report().as_json()
    for each in document["candidates"]:
        for entry in each["latency"]:
            entry.pop("p99_ms", None)
    shown = texts(rate_figures(Report.model_validate(document)))
    assert "p95" in shown and "p99" not in shown
