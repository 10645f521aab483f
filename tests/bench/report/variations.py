"""The full sample report with names that try to break out of the page, and one with hardly anything in it."""

import json

from bench.report.parts import Finding
from bench.report.schema import Report, Sections
from tests.bench.report.full import full_report
from tests.bench.report.full_candidates import SPEEDS

ATTACKS = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "]]></style></svg><svg onload=alert(1)>",
    "a | b `c` *d* [e](javascript:alert(1)) {{7*7}} &amp;",
    "\u202egnirts a si siht\u202c \u05e2\u05d1\u05e8\u05d9\u05ea \x00\x1b[31m\u2028\ufffe",
    "very-long-name-" + "x" * 485,
)


def hostile_report() -> Report:
    """The same report with attacks for names, titles and sentences."""
    text = full_report().model_dump_json()
    names = [*SPEEDS, "student-w4"]
    for name, attack in zip(names, ATTACKS, strict=True):
        text = text.replace(f'"{name}"', json.dumps(attack))
    report = Report.model_validate_json(text)
    every = " ".join(ATTACKS)
    sections = report.sections.model_copy(
        update={
            "notes": list(ATTACKS),
            "findings": [Finding(kind="fails", text=attack) for attack in ATTACKS],
            "samples": [
                sample.model_copy(update={"history": list(ATTACKS), "next": every})
                for sample in report.sections.samples or []
            ],
        }
    )
    return report.model_copy(
        update={
            "recipe": every,
            "variant": ATTACKS[1],
            "command": every,
            "dataset": report.dataset.model_copy(update={"name": ATTACKS[0]}),
            "sections": sections,
        }
    )


def bare_report() -> Report:
    """What version 1 wrote before there were optional parts: two candidates and their quality."""
    report = full_report()
    bare: dict[str, object] = {
        "peak_memory_bytes": None,
        "energy": None,
        "slices": [],
        "coverage": {},
        "train": None,
    }
    kept = [each.model_copy(update=bare) for each in report.candidates[:2]]
    closed = [
        each.model_copy(update={"latency": [e for e in each.latency if e.load != "open-loop"]})
        for each in kept
    ]
    return report.model_copy(
        update={
            "candidates": closed, "comparisons": report.comparisons[:1], "sections": Sections(),
            "variant": None,
        }
    )  # fmt: skip
