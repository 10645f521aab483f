import pytest

from bench.config import CostSettings
from bench.cost import cost_card
from bench.report.parts import Cost, CostRow
from bench.report.schema import CandidateReport, Energy, Latency


def timed(batch: int, users_per_second: float, load: str = "real", **more: object) -> Latency:
    return Latency.model_validate(
        {"load": load, "length": 3.0, "batch": batch, "threads": 2, "p50_ms": 1.0,
         "users_per_second": users_per_second, "samples": 50, **more}
    )  # fmt: skip


def measured(batch: int, watts: float, users_per_watt_hour: float, source: str = "rapl") -> Energy:
    return Energy.model_validate(
        {"source": source, "load": "real", "batch": batch, "watts": watts,
         "joules_per_user": 3600 / users_per_watt_hour, "users_per_watt_hour": users_per_watt_hour}
    )  # fmt: skip


def candidate(name: str, latency: list[Latency], energy: list[Energy] | None = None) -> CandidateReport:
    return CandidateReport(
        name=name, kind="checkpoint", runtime="torch", device="cpu", threads=2, quality={},
        quality_by_seed=[], slices=[], coverage={}, latency=latency, energy=energy,
    )  # fmt: skip


def row(card: Cost, name: str, batch: int, load: str = "real") -> CostRow:
    return next(each for each in card.rows if (each.candidate, each.batch, each.load) == (name, batch, load))


def test_money_and_energy_by_hand() -> None:
    """100 users a second are 360,000 an hour: at 0.50 an hour 720,000 per unit, at 60 W 6,000 per Wh."""
    card = cost_card(
        [candidate("student", [timed(1, 100.0)])], CostSettings(currency="EUR", price_per_hour=0.5, watts=60)
    )
    found = row(card, "student", 1)
    assert found.users_per_second == 100.0
    assert found.users_per_currency_unit == pytest.approx(720_000)
    assert found.users_per_watt_hour == pytest.approx(6_000)
    assert found.power == "assumed"
    assert (card.currency, card.price_per_hour, card.watts) == ("EUR", 0.5, 60)
    assert any("0.5 EUR per hour" in each for each in card.assumptions)
    assert any("assumed to draw 60 W" in each for each in card.assumptions)


def test_a_number_without_its_inputs_is_absent_and_never_0() -> None:
    card = cost_card([candidate("student", [timed(1, 100.0), timed(32, 900.0)])], CostSettings())
    for each in card.model_dump(exclude_none=True)["rows"]:
        assert set(each) == {"candidate", "load", "batch", "users_per_second"}
    assert {"price_per_hour", "watts"}.isdisjoint(card.model_dump(exclude_none=True))
    assert any("No price was given" in each for each in card.assumptions)
    assert any("neither measured nor given" in each for each in card.assumptions)


def test_measured_power_goes_before_assumed_power_where_it_was_measured() -> None:
    both = [timed(1, 100.0), timed(32, 900.0), timed(1, 90.0, load="full")]
    card = cost_card([candidate("student", both, [measured(1, 20.0, 17_000.0)])], CostSettings(watts=60))
    assert (row(card, "student", 1).power, row(card, "student", 1).users_per_watt_hour) == (
        "measured",
        17_000.0,
    )
    assert row(card, "student", 32).power == "assumed"
    assert row(card, "student", 1, "full").power == "assumed"
    assert any("RAPL" in each and "nothing is subtracted" in each for each in card.assumptions)
    assert any("Where power was not measured" in each for each in card.assumptions)


def test_nothing_is_said_of_power_that_was_not_used() -> None:
    card = cost_card(
        [candidate("s", [timed(1, 10.0)], [measured(1, 20.0, 1_800.0, "nvml")])], CostSettings(watts=60)
    )
    assert not any("60 W" in each or "neither" in each for each in card.assumptions)
    assert any("NVML" in each and "the whole GPU" in each for each in card.assumptions)


def test_a_share_of_the_machine_is_charged_a_share_of_price_and_assumed_power() -> None:
    given = CostSettings(price_per_hour=2.0, watts=200, share_of_machine=0.25)
    card = cost_card([candidate("s", [timed(1, 100.0)], None)], given)
    assert (card.price_per_hour, card.watts) == (0.5, 50.0)
    assert row(card, "s", 1).users_per_currency_unit == pytest.approx(720_000)
    assert row(card, "s", 1).users_per_watt_hour == pytest.approx(7_200)
    assert sum("one process is charged 25%" in each for each in card.assumptions) == 2


def test_an_open_loop_gives_the_highest_rate_below_every_failure() -> None:
    rates = [
        timed(32, 50.0, "open-loop", rate=50.0, kept_up=True),
        timed(32, 99.0, "open-loop", rate=130.0, kept_up=False),
        timed(32, 80.0, "open-loop", rate=80.0, kept_up=True),
        timed(32, 140.0, "open-loop", rate=140.0, kept_up=True),
        timed(32, 1.0, "open-loop", rate=1.0),
    ]
    card = cost_card(
        [candidate("s", [timed(32, 100.0), *rates], [measured(32, 36.0, 10_000.0)])], CostSettings()
    )
    assert [(each.load, each.users_per_second) for each in card.rows] == [
        ("real", 100.0),
        ("open-loop", 80.0),
    ]
    assert row(card, "s", 32, "open-loop").users_per_watt_hour == pytest.approx(80 * 3600 / 36)
    assert row(card, "s", 32, "open-loop").power == "measured"
    assert any("highest rate that was kept up with" in each for each in card.assumptions)


@pytest.mark.parametrize("verdict", [None, False])
def test_an_open_loop_that_never_kept_up_has_no_row(verdict: bool | None) -> None:
    latency = [timed(32, 50.0, "open-loop", rate=50.0, kept_up=verdict)]
    assert cost_card([candidate("s", latency)], CostSettings(price_per_hour=1)).rows == []


def test_a_candidate_that_failed_has_no_rows_and_the_others_do() -> None:
    card = cost_card([candidate("broken", []), candidate("s", [timed(1, 10.0)])], CostSettings())
    assert [each.candidate for each in card.rows] == ["s"]
