"""A kept server of the Open Inference Protocol runs a repository's graph: `verify` and the clients ask it."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.runtime import Artifact
from export.triton.repository import write_repository
from recommender.files import read_json
from recpress.cli.app import main
from tests.export.fixtures import perturb
from tests.export.triton.conftest import CONFIG
from tests.export.triton.mlserver_process import add_model, mlserver
from tests.export.triton.test_clients import ask, history_of, wanted
from tests.recpress.finished import last_json

NOT_INSTALLED = importlib.util.find_spec("mlserver") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NOT_INSTALLED, reason="needs recpress[serving] (mlserver, Python 3.12 or earlier)"),
]
over_both = pytest.mark.parametrize("protocol", ["http", "grpc"])


def put(written: Path, folder: Path) -> Path:
    """A folder for the server: version 1 is the repository's graph, version 2 has other weights."""
    model = read_json(written / "repository.json")["models"][0]
    add_model(folder, model, 1, written / model["graph"])
    perturb(add_model(folder, model, 2, written / model["graph"]), scale=0.05)
    return folder


@pytest.fixture(scope="module")
def addresses(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where a server that has both versions listens."""
    with mlserver(put(written, tmp_path_factory.mktemp("mlserver"))) as found:
        yield found


def other_repository(exported: Path, folder: Path, **changed: object) -> Path:
    """The same graph in a repository with other settings."""
    config = CONFIG.model_copy(update=changed)
    write_repository(Artifact(exported, threads=1), folder, config, name="other")
    return folder


@over_both
def test_golden_requests_are_answered_alike(
    protocol: str, addresses: dict[str, str], written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(written), "--url", addresses[protocol], "--json"]) == 0
    found = last_json(capsys)
    assert found["replayed"] == ["recommender"] and found["max_score_difference"] < 1e-5
    assert found["requests"] == len(read_json(written / "golden.json")["histories"])


@over_both
def test_lists_that_cannot_be_filled_are_answered_alike(
    protocol: str, addresses: dict[str, str], few_left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(few_left), "--url", addresses[protocol], "--json"]) == 0
    assert last_json(capsys)["requests"] == 1


@over_both
def test_other_weights_fail(
    protocol: str, addresses: dict[str, str], exported: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    newer = other_repository(exported, tmp_path / "newer", version=2)
    assert main(["verify", str(newer), "--url", addresses[protocol]]) == 1
    assert "golden request 0 to 'recommender' is off by" in capsys.readouterr().err


@over_both
@pytest.mark.parametrize(
    ("changed", "what"),
    [({"version": 3}, "version 3 of model 'recommender'"), ({"name": "shop"}, "version 1 of model 'shop'")],
)
def test_a_version_or_a_model_that_the_server_does_not_have_fails(
    changed: dict[str, object], what: str, protocol: str, addresses: dict[str, str],
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = other_repository(exported, tmp_path / "other", **changed)
    assert main(["verify", str(other), "--url", addresses[protocol], "--json"]) == 1
    error = last_json(capsys)["error"]
    assert f"{what} is refused" in error and "not found" in error


@pytest.mark.parametrize(("spoken", "port"), [("http", "grpc"), ("grpc", "http")])
def test_a_port_of_the_other_protocol_fails(
    spoken: str, port: str, addresses: dict[str, str], written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = addresses[port].replace(f"{port}:", f"{spoken}:")
    assert main(["verify", str(written), "--url", url, "--json"]) == 1
    assert "no server answers" in last_json(capsys)["error"]


def test_a_server_that_was_stopped_fails(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlserver(put(written, tmp_path / "server")) as found:
        for url in found.values():
            assert main(["verify", str(written), "--url", url]) == 0
    for url in found.values():
        assert main(["verify", str(written), "--url", url, "--json"]) == 1
        assert "no server answers" in last_json(capsys)["error"]


CLIENTS = {"http": "client_http.py", "grpc": "client_grpc.py"}


@over_both
def test_clients_recommend_what_the_artifact_does(
    protocol: str, addresses: dict[str, str], written: Path, exported: Path
) -> None:
    history = history_of(exported)
    url = addresses[protocol].removeprefix("grpc://")
    done = ask(written, CLIENTS[protocol], "--url", url, "--history", ",".join(history), "-k", "5")
    assert done.returncode == 0, done.stderr
    lines = wanted(exported, history)
    assert [line[: len(want)] for line, want in zip(done.stdout.splitlines(), lines, strict=True)] == lines


@over_both
def test_clients_leave_out_what_scores_minus_infinity(
    protocol: str, addresses: dict[str, str], few_left: Path, exported: Path
) -> None:
    history = json.loads((few_left / "golden.json").read_text())["histories"][0]
    url = addresses[protocol].removeprefix("grpc://")
    done = ask(few_left, CLIENTS[protocol], "--url", url, "--history", ",".join(history), "-k", "15")
    assert done.returncode == 0, done.stderr
    best = Artifact(exported, variant="fp32").recommend(history, 15)
    assert [line.split()[2] for line in done.stdout.splitlines()] == [each["item_id"] for each in best]
    assert 0 < len(best) < 15
