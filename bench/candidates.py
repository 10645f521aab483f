"""What is compared: the names of the recipe, and how each of them is opened for every seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bench.providers import PROVIDERS, OrtDevice, cuda_device
from recommender.cost import CostFormulas
from recommender.errors import InputError, StageError, nearest
from recommender.files import read_json
from recommender.scoring import ScorerRef
from recommender.stage import Bound
from recommender.ways import EAGER, WAYS, Way


@dataclass(frozen=True)
class Candidate:
    """One scorer of one bound name, for every seed."""

    name: str
    bounds: Mapping[int, Bound]  # seed -> what the name stands for
    refs: Mapping[int, ScorerRef]  # seed -> how to open it

    @property
    def bound(self) -> Bound:
        """What the name stands for with the first seed."""
        return next(iter(self.bounds.values()))

    @property
    def ref(self) -> ScorerRef:
        """How to open it with the first seed; this one is timed."""
        return next(iter(self.refs.values()))

    @property
    def kind(self) -> Literal["checkpoint", "artifact"]:
        """What the name stands for, as a report calls it."""
        return "artifact" if self.bound.kind == "artifact" else "checkpoint"

    @property
    def variant(self) -> str | None:
        """The variant of an artifact that the scorer opens."""
        variant = self.ref.options.get("variant")
        return None if variant is None else str(variant)

    @property
    def way(self) -> str | None:
        """How torch runs a checkpoint; None for eager float32, and where torch runs nothing."""
        way = self.ref.options.get("way")
        return None if way is None else str(way)


def resolve(
    names: Sequence[str],
    by_seed: Mapping[int, Mapping[str, Bound]],
    ways: Sequence[Way] = (EAGER,),
    devices: Sequence[OrtDevice] = (),
) -> list[Candidate]:
    """The candidates of these names, in order: one per scorer, so an artifact with two variants gives two.

    The first scorer of a name (of an artifact: its default variant) gives a candidate of that name, the
    others `name:variant`. `ways`, of which the first is eager: those to run every checkpoint in torch; the
    others give `name:way`. `devices`: where onnxruntime runs every ONNX variant; all but the first give
    `name:variant@device`. Raises InputError for a name that no stage binds, StageError when nothing opens it
    for every seed.
    """
    found: list[Candidate] = []
    for name in names:
        for seed, bounds in by_seed.items():
            if name not in bounds:
                raise InputError(
                    f"nothing is called {name!r} (seed {seed}){nearest(name, bounds)}", where="bench.compare"
                )
        bound_by_seed = {seed: bounds[name] for seed, bounds in by_seed.items()}
        found += _of_one_name(name, bound_by_seed, ways, devices)
    return found


def _of_one_name(
    name: str, bounds: Mapping[int, Bound], torch_ways: Sequence[Way], devices: Sequence[OrtDevice]
) -> list[Candidate]:
    """Variants that a seed's artifact does not hold are left out: which ones pay is decided per export."""
    ways = {
        seed: {
            _way(ref, devices): ref
            for scorer in bound.scorers
            for ref in _in_every_way(scorer, torch_ways, devices)
        }
        for seed, bound in bounds.items()
    }
    first = next(iter(ways.values()))
    shared = [way for way in first if all(way in each for each in ways.values())]
    if not shared and tuple(devices) == ("tensorrt",):
        raise InputError(
            f"no variant of {name!r} is a whole graph, which {PROVIDERS['tensorrt']} wants",
            where="bench.onnxruntime",
            fix="name cpu or cuda as well, or export it with the variant fp32",
        )
    if not shared:
        said = "; ".join(f"seed {seed}: {', '.join(each) or 'no way'}" for seed, each in ways.items())
        raise StageError(f"nothing opens {name!r} for every seed ({said})", where="bench")
    return [
        Candidate(
            name=name if place == 0 else f"{name}:{way}",
            bounds=bounds,
            refs={seed: each[way] for seed, each in ways.items()},
        )
        for place, way in enumerate(shared)
    ]


def left_out(names: Sequence[str], by_seed: Mapping[int, Mapping[str, Bound]]) -> list[str]:
    """In sentences: variants that only some seeds have, and defaults that differ between seeds."""
    said = []
    for name in names:
        ways = {seed: [_way(ref) for ref in bounds[name].scorers] for seed, bounds in by_seed.items()}
        every = list(dict.fromkeys(way for each in ways.values() for way in each))
        for way in every:
            without = [str(seed) for seed, each in ways.items() if way not in each]
            if without:
                seeds = ", ".join(without)
                said.append(f"{name}:{way} is not compared: the artifact of seed {seeds} does not hold it.")
        firsts = {each[0] for each in ways.values() if each}
        if len(firsts) > 1:
            told = ", ".join(f"{each[0]} (seed {seed})" for seed, each in ways.items() if each)
            said.append(f"The default variant of {name} differs between seeds: {told}.")
    return said


def not_whole(
    names: Sequence[str], by_seed: Mapping[int, Mapping[str, Bound]], devices: Sequence[OrtDevice]
) -> list[str]:
    """In sentences: variants in parts, which do not run in onnxruntime's TensorRT provider."""
    if "tensorrt" not in devices:
        return []
    refs = [(name, ref) for name in names for ref in next(iter(by_seed.values()))[name].scorers]
    parts = [f"{name}:{_way(ref)}" for name, ref in refs if _placed(ref) and not _is_whole(ref)]
    wants = f"{PROVIDERS['tensorrt']} wants whole graphs"
    return [f"{part} is not compared on tensorrt: {wants} (fp32, fp16)." for part in parts]


def _in_every_way(ref: ScorerRef, ways: Sequence[Way], devices: Sequence[OrtDevice] = ()) -> list[ScorerRef]:
    """A checkpoint once for each way (the opener's own is eager), an ONNX variant once for each device where
    any is named and it can run there, anything else as it is.
    """
    if ref.kind == "checkpoint" and ref.runtime == "torch":
        return [ref if way == EAGER else replace(ref, options={**ref.options, "way": way}) for way in ways]
    if not devices or not _placed(ref):
        return [ref]
    return [replace(ref, device=each) for each in devices if each != "tensorrt" or _is_whole(ref)]


def _placed(ref: ScorerRef) -> bool:
    """Whether `onnxruntime:` says where a scorer runs."""
    return ref.runtime == "onnxruntime" and ref.device is None


def _is_whole(ref: ScorerRef) -> bool:
    """Whether the variant is one graph, not a body and a head."""
    return "graph" in _entry(ref.path, ref.options.get("variant"))[1]


def runnable(found: Sequence[Candidate], device: str) -> tuple[list[Candidate], list[str]]:
    """The candidates that run where only `device` is used, and in sentences those that do not."""
    foreign = [each for each in found if cuda_device(each.ref.device or "cpu") not in (None, device)]
    said = [f"{each.name} is not compared: it runs on {each.ref.device} only." for each in foreign]
    return [each for each in found if each not in foreign], said


def _way(ref: ScorerRef, devices: Sequence[OrtDevice] = ()) -> str:
    """What tells the scorers of one name apart."""
    way = str(ref.options.get("variant") or ref.options.get("way") or ref.runtime)
    return f"{way}@{ref.device}" if ref.runtime == "onnxruntime" and ref.device in devices[1:] else way


def manifest_entry(candidate: Candidate) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The manifest of an artifact and its entry of the candidate's variant."""
    return _entry(candidate.bound.path, candidate.variant)


def _entry(artifact: Path, variant: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The same by the folder and the name of the variant; None: its default one."""
    manifest = read_json(artifact / "manifest.json")
    try:
        entries = {str(entry["name"]): entry for entry in manifest["variants"]}
        return manifest, entries[variant or manifest["default_variant"]]
    except (KeyError, TypeError) as error:
        raise broken(artifact, error) from error


def broken(artifact: Path, error: Exception) -> InputError:
    """What to say of a manifest that does not hold what it should."""
    where = str(artifact / "manifest.json")
    return InputError(f"broken manifest ({error!r})", where=where, fix="export the artifact again")


def formulas_of(candidate: Candidate) -> CostFormulas | None:
    """What the manifest says a call of the variant costs; None for a checkpoint, and where it says nothing.

    Raises InputError for formulas that are broken, or newer than this version.
    """
    if candidate.kind != "artifact":
        return None
    noted = manifest_entry(candidate)[1].get("cost")
    if noted is None:
        return None
    try:
        return CostFormulas.model_validate(noted)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in ("cost", *first["loc"]))
        raise InputError(
            f"the cost formulas of {candidate.name!r} cannot be read ({place}: {first['msg']})",
            where=str(candidate.bound.path / "manifest.json"),
            fix="export the artifact again with this version of recpress, or leave `roofline` out",
        ) from error


def check_answers(candidate: Candidate, length: int, *, sampled_negatives: int | None) -> None:
    """Raise InputError where an artifact, or a compiled checkpoint, cannot answer what will be asked."""
    if candidate.bound.kind != "artifact":
        _check_way_answers(candidate, sampled_negatives)
        return
    if sampled_negatives is not None:
        raise InputError(
            f"{candidate.name!r} is an artifact: it gives its best items, not ranks among sampled ones",
            where="evaluation.sampled_negatives",
            fix="leave sampled_negatives out, or compare checkpoints only",
        )
    limit = manifest_entry(candidate)[1].get("top_k")
    if limit is not None and limit < length:
        raise InputError(
            f"{candidate.name!r} answers {limit} items at most; evaluation.ks and the bench need {length}",
            where=str(candidate.bound.path),
            fix=f"export it with `top_k: {length}`, or ask for shorter lists",
        )


def _check_way_answers(candidate: Candidate, sampled_negatives: int | None) -> None:
    """Compiled programs give lists only."""
    compiled = [name for name, way in WAYS.items() if way.compiled]
    if sampled_negatives is not None and candidate.way in compiled:
        raise InputError(
            f"{candidate.name!r} gives its best items, not ranks among sampled ones",
            where="evaluation.sampled_negatives",
            fix=f"leave sampled_negatives out, or {', '.join(compiled)} out of bench.torch",
        )


def device_of(ref: ScorerRef, wanted: str) -> str:
    """The device to open a scorer on: the wanted one, its own where it has but one, or cpu for an onnxruntime
    that was built without it.
    """
    if ref.device is not None:
        return ref.device
    if ref.runtime != "onnxruntime" or wanted != "cuda":
        return wanted
    import onnxruntime

    return "cuda" if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu"
