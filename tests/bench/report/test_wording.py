import pytest

from bench.report import wording
from bench.report.parts import QualityRatio


def test_what_is_absent_is_a_dash() -> None:
    for say in (
        wording.quality,
        wording.count,
        wording.size,
        wording.significant,
        wording.duration,
        wording.times,
    ):
        assert say(None) == wording.ABSENT
    assert wording.percent(None) == wording.p_value(None) == wording.ABSENT


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.quality(0.05124), "0.0512"),
        (wording.quality(0.0), "0.0000"),
        (wording.count(12101), "12,101"),
        (wording.count(3_400_000), "3.4M"),
        (wording.count(6.738e9), "6.74B"),
        (wording.size(999), "999 B"),
        (wording.size(1_234_567), "1.23 MB"),
        (wording.significant(0.01234), "0.0123"),
        (wording.significant(4.5), "4.50"),
        (wording.significant(45.0), "45.0"),
        (wording.significant(12345.6), "12,346"),
        (wording.duration(4.23), "4.23 s"),
        (wording.duration(200), "3 min 20 s"),
        (wording.duration(7500), "2 h 5 min"),
        (wording.times(5.206, (4.9, 5.6)), "5.21x (4.90 to 5.60)"),
        (wording.times(123.4), "123x"),
        (wording.times(0.00301), "0.003x"),
        (wording.percent(0.982, (0.961, 1.003)), "98.2% (96.1 to 100.3)"),
        (wording.p_value(0.0004), "< 0.001"),
        (wording.p_value(0.034), "0.034"),
    ],
)
def test_numbers_read_well(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.parametrize(
    ("ci95", "tone"),
    [((0.8, 0.9), "worse"), ((1.1, 1.2), "better"), ((0.9, 1.1), ""), (None, ""), ((0.9, 1.0), "")],
)
def test_only_a_whole_interval_on_one_side_of_1_is_clear(ci95: tuple[float, float] | None, tone: str) -> None:
    assert wording.tone(QualityRatio(ratio=1, ci95=ci95)) == tone
