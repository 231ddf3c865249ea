"""The documentation: what is generated is current, and what it names exists."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.config import Settings
from orchestrator.states import TaskState

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
PAGES = sorted({str(path.relative_to(ROOT)) for path in WRITTEN})
BY_HAND = [page for page in PAGES if not page.startswith("docs/reference/")]
FOREIGN = {
    # Of other programs, or placeholders and words in capitals that are no variables of ours.
    "AWS", "PATH", "TERM", "QUIT", "POST", "GET", "JSON", "HTTP", "HOST", "ORCHESTRATOR_URL", "ORCHESTRATOR_API_KEY",
    "ORCHESTRATOR_INPUT_FILE", "ORCHESTRATOR_OUTPUT_FILE", "ORCHESTRATOR_OUTPUT_DIR",
    "ORCHESTRATOR_CHECKPOINT_DIR", "NO_COLOR", "ARGS", "DOCKER_HOST", "KEEP_CONTAINER_IMAGES",
}  # fmt: skip


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_what_the_code_says(generator: ModuleType) -> None:
    assert not list(generator.stale_pages()), "run `make docs` and commit the result"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(file: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_folder_of_somebodys_machine(page: str) -> None:
    assert not re.findall(r"(?<![\w./])/(?:root|home|work|tmp|Users)/[\w./-]*", read(page))


def test_the_picture_shows_nothing_of_a_machine() -> None:
    picture = read("docs/images/demo.svg")
    assert not re.search(r"/(?:root|home|work|tmp)/|font-face|<script", picture)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([\w.]+):(?!=)", read("Makefile"), flags=re.MULTILINE))
    named = {
        (page, target)
        for page in PAGES
        for target in re.findall(r"(?:`|^|&& )make ([a-z.][\w.]*)", read(page), re.MULTILINE)
    }
    assert named
    assert not {(page, target) for page, target in named if target not in targets}


@pytest.mark.parametrize("page", BY_HAND)
def test_every_variable_that_is_named_exists(page: str) -> None:
    ours = {spec.metadata["env"] for spec in fields(Settings)}
    compose = set(re.findall(r"^([A-Z_]+)=", read("compose/example.env"), flags=re.MULTILINE))
    text = read(page)
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)(?:=[^`]*)?`", text))
    named |= set(re.findall(r"^export ([A-Z_]+)=", text, flags=re.MULTILINE))
    assert named - ours - compose - FOREIGN == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_test_that_is_named_exists(page: str) -> None:
    missing = []
    for name, function in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)(?:::(\w+))?`", without_code(read(page))):
        if not name.startswith(KINDS):
            continue
        beside = (ROOT / page).parent / name
        file = beside if beside.exists() else ROOT / name
        if not file.exists() or (function and f"def {function}(" not in file.read_text(encoding="utf-8")):
            missing.append(f"{name}::{function}")
    assert not missing


KINDS = tuple(
    f"{folder}/" for folder in ("orchestrator", "api", "scheduler", "workers", "operators", "tests", "docs", "compose",
                                "examples", "benchmarks")
)  # fmt: skip


def test_the_readme_names_every_operator() -> None:
    from orchestrator.registry import load_operators

    assert set(load_operators()) == set(re.findall(r"^\| `(\w+)` \|", read("README.md"), flags=re.MULTILINE)) & set(
        load_operators()
    )


def test_the_glossary_has_no_word_twice_and_is_in_order() -> None:
    words = re.findall(r"^\| \*\*(\w[\w ]*)\*\*", read("docs/glossary.md"), flags=re.MULTILINE)
    assert words == sorted(set(words), key=str.lower)


def test_every_state_is_in_the_diagrams() -> None:
    assert all(state.value in read("docs/states.md") for state in TaskState)


def test_every_decision_is_in_the_list() -> None:
    pages = {path.name for path in (ROOT / "docs" / "adr").glob("0*.md")}
    assert pages == set(re.findall(r"\((0\d{3}-[\w-]+\.md)\)", read("docs/adr/README.md")))
