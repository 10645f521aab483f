from bench.report.blocks import Tree
from bench.report.origin import environment_facts, family, origin_blocks
from bench.report.schema import Environment
from tests.bench.report.full import full_report
from tests.bench.report.variations import bare_report


def test_everything_stands_below_what_it_was_made_from() -> None:
    parents = {
        "teacher": [],
        "pruned": ["teacher"],
        "student": ["pruned", "teacher"],
        "onnx": ["student"],
        "sasrec": [],
    }
    assert family(parents) == [
        (0, "teacher"), (1, "pruned"), (2, "student (with teacher)"), (3, "onnx"), (0, "sasrec"),
    ]  # fmt: skip


def test_names_that_only_parents_mention_are_there() -> None:
    assert family({"student": ["elsewhere"]}) == [(0, "elsewhere"), (1, "student")]


def test_records_in_a_circle_lose_no_line() -> None:
    assert {text.split(" ")[0] for _, text in family({"a": ["b"], "b": ["a"], "c": ["c"]})} == {"a", "b", "c"}


def test_a_very_long_chain_is_no_deep_recursion() -> None:
    lines = family({f"n{i}": [f"n{i - 1}"] for i in range(1, 5000)})
    assert len(lines) == 5000 and max(depth for depth, _ in lines) == 12


def test_data_tree_and_digests_are_shown_short() -> None:
    facts, tree, digests = origin_blocks(full_report())
    assert getattr(facts, "pairs", None) == [("data digest", "5b0e9f5b0e9f5b0e")]
    assert isinstance(tree, Tree) and tree.nodes[0] == (0, "teacher")
    assert getattr(digests, "rows", [])[0][0].text == "teacher (seed 42)"
    assert origin_blocks(bare_report()) == []


def test_facts_of_the_machine_read_well() -> None:
    facts = dict(environment_facts(Environment(cpu="x", isa=["avx2", "amx"], memory_bytes=2_000_000_000)))
    assert facts == {"cpu": "x", "isa": "avx2 amx", "memory": "2 GB"}
