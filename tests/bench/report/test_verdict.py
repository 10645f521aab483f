import pytest

from bench import findings
from bench.report.parts import Interval, QualityRatio
from bench.report.schema import Comparison, Speedup
from bench.report.verdict import NON_INFERIOR, main_load, of_quality, of_speed, verdict
from tests.bench.report.full import full_report


def speed(batch: int, ci95: Interval | None, *, floor: float | None = None, load: str = "real") -> Speedup:
    return Speedup.model_validate(
        {"load": load, "batch": batch, "threads": 1, "ratio": 1.0, "ci95": ci95, "aa_floor": floor}
    )


@pytest.mark.parametrize(
    ("ci95", "text", "kept"),
    [
        ((1.01, 1.05), "better quality", True),
        ((0.98, 1.02), "not worse (within 3%)", True),
        ((0.97, 1.02), "not shown to keep 97%", False),
        ((0.90, 0.99), "not shown to keep 97%", False),
        ((0.90, 0.96), "worse quality", False),
        (None, "quality without an interval", None),
    ],
)
def test_the_interval_decides_on_quality(ci95: Interval | None, text: str, kept: bool | None) -> None:
    assert of_quality(QualityRatio(ratio=1, ci95=ci95)) == (text, kept)


def test_the_margin_is_that_of_the_findings() -> None:
    assert NON_INFERIOR == findings.NON_INFERIOR


@pytest.mark.parametrize(
    ("found", "text", "faster"),
    [
        ([speed(1, (1.1, 1.3)), speed(32, (2, 3))], "faster", True),
        ([speed(1, (1.1, 1.3), floor=0.2), speed(32, (2, 3), floor=0.2)], "faster at batch 32", True),
        ([speed(1, (0.5, 0.8)), speed(32, (2, 3))], "faster at batch 32, slower at batch 1", True),
        ([speed(1, (0.5, 0.8)), speed(32, (0.7, 0.9))], "slower", False),
        ([speed(1, (0.5, 0.8)), speed(32, (0.9, 1.1))], "slower at batch 1", None),
        ([speed(1, (0.9, 1.1))], "no clear difference in speed", None),
        ([speed(1, None)], "no clear difference in speed", None),
        ([], "", None),
    ],
)
def test_speed_has_to_leave_the_floor_of_chance(found: list[Speedup], text: str, faster: bool | None) -> None:
    assert of_speed(found) == (text, faster)


@pytest.mark.parametrize(
    ("quality", "speeds", "kind"),
    [
        ((0.98, 1.02), [(2.0, 3.0)], "holds"),
        ((0.98, 1.02), [(0.9, 1.1)], "open"),
        ((0.98, 1.02), [(0.3, 0.4)], "fails"),
        ((0.80, 0.90), [(2.0, 3.0)], "fails"),
        (None, [(2.0, 3.0)], "open"),
    ],
)
def test_both_together(quality: Interval | None, speeds: list[Interval], kind: str) -> None:
    found = Comparison(
        candidate="b",
        against="a",
        quality={"ndcg@10": QualityRatio(ratio=1, ci95=quality)},
        speedup=[speed(1, each) for each in speeds],
    )
    assert verdict(full_report(), found).kind == kind


def test_real_traffic_counts_before_full_histories() -> None:
    mixed = [speed(32, None, load="full"), speed(32, None), speed(1, None)]
    assert [(each.load, each.batch) for each in main_load(mixed)] == [("real", 1), ("real", 32)]
    assert [each.load for each in main_load(mixed[:1])] == ["full"]
