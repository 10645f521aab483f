"""Compiled variants in artifacts: who opens them, what the stage measures, what is refused.

What is compiled here is no package: the graph itself stands in for it, run by torch without a compiler.
`test_aot_package.py` has real ones.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.candidates import device_of, resolve, runnable
from export import aot, aot_build
from export.aot_build import AotConfig, compiled_entry
from export.aot_graph import CompiledGraph
from export.artifact import keep_variants, open_artifact, seal
from export.gates import measure_variants
from export.parity import ParityConfig
from export.refresh import refresh_items, versions
from export.runtime import Artifact, ArtifactError
from export.stage import settle
from export.verify import verify_artifact
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError
from recommender.files import read_json, write_json
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from recommender.stage import Context
from recpress.cli.app import main
from recpress.given import bind, scorers
from tests.export.fixtures import MAX_LENGTH, TOP_K, left_padded, reseal
from tests.export.test_refresh import present
from tests.recommender.fixtures import context_for

NAMES = ["fp32", "fast", "aot", "aot-bf16"]
STAND_INS: dict[str, torch.nn.Module] = {}


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages name a graph in this process."""

    def build(model: SequentialRecommender, path: Path, name: str, **options: Any) -> dict[str, str]:
        STAND_INS[name] = CompiledGraph(model, options["top_k"], half=name == "aot-bf16").eval()
        path.write_text(f"{name}\n")
        return {"AOTI_CPU_ISA": "AVX512"}

    def load(path: Path, torch_of_package: str, *, alone: bool) -> aot.Loaded:
        graph = STAND_INS[path.read_text().strip()]
        return torch.inference_mode()(lambda inputs: list(graph(*inputs)))

    monkeypatch.setattr(aot_build, "build_package", build)
    monkeypatch.setattr(aot, "_load", load)
    monkeypatch.setenv("CXX", sys.executable)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sasrec: SequentialRecommender, prepared: Prepared) -> Path:
    return tmp_path_factory.mktemp("aot") / "artifact"


@pytest.fixture
def folder(made: Path, exported: Path, sasrec: SequentialRecommender) -> Path:
    """An artifact with both; read only."""
    if not made.exists():
        shutil.copytree(exported, made)
        manifest = read_json(made / "manifest.json")
        for name in ("aot", "aot-bf16"):
            manifest["variants"].append(compiled_entry(name, sasrec, manifest, made, AotConfig()))
        seal(made, manifest)
        keep_variants(made, NAMES, "fast", {})
    return made


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(folder, tmp_path / "artifact")
    return tmp_path / "artifact"


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {entry["name"]: entry for entry in manifest["variants"]}


def change(folder: Path, name: str, **values: Any) -> None:
    """Change what the manifest says a variant was compiled for."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(entry for entry in manifest["variants"] if entry["name"] == name)
    entry["compiled"] |= values
    entry |= {"device": entry["compiled"]["device"], "on_cpu": entry["compiled"]["device"] == "cpu"}
    write_json(folder / "manifest.json", manifest)


def test_the_manifest_tells_the_machine_and_covers_the_module_that_opens_them(folder: Path) -> None:
    found = entries(folder)
    assert found["aot"]["files"] == ["catalogue-1/aot.pt2", "runtime_aot.py"]
    assert (found["aot"]["precision"], found["aot-bf16"]["precision"]) == ("fp32", "bf16")
    told = found["aot"]["compiled"]
    assert told["instructions"] == aot.instructions() and told["torch"] == torch.__version__
    assert told["metadata"] == {"AOTI_CPU_ISA": "AVX512"} and told["seconds"] > 0
    assert (folder / "runtime_aot.py").read_bytes() == Path(aot.__file__).read_bytes()
    assert {"catalogue-1/aot.pt2", "catalogue-1/aot-bf16.pt2", "runtime_aot.py"} <= set(
        verify_artifact(folder).files
    )


def test_they_answer_as_the_others_do(folder: Path) -> None:
    history = HistoryArrays(left_padded(40, MAX_LENGTH), left_padded(40, 3, seed=1))
    whole, compiled, half = (
        Artifact(folder, variant=name, threads=1).top_k(history, TOP_K)
        for name in ("fp32", "aot", "aot-bf16")
    )
    np.testing.assert_array_equal(compiled.items, whole.items)
    np.testing.assert_allclose(compiled.scores, whole.scores, atol=1e-5)
    assert 0 < np.abs(half.scores - whole.scores).max() < 0.03 * np.abs(whole.scores).max()


def test_allowed_lists_and_scores_of_given_items_come_from_the_plain_body(folder: Path) -> None:
    opened, whole = (Artifact(folder, variant=name, threads=1) for name in ("aot", "fp32"))
    asked = {"allow": ["i3", "i9"], "k": 2}
    assert opened.recommend(["i4", "i5"], **asked) == whole.recommend(["i4", "i5"], **asked)


@pytest.mark.parametrize("name", ["aot", "aot-bf16"])
def test_every_verb_takes_them_by_name(folder: Path, name: str, tmp_path: Path, capsys) -> None:
    assert main(["recommend", str(folder), "--history", "i3,i4", "-k", "3", "--variant", name, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["items"]
    assert [each["item_id"] for each in listed] == [
        each["item_id"] for each in Artifact(folder, variant=name).recommend(["i3", "i4"], 3)
    ]
    assert main(["verify", str(folder), "--variant", name]) == 0
    (tmp_path / "users.csv").write_text('user_id,history\n7,"i3 i4"\n')
    output = tmp_path / "out.csv"
    command = ["score", str(folder), "--input", str(tmp_path / "users.csv"), "--output", str(output)]
    assert main([*command, "--history", "history", "--separator", " ", "-k", "3", "--variant", name]) == 0
    assert listed[0]["item_id"] in output.read_text()


def test_verify_replays_the_golden_requests_with_the_variant_that_is_named(own: Path) -> None:
    golden = json.loads((own / "catalogue-1/golden.json").read_text())
    for request in golden["requests"]:
        request["scores"] = [1.02 * score for score in request["scores"]]
    write_json(own / "catalogue-1/golden.json", golden)
    reseal(own)
    for name in (None, "aot"):
        with pytest.raises(GateError, match="golden request 0 is off"):
            verify_artifact(own, variant=name)
    verify_artifact(own, variant="aot-bf16")  # allowed more, as it rounds
    with pytest.raises(InputError, match="no variant 'nonsense'"):
        verify_artifact(own, variant="nonsense")


def test_the_bench_opens_them_with_their_own_runtime(folder: Path) -> None:
    found = {ref.options["variant"]: ref for ref in scorers("a", "artifact", folder)}
    assert list(found) == ["fast", "fp32", "aot", "aot-bf16"]
    assert [found[name].runtime for name in NAMES] == ["onnxruntime", "onnxruntime", "aot", "aot"]
    assert device_of(found["aot"], "cuda") == "cpu"
    history = HistoryArrays(left_padded(3, MAX_LENGTH))
    assert found["aot"].open(device="cpu", threads=1).top_k(history, 4).items.shape == (3, 4)


def test_a_variant_for_a_gpu_is_benched_where_there_is_one(own: Path) -> None:
    change(own, "aot", device="cuda", gpu="NVIDIA H200", capability="9.0", cuda="13.0")
    found = resolve(["a"], {1: {"a": bind("a", own)}})
    assert [each.variant for each in found] == ["fast", "fp32", "aot", "aot-bf16"]
    here, said = runnable(found, "cpu")
    assert [each.variant for each in here] == ["fast", "fp32", "aot-bf16"]
    assert said == ["a:aot is not compared: it runs on cuda only."]
    assert runnable(found, "cuda") == (found, [])
    assert device_of(next(each.ref for each in found if each.variant == "aot"), "cuda") == "cuda"


def test_a_foreign_machine_is_refused_with_both_names_and_exit_code_2(own: Path, capsys) -> None:
    change(own, "aot", cpu="Xeon X", instructions=[*aot.instructions(), "avx1024"])
    command = ["recommend", str(own), "--history", "i3", "--variant"]
    assert main([*command, "aot"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "compiled on Xeon X and may use avx1024, which this CPU" in said and "aot.pt2" in said
    gpu = {"gpu": "NVIDIA H200", "capability": "9.0", "cuda": "13.0"}
    change(own, "aot", device="cuda", instructions=aot.instructions(), **gpu)
    assert main([*command, "aot"]) == 2
    assert "compiled for NVIDIA H200 (compute capability 9.0" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "aot-bf16"]) == 0


@pytest.mark.parametrize("name", ["catalogue-1/aot.pt2", "runtime_aot.py"])
def test_an_altered_or_missing_file_is_refused(own: Path, name: str) -> None:
    content = (own / name).read_bytes()
    (own / name).write_bytes(b"#" + content[1:])
    with pytest.raises(InputError, match=f"{name} was altered"):
        open_artifact(own, variant="aot")
    (own / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        open_artifact(own, variant="aot")


def test_variants_that_go_take_their_files_along(own: Path) -> None:
    keep_variants(own, ["fp32", "fast", "aot"], "fast", {})
    assert (own / "runtime_aot.py").is_file() and not (own / "catalogue-1/aot-bf16.pt2").exists()
    keep_variants(own, ["fp32", "fast"], "fast", {})
    assert not (own / "runtime_aot.py").exists() and not (own / "catalogue-1/aot.pt2").exists()
    assert verify_artifact(own).unlisted == ()


def test_a_refresh_says_that_they_have_to_be_exported_anew(own: Path) -> None:
    items, vectors = present(own)
    with pytest.raises(
        InputError, match=r"variants aot, aot-bf16 hold the item table[\s\S]*export the artifact"
    ):
        refresh_items(own, items, vectors)
    assert versions(own) == [1] and not (own / "catalogue-2").exists()


def test_without_torch_the_variant_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "export.aot")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ArtifactError, match=r"\.pt2 is run with torch, which is not installed: pip install"):
        Artifact(folder, variant="aot")
    assert Artifact(folder).recommend(["i3"], 2)


def test_the_fastest_of_all_is_no_default_where_it_is_compiled() -> None:
    ratios = {"fp32": 1.0, "fast": 2.0, "aot": 9.0, "aot-bf16": 12.0}
    measured = {name: {"speedup": {"mean": mean, "floor": 0.01}} for name, mean in ratios.items()}
    assert settle(measured, named=("fast", "aot", "aot-bf16")) == (NAMES, "fast")


@pytest.fixture
def context(tmp_path: Path, prepared: Prepared) -> Context:
    return dataclasses.replace(context_for(prepared, tmp_path, max_length=MAX_LENGTH), threads=1)


def limits(max_ndcg_change: float) -> ParityConfig:
    return ParityConfig(users=20, batch_sizes=(7,), max_ndcg_change=max_ndcg_change)


def test_the_stage_measures_them_as_they_run(
    folder: Path, sasrec: SequentialRecommender, context: Context
) -> None:
    found = measure_variants(sasrec, folder, context, limits(0.05), named=NAMES)
    assert found["aot"]["parity"]["top10_overlap_outside_margin"] == 1
    assert 0 < found["aot-bf16"]["parity"]["max_score_error"] < 0.03
    assert all(found[name]["speedup"]["mean"] > 0 for name in NAMES)
    assert settle(found, named=NAMES)[1] in ("fp32", "fast")


@pytest.mark.parametrize("name", ["aot", "aot-bf16"])
def test_a_package_that_ranks_otherwise_fails_the_stage(
    folder: Path,
    sasrec: SequentialRecommender,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    right = aot._load

    def wrong(path: Path, torch_of_package: str, *, alone: bool) -> aot.Loaded:
        loaded = right(path, torch_of_package, alone=alone)
        if path.stem != name:
            return loaded
        return lambda inputs: loaded([inputs[0].roll(1, dims=1), inputs[1]])  # the newest item is lost

    monkeypatch.setattr(aot, "_load", wrong)
    with pytest.raises(GateError, match=rf"parity of {name} \(worst at "):
        measure_variants(sasrec, folder, context, limits(1e-3), named=NAMES)
