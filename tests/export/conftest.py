import shutil
from pathlib import Path

import pytest

from recommender.data.prepared import Prepared
from recommender.models.interface import SequentialRecommender
from tests.export.fixtures import N_ITEMS, make_artifact, tiny_model
from tests.recommender.fixtures import cyclic_histories, prepared_from


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    histories = cyclic_histories(60, N_ITEMS, 20)
    return prepared_from(tmp_path_factory.mktemp("export") / "data", histories, N_ITEMS)


@pytest.fixture(scope="session")
def sasrec() -> SequentialRecommender:
    return tiny_model("sasrec")


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, prepared: Prepared, sasrec: SequentialRecommender
) -> Path:
    """The artifact of a tiny SASRec; read only."""
    return make_artifact(sasrec, tmp_path_factory.mktemp("artifacts") / "tiny-onnx", prepared)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may break."""
    shutil.copytree(exported, tmp_path / "artifact")
    return tmp_path / "artifact"
