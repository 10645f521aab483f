"""A public SASRec becomes one of ours and scores as it did; a broken or foreign file is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.evaluate import quality
from recommender.models.config import SasrecConfig
from recommender.models.interface import History
from recommender.ranking import TorchScorer
from tests.recommender.fixtures import context_for
from tests.recommender.incoming.conftest import ITEMS, MAX_LENGTH, Import, public_sasrec, saved
from tests.recommender.incoming.public_sasrec import VERSIONS, Version

FORM = {"zeroed": "query", "attended": "query", "pre": "pre", "post": "post"}


def options(version: Version, **values: Any) -> dict[str, Any]:
    padding = version if version in ("zeroed", "attended") else "auto"
    return {"format": "sasrec", "heads": 2, "norm": FORM[version], "padding": padding} | values


def histories(lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [(rng.permutation(ITEMS)[:length] + 1).tolist() for length in lengths]


def padded(rows: list[list[int]], width: int) -> History:
    items = torch.zeros(len(rows), width, dtype=torch.long)
    for line, row in zip(items, rows, strict=True):
        line[width - len(row) :] = torch.tensor(row)
    return History(items)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("width", [MAX_LENGTH, 5])
def test_scores_are_those_of_the_public_code(
    version: Version, width: int, bring_in: Import, item_map: Path, numbers: np.ndarray, tmp_path: Path
) -> None:
    theirs = public_sasrec(version)
    file = saved(theirs.state_dict(), tmp_path / "sasrec.safetensors")
    folder, outputs = bring_in(path=file, items=item_map, **options(version))
    ours = load_checkpoint(folder)
    rows = histories([1, 2, 3, width - 1, width])
    with torch.no_grad():
        found = ours.user_vector(padded(rows, width)) @ ours.item_table()[1:].T
    expected = theirs.scores([[int(numbers[row - 1]) for row in history] for history in rows])
    torch.testing.assert_close(found, expected[:, numbers], atol=1e-5, rtol=1e-5)
    assert outputs.metrics["items_matched"] == ITEMS and outputs.metrics["items_dropped"] == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_every_position_and_block_is_that_of_the_public_code(
    version: Version, bring_in: Import, item_map: Path, numbers: np.ndarray, tmp_path: Path
) -> None:
    theirs = public_sasrec(version)
    file = saved(theirs.state_dict(), tmp_path / "sasrec.safetensors")
    ours = load_checkpoint(bring_in(path=file, items=item_map, **options(version))[0])
    rows = histories([2, MAX_LENGTH])
    batch = padded(rows, MAX_LENGTH)
    window = torch.cat((torch.zeros(1, dtype=torch.long), torch.from_numpy(numbers)))[batch.items]
    with torch.no_grad():
        hidden, expected = ours.hidden(batch), theirs(window)
        last = ours.hidden(batch, last_only=True).final[:, -1]
    at = hidden.final.gather(1, hidden.at.unsqueeze(-1).expand(-1, -1, 8))
    real = batch.items != 0
    torch.testing.assert_close(at[real], expected[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, expected[:, -1], atol=1e-5, rtol=1e-5)


def test_a_longer_window_than_the_data_is_kept_and_told(
    bring_in: Import, item_map: Path, numbers: np.ndarray, tmp_path: Path
) -> None:
    theirs, notes = public_sasrec(maxlen=12), []
    file = saved(theirs.state_dict(), tmp_path / "sasrec.safetensors")
    folder, outputs = bring_in(notes, path=file, items=item_map, **options("zeroed"))
    ours = load_checkpoint(folder)
    rows = histories([4, 11])
    expected = theirs.scores([[int(numbers[row - 1]) for row in history] for history in rows])
    with torch.no_grad():
        found = ours.user_vector(padded(rows, 11)) @ ours.item_table()[1:].T
    torch.testing.assert_close(found, expected[:, numbers], atol=1e-5, rtol=1e-5)
    assert outputs.metrics["max_length"] == 12
    assert any("could read 12 items, but is given 8" in told.get("text", "") for _, told in notes)


@pytest.mark.parametrize(("zero", "padding"), [(True, "attended"), (False, "zeroed")])
def test_the_first_position_tells_what_padding_is(
    zero: bool, padding: str, bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    theirs = public_sasrec("attended" if zero else "zeroed")
    if zero:
        with torch.no_grad():
            theirs.pos_emb.weight[0] = 0
    file = saved(theirs.state_dict(), tmp_path / "sasrec.safetensors")
    folder, _ = bring_in(path=file, items=item_map, **options("zeroed", padding="auto"))
    config = read_info(folder).model_config
    assert isinstance(config, SasrecConfig) and config.padding == padding


def test_names_behind_a_wrapper_are_found(bring_in: Import, item_map: Path, tmp_path: Path) -> None:
    weights = {f"module.{name}": tensor for name, tensor in public_sasrec().state_dict().items()}
    file = saved(weights, tmp_path / "sasrec.safetensors")
    folder, _ = bring_in(path=file, items=item_map, **options("zeroed"))
    assert read_info(folder).blocks == {"user": 2}


def test_half_precision_is_read(bring_in: Import, item_map: Path, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in public_sasrec().state_dict().items()}
    file = saved(weights, tmp_path / "sasrec.safetensors")
    folder, _ = bring_in(path=file, items=item_map, **options("zeroed"))
    assert load_checkpoint(folder).item_table().dtype == torch.float32


def _drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["attention_layers.1.out_proj.bias"]


def _more(weights: dict[str, torch.Tensor]) -> None:
    weights["user_emb.weight"] = torch.zeros(3, 8)


def _nan(weights: dict[str, torch.Tensor]) -> None:
    weights["forward_layers.0.conv2.weight"][0, 0] = float("nan")


def _narrow(weights: dict[str, torch.Tensor]) -> None:
    weights["forward_layers.0.conv1.weight"] = torch.zeros(4, 8, 1)


def _whole(weights: dict[str, torch.Tensor]) -> None:
    weights["item_emb.weight"] = weights["item_emb.weight"].long()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_drop, ["lacks", "attention_layers.1.out_proj.bias"]),
        (_more, ["in excess", "user_emb.weight"]),
        (_nan, ["forward_layers.0.conv2.weight", "NaN"]),
        (_narrow, ["forward_layers.0.conv1.weight", "4 x 8 x 1", "8 x 8 x 1"]),
        (_whole, ["item_emb.weight", "int64"]),
    ],
)
def test_a_file_of_another_form_is_refused(
    harm: Any, told: list[str], bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    weights = {name: tensor.clone() for name, tensor in public_sasrec().state_dict().items()}
    harm(weights)
    file = saved(weights, tmp_path / "sasrec.safetensors")
    with pytest.raises(InputError) as caught:
        bring_in(path=file, items=item_map, **options("zeroed"))
    assert all(part in str(caught.value) for part in told) and str(file) in str(caught.value)
    assert not (tmp_path / "run" / "out" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"heads": 3}, "3 heads do not divide its width 8"),
        ({"max_length": 20}, "positions for 8 items, but data.max_length is 20"),
        (
            {"max_length": 7, "padding": "auto"},
            "say which: padding: attended (its maxlen was 7), or zeroed (8)",
        ),
        (
            {"max_length": 5, "padding": "auto"},
            "say which: padding: attended (its maxlen was 7), or zeroed (8)",
        ),
        ({"max_length": 9, "padding": "auto"}, "positions for 8 items, but data.max_length is 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    values: dict[str, Any], told: str, bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    file = saved(public_sasrec().state_dict(), tmp_path / "sasrec.safetensors")
    with pytest.raises(InputError) as caught:
        bring_in(path=file, items=item_map, **(options("zeroed") | values))
    assert told in str(caught.value)


def test_validation_reads_what_the_bench_reads(
    bring_in: Import, item_map: Path, prepared: Prepared, tmp_path: Path
) -> None:
    file = saved(public_sasrec().state_dict(), tmp_path / "sasrec.safetensors")
    folder, outputs = bring_in(path=file, items=item_map, max_length=1, **options("zeroed"))
    context = context_for(prepared, tmp_path / "bench", max_length=1)
    benched = quality(
        TorchScorer(load_checkpoint(folder)),
        prepared,
        context.split,
        "valid",
        context.evaluation,
        max_length=1,
    )
    assert outputs.metrics["mrr"] == pytest.approx(benched["mrr"])


def test_a_model_that_is_too_narrow_is_refused(bring_in: Import, item_map: Path, tmp_path: Path) -> None:
    file = saved(public_sasrec(hidden=2).state_dict(), tmp_path / "sasrec.safetensors")
    with pytest.raises(InputError, match=r"hidden is 2.*greater than or equal to 4") as caught:
        bring_in(path=file, items=item_map, **options("zeroed"))
    assert str(file) in str(caught.value)


def test_an_index_outside_the_table_is_refused(bring_in: Import, item_map: Path, tmp_path: Path) -> None:
    file = saved(public_sasrec(items=ITEMS).state_dict(), tmp_path / "sasrec.safetensors")
    with pytest.raises(InputError, match=f"the rows 1 to {ITEMS} \\(row 0 is padding\\)"):
        bring_in(path=file, items=item_map, **options("zeroed"))


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_pickled_weights_are_refused_with_the_way_out(
    ending: str, bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"sasrec.{ending}"
    torch.save(public_sasrec().state_dict(), file)
    with pytest.raises(InputError) as caught:
        bring_in(path=file, items=item_map, **options("zeroed"))
    lines = str(caught.value).splitlines()[-2:]
    assert "weights_only=True" in lines[0] and "save_file" in lines[1]
    code = "\n".join(line.strip() for line in lines).replace(repr(file.name), repr(str(file)))
    exec(code.replace("'sasrec.safetensors'", repr(str(tmp_path / "out.safetensors"))), _modules())
    bring_in(path=tmp_path / "out.safetensors", items=item_map, **options("zeroed"))


def _modules() -> dict[str, Any]:
    import safetensors.torch

    return {"torch": torch, "safetensors": safetensors}


def test_a_file_that_only_says_it_is_safetensors_is_refused(
    bring_in: Import, item_map: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sasrec.safetensors"
    torch.save(public_sasrec().state_dict(), file)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        bring_in(path=file, items=item_map, **options("zeroed"))


def test_the_data_set_is_the_one_of_the_import(
    bring_in: Import, item_map: Path, prepared: Prepared, tmp_path: Path
) -> None:
    file = saved(public_sasrec().state_dict(), tmp_path / "sasrec.safetensors")
    folder, _ = bring_in(path=file, items=item_map, **options("zeroed"))
    info = read_info(folder)
    assert info.catalogue_digest == prepared.catalogue_digest and info.about["imported"] == "sasrec"
