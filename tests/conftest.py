"""Every test sees an empty cache of prepared data, no user settings and no network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and onnxruntime are first imported


@pytest.fixture(scope="session")
def cache_of_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of prepared data for all tests; it is keyed by content, so sharing it is safe."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that are equal are traced once, by whichever process of the tests is first.

    Folders whose tests export ask for it; others need no torch.
    """
    import export.onnx
    from tests.traces import SharedTraces

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.onnx, "_trace", SharedTraces(export.onnx._trace, folder))
        yield


@pytest.fixture(autouse=True)
def _alone(cache_of_session: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RECPRESS_CACHE", str(cache_of_session))
    for name in ("RECPRESS_DATA", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    yield
