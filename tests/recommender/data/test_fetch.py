"""Downloads from a server of our own on 127.0.0.1; no test leaves the machine."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recommender.data.fetch import fetch
from recommender.data.sources import SOURCES, find_source
from recommender.errors import InputError

Files = dict[str, bytes]


class Server:
    """Serves `files`; `cut` names are announced in full and sent by half; `asked` lists the requests."""

    def __init__(self) -> None:
        self.files: Files = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        outer = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked.append(name)
                body = outer.files.get(name)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write((body or b"")[: len(body or b"") // 2 if name in outer.cut else None])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def movielens(
    server: Server, *, md5: str | None = None, members: tuple[str, ...] = ("u.data", "u.item")
) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member in (*members, "README", "u.user", "../../evil"):
            archive.writestr(f"ml-100k/{member}", f"content of {member}")
    server.files["ml-100k.zip"] = packed.getvalue()
    stated = md5 or hashlib.md5(packed.getvalue()).hexdigest()
    server.files["ml-100k.zip.md5"] = f"MD5 (ml-100k.zip) = {stated}\n".encode()
    return packed.getvalue()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_terms_are_shown_before_anything_is_downloaded(server: Server, tmp_path: Path) -> None:
    movielens(server)

    def refuse(terms: str) -> None:
        assert "research use" in terms and "no redistribution" in terms
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("ml-100k", tmp_path, on_licence=refuse, mirror=server.address)
    assert server.asked == [] and left_in(tmp_path) == set()


def test_an_archive_with_a_stated_checksum_is_checked_and_unpacked(server: Server, tmp_path: Path) -> None:
    content = movielens(server)
    folder = fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)
    assert folder == tmp_path / "ml-100k"
    assert left_in(folder) == {"ml-100k.zip", "u.data", "u.item", "README", "fetched.json"}
    assert (folder / "u.data").read_text(encoding="utf-8") == "content of u.data"
    entry = json.loads((folder / "fetched.json").read_text(encoding="utf-8"))["ml-100k.zip"]
    assert entry["sha256"] == hashlib.sha256(content).hexdigest() and entry["size_bytes"] == len(content)
    assert entry["checked"].startswith("MD5 ") and entry["url"] == f"{server.address}/ml-100k.zip"


def test_a_file_without_a_stated_checksum_is_recorded_and_labelled_so(server: Server, tmp_path: Path) -> None:
    server.files = {"reviews_Beauty_5.json.gz": b"reviews", "meta_Beauty.json.gz": b"meta"}
    folder = fetch("amazon-reviews-2014-5core:Beauty", tmp_path, on_licence=str, mirror=server.address)
    record = json.loads((folder / "fetched.json").read_text(encoding="utf-8"))
    assert set(record) == set(server.files) and all(
        "first use" in entry["checked"] for entry in record.values()
    )
    assert sorted(server.asked) == sorted(server.files)  # and no .md5


def test_a_second_fetch_downloads_nothing(server: Server, tmp_path: Path) -> None:
    movielens(server)
    first = fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)
    record = (first / "fetched.json").read_bytes()
    (first / "u.data").unlink()
    server.asked.clear()
    fetch("ml-100k", tmp_path, on_licence=str, mirror="http://127.0.0.1:9")
    assert (
        server.asked == [] and (first / "fetched.json").read_bytes() == record and (first / "u.data").exists()
    )


def test_a_wrong_checksum_leaves_no_file(server: Server, tmp_path: Path) -> None:
    movielens(server, md5="0" * 32)
    with pytest.raises(InputError, match="its publisher states 0000"):
        fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)
    assert left_in(tmp_path / "ml-100k") == set()


def test_a_broken_connection_leaves_no_file(server: Server, tmp_path: Path) -> None:
    server.files = {"reviews_Beauty_5.json.gz": b"x" * 4000}
    server.cut = set(server.files)
    with pytest.raises(InputError, match="connection broke"):
        fetch("amazon-reviews-2014-5core:Beauty", tmp_path, on_licence=str, mirror=server.address)
    assert left_in(tmp_path / "amazon-reviews-2014-5core") == set()


def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no connection") as error:
        fetch("amazon-reviews-2018:Books", tmp_path, on_licence=str, mirror="http://127.0.0.1:9")
    text = str(error.value)
    assert "http://127.0.0.1:9/Books_5.json.gz" in text
    assert str(tmp_path / "amazon-reviews-2018" / "Books_5.json.gz") in text and error.value.exit_code == 2


def test_a_name_that_the_server_does_not_have_is_an_input_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answers 404"):
        fetch("amazon-reviews-2018:Bocks", tmp_path, on_licence=str, mirror=server.address)


def test_a_file_put_there_by_hand_is_used_and_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "amazon-reviews-2018"
    folder.mkdir()
    for name in ("Books_5.json.gz", "meta_Books.json.gz"):
        (folder / name).write_bytes(b"by hand")
    fetch("amazon-reviews-2018:Books", tmp_path, on_licence=str, mirror="http://127.0.0.1:9")
    assert "Books_5.json.gz" in json.loads((folder / "fetched.json").read_text(encoding="utf-8"))


def test_a_file_that_differs_from_its_record_is_refused(server: Server, tmp_path: Path) -> None:
    movielens(server)
    folder = fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)
    (folder / "ml-100k.zip").write_bytes(b"other")
    with pytest.raises(InputError, match="differs from the one recorded before"):
        fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)


@pytest.mark.parametrize("members", [("u.item",), ()])
def test_an_archive_without_the_wanted_files_is_refused(
    server: Server, tmp_path: Path, members: tuple[str, ...]
) -> None:
    movielens(server, members=members)
    with pytest.raises(InputError, match=r"the archive holds no u\.data"):
        fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)


def test_what_is_no_archive_is_refused(server: Server, tmp_path: Path) -> None:
    server.files = {"ml-100k.zip": b"<html>", "ml-100k.zip.md5": hashlib.md5(b"<html>").hexdigest().encode()}
    with pytest.raises(InputError, match="not a whole zip archive"):
        fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)


def test_a_checksum_file_without_a_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    movielens(server)
    server.files["ml-100k.zip.md5"] = b"<html>moved</html>"
    with pytest.raises(InputError, match="no MD5 in the answer"):
        fetch("ml-100k", tmp_path, on_licence=str, mirror=server.address)


def test_the_embedded_source_has_nothing_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to fetch"):
        fetch("synthetic", tmp_path, on_licence=str)


@pytest.mark.parametrize("name", ["ml-10m", "beauty"])
def test_an_unknown_source_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"unknown source '{name}'"):
        fetch(name, tmp_path, on_licence=str)


def test_every_source_says_what_it_is_and_on_which_terms() -> None:
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len(names)
    for source in SOURCES:
        assert source.what and source.licence
        assert source.fetchable == bool(source.files)
        filled = find_source(source.name.replace("NAME", "Video_Games"))
        packed = [
            file.removesuffix(".gz")
            for remote in filled.remotes
            for file in (remote.members or (remote.name,))
        ]
        assert set(filled.files) <= set(packed)
        assert all(remote.url.startswith("https://") and "{" not in remote.url for remote in filled.remotes)
