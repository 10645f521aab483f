"""What a repository holds, and that the server's own protobuf reads its configurations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from export.runtime import Artifact
from export.triton.config import TritonConfig
from export.triton.models import config_of, served_model
from export.triton.pbtxt import read_pbtxt
from export.triton.repository import write_repository
from recommender.errors import InputError
from tests.export.fixtures import MAX_LENGTH, N_ITEMS, TOP_K

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the dev extra brings tritonclient[grpc]"
)

ENTRY: dict[str, Any] = {
    "name": "fp32", "precision": "fp32", "graph": "catalogue-1/fp32.onnx", "files": ["catalogue-1/fp32.onnx"],
    "top_k": 15, "max_length": 12, "inputs": {"items": ["batch", "length"], "seen": ["batch", "seen"]},
}  # fmt: skip
ENGINE = ENTRY | {
    "name": "tensorrt-fp16", "precision": "fp16", "graph": "catalogue-1/tensorrt-fp16.plan",
    "fixed_length": 10, "on_cpu": False, "runs_on": "GPUs",
    "engine": {"seen": 64, "asked": {"profiles": [[1, 1, 1], [1, 16, 32]]}},
}  # fmt: skip
COMPILED = ENTRY | {"name": "aot", "graph": "catalogue-1/aot.pt2", "device": "cpu"}


def parsed(text: str) -> Any:
    """By the protobuf that comes with the server's client: refuses unknown fields and wrong enums."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config(entry: dict[str, Any], **values: Any) -> Any:
    triton = TritonConfig(**values)
    return parsed(config_of(served_model("recommender", entry, Path("artifact"), triton), triton))


def test_the_layout_is_what_the_server_reads_and_what_people_need(written: Path) -> None:
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert files == {
        "repository.json", "golden.json", "README.md", "client_http.py", "client_grpc.py", "load-test.sh",
        "load-test.json", "models/recommender/config.pbtxt", "models/recommender/1/model.onnx",
        "catalogue/ids.utf8", "catalogue/ids.npy", "catalogue/titles.utf8", "catalogue/titles.npy",
        "catalogue/items.parquet",
    }  # fmt: skip
    manifest = json.loads((written / "repository.json").read_text())
    assert set(manifest["files"]) == files - {"repository.json"}
    assert manifest["of"] == "tiny-onnx" and len(manifest["parents"]["tiny-onnx"]) == 64


def test_the_configuration_is_read_by_the_servers_own_protobuf(written: Path) -> None:
    read = parsed((written / "models/recommender/config.pbtxt").read_text())
    assert (read.name, read.backend, read.max_batch_size) == ("recommender", "onnxruntime", 64)
    inputs = [(each.name, each.data_type, list(each.dims)) for each in read.input]
    assert inputs == [
        ("items", model_config_pb2.TYPE_INT64, [-1]),
        ("seen", model_config_pb2.TYPE_INT64, [-1]),
    ]
    outputs = [(each.name, each.data_type, list(each.dims)) for each in read.output]
    assert outputs == [
        ("top_items", model_config_pb2.TYPE_INT64, [TOP_K]), ("scores", model_config_pb2.TYPE_FP32, [TOP_K]),
    ]  # fmt: skip
    queue = read.dynamic_batching.default_queue_policy
    assert read.dynamic_batching.max_queue_delay_microseconds == 500
    assert (queue.timeout_action, queue.default_timeout_microseconds, queue.max_queue_size) == (
        0,
        50_000,
        256,
    )
    assert [(group.count, group.kind) for group in read.instance_group] == [
        (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    ]
    assert read.parameters["intra_op_thread_count"].string_value == "2"
    assert read.version_policy.latest.num_versions == 1 and not read.response_cache.enable
    warmup = {each.batch_size: each.inputs for each in read.model_warmup}
    assert set(warmup) == {1, 64}
    assert list(warmup[64]["items"].dims) == [MAX_LENGTH] and list(warmup[64]["seen"].dims) == [8]
    assert warmup[1]["items"].zero_data


def test_an_engine_has_its_fixed_sizes_its_profiles_and_a_gpu() -> None:
    read = config(ENGINE)
    assert (read.backend, read.max_batch_size) == ("tensorrt", 32)
    assert [list(each.dims) for each in read.input] == [[10], [64]]
    assert read.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert list(read.instance_group[0].profile) == ["0", "1"]


def test_a_compiled_package_has_the_names_of_its_backend_and_brings_its_own_batch() -> None:
    read = config(COMPILED)
    assert (read.platform, read.max_batch_size) == ("torch_aoti", 0)
    assert [(each.name, list(each.dims)) for each in read.input] == [
        ("INPUT__0", [-1, -1]),
        ("INPUT__1", [-1, -1]),
    ]
    assert [(each.name, list(each.dims)) for each in read.output] == [
        ("OUTPUT__0", [-1, 15]), ("OUTPUT__1", [-1, 15]),
    ]  # fmt: skip
    assert not read.HasField("dynamic_batching")
    assert [(w.batch_size, list(w.inputs["INPUT__0"].dims)) for w in read.model_warmup] == [(1, [1, 12])]
    assert read.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert config(COMPILED | {"device": "cuda"}).instance_group[0].kind == (
        model_config_pb2.ModelInstanceGroup.KIND_GPU
    )


def test_options_reach_the_configuration() -> None:
    read = config(
        ENTRY,
        kind="gpu",
        instances=3,
        max_batch_size=1,
        max_queue_delay_microseconds=7,
        queue_size=0,
        threads=4,
    )
    assert (read.instance_group[0].count, read.max_batch_size) == (3, 1)
    assert read.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert len(read.model_warmup) == 1 and "intra_op_thread_count" not in read.parameters
    assert read.dynamic_batching.max_queue_delay_microseconds == 7


@pytest.mark.parametrize("entry", [ENTRY, ENGINE, COMPILED])
def test_our_reader_and_the_protobuf_read_the_same(entry: dict[str, Any]) -> None:
    triton = TritonConfig(threads=2)
    text = config_of(served_model("recommender", entry, Path("artifact"), triton), triton)
    ours, theirs = read_pbtxt(text, "config.pbtxt"), parsed(text)
    assert ours["name"] == [theirs.name] and ours["max_batch_size"] == [theirs.max_batch_size]
    for field, values in (("input", theirs.input), ("output", theirs.output)):
        assert [(each["name"][0], each["dims"]) for each in ours[field]] == [
            (each.name, list(each.dims)) for each in values
        ]
    assert len(ours["model_warmup"]) == len(theirs.model_warmup)


def test_a_graph_for_gpus_is_not_configured_for_a_cpu() -> None:
    bf16 = ENTRY | {"name": "bf16", "on_cpu": False, "runs_on": "runtimes that compute in bf16"}
    with pytest.raises(InputError, match="kind: gpu"):
        served_model("recommender", bf16, Path("artifact"), TritonConfig())
    assert served_model("recommender", bf16, Path("artifact"), TritonConfig(kind="gpu")).gpu


def test_a_body_and_a_head_are_no_model_of_a_server() -> None:
    with pytest.raises(InputError, match="one graph"):
        served_model(
            "recommender", {"name": "fast", "body": "b.onnx", "head": "h.onnx"}, Path("."), TritonConfig()
        )


def test_a_variant_that_the_artifact_lacks_is_refused_and_nothing_is_written(
    exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no variant fp16 \(it has: fp32"):
        write_repository(
            Artifact(exported), tmp_path / "r", TritonConfig(variants=("fp32", "fp16")), name="r"
        )
    assert not list(tmp_path.iterdir())


def test_external_data_lies_beside_the_graph_under_the_name_that_the_graph_knows(tmp_path: Path) -> None:
    entry = ENTRY | {"files": [*ENTRY["files"], "catalogue-1/fp32.onnx.data"]}
    model = served_model("recommender", entry, tmp_path, TritonConfig())
    assert model.beside == (tmp_path / "catalogue-1/fp32.onnx.data",)


def test_golden_and_load_test_requests_are_padded_to_one_shape_of_items(written: Path) -> None:
    golden = json.loads((written / "golden.json").read_text())
    assert len({len(history) for history in golden["histories"]}) > 3
    lists = golden["answers"]["recommender"]["lists"]
    assert all(
        set(each["items"]).isdisjoint(history)
        for each, history in zip(lists, golden["histories"], strict=True)
    )
    load = json.loads((written / "load-test.json").read_text())["data"]
    assert {tuple(each["items"]["shape"]) for each in load} == {(MAX_LENGTH,)}
    assert {each["seen"]["shape"][0] % 8 for each in load} == {0}
    rows = np.concatenate([each["items"]["content"] for each in load])
    assert rows.max() <= N_ITEMS and rows.min() == 0
    assert (written / "load-test.sh").stat().st_mode & 0o111


def test_the_readme_says_how_to_start_and_how_to_pad(written: Path) -> None:
    text = (written / "README.md").read_text()
    assert "tritonserver --model-repository=/models" in text and "--gpus" not in text
    assert f"int64 [users, {MAX_LENGTH}]" in text and "multiple of 8" in text
    assert "perf_analyzer" in text and "{{" not in text and "{%" not in text
    assert "perf_analyzer -m recommender" in (written / "load-test.sh").read_text()
