"""Whether a variant of an artifact may skip the zeros of its weights: what the manifest says of its build."""

from bench.candidates import Candidate, manifest_entry
from bench.report.parts import Zeros


def with_kernels(zeros: Zeros | None, candidate: Candidate) -> Zeros | None:
    """The zeros of a candidate, with the flag that its engine was built with; of others as they are.

    Raises InputError for a broken manifest.
    """
    if zeros is None or candidate.kind != "artifact":
        return zeros
    engine = manifest_entry(candidate)[1].get("engine")
    flags = engine.get("flags") if isinstance(engine, dict) else None
    sparse = flags.get("sparse") if isinstance(flags, dict) else None
    return zeros.model_copy(update={"sparse_kernels": sparse}) if isinstance(sparse, bool) else zeros
