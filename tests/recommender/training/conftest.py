"""A context with histories that walk in a circle."""

from pathlib import Path

import pytest

from recommender.stage import Context
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from

N_ITEMS = 20


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return context_for(prepared_from(tmp_path / "data", cyclic_histories(60, N_ITEMS, 9), N_ITEMS), tmp_path)
