"""How far rounding moves the scores of lists, per unit of the largest one, on a CPU.

    python docs/results/scripts/rounding.py runs/deploy-cpu/artifacts/student-onnx
    python docs/results/scripts/rounding.py --family llama --layers 24

fp16 and bf16: the variant's graph, every stored value rounded to the type. tf32: the inputs of products
rounded to its mantissa. fp8: products in 8-bit floats, as engines have them. Of an artifact also its variants
that run here. Held against the canonical graph over random histories, by place and by item.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from export.fast.surgery import insert
from export.fp8 import fp8_products, input_ranges
from export.half import to_half
from export.half_check import rounded_in_float
from export.onnx import export_onnx
from export.runtime import Artifact, ArtifactError, read_manifest
from export.static import static_graph
from export.triton.golden import Answer, Request, difference
from recommender.models.build import build_model
from recommender.models.config import LlmConfig
from recommender.scoring import HistoryArrays

Lists = Callable[[Request], Answer]
PRODUCTS = {"MatMul": 2, "Gemm": 2, "Attention": 3}
"""Operator -> its first inputs, which matrix units read."""
UNTRAINED = {"n_items": 2000, "max_length": 32}


def requests(n_items: int, length: int, count: int, seed: int = 0) -> list[Request]:
    """Random histories of 1 to `length` items that must not come back."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        rows = rng.integers(1, n_items + 1, rng.integers(1, length + 1))
        given = Request(np.zeros((1, length), np.int64), np.zeros((1, length), np.int64))
        given.items[0, length - len(rows) :] = rows
        given.seen[0, : len(rows)] = rows
        found.append(given)
    return found


def lists_of(model: ir.Model) -> Lists:
    """A graph as onnxruntime runs it, operator by operator: it must not merge what rounds in between."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)

    def lists(given: Request) -> Answer:
        rows, scores = session.run(("top_items", "scores"), given._asdict())
        return Answer(rows[0], scores[0])

    return lists


def tf32(canonical: ir.Model) -> ir.Model:
    """The graph with the inputs of products rounded to 10 bits behind the point, which float16 has too."""
    model = canonical.clone()
    for node in list(model.graph):
        for place, value in enumerate(node.inputs[: PRODUCTS.get(node.op_type, 0)]):
            if value is not None:
                for kind in (ir.DataType.FLOAT16, ir.DataType.FLOAT):
                    value = insert(node, "Cast", [value], {"to": int(kind)}).outputs[0]
                    value.type = ir.TensorType(kind)
                node.replace_input_with(place, value)
    return model


def fp8(canonical: ir.Model, given: Sequence[Request]) -> ir.Model:
    """The graph with products of stored matrices in E4M3; ranges from these histories."""
    items = np.concatenate([each.items for each in given])
    sizes = {"length": items.shape[1], "seen": given[0].seen.shape[1]}
    fixed = static_graph(canonical, **sizes)
    return fp8_products(fixed, input_ranges(fixed, HistoryArrays(items), **sizes))


def differences(exact: Lists, other: Lists, given: Sequence[Request]) -> NDArray[np.float64]:
    """How far each list is off."""
    found = []
    for each in given:
        answer = exact(each)
        kept = np.isfinite(answer.scores)
        expected = {"rows": answer.rows[kept].tolist(), "scores": answer.scores[kept].tolist()}
        found.append(difference(expected, other(each)))
    return np.array(found)


def rounded(canonical: ir.Model, n_items: int, length: int) -> Iterator[tuple[str, ir.Model]]:
    """The graph in each precision, by name."""
    for kind in ("fp16", "bf16"):
        yield kind, rounded_in_float(to_half(canonical, kind), kind)
    yield "tf32", tf32(canonical)
    yield "fp8", fp8(canonical, requests(n_items, length, 100, seed=1))


def variants(folder: Path) -> Iterator[tuple[str, Lists]]:
    """Variants of an artifact that run here."""
    for entry in read_manifest(folder)["variants"]:
        try:
            opened = Artifact(folder, variant=entry["name"], threads=1, verify=False)
        except ArtifactError as error:
            print(f"{entry['name']}: {error}")
            continue
        if entry["name"] != "fp32":
            yield entry["name"], lambda given, opened=opened: Answer(*(v[0] for v in opened.run(*given)))


def untrained(family: str, layers: int) -> ir.Model:
    """The canonical graph of a body with drawn weights."""
    config = LlmConfig.model_validate(
        {"family": family, "layers": layers, "hidden": 64, "heads": 2, "item_dim": 64}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        export_onnx(build_model(config, **UNTRAINED, seed=3).eval(), path, top_k=20)
        return ir.from_proto(ir.to_proto(ir.load(path)))  # read whole, as the file goes


def main() -> None:
    """Print the largest and the median difference of each precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path, nargs="?", help="its canonical graph and its variants")
    parser.add_argument("--family", default="llama", help="without an artifact: of an untrained body")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--histories", type=int, default=100)
    asked = parser.parse_args()
    if asked.artifact:
        manifest = read_manifest(asked.artifact)
        first, n_items = manifest["variants"][0], manifest["catalogue"]["items"]
        canonical, length = ir.load(asked.artifact / first["graph"]), first["max_length"]
    else:
        canonical, (n_items, length) = untrained(asked.family, asked.layers), UNTRAINED.values()
    exact, given = lists_of(canonical), requests(n_items, length, asked.histories)
    rows = [(name, lists_of(model)) for name, model in rounded(canonical, n_items, length)]
    for name, lists in [*rows, *(variants(asked.artifact) if asked.artifact else ())]:
        found = differences(exact, lists, given)
        print(f"{name:12} largest {found.max():.2e}  median {median(found):.2e}", flush=True)


if __name__ == "__main__":
    main()
