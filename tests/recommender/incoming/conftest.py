"""A tiny log, models of others saved as they save them, and a way to import them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from recommender.data.prepared import Prepared
from recommender.incoming.stage import ImportConfig, run
from recommender.stage import Outputs
from tests.recommender.fixtures import context_for, cyclic_histories, prepared_from
from tests.recommender.incoming.public_sasrec import PublicSasrec, Version

ITEMS, MAX_LENGTH = 24, 8
FOREIGN = ITEMS + 3  # they know three items that we do not have

Import = Callable[..., tuple[Path, Outputs]]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    histories = cyclic_histories(60, ITEMS, 12)
    return prepared_from(tmp_path_factory.mktemp("data") / "cycle", histories, ITEMS)


@pytest.fixture(scope="session")
def numbers() -> np.ndarray:
    """[ITEMS] the foreign number, from 1, of each of our rows: neither our order nor without gaps."""
    return np.random.default_rng(5).permutation(FOREIGN)[:ITEMS] + 1


@pytest.fixture
def item_map(tmp_path: Path, numbers: np.ndarray) -> Path:
    """The item map of a foreign model that numbers from 1, with the items that we do not have."""
    spare = sorted(set(range(1, FOREIGN + 1)) - set(numbers.tolist()))
    ids = [f"i{row}" for row in range(1, ITEMS + 1)] + [f"theirs{n}" for n in spare]
    file = tmp_path / "map.csv"
    pl.DataFrame({"index": [*numbers.tolist(), *spare], "item_id": ids}).sample(
        fraction=1, shuffle=True, seed=1
    ).write_csv(file)
    return file


@pytest.fixture
def bring_in(tmp_path: Path, prepared: Prepared) -> Import:
    """bring_in(format=..., ...) -> (checkpoint folder, outputs); `notes=[]` collects what is told."""

    def do(
        notes: list[Any] | None = None, max_length: int = MAX_LENGTH, **values: Any
    ) -> tuple[Path, Outputs]:
        context = context_for(prepared, tmp_path / "run", max_length=max_length)
        if notes is not None:
            object.__setattr__(context, "progress", lambda event, told: notes.append((event, dict(told))))
        config = ImportConfig.model_validate({"stage": "import", "as": "theirs", **values})
        outputs = run(config, {}, context)
        return context.folder / "checkpoint", outputs

    return do


def public_sasrec(version: Version = "zeroed", **values: Any) -> PublicSasrec:
    torch.manual_seed(11)
    sizes = {"items": FOREIGN, "hidden": 8, "maxlen": MAX_LENGTH, "blocks": 2, "heads": 2} | values
    return PublicSasrec(version, **sizes).eval()


def saved(weights: dict[str, Tensor], file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    return file
