"""Recommend through a Triton server over gRPC; needs numpy and `pip install "tritonclient[grpc]"`.

    python client_grpc.py --url localhost:8001 --history "item-1,item-2" -k 10

Padding, ids and titles are those of client_http.py, which lies beside this file.
"""

import sys
from collections.abc import Sequence
from typing import Any

from client_http import Catalogue, options, show


def recommend(url: str, catalogue: Catalogue, history: Sequence[str], k: int) -> list[dict[str, Any]]:
    """Ask the server. Raises SystemExit with a text when it does not answer, or tritonclient is missing."""
    try:
        import tritonclient.grpc as triton
    except (ImportError, RuntimeError) as error:  # the latter where it was installed without [grpc]
        raise SystemExit(f'{error}: pip install "tritonclient[grpc]"') from error
    model = catalogue.model
    inputs = []
    for told, array in zip(model["inputs"], catalogue.request(history), strict=True):
        given = triton.InferInput(told["name"], list(array.shape), told["type"])
        given.set_data_from_numpy(array)
        inputs.append(given)
    outputs = [triton.InferRequestedOutput(each["name"]) for each in model["outputs"]]
    try:
        with triton.InferenceServerClient(url) as client:
            answer = client.infer(model["name"], inputs, str(model["version"]), outputs, client_timeout=10)
    except triton.InferenceServerException as error:
        raise SystemExit(f"{url} does not answer: {error}") from error
    rows, scores = (answer.as_numpy(each["name"]) for each in model["outputs"])
    best: list[dict[str, Any]] = catalogue.answer(rows, scores, k)
    return best


def main() -> int:
    """One request."""
    given = options("Recommend through a Triton server over gRPC.", "localhost:8001")
    history = [part.strip() for part in given.history.split(",") if part.strip()]
    show(recommend(given.url, Catalogue(model=given.model), history, given.k))
    return 0


if __name__ == "__main__":
    sys.exit(main())
