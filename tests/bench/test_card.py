from pathlib import Path

from bench.report import wording
from bench.report.schema import Report


def test_every_artifact_gets_a_card_with_measured_numbers_and_no_checkpoint_does(
    bench_folder: Path, report: Report
) -> None:
    quality = next(each.quality for each in report.candidates if each.name == "student-onnx")
    for seed in (1, 2):
        card = (bench_folder / f"seed{seed}" / "onnx" / "artifact" / "card.md").read_text()
        assert card.startswith("# student-onnx\n")
        assert f"(seed {seed};" in card
        assert wording.quality(quality["ndcg@5"]) in card
        assert "student-onnx" in card and "student-onnx:int8" in card
        assert "against teacher" in card
    written = {path.parent.name for path in bench_folder.rglob("card.md")}
    assert written == {"artifact"}


def test_a_card_has_no_rows_of_other_candidates(bench_folder: Path) -> None:
    card = (bench_folder / "seed1" / "onnx" / "artifact" / "card.md").read_text()
    assert not [line for line in card.splitlines() if line.startswith(("| teacher", "| student |"))]
