"""What `refresh-items` makes of engines. TensorRT is a stand-in here (tests.fakes.tensorrt)."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

import export.engines
import export.tensorrt
from export.refresh import refresh_items
from export.verify import verify_artifact
from recommender.errors import InputError, StageError
from recommender.files import read_json, write_json
from tests.export.engines import entries, lists
from tests.export.test_refresh import present
from tests.fakes.device import CpuDevice

pytestmark = pytest.mark.slow


def changed(folder: Path, *, more: int) -> tuple[pl.DataFrame, Any]:
    """The catalogue with other vectors, and `more` items besides."""
    items, vectors = present(folder)
    items = pl.concat([items, pl.DataFrame({"item_id": [f"new{i}" for i in range(more)]})], how="diagonal")
    return items, np.concatenate([vectors[::-1], 2 * vectors[:more]]).astype(np.float32)


@pytest.mark.parametrize("more", [0, 3])
def test_a_refresh_refits_an_engine_while_the_items_fit(
    fake_trt: ModuleType, own_engine: Path, more: int
) -> None:
    refresh_items(own_engine, *changed(own_engine, more=more))
    assert "build" not in fake_trt.CALLS and "refit" in fake_trt.CALLS
    entry = entries(own_engine)["tensorrt-fp16"]
    assert entry["graph"] == "catalogue-2/tensorrt-fp16.plan" and entry["engine"]["refitted"] is True
    assert entry["agreement"]["recall"] > 0.95
    np.testing.assert_allclose(
        lists(own_engine, "tensorrt-fp16").scores, lists(own_engine, "fp32").scores, atol=0.02
    )
    verify_artifact(own_engine)
    fake_trt.reset()
    refresh_items(own_engine, *present(own_engine))  # and once more
    assert "build" not in fake_trt.CALLS


def test_a_refresh_builds_anew_where_they_do_not(fake_trt: ModuleType, own_engine: Path) -> None:
    refresh_items(own_engine, *changed(own_engine, more=4))
    assert "build" in fake_trt.CALLS and "refit" not in fake_trt.CALLS
    entry = entries(own_engine)["tensorrt-fp16"]
    assert "refitted" not in entry["engine"] and entry["engine"]["seen"] == 64
    np.testing.assert_allclose(
        lists(own_engine, "tensorrt-fp16").scores, lists(own_engine, "fp32").scores, atol=0.02
    )
    verify_artifact(own_engine)


@pytest.mark.parametrize("step", ["refit", "build"])
def test_a_refresh_that_fails_changes_nothing(fake_trt: ModuleType, own_engine: Path, step: str) -> None:
    before = read_json(own_engine / "manifest.json")
    fake_trt.FAIL.add(step)
    with pytest.raises(StageError, match=rf"TensorRT failed at {step}"):
        refresh_items(own_engine, *changed(own_engine, more=4 if step == "build" else 0))
    assert read_json(own_engine / "manifest.json") == before and not (own_engine / "catalogue-2").exists()


def test_a_refresh_without_a_gpu_says_so_and_changes_nothing(
    own_engine: Path, fake_trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> CpuDevice:
        raise export.tensorrt.MissingError("no CUDA device", export.tensorrt.INSTALL)

    monkeypatch.setattr(export.tensorrt, "open_device", missing)
    with pytest.raises(InputError, match=r"no CUDA device\n.*pip install .*tensorrt-cu13"):
        refresh_items(own_engine, *changed(own_engine, more=0))
    assert not (own_engine / "catalogue-2").exists()


@pytest.mark.parametrize(
    ("lost", "what"),
    [("machine", "does not say what it was built for"), ("asked", "does not say how it was built")],
)
def test_a_damaged_entry_is_an_input_error_and_changes_nothing(
    fake_trt: ModuleType, own_engine: Path, lost: str, what: str
) -> None:
    manifest = read_json(own_engine / "manifest.json")
    del next(each for each in manifest["variants"] if each["name"] == "tensorrt-fp16")["engine"][lost]
    write_json(own_engine / "manifest.json", manifest)
    with pytest.raises(InputError, match=what) as caught:
        refresh_items(own_engine, *changed(own_engine, more=0))
    assert "variant tensorrt-fp16" in str(caught.value)
    assert read_json(own_engine / "manifest.json") == manifest and not (own_engine / "catalogue-2").exists()
