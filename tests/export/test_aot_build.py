"""What compiles packages: the compiler it needs, and what it says of one that fails or hangs."""

import json
import os
import select
import stat
import sys
from pathlib import Path

import pytest
import torch

from export import aot_build
from export.aot_build import (
    AotConfig,
    build_package,
    check_build,
    compile_apart,
    require_compiler,
    save_program,
    trace,
)
from export.config import ExportConfig
from export.variants import COMPILED, is_lossy, may_be_default, to_try
from recommender.errors import InputError, StageError
from recommender.models.interface import Hidden, History, SequentialRecommender
from recpress import doctor
from tests.export.fixtures import N_ITEMS, TOP_K, OnlyVectors, make_artifact


def test_they_come_by_name_only_and_are_never_the_default() -> None:
    assert not {*COMPILED} & {*to_try(None, 10**7)}
    assert to_try(("aot-bf16", "fast", "aot"), 10) == ("fp32", "fast", "aot", "aot-bf16")
    assert is_lossy("aot-bf16") and not is_lossy("aot")
    assert [name for name in ("fp32", "fast", "aot", "aot-bf16", "bf16") if may_be_default(name)] == [
        "fp32", "fast",
    ]  # fmt: skip


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"no-such-compiler, which is not there[\s\S]*apt-get install g\+\+"):
        check_build(AotConfig())
    found = next(each for each in doctor.examine() if each.what == "C++ compiler")
    assert found.state == "absent" and "apt-get install g++" in found.mend


def test_the_doctor_shows_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")  # with options, as build systems give it
    assert require_compiler() == sys.executable
    found = next(each for each in doctor.examine() if each.what == "C++ compiler")
    assert (found.state, found.detail) == ("ok", sys.executable)


def test_a_gpu_that_is_not_there_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"compiled where they run: torch .* sees no CUDA device"):
        check_build(AotConfig(device="cuda"))
    check_build(AotConfig())


def test_a_compiler_that_is_missing_stops_the_export_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, sasrec: SequentialRecommender, prepared, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="the variants aot and aot-bf16 are compiled with"):
        make_artifact(sasrec, tmp_path / "artifact", prepared, variants=("aot",))
    assert not list(tmp_path.iterdir())


def test_options_are_part_of_the_recipe() -> None:
    given = {"of": "a", "as": "b", "aot": {"device": "cuda", "cuda_graph_batches": [1, 8]}}
    config = ExportConfig.model_validate(given).aot
    assert config.cuda_graph_batches == (1, 8) and config.options()["cpp.dynamic_threads"] is True
    assert AotConfig().options()["freezing"] is True and AotConfig().options()["max_autotune"] is False
    for wrong in ({"device": "tpu"}, {"cuda_graph_batches": [0]}, {"timeout_seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AotConfig.model_validate(wrong)


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, 2 * x


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of Python: what it does is written by the test; `$3` is the job folder."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def run_job(script: Path, does: str, seconds: float = 30) -> Path:
    job = script.parent / "job"
    job.mkdir()
    script.write_text(f"#!/bin/sh\n{does}\n")
    compile_apart(job, "aot", seconds)
    return job


def test_a_compilation_that_succeeds_leaves_a_package(interpreter: Path) -> None:
    job = run_job(interpreter, 'test "$1 $2" = "-m export.aot_child" && echo done > "$3/package.pt2"')
    assert (job / "package.pt2").read_text() == "done\n"


def test_a_compiler_that_fails_is_quoted_with_its_last_lines(interpreter: Path) -> None:
    does = "seq 1 100; echo 'kernel.cpp:7: error: no such intrinsic' >&2; exit 3"
    with pytest.raises(StageError, match=r"aot failed \(exit code 3\)") as caught:
        run_job(interpreter, does)
    told = caught.value.what.splitlines()
    assert told[-1].strip() == "kernel.cpp:7: error: no such intrinsic" and told[-2].strip() == "100"
    assert len(told) == 1 + aot_build.TAIL_LINES and "recpress doctor" in str(caught.value)


def test_one_that_writes_nothing_is_no_success(interpreter: Path) -> None:
    with pytest.raises(StageError, match=r"failed \(exit code 0\)[\s\S]*\(nothing\)"):
        run_job(interpreter, "true")


def test_a_compilation_that_hangs_is_ended_with_all_that_it_started(interpreter: Path) -> None:
    os.mkfifo(held := interpreter.parent / "held")
    reading = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(StageError, match=r"took longer than 1 s[\s\S]*compiling"):
        run_job(interpreter, f"tail -f /dev/null > {held} & echo compiling; wait", seconds=1)
    assert select.select([reading], [], [], 30)[0] and os.read(reading, 1) == b""  # nobody holds it any more
    os.close(reading)


def test_no_package_is_left_where_the_compilation_fails(
    interpreter: Path, sasrec: SequentialRecommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(aot_build, "trace", lambda *_, **__: torch.export.export(Two(), (torch.ones(3),)))
    with pytest.raises(StageError):
        build_package(sasrec, tmp_path / "aot.pt2", "aot", top_k=TOP_K, config=AotConfig())
    assert not (tmp_path / "aot.pt2").exists()


class Branching(OnlyVectors):
    """A model whose Python looks at values, which cannot be compiled."""

    def user_vector(self, history: History) -> torch.Tensor:
        return self.item_table()[int(history.items.sum()) % 2].expand(history.items.shape[0], -1)

    def hidden(self, history: History, **_: object) -> Hidden:
        raise AssertionError("nobody asks for it")

    def item_table(self) -> torch.Tensor:
        return torch.ones(N_ITEMS + 1, 4)


def test_a_model_that_cannot_be_traced_is_told_why() -> None:
    model = Branching()
    model.n_items, model.max_length = N_ITEMS, 5
    with pytest.raises(StageError, match="torch cannot export this Branching for AOTInductor"):
        trace(model, TOP_K, half=False, device="cpu")


class Read(torch.nn.Module):
    """Weights as a file of them gives them: views of one storage, an empty one too."""

    def __init__(self) -> None:
        super().__init__()
        storage = torch.arange(1000.0)
        self.weight = torch.nn.Parameter(storage[10:16].view(2, 3))
        self.register_buffer("table", self.weight.detach())
        self.register_buffer("prefix", storage[20:20].view(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.prefix, x @ self.weight.T @ self.table))


def test_weights_reach_the_compiler_once_and_without_the_storage_around_them(tmp_path: Path) -> None:
    program = torch.export.export(Read(), (torch.ones(4, 3),))
    save_program(program, tmp_path / "program.pt2")
    read = torch.export.load(tmp_path / "program.pt2")
    assert torch.equal(read.module()(torch.ones(4, 3)), Read()(torch.ones(4, 3)))
    stored = read.state_dict
    assert stored["weight"].untyped_storage().data_ptr() == stored["table"].untyped_storage().data_ptr()
    assert stored["weight"].untyped_storage().nbytes() == 6 * 4


def test_the_child_compiles_what_a_job_folder_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.aot_child import compile_job

    torch.export.save(torch.export.export(Two(), (torch.ones(3),)), tmp_path / "program.pt2")
    (tmp_path / "job.json").write_text(json.dumps({"freezing": True}))
    asked = {}

    def fake(program: torch.export.ExportedProgram, **options: object) -> None:
        asked.update(options, answer=program.module()(torch.ones(3)))

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fake)
    compile_job(tmp_path)
    assert asked["package_path"] == str(tmp_path / "package.pt2")
    assert asked["inductor_configs"] == {"freezing": True} and asked["answer"][1].tolist() == [2, 2, 2]
