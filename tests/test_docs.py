"""The pages: they build without a warning, load nothing from the network, and what docs/extend.md adds really works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import visuomotor

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://example.org/visuomotor/blob/main"
LOADS = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"VISUOMOTOR_REPOSITORY": REPOSITORY, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_nothing_is_loaded_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages}
    for page in pages:
        assert LOADS.findall(page.read_text()) == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name


def test_links_that_leave_the_pages_lead_to_the_repository(site):
    said = "".join(page.read_text() for page in site.rglob("*.html"))
    targets = {target.split("#")[0] for target in re.findall(rf'href="{REPOSITORY}/([^"]+)"', said)}
    assert {"tests/policy/test_samplers.py", "benchmarks", "README.md", "CONTRIBUTING.md"} <= targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert 'href="../' not in (site / "acting.html").read_text()


def test_the_reference_has_every_public_name(site):
    said = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    assert [name for name in visuomotor.__all__ if f'id="visuomotor.{name}"' not in said] == []


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, title and content of a page's code blocks that have a title."""
    return re.findall(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', page, flags=re.MULTILINE | re.DOTALL)


def change(text: str, hunk: str, place: str) -> str:
    """Replaces the lines that a hunk begins with " " or "-" by those with " " or "+"; they have to be there once."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] if line.strip() else line for line in lines if line[0] != "-")
    assert text.count(before) == 1, f"docs/extend.md: {place} has changed, {text.count(before)} times:\n{before}"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with everything that docs/extend.md adds."""
    folder = tmp_path_factory.mktemp("extended")
    leave = shutil.ignore_patterns("__pycache__", "*.safetensors", "static")
    shutil.copytree(ROOT / "src", folder / "src", ignore=leave)
    for language, title, content in blocks((ROOT / "docs" / "extend.md").read_text()):
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        if language == "python":
            assert not path.exists(), title
            path.write_text(content)
            continue
        text = path.read_text()
        for hunk in re.split(r"^@@\n", content, flags=re.MULTILINE):
            text = change(text, hunk, title)
        path.write_text(text)
    return folder


@pytest.mark.slow
def test_what_the_page_adds_passes_the_page_s_own_tests(extended):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "tests"]
    env = os.environ | {"PYTHONPATH": str(extended / "src")}
    ran = subprocess.run(command, cwd=extended, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "7 passed" in ran.stdout


def test_what_the_page_adds_is_clean(extended):
    files = {title for _, title, _ in blocks((ROOT / "docs" / "extend.md").read_text())}
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        told = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), *sorted(files)]
        ran = subprocess.run(told, cwd=extended, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout
