import pytest
import torch

from export.contract import ScoringExporterConfig, ScoringSizes


def contract(max_length: int = 12) -> ScoringExporterConfig:
    return ScoringExporterConfig(ScoringSizes(n_items=40, max_length=max_length, top_k=5))


def test_inputs_are_dynamic_in_batch_length_and_seen() -> None:
    assert contract().inputs == {"items": {0: "batch", 1: "length"}, "seen": {0: "batch", 1: "seen"}}
    assert list(contract().outputs) == ["top_items", "scores"]


def test_a_model_of_one_item_has_no_dynamic_length() -> None:
    assert contract(max_length=1).inputs["items"] == {0: "batch"}
    assert contract(max_length=1).generate_dummy_inputs(framework="pt")["items"].shape[1] == 1


def test_both_inputs_share_one_batch_dimension() -> None:
    shapes = contract().dynamic_shapes()
    assert shapes["items"][0] is shapes["seen"][0]
    assert shapes["items"][1].max == 12


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_dummies_are_left_padded_int64_rows_of_the_catalogue(framework: str) -> None:
    for values in contract().generate_dummy_inputs(framework=framework).values():
        values = torch.as_tensor(values)
        assert values.dtype == torch.int64
        assert values.shape[0] >= 2 and values.shape[1] >= 2  # torch.export takes 0 and 1 for constants
        assert values.min() >= 0 and values.max() in range(1, 41)
        first = (values != 0).int().argmax(dim=1)
        assert all((line[start:] != 0).all() for line, start in zip(values, first, strict=True))
        assert (first > 0).any()


def test_dummies_keep_two_users_even_when_asked_for_one() -> None:
    assert contract().generate_dummy_inputs(framework="pt", batch_size=1)["items"].shape[0] == 2


def test_the_contract_names_its_tolerance() -> None:
    assert contract().ATOL_FOR_VALIDATION == 1e-4
    assert contract().values_override is None
