"""What an installed Visuomotor holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import visuomotor

PACKAGE = Path(visuomotor.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    root, target = Path(__file__).parents[1], tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (file,) = target.iterdir()
    return zipfile.ZipFile(file)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"visuomotor-{visuomotor.__version__}.dist-info/{name}").decode()


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    files = {f"visuomotor/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.is_file()}
    wanted = {name for name in files if "__pycache__" not in name}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == wanted


def test_the_wheel_has_the_command_the_licence_and_the_version(wheel):
    assert "visuomotor = visuomotor.cli:main" in metadata(wheel, "entry_points.txt")
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")
    said = metadata(wheel, "METADATA").splitlines()
    assert f"Version: {visuomotor.__version__}" in said
    assert "License-Expression: Apache-2.0" in said


def test_what_ships_stays_small():
    sizes = {path.name: path.stat().st_size for path in (PACKAGE / "assets").rglob("*") if path.is_file()}
    assert sizes["pusht-demonstrations.npz"] < 1_000_000
    assert sum(sizes.values()) < 65_000_000  # six policies in half precision
