"""The clients that travel with a repository: item ids in, titles out, by HTTP and gRPC."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.runtime import Artifact
from tests.export.triton.grpc_server import grpc_serving
from tests.export.triton.server import serving


def ask(repository: Path, client: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / client), *arguments]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own)


def history_of(exported: Path) -> list[str]:
    ids = Artifact(exported).item_ids
    return [ids[3], ids[17], ids[3]]


def wanted(exported: Path, history: list[str]) -> list[str]:
    """Lines of what the artifact itself recommends."""
    best = Artifact(exported, variant="fp32").recommend(history, 5)
    return [f"{place:>3}  {each['score']:>9.4f}  {each['item_id']}" for place, each in enumerate(best, 1)]


def test_the_http_client_recommends_what_the_artifact_does(written: Path, exported: Path) -> None:
    history = history_of(exported)
    with serving(written) as url:
        done = ask(written, "client_http.py", "--url", url, "--history", ", ".join(history), "-k", "5")
    assert done.returncode == 0, done.stderr
    assert [
        line[: len(want)]
        for line, want in zip(done.stdout.splitlines(), wanted(exported, history), strict=True)
    ] == (wanted(exported, history))


def test_the_http_client_says_what_is_wrong(written: Path) -> None:
    def run(*arguments: str) -> str:
        done = ask(written, "client_http.py", *arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stderr

    assert "unknown items: nonsense" in run("--history", "nonsense")
    assert "no model 'other'" in run("--history", "x", "--model", "other")


def test_the_grpc_client_recommends_what_the_artifact_does(written: Path, exported: Path) -> None:
    history = history_of(exported)
    with grpc_serving(written) as url:
        address = url.removeprefix("grpc://")
        done = ask(written, "client_grpc.py", "--url", address, "--history", ",".join(history), "-k", "5")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()] == [
        line.split()[2] for line in wanted(exported, history)
    ]


@pytest.mark.parametrize("minus_infinity", [float("-inf"), None])  # as Triton writes it, and as others do
def test_the_http_client_leaves_out_what_scores_minus_infinity(
    minus_infinity: float | None, few_left: Path, exported: Path
) -> None:
    def change(what: str, answer: dict[str, Any]) -> dict[str, Any]:
        for output in answer.get("outputs", []):
            output["data"] = [minus_infinity if each == float("-inf") else each for each in output["data"]]
        return answer

    history = json.loads((few_left / "golden.json").read_text())["histories"][0]
    with serving(few_left, change) as url:
        done = ask(few_left, "client_http.py", "--url", url, "--history", ",".join(history), "-k", "15")
    assert done.returncode == 0, done.stderr
    best = Artifact(exported, variant="fp32").recommend(history, 15)
    assert [line.split()[2] for line in done.stdout.splitlines()] == [each["item_id"] for each in best]
    assert len(best) == 9


def test_the_clients_say_that_the_port_is_one_of_the_other_protocol(written: Path) -> None:
    history = ["--history", json.loads((written / "golden.json").read_text())["histories"][0][0]]
    with grpc_serving(written) as url:
        done = ask(written, "client_http.py", "--url", url.replace("grpc", "http"), *history)
    assert done.returncode == 1 and "does not speak HTTP and JSON" in done.stderr
    with serving(written) as url:
        done = ask(written, "client_grpc.py", "--url", url.removeprefix("http://"), *history)
    assert done.returncode == 1 and "does not answer" in done.stderr and "Traceback" not in done.stderr


def test_the_grpc_client_says_what_to_install(written: Path, tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError('No module named grpc')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(1, {str(written)!r})\n"
    code += "from client_grpc import recommend; from client_http import Catalogue\n"
    code += "recommend('localhost:1', Catalogue(), Catalogue().ids[:1], 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and 'pip install "tritonclient[grpc]"' in done.stderr


def test_histories_longer_than_the_model_reads_are_cut_to_the_newest_and_masked_whole(written: Path) -> None:
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from client_http import Catalogue\n"
        "c = Catalogue(); items, seen = c.request(c.ids[:20])\n"
        "print(json.dumps([items.tolist(), seen.tolist()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(written)], capture_output=True, text=True, check=True
    )
    items, seen = json.loads(done.stdout)
    assert items == [list(range(9, 21))]
    assert seen == [[*range(1, 21), 0, 0, 0, 0]]


@pytest.mark.parametrize("client", ["client_http.py", "client_grpc.py"])
def test_clients_need_nothing_of_this_project(client: str, written: Path) -> None:
    done = ask(written, client, "--help")
    assert done.returncode == 0 and "--history" in done.stdout
    assert "recpress" not in (written / client).read_text()
