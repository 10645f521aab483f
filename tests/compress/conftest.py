"""A tiny log with structure, and recommenders of it that are trained once for all tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter

from recommender.data.config import DataConfig, EvaluationConfig
from recommender.data.prepared import Prepared
from recommender.files import digest_of, write_json
from recommender.models.config import ModelConfig
from recommender.stage import Bound, Context, Outputs

ITEMS, USERS, MAX_LENGTH = 40, 150, 10
SETTINGS = {"epochs": 6, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 5, "patience": None}
LLM = {"kind": "llm", "layers": 4, "hidden": 16, "heads": 2, "item_dim": 8, "dropout": 0.0}

MakeContext = Callable[..., Context]


def write_log(folder: Path, *, users: int = USERS, seed: int = 0, prefix: str = "i") -> Prepared:
    """Users who walk in one of two directions around a ring of items: the last two items tell the next."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(ITEMS) + 1  # rows carry no order
    histories = []
    for _ in range(users):
        length, start, step = int(rng.integers(6, 14)), int(rng.integers(ITEMS)), int(rng.choice([1, -1]))
        histories.append(names[(start + step * np.arange(length)) % ITEMS])
    folder.mkdir(parents=True)
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, histories)]).astype(np.int64))
    np.save(folder / "items.npy", np.concatenate(histories).astype(np.int32))
    ids = [f"{prefix}{row}" for row in range(1, ITEMS + 1)]
    pl.DataFrame({"row": range(1, ITEMS + 1), "item_id": ids, "title": ids}).write_parquet(
        folder / "items.parquet"
    )
    pl.DataFrame({"user_id": [f"u{user}" for user in range(users)]}).write_parquet(folder / "users.parquet")
    meta = {
        "name": "ring",
        "users": users,
        "items": ITEMS,
        "digest": f"{prefix}{seed}",
        "catalogue_digest": digest_of(ids),
    }
    write_json(folder / "meta.json", meta)
    return Prepared(folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_log(tmp_path_factory.mktemp("data") / "ring")


def context_in(folder: Path, prepared: Prepared, **values: Any) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scratch").mkdir(exist_ok=True)
    entries: dict[str, Any] = {
        "data": DataConfig(source="ring", max_length=MAX_LENGTH),
        "evaluation": EvaluationConfig(ks=(1, 10)),
        "seed": 1,
        "device": "cpu",
        "folder": folder,
        "scratch": folder / "scratch",
    }
    return Context(prepared=prepared, **(entries | values))


@pytest.fixture
def make_context(tmp_path: Path, prepared: Prepared) -> MakeContext:
    """A context with a folder of its own: make_context("name", seed=3)."""

    def make(name: str, **values: Any) -> Context:
        return context_in(tmp_path / name, values.pop("prepared", prepared), **values)

    return make


def bound(name: str, folder: Path) -> Bound:
    return Bound(name, "checkpoint", folder / "checkpoint", folder)


def train_tiny(
    folder: Path, prepared: Prepared, model: dict[str, Any], **settings: Any
) -> tuple[Bound, Outputs]:
    """Train a tiny model to a checkpoint below `folder`."""
    from recommender.training.stage import TrainConfig, run

    config = TrainConfig(
        stage="train",
        as_=folder.name,
        model=TypeAdapter(ModelConfig).validate_python(model),
        **(SETTINGS | settings),
    )
    outputs = run(config, {}, context_in(folder, prepared))
    return bound(folder.name, folder), outputs


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Bound:
    """A trained llm of 4 blocks."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "teacher", prepared, LLM, epochs=12)[0]


@pytest.fixture(scope="session")
def sasrec(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Bound:
    """A trained SASRec of 3 blocks."""
    model = {"kind": "sasrec", "layers": 3, "hidden": 16, "dropout": 0.0}
    return train_tiny(tmp_path_factory.mktemp("runs") / "sasrec", prepared, model)[0]


def saved(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config
