"""A given checkpoint whose noted zeros something has filled: refused before anything runs, for what it is."""

from pathlib import Path

import pytest

from recommender.checkpoint import save_checkpoint
from recommender.models.build import build_model
from recommender.models.config import SasrecConfig
from recommender.models.linears import body_linears
from recommender.models.zeros import measure
from recommender.sparsity import Sparsity
from recpress.cli.app import main
from recpress.given import shape_of
from tests.recommender.fixtures import cyclic_histories, prepared_from

CONFIG = SasrecConfig(hidden=16, layers=1)
DATA = "{source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}"


def checkpoint(folder: Path, *, fill: bool) -> Path:
    """Every other input of the body is off, as the note says; `fill`: but for one row."""
    prepared = prepared_from(folder / "data", cyclic_histories(20, 12, 6), 12)
    model = build_model(CONFIG, n_items=12, max_length=8, seed=1)
    linears = body_linears(model.bodies()["user"])
    for each in linears.values():
        each.matrix()[:, ::2] = 0
    rough = Sparsity(
        method="wanda", pattern="2:4", sparsity=0.5, matrices=dict.fromkeys(linears, 0.5), zeros=0, weights=1
    )
    note = measure(model.bodies()["user"], rough).model_dump(mode="json")
    if fill:
        linears["0.up"].matrix()[0] = 0.5
    save_checkpoint(
        model, folder / "checkpoint", prepared=prepared, model_config=CONFIG, about={"sparsity": note}
    )
    return folder / "checkpoint"


@pytest.mark.parametrize(
    "command",
    [
        ["sparsify", "--set", "pattern=2:4"],
        ["sparsify", "--set", "sparsity=0.75"],
        ["quantize", "--set", "scheme=int8-dynamic"],
        ["prune-depth", "--set", "keep=1"],
        ["export"],
    ],
    ids=" ".join,
)
def test_no_verb_takes_it(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, (verb, *sets) = checkpoint(tmp_path / "filled", fill=True), command
    out = tmp_path / "out"
    assert main([verb, str(path), "--data", DATA, "--out", str(out), "--device", "cpu", *sets]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "0.up has 46.9% zeros, but the checkpoint notes 50.0%: something has filled them" in told
    assert "to mend it, take the checkpoint as the stage sparsify wrote it, or delete" in told
    assert "sparse already" not in told and not out.exists()


def test_a_bench_does_not_report_zeros_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "filled", fill=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: given\ndata: {DATA}\ninputs: {{sparse: {path}}}\n"
        "stages: [{stage: bench, compare: [sparse]}]\n"
    )
    assert main(["recipes", "check", str(recipe)]) == 2
    assert "something has filled them" in " ".join(capsys.readouterr().err.split())


def test_zeros_that_are_there_are_known_before_anything_runs(tmp_path: Path) -> None:
    zeros = shape_of(checkpoint(tmp_path / "sparse", fill=False)).sparsity
    assert zeros is not None and (zeros.pattern, zeros.share, zeros.everywhere) == ("2:4", 0.5, True)
