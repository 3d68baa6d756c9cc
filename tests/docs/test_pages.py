"""What the pages show is true: jobs are valid, commands and slugs are there, links lead somewhere."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay_trainer.config import TrainConfig
from replay_trainer.study.cells import Study
from replay_trainer.study.settings import StudySettings
from tests.docs.cli_reference import commands, options_of_command
from tests.docs.reference import problems

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "deploy/README.md")]
PAGES += sorted(each for each in (ROOT / "docs").rglob("*.md") if each.parent.name != "reference")
NAMES = [str(each.relative_to(ROOT)) for each in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> Iterator[list[str]]:
    """The commands of ours that a page shows, in words."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(
        r"^[^`\n]*?(replay-(?:service|trainer) [a-z][^`\n]*)$", "\n".join(_code(text)), re.MULTILINE
    ):
        yield shlex.split(line.split("&&")[-1].rstrip(")"), comments=True)


def _code(text: str) -> list[str]:
    """Blocks of code: fenced as `sh`, or indented."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) + re.findall(
        r"^ {4}\S.*$", text, re.MULTILINE
    )


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_job_that_is_shown_is_a_valid_one(page: Path) -> None:
    for block in blocks(page, "toml"):
        content = tomllib.loads(block)
        if "study" in content:
            Study.of(StudySettings.of(content, page))
        elif "model" in content:
            TrainConfig.model_validate(content)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_that_is_shown_is_there_with_its_options(page: Path) -> None:
    known = dict(commands())
    for words in command_lines(page):
        name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known), None)
        assert name is not None, words
        options = [each.partition("=")[0] for each in words if each.startswith("--")]
        assert set(options) <= options_of_command(known[name]) | {"--help"}, words


def test_every_slug_that_troubleshooting_names_is_one_and_has_its_title() -> None:
    titles = {each.slug: each.title for each in problems()}
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    titled = [each.groups() for row in rows if (each := re.fullmatch(r"`([a-z-]+)` (.+)", row))]
    assert titled and all(titles[slug] == title for slug, title in titled)
    named = {slug for row in rows for slug in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row)}
    assert named and named <= set(titles)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_module_that_is_named_is_there(page: Path) -> None:
    folders = (ROOT, ROOT / "replay_service")
    for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page.read_text()):
        assert any((folder / name).exists() for folder in folders), name


@pytest.mark.parametrize(("name", "most"), [("README.md", 150), ("ARCHITECTURE.md", 1500)])
def test_the_first_pages_stay_short(name: str, most: int) -> None:
    text = (ROOT / name).read_text()
    assert (len(text.splitlines()) if name == "README.md" else len(text.split())) <= most
