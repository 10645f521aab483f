import os
from pathlib import Path

from bench import process


def proc(folder: Path, states: dict[int, str]) -> Path:
    for number, state in states.items():
        task = folder / "task" / str(number)
        task.mkdir(parents=True)
        (task / "stat").write_text(f"{number} (odd) R name) {state} 1 2 3\n")
    return folder


def test_a_process_rests_when_no_thread_but_the_calling_one_runs(tmp_path: Path) -> None:
    own = os.getpid()
    assert process.settled(limit_ns=0, proc=proc(tmp_path / "a", {own: "R", own + 1: "S"}))
    assert not process.settled(limit_ns=0, proc=proc(tmp_path / "b", {own: "R", own + 1: "S", own + 2: "R"}))


def test_a_system_that_does_not_tell_of_threads_is_believed(tmp_path: Path) -> None:
    assert process.settled(limit_ns=0, proc=tmp_path)


def test_the_peak_is_the_high_water_mark_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nVmPeak:\t 9000 kB\nVmHWM:\t 1234 kB\nVmRSS:\t 1000 kB\n")
    assert process.peak_memory_bytes(tmp_path) == 1234 * 1024


def test_without_one_the_resource_usage_tells(tmp_path: Path) -> None:
    assert process.peak_memory_bytes(tmp_path) > 1 << 20


def test_usable_cores_are_in_order() -> None:
    cores = process.usable_cores()
    assert cores is None or cores == sorted(set(cores))


def test_time_without_a_core_is_summed_over_threads_and_0_where_it_is_not_counted(tmp_path: Path) -> None:
    folder = proc(tmp_path, {1: "S", 2: "R", 3: "S"})
    assert process.waited_ns(folder) == 0
    (folder / "task" / "1" / "schedstat").write_text("9000 250 3\n")
    (folder / "task" / "2" / "schedstat").write_text("9000 50 3\n")
    assert process.waited_ns(folder) == 300
