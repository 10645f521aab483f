"""The cost card: throughput turned into money and energy, with every assumption in words.

users per currency unit = users per second x 3600 / price of an hour;
users per watt-hour     = users per second x 3600 / watts.
A number whose inputs are unknown is absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.config import CostSettings
from bench.report.parts import Cost, CostRow
from bench.report.schema import CandidateReport, Energy, Latency

METERS = {
    "rapl": "whole processor packages, without memory and the rest of the machine",
    "nvml": "the whole GPU, without processor, memory and the rest of the machine",
}


@dataclass(frozen=True)
class _Power:
    """Power of one row, and where it comes from."""

    users_per_watt_hour: float
    measured: Energy | None


def cost_card(candidates: Sequence[CandidateReport], settings: CostSettings) -> Cost:
    """One row per candidate, load and batch size that was timed.

    The open loop gives one row: the highest rate that was kept up with, if there is one. Measured power goes
    before assumed power.
    """
    price = _share(settings.price_per_hour, settings)
    watts = _share(settings.watts, settings)
    rows, powers = [], []
    for candidate in candidates:
        for timed in _sustained(candidate.latency):
            power = _power(timed, candidate.energy or [], watts)
            powers.append(power)
            rows.append(
                CostRow(
                    candidate=candidate.name,
                    load=timed.load,
                    batch=timed.batch,
                    users_per_second=timed.users_per_second,
                    users_per_currency_unit=timed.users_per_second * 3600 / price if price else None,
                    users_per_watt_hour=power.users_per_watt_hour if power else None,
                    power=None if power is None else "measured" if power.measured else "assumed",
                )
            )
    return Cost(
        currency=settings.currency,
        price_per_hour=price,
        watts=watts,
        assumptions=_assumptions(rows, powers, settings),
        rows=rows,
    )


def _share(value: float | None, settings: CostSettings) -> float | None:
    return None if value is None else value * settings.share_of_machine


def _sustained(rows: Sequence[Latency]) -> list[Latency]:
    """Closed-loop rows, and of the open loop the highest rate below all that were not kept up with."""
    best: list[Latency] = []
    for row in sorted((row for row in rows if row.rate is not None), key=lambda row: row.rate or 0.0):
        if row.kept_up is False:
            break
        if row.kept_up:
            best = [row]
    return [row for row in rows if row.load != "open-loop"] + best


def _power(timed: Latency, energies: Sequence[Energy], watts: float | None) -> _Power | None:
    """Measured at this load and batch size, else assumed.

    At the highest rate that is kept up with the process hardly rests, so an open loop takes the watts that
    were measured with real histories and full batches.
    """
    load = "real" if timed.load == "open-loop" else timed.load
    for each in energies:
        if (each.load, each.batch) == (load, timed.batch):
            exact = timed.load != "open-loop"
            found = each.users_per_watt_hour if exact else timed.users_per_second * 3600 / each.watts
            return _Power(found, each)
    return None if watts is None else _Power(timed.users_per_second * 3600 / watts, None)


def _assumptions(
    rows: Sequence[CostRow], powers: Sequence[_Power | None], settings: CostSettings
) -> list[str]:
    """What has to be true for the numbers to hold, in sentences."""
    said = [
        "One process answers without a pause at the measured speed; hours without requests are not priced."
    ]
    share = settings.share_of_machine
    part = "" if share == 1 else f", of which one process is charged {share:.0%}"
    if settings.price_per_hour is None:
        said.append("No price was given (cost.price_per_hour), so users per currency unit are absent.")
    else:
        price = f"{settings.price_per_hour:g} {settings.currency} per hour"
        said.append(f"The whole machine costs {price}{part}; storage, network and people cost nothing.")
    for source in sorted({power.measured.source for power in powers if power and power.measured}):
        said.append(f"Measured power ({source.upper()}) is that of {METERS[source]}; nothing is subtracted.")
    if any(power is not None and power.measured is None for power in powers):
        said.append(
            f"Where power was not measured, the whole machine is assumed to draw {settings.watts:g} W{part}."
        )
    if any(power is None for power in powers):
        said.append("Power was neither measured nor given (cost.watts) for rows without users per watt-hour.")
    if any(row.load == "open-loop" for row in rows):
        said.append(
            "Rows of open loops are for the highest rate that was kept up with; where their power is "
            "measured, it is that of the same batch size without pauses."
        )
    return said
