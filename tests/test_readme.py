import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tree_names_every_source_file_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("    src/visuomotor/\n") : text.index("    tests/ ")]
    named, folders = set(), []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 2  # the tree is indented by four, each folder by two more
        folders[depth:] = [name.rstrip("/")]
        if not name.endswith("/"):
            named.add("/".join(folders))
    package = ROOT / "src" / "visuomotor"
    there = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    inits = {name for name in there if name.endswith("/__init__.py")} - {"src/visuomotor/__init__.py"}
    assert named == there - inits


def test_links_lead_to_files() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
