"""What the tests of the variant `ann` share."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from export.ann import AnnConfig
from export.runtime import Artifact

MANY = 3000
COARSE = AnnConfig(index="IVF100,Flat", search="nprobe=1")  # looks into one hundredth of the items
NOT_INSTALLED = importlib.util.find_spec("faiss") is None
needs_faiss = pytest.mark.skipif(NOT_INSTALLED, reason="needs recpress[ann] (faiss-cpu)")


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "artifact")
    return to / "artifact"


def both(folder: Path) -> tuple[Artifact, Artifact]:
    return Artifact(folder, variant="ann", threads=1), Artifact(folder, variant="fast", threads=1)


def entry_of(folder: Path) -> dict:
    manifest = json.loads((folder / "manifest.json").read_text())
    return next(entry for entry in manifest["variants"] if entry["name"] == "ann")
