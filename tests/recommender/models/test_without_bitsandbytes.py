"""`load_in` where bitsandbytes is not installed."""

import importlib.util
from typing import Any

import pytest

from recommender.errors import InputError
from recommender.models.quantized import load_quantized


def test_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "bitsandbytes" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(InputError, match=r"recpress\[quantize\]"):
        load_quantized("anywhere", "nf4")
