"""The stage import: options of one format, quality on the spot, the gate, and nothing half-written."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from recommender.errors import GateError, InputError
from recommender.incoming.stage import BELONGS, ImportConfig
from recommender.stage import Shape
from tests.recommender.incoming.conftest import ITEMS, Import, public_sasrec, saved


def config(**values: Any) -> ImportConfig:
    entries = {"stage": "import", "as": "theirs", "format": "item-vectors", "path": "v.npy"}
    return ImportConfig.model_validate(entries | values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"heads": 2}, "heads belongs to format sasrec, not to item-vectors"),
        ({"format": "sasrec"}, "sasrec needs `items`"),
        ({"format": "hf-decoder"}, "hf-decoder needs `vectors`"),
        ({"format": "sasrec", "items": "m.csv", "prefix": "a"}, "prefix belongs to format hf-decoder"),
        ({"format": "onnx"}, "hf-decoder"),
        ({"expect_ndcg": 2}, "less than or equal to 1"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**values)
    assert told in str(caught.value)


def test_a_resolved_config_is_read_back() -> None:
    one = config(pool="last", unit=True, items="map.csv")
    assert ImportConfig.model_validate(one.model_dump(mode="json", by_alias=True)) == one


def test_options_of_a_format_are_options() -> None:
    assert set(BELONGS) <= set(ImportConfig.model_fields)


def test_later_stages_know_what_a_table_is() -> None:
    shape = config().shape({})
    assert shape == Shape("checkpoint", model=shape.model) and shape.model is not None
    assert shape.model.kind == "item-vectors" and shape.layers is None


def circle(step: int = 1) -> torch.Tensor:
    """Vectors around a circle. In the log the next row is always the last one plus 1: with step 1 it lies
    next to the last one, with step 11 of 24 nearly opposite.
    """
    angles = torch.arange(ITEMS) * step * (2 * torch.pi / ITEMS)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def write_table(folder: Path, table: torch.Tensor) -> Path:
    ids = [f"i{row}" for row in range(1, ITEMS + 1)]
    pl.DataFrame({"item_id": ids, "vector": table.tolist()}).write_parquet(folder / "v.parquet")
    return folder / "v.parquet"


def test_quality_is_measured_and_told(bring_in: Import, tmp_path: Path) -> None:
    notes: list[Any] = []
    file = write_table(tmp_path, circle())
    _, outputs = bring_in(notes, format="item-vectors", path=file, pool="last", expect_ndcg=0.5)
    found = outputs.metrics
    assert found["hr@10"] == 1.0 and found["ndcg@10"] > 0.5 > found["popularity_ndcg@10"]
    assert "warning" not in found
    assert any(told.get("text", "").startswith("validation") for _, told in notes)


def test_a_model_that_misses_what_was_expected_is_refused(bring_in: Import, tmp_path: Path) -> None:
    file = write_table(tmp_path, circle(7))
    with pytest.raises(GateError, match=r"not the 0\.9 that was expected \(popularity: 0\."):
        bring_in(format="item-vectors", path=file, pool="last", expect_ndcg=0.9)
    assert not list((tmp_path / "run" / "out").iterdir())


def test_a_model_below_popularity_gives_a_warning(bring_in: Import, tmp_path: Path) -> None:
    notes: list[Any] = []
    file = write_table(tmp_path, circle(11))
    _, outputs = bring_in(notes, format="item-vectors", path=file, pool="last")
    assert "not above that of popularity" in outputs.metrics["warning"]
    assert "ids of the items" in outputs.metrics["warning"]
    assert any("WARNING" in told.get("text", "") for _, told in notes)


def test_missing_items_can_be_filled(bring_in: Import, tmp_path: Path) -> None:
    ids = [f"i{row}" for row in range(1, ITEMS - 1)]
    frame = pl.DataFrame({"item_id": ids, "vector": circle()[: ITEMS - 2].tolist()})
    frame.write_parquet(tmp_path / "v.parquet")
    with pytest.raises(InputError, match="2 of 24 items of the data set are missing: 'i23', 'i24'"):
        bring_in(format="item-vectors", path=tmp_path / "v.parquet")
    _, outputs = bring_in(format="item-vectors", path=tmp_path / "v.parquet", missing="mean")
    assert outputs.metrics["items_missing"] == 2 and outputs.metrics["items_matched"] == ITEMS - 2


def test_a_sample_of_users_is_enough(bring_in: Import, item_map: Path, tmp_path: Path) -> None:
    file = saved(public_sasrec().state_dict(), tmp_path / "sasrec.safetensors")
    _, outputs = bring_in(format="sasrec", path=file, items=item_map, heads=2, validation_users=7)
    assert outputs.metrics["hr@10"] * 7 == pytest.approx(round(outputs.metrics["hr@10"] * 7))
