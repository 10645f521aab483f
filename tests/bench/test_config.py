import subprocess
import sys

import pytest
from pydantic import ValidationError

from bench.config import CostSettings, OpenLoopSettings


def test_defaults_are_valid_and_every_option_is_described() -> None:
    for section in (OpenLoopSettings, CostSettings):
        assert section() == section.model_validate(section().model_dump())
        assert all(field.description for field in section.model_fields.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rates": []}, "at least 1"),
        ({"rates": [0.5, 0.5]}, "twice"),
        ({"rates": [0.0]}, "greater than 0"),
        ({"rates": [30]}, "less than or equal to 4"),
        ({"seconds": 0}, "greater than 0"),
        ({"seconds": 40}, "max_seconds"),
        ({"max_seconds": float("inf")}, "finite"),
        ({"max_batch": 0}, "greater than or equal to 1"),
        ({"max_batch": True}, "number"),
        ({"limit_ms": -5}, "greater than 0"),
        ({"speed": 3}, "Extra inputs"),
    ],
)
def test_wrong_settings_of_an_open_loop_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OpenLoopSettings.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {"price_per_hour": 0}, {"price_per_hour": -1}, {"price_per_hour": True},
        {"price_per_hour": float("inf")}, {"watts": 0}, {"watts": float("nan")}, {"currency": ""},
        {"share_of_machine": 0}, {"share_of_machine": 1.5}, {"price": 3},
    ],
)  # fmt: skip
def test_wrong_costs_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CostSettings.model_validate(given)


def test_reading_the_options_loads_no_report_and_no_runtime() -> None:
    code = "import sys, bench.config; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    loaded = said.split()
    assert {name for name in loaded if name.startswith("bench.")} == {"bench.config", "bench.providers"}
    assert not {"torch", "onnxruntime"} & set(loaded)
