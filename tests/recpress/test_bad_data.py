"""Logs that cannot be used: message, exit code 2, and nothing written, through the command line."""

from pathlib import Path

import pytest

from recpress.cli.app import main

GOOD = "user_id,item_id,timestamp\n" + "".join(f"u{u},i{i},{i}\n" for u in range(8) for i in range(8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "missing.csv"),
        ("empty.csv", "user_id,item_id,timestamp\n", "empty"),
        ("nothing.csv", "", "empty"),
        ("column.csv", GOOD.replace("user_id", "usr_id"), "user_id"),
        ("time.csv", GOOD.replace(",7\n", ",noon\n"), "timestamp"),
        ("short.csv", "user_id,item_id,timestamp\nu1,i1,1\nu2,i1,1\n", "interactions"),
        (
            "stray.csv",
            GOOD.replace(",1\n", ',1,5" pipe\n').replace("timestamp\n", "timestamp,note\n"),
            "quote",
        ),
        ("binary.parquet", "no parquet at all", "binary.parquet"),
        ("folder.csv.gz", "not gzipped", "folder.csv.gz"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_and_nothing_is_written(
    name: str,
    content: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log, out = tmp_path / "data" / name, tmp_path / "out"
    monkeypatch.setenv("RECPRESS_CACHE", str(tmp_path / "cache"))
    log.parent.mkdir()
    if content is not None:
        log.write_text(content)
    code = main(["run", "sasrec", "--set", f"data={{interactions: {log}}}", "--out", str(out)])
    told = capsys.readouterr().err
    assert code == 2, told
    assert message in told.replace("\n", "") and "Traceback" not in told
    assert not out.exists()
    assert not [path for path in (tmp_path / "cache").glob("data/*") if path.is_dir()]
