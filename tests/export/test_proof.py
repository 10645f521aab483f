"""What a refreshed catalogue has to prove before it is served."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from export.artifact import keep_variants
from export.parity import ParityConfig
from export.proof import gate_variants
from export.refresh import refresh_items, versions
from export.runtime import Artifact
from export.variants import VariantName
from export.verify import verify_artifact
from recommender.data.prepared import Prepared
from recommender.errors import GateError
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from tests.export.ann_fixtures import MANY
from tests.export.fixtures import MAX_LENGTH, left_padded, make_artifact
from tests.export.test_refresh import present

GOOD = {
    "top10_overlap_outside_margin": 1.0,
    "first_agreement_outside_margin": 1.0,
    "order_agreement_outside_margin": 1.0,
    "max_score_error": 1e-6,
    "forbidden_items": 0.0,
}

VARIANTS: tuple[VariantName, ...] = ("fast", "scan-int8", "scan-int4", "int8-body")


@pytest.fixture(scope="module")
def scanned(
    large_model: SequentialRecommender, many_items: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifact with scans in few bits over 3,000 items; read only."""
    folder = tmp_path_factory.mktemp("scan") / "artifact"
    return make_artifact(large_model, folder, many_items, variants=VARIANTS)


def copied(folder: Path, to: Path, keep: list[str], default: str) -> Path:
    """A copy with these variants, as the stage leaves it."""
    shutil.copytree(folder, to / "artifact")
    keep_variants(to / "artifact", keep, default, {})
    return to / "artifact"


def crowded(vectors: np.ndarray, spread: float = 0.003) -> np.ndarray:
    """Vectors around one centre, nearer to one another than steps of 8 bits tell apart."""
    rng = np.random.default_rng(0)
    centre = np.abs(vectors).mean() * 10 * rng.normal(size=vectors.shape[1])
    noise = spread * np.abs(centre).mean() * rng.normal(size=vectors.shape)
    return (centre + noise).astype(np.float32)


def shared(folder: Path, one: str, other: str) -> float:
    """Mean overlap of the ten best of two variants."""
    asked = HistoryArrays(left_padded(200, MAX_LENGTH, n_items=MANY))
    lists = [Artifact(folder, variant=name, threads=1).top_k(asked, 10).items for name in (one, other)]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]))


@pytest.mark.parametrize(
    ("keep", "default", "message"),
    [
        (
            ["fp32", "scan-int8"],
            "scan-int8",
            r"by scan-int8 \(the default\): top-10 overlap 0\.[0-9]{4}(?s:.*)fp32 may serve them: .*"
            r"variants: \[\]",
        ),
        (
            ["fp32", "fast", "scan-int8"],
            "fast",
            r"by scan-int8: top-10 overlap 0\.[0-9]{4}(?s:.*)fp32 and fast may serve them: .*"
            r"variants: \[fast\]",
        ),
        (["fp32", "scan-int4"], "scan-int4", r"by scan-int4 \(the default\): top-10 overlap 0\.[0-9]{4}"),
        (["fp32", "int8-body"], "fp32", r"by int8-body: top-10 overlap 0\.[0-9]{4}"),
    ],
)
def test_vectors_that_a_scan_in_few_bits_cannot_tell_apart_are_refused(
    scanned: Path, tmp_path: Path, keep: list[str], default: str, message: str
) -> None:
    folder = copied(scanned, tmp_path, keep, default)
    items, vectors = present(folder)
    with pytest.raises(GateError, match=message):
        refresh_items(folder, items, crowded(vectors))
    assert versions(folder) == [1] and not (folder / "catalogue-2").exists()
    assert Artifact(folder).version == 1
    verify_artifact(folder)


def test_the_same_vectors_pass_without_the_scan(scanned: Path, tmp_path: Path) -> None:
    folder = copied(scanned, tmp_path, ["fp32", "fast"], "fast")
    items, vectors = present(folder)
    refresh_items(folder, items, crowded(vectors))
    assert shared(folder, "fp32", "fast") > 0.999


def test_vectors_that_a_scan_ranks_right_pass_with_it(scanned: Path, tmp_path: Path) -> None:
    folder = copied(scanned, tmp_path, ["fp32", "scan-int8", "scan-int4", "int8-body"], "scan-int8")
    items, vectors = present(folder)
    assert refresh_items(folder, items, vectors[::-1].copy()).version == 2
    assert shared(folder, "fp32", "scan-int8") > 0.999
    assert shared(folder, "fp32", "scan-int4") > 0.999


def test_a_variant_that_answers_otherwise_stops_the_refresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.head

    def wrong(graph: object, scores: str, wanted: int, blocks: int) -> tuple[str, str]:
        rows, best = right(graph, scores, wanted, blocks)
        return rows, graph.node("Neg", [best])  # type: ignore[attr-defined]

    right = export.head._best
    monkeypatch.setattr(export.head, "_best", wrong)
    items, vectors = present(folder)
    with pytest.raises(GateError, match=r"by fast: .*max_score_error is .*must be <= 0\.001"):
        refresh_items(folder, items, vectors)
    assert versions(folder) == [1] and not (folder / "catalogue-2").exists()
    assert Artifact(folder).version == 1


def test_a_canonical_graph_with_another_table_stops_the_refresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.refresh

    def wrong(old: Path, new: Path, table: np.ndarray) -> tuple[str, ...]:
        return right(old, new, np.roll(table, 1, axis=0))

    right = export.refresh._swap_table
    monkeypatch.setattr(export.refresh, "_swap_table", wrong)
    items, vectors = present(folder)
    with pytest.raises(GateError, match=r"by fp32 \(the default\): (?s:.*)fast may serve them"):
        refresh_items(folder, items, vectors)
    assert versions(folder) == [1]


@pytest.mark.parametrize("scale", [1e38, 3e38])
def test_vectors_whose_scores_leave_float32_are_a_gate_error_and_change_nothing(
    folder: Path, scale: float
) -> None:
    items, vectors = present(folder)
    huge = vectors / np.abs(vectors).max() * np.float32(scale)
    with pytest.raises(GateError, match=r"leave the range of float32|does not answer with these vectors"):
        refresh_items(folder, items, huge)
    assert versions(folder) == [1] and not list(folder.glob(".catalogue*"))


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("top10_overlap_outside_margin", 0.99),
        ("first_agreement_outside_margin", 0.99),
        ("order_agreement_outside_margin", 0.99),
        ("max_score_error", 0.01),
        ("forbidden_items", 1.0),
        ("top10_overlap_outside_margin", float("nan")),
    ],
)
def test_every_number_of_a_variant_is_gated(number: str, value: float) -> None:
    gate_variants({"fp32": GOOD, "fast": GOOD}, ParityConfig(), default="fp32", users=3)
    with pytest.raises(GateError, match=rf"by fast: .*{number} is .*\n.*fp32 may serve them"):
        gate_variants({"fp32": GOOD, "fast": GOOD | {number: value}}, ParityConfig(), default="fp32", users=3)
    with pytest.raises(GateError, match=r"by fp32 \(the default\).*\n.*vectors are of the model"):
        gate_variants({"fp32": GOOD | {number: value}}, ParityConfig(), default="fp32", users=3)
