import shutil
from pathlib import Path

import pytest

from export.runtime import Artifact
from export.triton.config import TritonConfig
from export.triton.repository import write_repository

CONFIG = TritonConfig(name="recommender", threads=2, seen_step=8)


@pytest.fixture(scope="session")
def written(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the tiny artifact; read only."""
    folder = tmp_path_factory.mktemp("repositories") / "tiny-triton"
    write_repository(Artifact(exported, threads=1), folder, CONFIG, name="tiny-triton")
    return folder


@pytest.fixture
def repository(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(written, tmp_path / "repository")
    return tmp_path / "repository"
