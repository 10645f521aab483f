import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx_ir as ir
import pytest

import export.tensorrt
from export.ann import AnnConfig, write_index
from export.artifact import seal
from export.half import to_half
from export.plain import plain_operators
from export.stage import run
from export.static import static_graph, with_spare_rows
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.files import read_json
from recommender.models.interface import SequentialRecommender
from recommender.stage import Bound
from tests.export.ann_fixtures import COARSE, MANY, copy
from tests.export.engines import SEEN, config, context_in
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, TOP_K, make_artifact, tiny_model
from tests.fakes import tensorrt
from tests.fakes.device import CpuDevice
from tests.recommender.fixtures import cyclic_histories, prepared_from


@pytest.fixture(scope="session", autouse=True)
def _traces(shared_traces: None) -> None:
    """Before the first export."""


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


@pytest.fixture(scope="session")
def many_items(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A log over more items than an index needs."""
    folder = tmp_path_factory.mktemp("many") / "data"
    return prepared_from(folder, cyclic_histories(60, MANY, 20), MANY)


@pytest.fixture(scope="session")
def large_model() -> SequentialRecommender:
    return tiny_model("sasrec", n_items=MANY)


@pytest.fixture(scope="session")
def indexed(
    large_model: SequentialRecommender, many_items: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifact with the index that is chosen for this size; read only."""
    folder = tmp_path_factory.mktemp("ann") / "artifact"
    return make_artifact(large_model, folder, many_items, variants=("fast", "ann"))


@pytest.fixture(scope="session")
def indexed_by(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[AnnConfig], Path]:
    """The same artifact with another index."""

    def make(ann: AnnConfig) -> Path:
        folder = copy(indexed, tmp_path_factory.mktemp("ann"))
        manifest = read_json(folder / "manifest.json")
        entry = next(entry for entry in manifest["variants"] if entry["name"] == "ann")
        entry["ann"] = write_index(folder / "catalogue-1", ann, n_items=MANY, top_k=TOP_K)
        seal(folder, manifest)
        return folder

    return make


@pytest.fixture(scope="session")
def coarse(indexed_by: Callable[[AnnConfig], Path]) -> Path:
    """An artifact with an index that misses most; read only."""
    return indexed_by(COARSE)


@pytest.fixture
def fake_trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in as `tensorrt`, and a CPU as its device."""
    tensorrt.reset()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(export.tensorrt, "open_device", CpuDevice)
    return tensorrt


@pytest.fixture(scope="session")
def scoring(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Graphs as engines are built from them, by precision; read only."""
    folder = tmp_path_factory.mktemp("scoring")
    whole = static_graph(ir.load(exported / "catalogue-1/fp32.onnx"), length=MAX_LENGTH, seen=SEEN)
    graphs = {
        "fp32": whole,
        "fp16": to_half(whole, "fp16"),
        "bf16": to_half(whole, "bf16"),
        "spare": with_spare_rows(whole, 64, N_ITEMS),
    }
    for name, graph in graphs.items():
        ir.save(plain_operators(graph), folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in graphs}


@pytest.fixture(scope="session")
def plain_student(
    tmp_path_factory: pytest.TempPathFactory, sasrec: SequentialRecommender, prepared: Prepared
) -> Bound:
    """A checkpoint to export; read only."""
    folder = tmp_path_factory.mktemp("stages") / "00-student"
    save_checkpoint(sasrec, folder / "checkpoint", prepared=prepared, model_config=MODELS["sasrec"])
    return Bound("student", "checkpoint", folder / "checkpoint", folder)


@pytest.fixture(name="cache")
def timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where timings of kernels are kept in this test."""
    monkeypatch.setenv("RECPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensorrt"


@pytest.fixture(scope="session")
def with_engine(tmp_path_factory: pytest.TempPathFactory, plain_student: Bound, prepared: Prepared) -> Path:
    """An artifact with an engine that takes three items more; read only."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        tensorrt.reset()
        patch.setitem(sys.modules, "tensorrt", tensorrt)
        patch.setattr(export.tensorrt, "open_device", CpuDevice)
        patch.setenv("RECPRESS_CACHE", str(folder / "cache"))
        context = context_in(folder, prepared)
        asked = config("tensorrt-fp16", refittable=True, spare_items=3)
        run(asked, {"student": plain_student}, context)
    return context.folder / "artifact"


@pytest.fixture
def own_engine(with_engine: Path, tmp_path: Path, cache: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(with_engine, tmp_path / "artifact")
    return tmp_path / "artifact"
