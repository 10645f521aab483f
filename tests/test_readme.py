"""Every command of the README and of the guides is one that exists, and recipes shown there are right."""

import re
import shlex
from pathlib import Path

import polars as pl
import pytest

from recpress.cli.app import main
from recpress.probe import UNKNOWN

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("recpress ")]


ALL = [pytest.param(words, id=" ".join(words)[:60]) for page in PAGES for words in commands(page)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands speak of: a log, items, named sources, a recipe, a backbone."""
    rows = [(f"u{u}", f"i{(u + t) % 60:05d}", t) for u in range(60) for t in range(7)]
    log = pl.DataFrame(rows, schema=["customer", "product", "bought_at"], orient="row")
    items = pl.DataFrame({"product": sorted(set(log["product"])), "title": "a thing"})
    log.write_csv(tmp_path / "my-log.csv.gz", compression="gzip")
    items.write_csv(tmp_path / "my-items.csv")
    shop = tmp_path / "data" / "amazon-beauty"
    shop.mkdir(parents=True)
    named = {"customer": "user_id", "product": "item_id", "bought_at": "timestamp"}
    log.rename(named).write_csv(shop / "interactions.csv")
    items.rename({"product": "item_id"}).write_csv(shop / "items.csv")
    films = tmp_path / "data" / "ml-1m"
    films.mkdir()
    lines = [f"{int(u[1:]) + 1}::{int(i[1:]) + 1}::5::{t}" for u, i, t in rows]
    (films / "ratings.dat").write_text("\n".join(lines) + "\n")
    (films / "movies.dat").write_text("".join(f"{i}::Film {i} (1999)::Drama\n" for i in range(1, 61)))
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    for name in ("SASRec.safetensors", "projections.safetensors", "vectors.parquet", "item_map.csv"):
        (tmp_path / name).write_bytes(b"")  # plans digest them, and read no more
    (tmp_path / "my-recipe.yaml").write_text((ROOT / "recipes" / "slmrec.yaml").read_text())
    return tmp_path


def test_the_readme_has_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 10
    assert blocks(ROOT / "README.md", "bash")[0].split()[:2] == ["make", "demo"]


@pytest.mark.parametrize("words", ALL)
def test_a_command_of_the_docs_is_right(
    words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recpress.plan.probe", lambda *_: UNKNOWN)
    if words[:2] == ["recipes", "copy"]:
        (home / words[-1]).unlink()
    plans = words[0] in ("run", "train", "import")
    code = main([*words, "--dry-run", "--device", "cpu"] if plans and "--options" not in words else words)
    shown = capsys.readouterr().err
    of_a_run = ("recommend", "score", "refresh-items", "verify", "report", "gate", "lint", "export")
    needs_a_run = words[0] in of_a_run
    assert code == (2 if needs_a_run else 0), shown
    assert "Usage:" not in shown and "missing:" not in shown, shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_shown_in_the_docs_are_right(page: Path, home: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        if block.startswith("name:"):
            (home / f"{number}.yaml").write_text(block)
            assert main(["recipes", "check", str(home / f"{number}.yaml")]) == 0


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_order(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {
        "quickstart": [
            "data.synthetic={users: 300, items: 100}",
            "stages.teacher.epochs=1",
            "stages.student.epochs=1",
        ],
        "slmrec": ["stages.sasrec.epochs=1", "stages.teacher.epochs=1", "stages.student.epochs=1"],
        "sasrec": ["stages.sasrec.epochs=1"],
    }
    small["my-recipe.yaml"] = [*small["slmrec"], "stages.teacher.model.layers=4", "stages.pruned.keep=2"]
    small["my-recipe.yaml"] += ["stages.student.blocks=2", "stages.teacher.model.lora.r=2"]
    _tiny_backbone(home / "my-llm")
    (home / "my-recipe.yaml").unlink()
    for words in commands(ROOT / "README.md"):
        sets = small.get(words[1], []) if words[0] == "run" else []
        if words[0] == "run":
            sets = [
                *sets,
                "stages.bench.latency_seconds=1",
                "stages.bench.draws=100",
                "stages.bench.threads=1",
            ]
        more = [part for each in sets for part in ("--set", each)]
        assert main([*words, *more]) == 0, (words, capsys.readouterr().err[-2000:])


def _tiny_backbone(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 32}
    LlamaModel(LlamaConfig(num_hidden_layers=8, **sizes)).save_pretrained(folder)
