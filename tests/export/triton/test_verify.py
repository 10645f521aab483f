"""Digests, configurations and answers of a repository, here and by a server, and how they can be wrong."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.triton.repository import seal
from export.triton.verify import verify_repository
from recommender.errors import GateError, InputError
from tests.export.fixtures import perturb
from tests.export.triton.grpc_server import grpc_serving
from tests.export.triton.server import Refused, serving

CONFIG, GRAPH = "models/recommender/config.pbtxt", "models/recommender/1/model.onnx"


def edit(folder: Path, name: str, old: str, new: str) -> None:
    """Replace a text in a file and make the digests true again."""
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    reseal(folder)


def reseal(folder: Path) -> None:
    seal(folder, json.loads((folder / "repository.json").read_text()))


def test_an_untouched_repository_is_verified(written: Path) -> None:
    found = verify_repository(written)
    assert found.models == found.replayed == ("recommender",) and found.not_replayed == {}
    assert found.requests > 3 and found.max_score_difference < 1e-5 and found.unlisted == ()
    assert GRAPH in found.files


def test_files_that_no_digest_covers_are_told(repository: Path) -> None:
    (repository / "notes.txt").write_text("mine")
    assert verify_repository(repository).unlisted == ("notes.txt",)


@pytest.mark.parametrize(
    "change", ["altered", "missing", "outside", "unlisted", "broken", "suffix", "schema"]
)
def test_a_repository_that_was_changed_is_an_input_error(change: str, repository: Path) -> None:
    manifest = json.loads((repository / "repository.json").read_text())
    match change:
        case "altered":
            (repository / GRAPH).write_bytes(b"x")
        case "missing":
            (repository / "golden.json").unlink()
        case "outside":
            manifest["files"]["../x"] = {"size_bytes": 0, "sha256": ""}
        case "unlisted":
            del manifest["files"][GRAPH]
        case "broken":
            del manifest["models"]
        case "suffix":
            manifest["models"][0]["graph"] = "golden.json"
        case "schema":
            manifest["schema_version"] = 99
    (repository / "repository.json").write_text(json.dumps(manifest))
    texts = {
        "altered": "model.onnx was altered", "missing": "golden.json is missing", "outside": "lies outside",
        "unlisted": "no digest of models", "broken": "is broken", "schema": "schema_version 99",
        "suffix": "is broken .*json",
    }  # fmt: skip
    with pytest.raises(InputError, match=texts[change]):
        verify_repository(repository)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('name: "recommender"', 'name: "other"', "name is"),
        ('backend: "onnxruntime"', 'backend: "tensorrt"', "the backend is"),
        ("max_batch_size: 64", "max_batch_size: 0", "max_batch_size is"),
        ('name: "seen"', 'name: "sean"', r"input 'sean' is TYPE_INT64 \[-1\], not missing"),
        ("TYPE_FP32", "TYPE_FP16", r"output 'scores' is TYPE_FP16 \[15\], not TYPE_FP32 \[15\]"),
        ("dims: [ 15 ]", "dims: [ 10 ]", r"output 'top_items' is TYPE_INT64 \[10\]"),
        ("max_batch_size: 64", 'max_batch_size: "', "cannot be read"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_input_error(
    old: str, new: str, what: str, repository: Path
) -> None:
    edit(repository, CONFIG, old, new)
    with pytest.raises(InputError, match=what):
        verify_repository(repository)


def test_a_graph_that_does_not_fit_its_configuration_is_an_input_error(
    repository: Path, exported: Path
) -> None:
    shutil.copyfile(exported / "body.onnx", repository / GRAPH)
    reseal(repository)
    with pytest.raises(InputError, match=r"output 'scores' of the graph is missing, but FP32 \[-1, 15\]"):
        verify_repository(repository)


def test_a_graph_that_answers_otherwise_fails_although_its_digests_hold(repository: Path) -> None:
    perturb(repository / GRAPH, scale=0.05)
    reseal(repository)
    with pytest.raises(GateError, match="golden request 0 to 'recommender' is off by"):
        verify_repository(repository)


def test_a_file_that_is_no_graph_is_an_input_error(repository: Path) -> None:
    (repository / GRAPH).write_bytes(b"no graph")
    reseal(repository)
    with pytest.raises(InputError, match="is no ONNX"):
        verify_repository(repository)


def test_a_graph_of_the_right_form_that_cannot_be_opened_is_an_input_error(repository: Path) -> None:
    model = onnx.load(repository / GRAPH)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, repository / GRAPH)
    reseal(repository)
    with pytest.raises(InputError, match=r"cannot open .*Nonsense"):
        verify_repository(repository)


SERVERS = {"http": serving, "grpc": grpc_serving}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Any:
    """A small server over HTTP, and over gRPC."""
    return SERVERS[request.param]


def test_a_server_of_the_repository_is_verified(written: Path, server: Any) -> None:
    with server(written) as url:
        found = verify_repository(written, url=url + "/")
    assert found.replayed == ("recommender",) and found.max_score_difference < 1e-5 and found.url == url + "/"


def test_a_grpc_server_that_lists_its_numbers_is_verified(written: Path) -> None:
    with grpc_serving(written, raw=False) as url:
        assert verify_repository(written, url=url).max_score_difference < 1e-5


def test_scores_of_minus_infinity_are_verified(few_left: Path, server: Any) -> None:
    assert verify_repository(few_left).replayed == ("recommender",)
    with server(few_left) as url:
        assert verify_repository(few_left, url=url).requests == 1


def test_null_stands_for_minus_infinity_and_for_no_other_score(few_left: Path, written: Path) -> None:
    def nulls(count: int) -> Callable[[dict[str, Any]], None]:
        def change(told: dict[str, Any]) -> None:
            told["scores"]["data"][-count:] = [None] * count

        return outputs(change)

    with serving(few_left, nulls(6)) as url:
        assert verify_repository(few_left, url=url).max_score_difference < 1e-5
    with serving(few_left, nulls(7)) as url, pytest.raises(GateError, match="is off by inf"):
        verify_repository(few_left, url=url)


def outputs(change: Callable[[dict[str, Any]], None]) -> Callable[[str, dict[str, Any]], Any]:
    """A server whose answers to requests are changed."""

    def changed(what: str, answer: dict[str, Any]) -> Any:
        if what == "infer":
            change({each["name"]: each for each in answer["outputs"]} | {"answer": answer})
        return answer

    return changed


def refuse(kind: str, status: int) -> Callable[[str, dict[str, Any]], Any]:
    def changed(what: str, answer: dict[str, Any]) -> Any:
        if what == kind:
            raise Refused(status, "out of memory")
        return answer

    return changed


def instead(kind: str, told: Any) -> Callable[[str, dict[str, Any]], Any]:
    return lambda what, answer: told if what == kind else answer


def altered(kind: str, **values: Any) -> Callable[[str, dict[str, Any]], Any]:
    return lambda what, answer: answer | values if what == kind else answer


def tensor(name: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": "INT64", "shape": list(shape)}


def swap_ranks(told: dict[str, Any]) -> None:
    rows = told["top_items"]["data"]
    rows[0], rows[5] = rows[5], rows[0]


def raise_scores(told: dict[str, Any]) -> None:
    told["scores"]["data"] = [score * 1.01 for score in told["scores"]["data"]]


def shorten(told: dict[str, Any]) -> None:
    for name in ("top_items", "scores"):
        told[name]["data"], told[name]["shape"] = told[name]["data"][:3], [1, 3]


WRONG = {
    "not ready": (refuse("ready", 503), "is not ready .status 503.*out of memory"),
    "not ready and says so": (instead("ready", {"ready": False}), "is not ready"),
    "other version": (altered("metadata", versions=["2", "3"]), "has version 2, 3, not 1"),
    "does not have the version": (refuse("metadata", 404), "version 1 of model 'recommender' is refused"),
    "other version answers": (altered("infer", model_version="7"), "answered as version 7, not 1"),
    "other inputs": (altered("metadata", inputs=[tensor("ids", -1, -1)]),
                     "input 'items' is missing"),
    "other shape": (altered("metadata", outputs=[tensor("top_items", -1, 5)]),
                    r"output 'top_items' is INT64 \[-1, 5\], not INT64 \[-1, 15\]"),
    "refuses": (refuse("infer", 500), "refused .status (500|StatusCode.INTERNAL).: out of memory"),
    "swapped ranks": (outputs(swap_ranks), "it ranks otherwise"),
    "altered scores": (outputs(raise_scores), "is off by 0.01"),
    "missing output": (outputs(lambda told: told["answer"]["outputs"].pop()), "answers without scores"),
    "short lists": (outputs(shorten), "answers 3 rows and 3 scores, not 15"),
    "no outputs": (instead("infer", {"model_name": "x"}), "'outputs' is missing"),
    "unknown type": (outputs(lambda told: told["scores"].update(datatype="BYTES")), "cannot be read"),
    "no JSON": (instead("metadata", b"<html>"), "what is no JSON"),
    "no object": (instead("metadata", [1]), "no JSON object"),
}  # fmt: skip


HTTP_ONLY = {"not ready", "no outputs", "no JSON", "no object"}
GRPC_ONLY = {"not ready and says so"}


@pytest.mark.parametrize("case", sorted(WRONG.keys() - GRPC_ONLY))
def test_a_server_that_is_wrong_fails_with_what_is_wrong(case: str, written: Path) -> None:
    change, what = WRONG[case]
    with serving(written, change) as url, pytest.raises(GateError, match=what) as caught:
        verify_repository(written, url=url)
    assert url in str(caught.value)


@pytest.mark.parametrize("case", sorted(WRONG.keys() - HTTP_ONLY))
def test_a_grpc_server_that_is_wrong_fails_with_what_is_wrong(case: str, written: Path) -> None:
    change, what = WRONG[case]
    with grpc_serving(written, change) as url, pytest.raises(GateError, match=what) as caught:
        verify_repository(written, url=url)
    assert url in str(caught.value)


def test_a_swap_of_items_with_equal_scores_is_no_change_of_ranks(written: Path) -> None:
    def near_tie(told: dict[str, Any]) -> None:
        scores, rows = told["scores"]["data"], told["top_items"]["data"]
        scale = max(map(abs, scores))
        for place in range(len(scores) - 1):
            if scores[place] - scores[place + 1] < 5e-4 * scale:
                rows[place], rows[place + 1] = rows[place + 1], rows[place]

    with serving(written, outputs(near_tie)) as url:
        assert verify_repository(written, url=url).max_score_difference < 1e-3


def test_a_server_without_the_model_is_told(written: Path, repository: Path, server: Any) -> None:
    (repository / "models/recommender").rename(repository / "models/another")
    status = r"'recommender' is refused .status (404|StatusCode.NOT_FOUND)"
    with server(repository) as url, pytest.raises(GateError, match=status):
        verify_repository(written, url=url)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_down_is_told(scheme: str, written: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        with pytest.raises(GateError, match="no server answers"):
            verify_repository(written, url=url)


def test_a_port_of_the_other_protocol_is_no_server(written: Path) -> None:
    with grpc_serving(written) as url, pytest.raises(GateError, match="does not speak HTTP"):
        verify_repository(written, url=url.replace("grpc:", "http:"))
    with serving(written) as url, pytest.raises(GateError, match="no server answers"):
        verify_repository(written, url=url.replace("http:", "grpc:"))


NO_ADDRESS = [
    "localhost:8000", "ftp://host", "http://", "http://host:port", "http://[::1",
    "grpc://", "grpc://localhost", "grpc://localhost:8001/v2", "grpcs://localhost:8001",
]  # fmt: skip


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_an_address_that_is_none_is_an_input_error(url: str, written: Path) -> None:
    with pytest.raises(InputError, match="no address of a server"):
        verify_repository(written, url=url)


@pytest.mark.parametrize("missing", ["grpc", "tritonclient"])
def test_grpc_without_its_client_says_what_to_install(
    missing: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == missing] or [missing]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r'pip install "recpress\[triton\]"'):
        verify_repository(written, url="grpc://localhost:8001")
