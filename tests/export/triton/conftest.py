import shutil
from pathlib import Path

import pytest

from export.runtime import Artifact
from export.triton.config import TritonConfig
from export.triton.golden import golden_requests
from export.triton.models import served_model
from export.triton.repository import seal, write_repository
from recommender.files import read_json, write_json
from tests.export.fixtures import N_ITEMS, TOP_K

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


@pytest.fixture(scope="session")
def few_left(written: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with one golden request, of a user who saw so much that a list cannot be filled."""
    folder = tmp_path_factory.mktemp("repositories") / "few-left"
    shutil.copytree(written, folder)
    artifact = Artifact(exported, variant="fp32", threads=1)
    entry = next(each for each in artifact.manifest["variants"] if each["name"] == "fp32")
    model = served_model(CONFIG.name or "", entry, exported, CONFIG)
    seen = list(artifact.item_ids[: N_ITEMS - 9])
    golden = golden_requests(artifact, [model], [seen], CONFIG.seen_step)
    assert len(golden["answers"]["recommender"]["lists"][0]["rows"]) == 9 < TOP_K
    write_json(folder / "golden.json", golden)
    seal(folder, read_json(folder / "repository.json"))
    return folder
