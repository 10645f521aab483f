"""The three files of a report, and how they are made again from the first."""

from pathlib import Path

from pydantic import ValidationError

from bench.report.html import to_html
from bench.report.markdown import to_markdown
from bench.report.schema import SCHEMA_VERSION, Report
from recommender.errors import InputError
from recommender.files import read_json, write_json, write_text


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and report.html, each in one step."""
    write_json(folder / "report.json", report.as_json())
    write_pages(report, folder)


def write_pages(report: Report, folder: Path) -> None:
    """Write report.md and report.html."""
    markdown, html = to_markdown(report), to_html(report)
    write_text(folder / "report.md", markdown)
    write_text(folder / "report.html", html)


def read(folder: Path) -> Report:
    """The report of a run folder. Raises InputError when it is missing, of another schema, or broken."""
    file = folder / "report.json"
    if not folder.is_dir():
        raise InputError(
            "no such run folder", where=str(folder), fix="give the folder that `recpress run` wrote"
        )
    if not file.exists():
        raise InputError(
            "this run has no report yet",
            where=str(folder),
            fix="finish the run; its recipe needs a `bench` stage",
        )
    document = read_json(file)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        said = "has no schema_version" if version is None else f"has schema_version {version!r}"
        raise InputError(
            f"the report {said}; this recpress reads schema_version {SCHEMA_VERSION}",
            where=str(file),
            fix="use the recpress that wrote it, or run the bench stage again",
        )
    try:
        return Report.model_validate(document)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(
            f"not a report of schema_version {SCHEMA_VERSION}: {'; '.join(problems[:3])}{more}",
            where=str(file),
            fix="run the bench stage again",
        ) from error


def rebuild(run_folder: Path) -> Report:
    """Write report.md and report.html anew from report.json.

    Raises InputError when there is no report, or none that this version reads; nothing is written then.
    """
    report = read(run_folder)
    write_pages(report, run_folder)
    return report
