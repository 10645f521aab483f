import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bench.energy import UNREADABLE, EnergyMeter, energy, meter
from bench.energy import reason as why


def zone(root: Path, folder: str, name: str, microjoules: int | str, span: int = 1000) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")
    return path


def found(root: Path) -> EnergyMeter:
    meter_ = meter("cpu", root=root)
    assert meter_ is not None
    return meter_


def test_packages_are_summed_and_parts_of_them_are_not_counted_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl", "not a package", 9)
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 60)
    zone(tmp_path, "intel-rapl:0:1", "dram", 30)
    zone(tmp_path, "intel-rapl:1", "package-1", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 500)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 99)
    rapl = found(tmp_path)
    assert rapl.source == "rapl"
    assert rapl.read() == (100, 7)
    assert rapl.joules((100, 7), (400, 10)) == pytest.approx(303e-6)


def test_a_package_that_is_listed_in_one_place_only_is_found_there(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 99)
    zone(tmp_path, "intel-rapl:1", "package-1", 7)
    assert sorted(found(tmp_path).read()) == [7, 99]


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0, span=1000)
    zone(tmp_path, "intel-rapl:1", "package-1", 0, span=5000)
    rapl = found(tmp_path)
    assert rapl.joules((990, 4000), (15, 4500)) == pytest.approx(525e-6)
    assert rapl.joules((10, 4500), (10, 500)) == pytest.approx(1000e-6)


def test_the_counter_is_read_anew_each_time(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    rapl = found(tmp_path)
    before = rapl.read()
    (package / "energy_uj").write_text("805\n")
    assert rapl.joules(before, rapl.read()) == pytest.approx(800e-6)


def reason(root: Path, device: str = "cpu") -> str:
    said: list[str] = []
    assert meter(device, root=root, note=said.append) is None
    assert len(said) == 1
    return said[0]


def test_a_machine_without_counters_has_no_meter_and_says_why(tmp_path: Path) -> None:
    assert "no processor package is listed" in reason(tmp_path / "missing")
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    assert reason(tmp_path).startswith("Energy on cpu was not measured: no processor package")
    assert meter("cpu", root=tmp_path) is None


def test_counters_that_cannot_be_read_give_no_meter(tmp_path: Path) -> None:
    """Kernels since 2020 let root alone read them; root reads anything, so a folder stands for the file."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()
    said = reason(tmp_path)
    assert "energy_uj cannot be read" in said and "root" in said


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_counters_that_hold_no_number_or_are_missing_give_no_meter(tmp_path: Path, file: str) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (package / file).write_text("none\n")
    assert "holds no number" in reason(tmp_path)
    (package / file).unlink()
    assert f"{file} cannot be read" in reason(tmp_path)


def test_numbers_by_hand() -> None:
    """90 J in 3 s for 600 users: 30 W, 0.15 J each, and 24,000 of them to the watt-hour."""
    made = energy(90.0, 3.0, 600, source="rapl", load="real", batch=32)
    assert made is not None
    assert (made.source, made.load, made.batch) == ("rapl", "real", 32)
    assert (made.watts, made.joules_per_user, made.users_per_watt_hour) == pytest.approx((30.0, 0.15, 24_000))


@pytest.mark.parametrize(("joules", "seconds", "users"), [(0.0, 3.0, 9), (5.0, 0.5, 9), (5.0, 3.0, 0)])
def test_what_was_not_measured_is_absent(joules: float, seconds: float, users: int) -> None:
    assert energy(joules, seconds, users, source="rapl", load="full", batch=1) is None


class FakeNvml(ModuleType):
    """As much of pynvml as is used; handles are the numbers of the GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(
        self, names: list[str], *, uuids: list[str] | None = None, broken: str | None = None
    ) -> None:
        super().__init__("pynvml")
        self.names, self.uuids, self.broken = names, uuids or [], broken
        self.millijoules = [1000 * (index + 1) for index in range(len(names))]

    def nvmlInit(self) -> None:
        if self.broken == "init":
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return self.uuids.index(uuid)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.broken == "energy":
            raise self.NVMLError("Not Supported")
        return self.millijoules[handle]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)

    def install(names: list[str], **more: object) -> FakeNvml:
        nvml = FakeNvml(names, **more)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return SimpleNamespace(install=install, set=monkeypatch.setenv)


def test_millijoules_of_a_gpu_become_joules(gpus: SimpleNamespace) -> None:
    nvml = gpus.install(["H"])
    gpu = meter("cuda")
    assert gpu is not None and gpu.source == "nvml"
    before = gpu.read()
    nvml.millijoules[0] += 2500
    assert gpu.joules(before, gpu.read()) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cuda", None, 1000), ("cuda:1", None, 2000), ("cuda:0", "1", 2000), ("cuda:1", "1,0", 1000),
     ("cuda", "GPU-b", 2000)],
)  # fmt: skip
def test_the_gpu_is_the_one_that_cuda_calls_by_this_number(
    gpus: SimpleNamespace, device: str, visible: str | None, expected: int
) -> None:
    gpus.install(["H", "H"], uuids=["GPU-a", "GPU-b"])
    if visible is not None:
        gpus.set("CUDA_VISIBLE_DEVICES", visible)
    gpu = meter(device)
    assert gpu is not None and gpu.read() == (expected,)


def test_gpus_of_which_cuda_might_mean_another_are_not_measured(
    gpus: SimpleNamespace, tmp_path: Path
) -> None:
    gpus.install(["H", "T"])
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in reason(tmp_path, "cuda")
    gpus.set("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert meter("cuda:1") is not None
    assert "NVML has no device 7" in reason(tmp_path, "cuda:7")
    gpus.set("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES has no device 1" in reason(tmp_path, "cuda:1")


@pytest.mark.parametrize(("broken", "said"), [("init", "Driver Not Loaded"), ("energy", "Not Supported")])
def test_a_driver_that_refuses_is_quoted(
    gpus: SimpleNamespace, tmp_path: Path, broken: str, said: str
) -> None:
    gpus.install(["H"], broken=broken)
    assert said in reason(tmp_path, "cuda")


def test_a_driver_that_fails_later_is_quoted_too(gpus: SimpleNamespace) -> None:
    nvml = gpus.install(["H"])
    gpu = meter("cuda")
    assert gpu is not None
    nvml.broken = "energy"
    with pytest.raises(UNREADABLE) as error:
        gpu.read()
    assert why(error.value) == "NVML says: Not Supported"


def test_without_pynvml_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in reason(tmp_path, "cuda")
