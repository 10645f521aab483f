"""Numbers, locks and leftovers of the versions of a catalogue."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from export.catalogue import write_catalogue
from export.refresh import Refreshed, refresh_items, restore, versions
from export.runtime import Artifact
from export.verify import verify_artifact
from export.versions import publish, staged
from recommender.errors import InputError, StageError
from recommender.files import read_json
from tests.export.test_refresh import present

HOLDER = """
import sys
from pathlib import Path
import numpy as np, polars as pl
import export.refresh
from export.runtime import Artifact

def wait(stage):
    print("proving", flush=True)
    sys.stdin.readline()
    raise RuntimeError("the proof fails")

export.refresh.prove_variants = wait
artifact = Artifact(Path(sys.argv[1]))
items = pl.DataFrame({"item_id": list(artifact.item_ids)})
export.refresh.refresh_items(Path(sys.argv[1]), items, np.array(artifact.table[1:]) * 2)
"""


@contextmanager
def proving(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has made version 2 and is about to prove it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline() == "proving\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "catalogue" in path.name)


def test_another_process_cannot_refresh_or_restore_meanwhile_and_a_failure_takes_nothing_away(
    folder: Path,
) -> None:
    items, vectors = present(folder)
    with proving(folder) as other:
        for attempt in (lambda: refresh_items(folder, items, vectors), lambda: restore(folder, 1)):
            with pytest.raises(StageError, match="another recpress is working in this folder"):
                attempt()
        assert Artifact(folder).version == 1 and versions(folder) == [1]
        _, told = other.communicate("\n")
        assert other.returncode == 1 and "the proof fails" in told
    assert names(folder) == ["catalogue-1"]
    assert refresh_items(folder, items, vectors).version == 2
    assert names(folder) == ["catalogue-1", "catalogue-2"]


def test_what_was_killed_before_its_proof_is_no_version_and_is_swept(folder: Path) -> None:
    items, vectors = present(folder)
    with proving(folder) as other:
        other.kill()
        other.wait()
    assert versions(folder) == [1] and len(names(folder)) == 2
    assert verify_artifact(folder).unlisted  # what is left behind is told
    with pytest.raises(InputError, match=r"no version 2 .*there are: 1\)"):
        restore(folder, 2)
    assert names(folder) == ["catalogue-1"]
    assert refresh_items(folder, items, vectors).version == 2
    assert verify_artifact(folder).unlisted == ()


def test_threads_that_refresh_at_once_leave_whole_versions(folder: Path) -> None:
    items, vectors = present(folder)
    start, told = threading.Barrier(3), []

    def refresh(scale: int) -> None:
        start.wait()
        try:
            told.append((scale, refresh_items(folder, items, vectors * scale)))
        except StageError as error:
            told.append((scale, error))

    threads = [threading.Thread(target=refresh, args=(scale,)) for scale in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = {each.version: scale for scale, each in told if isinstance(each, Refreshed)}
    assert len(told) == 3 and done
    assert all("another recpress" in str(each) for _, each in told if isinstance(each, StageError))
    assert versions(folder) == [1, *sorted(done)] == list(range(1, len(done) + 2))
    for version, scale in done.items():
        np.testing.assert_array_equal(Artifact(folder, version=version).table[1:], vectors * scale)
    assert Artifact(folder).version == max(done)
    verify_artifact(folder)


def test_nothing_that_stands_in_the_way_is_replaced(folder: Path) -> None:
    (folder / "catalogue-2").mkdir()
    (folder / "catalogue-2" / "mine.txt").write_text("keep me")
    before = read_json(folder / "manifest.json")
    with staged(folder, 2, ["body.onnx"]) as stage:
        shutil.copy(folder / "manifest.json", stage)
        with pytest.raises(OSError):
            publish(stage, folder, 2)
    assert read_json(folder / "manifest.json") == before and names(folder) == ["catalogue-1", "catalogue-2"]
    items, vectors = present(folder)
    assert refresh_items(folder, items, vectors).version == 3
    assert (folder / "catalogue-2" / "mine.txt").read_text() == "keep me"


def test_a_version_is_taken_back_where_the_manifest_cannot_be_replaced(folder: Path) -> None:
    items, vectors = present(folder)
    with staged(folder, 2, []) as stage, pytest.raises(FileNotFoundError):
        publish(stage, folder, 2)  # the stage has no manifest to put in the place of the other
    assert names(folder) == ["catalogue-1"]
    assert refresh_items(folder, items, vectors).version == 2


def test_folders_that_only_look_like_versions_are_left_alone(folder: Path) -> None:
    for name in ("catalogue-1-backup", "catalogue-07", "catalogue-x"):
        shutil.copytree(folder / "catalogue-1", folder / name)
    items, vectors = present(folder)
    assert versions(folder) == [1]
    assert refresh_items(folder, items, vectors).version == 2
    restore(folder, 1)
    unlisted = verify_artifact(folder).unlisted
    assert "catalogue-1-backup/fp32.onnx" in unlisted and "catalogue-07/manifest.json" in unlisted
    assert not [name for name in unlisted if name.startswith(("catalogue-1/", "catalogue-2/"))]


def test_a_copied_version_under_another_number_is_not_put_back(folder: Path) -> None:
    shutil.copytree(folder / "catalogue-1", folder / "catalogue-5")
    with pytest.raises(InputError, match="the manifest in catalogue-5 is that of catalogue-1"):
        restore(folder, 5)


def test_a_file_that_a_version_does_not_list_is_told(folder: Path) -> None:
    items, vectors = present(folder)
    refresh_items(folder, items, vectors)
    (folder / "catalogue-1" / "payload.so").write_text("x")
    (folder / "other").mkdir()
    (folder / "other" / "manifest.json").write_text("{}")
    assert verify_artifact(folder).unlisted == ("catalogue-1/payload.so", "other/manifest.json")


def test_the_number_of_a_deleted_version_is_not_used_again(folder: Path) -> None:
    items, vectors = present(folder)
    refresh_items(folder, items, vectors * 2)
    reader = Artifact(folder)
    restore(folder, 1)
    shutil.rmtree(folder / "catalogue-2")
    assert refresh_items(folder, items, vectors * 3).version == 3
    assert not reader.is_current() and versions(folder) == [1, 3]


def test_what_is_no_artifact_is_an_input_error_and_stays_as_it_is(tmp_path: Path) -> None:
    for attempt in (
        lambda: restore(tmp_path, 1),
        lambda: refresh_items(tmp_path, pl.DataFrame({"item_id": ["a"]}), np.zeros((1, 2), np.float32)),
    ):
        with pytest.raises(InputError, match=r"no artifact"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("export.catalogue._write_texts", full)
    items, vectors = present(folder)
    with pytest.raises(StageError, match=r"disk is full .*the catalogue in use is untouched") as caught:
        refresh_items(folder, items, vectors)
    assert caught.value.exit_code == 1
    assert names(folder) == ["catalogue-1"] and Artifact(folder).version == 1


def test_a_table_that_does_not_fit_the_disk_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """In a process of its own: a mapped file would kill it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    code = (
        "import sys, errno, numpy as np, polars as pl\nfrom pathlib import Path\n"
        "from export.catalogue import write_catalogue\n"
        "items = pl.DataFrame({'item_id': list(map(str, range(20_000)))})\n"
        "try:\n    write_catalogue(Path(sys.argv[1]), items, np.ones((20_001, 64), np.float32))\n"
        "except OSError as error:\n    sys.exit(7 if error.errno == errno.ENOSPC else 8)\n"
    )
    try:
        ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert ended.returncode == 7, (ended.returncode, ended.stderr)


def test_a_table_by_places_is_that_of_its_rows(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    places = np.random.default_rng(1).permutation(300)[:200]
    items = pl.DataFrame({"item_id": [str(place) for place in places]})
    for name, table, by in (
        ("one", vectors, places),
        ("two", np.concatenate((np.ones((1, 5), np.float32), vectors[places])), None),
    ):
        (tmp_path / name).mkdir()
        write_catalogue(tmp_path / name, items, table, by)
    stored = np.load(tmp_path / "one" / "item_table.npy")
    assert stored.shape == (256, 5) and not stored[0].any() and not stored[201:].any()
    np.testing.assert_array_equal(stored[1:201], vectors[places])
    files = [(tmp_path / name / "item_table.npy").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
