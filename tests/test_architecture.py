"""The rules of the house (docs/architecture.md), read from the source."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmerge

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxmerge"
PAGE = ROOT / "docs" / "architecture.md"
APP_LAYER = (
    *("files", "shards", "progress", "subcategories", "training", "report", "run", "tasks", "settings"),
    "app",
)
# Rooms that import nothing of ours, though others stand above them.
GROUND = ("noise", "parallel", "checkpoint")


def rooms_in_order() -> list[str]:
    """The rooms as the page lists them, top first."""
    return re.findall(r"^\| `jaxmerge/(\w+)(?:\.py|/)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def source_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import in a file, also inside functions; the name is "" for whole modules."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the whole name"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def rooms_imported(path: Path) -> set[str]:
    """Rooms of the package that a file imports."""
    rooms = set()
    for module, name in imports_of(path):
        if module == "jaxmerge":
            rooms |= {name} - {"", "__version__"}
        elif module.startswith("jaxmerge."):
            rooms.add(module.split(".")[1])
    return rooms


def outside_packages(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in imports_of(path)}


def test_the_page_lists_every_room():
    there = {room_of(path) for path in source_files()}
    listed = rooms_in_order()
    assert len(listed) == len(set(listed))
    assert set(listed) == there


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_rooms_above_it(path):
    order, own = rooms_in_order(), room_of(path)
    allowed = {own, *order[: order.index(own)]}
    if own in GROUND:
        allowed = {own}
    assert rooms_imported(path) <= allowed


def test_the_library_never_imports_the_app_layer():
    order = rooms_in_order()
    assert tuple(order[-len(APP_LAYER) :]) == APP_LAYER
    library = [path for path in source_files() if room_of(path) not in APP_LAYER]
    assert len(library) > 20
    for path in library:
        assert not rooms_imported(path) & set(APP_LAYER), path


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("orbax", {"checkpoint"}),
        ("tensorflow_datasets", {"data"}),
        ("ml_collections", {"tasks", "settings"}),
        ("absl", {"settings"}),
        ("matplotlib", {"report"}),
        ("sklearn", {"data", "subcategories"}),
        ("rich", {"progress", "report", "run", "training"}),
        ("diffrax", {"multistep", "probability_flow"}),
        ("dm_pix", {"metrics"}),
        ("scipy", {"metrics"}),
        ("torch", set()),
        ("tensorflow", set()),
        ("checkpoints_convert", set()),
        ("configs", set()),
    ],
)
def test_only_one_room_knows_a_package(package, rooms):
    users = {room_of(path) for path in source_files() if package in outside_packages(path)}
    assert users <= rooms


def test_only_parallel_knows_devices():
    words = re.compile(
        r"jax\.(pmap|shard_map|local_devices|devices|local_device_count|device_count|process_index)\b"
    )
    users = set()
    for path in source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if any(words.fullmatch(call) for call in calls):
            users.add(room_of(path))
    assert users == {"parallel"}


def test_no_private_part_of_jax_is_used():
    for path in source_files():
        assert not [module for module, _ in imports_of(path) if module.startswith("jax._src")], path
        assert "jax._src" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("name", jaxmerge.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(jaxmerge, name)
    assert value.__doc__
    assert value is getattr(importlib.import_module(value.__module__), name)


def test_rooms_are_found_as_attributes_and_unknown_names_are_refused():
    assert jaxmerge.noise is importlib.import_module("jaxmerge.noise")
    assert "Switch" in dir(jaxmerge)
    with pytest.raises(AttributeError, match="no attribute 'Swich'; it offers"):
        jaxmerge.Swich  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    script = (
        "import sys, jaxmerge; print(sorted(m for m in sys.modules if m.split('.')[0] in ('jax', 'numpy')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
