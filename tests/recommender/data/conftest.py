from collections.abc import Callable
from pathlib import Path

import pytest

from recommender.data.config import DataConfig
from recommender.data.prepare import prepare
from recommender.data.prepared import Prepared

SMALL = {"min_user": 1, "min_item": 1}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    """Write a text file: csv("log.csv", "user_id,item_id", "1,2", ...)."""

    def write(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def prepared_from(csv: Callable[..., Path], cache: Path) -> Callable[..., Prepared]:
    """Prepare a small log given as CSV lines, without k-core unless asked for."""

    def make(*lines: str, **settings: object) -> Prepared:
        config = DataConfig.model_validate({"interactions": csv("log.csv", *lines), **SMALL, **settings})
        return prepare(config, cache)

    return make


def histories(prepared: Prepared) -> dict[str, list[str]]:
    """{user id: item ids, oldest first}."""
    ids = ["", *prepared.catalogue["item_id"].to_list()]
    return {
        user: [ids[row] for row in prepared.history(number)]
        for number, user in enumerate(prepared.user_ids.to_list())
    }
