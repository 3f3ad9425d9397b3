"""The documentation and the house agree: every public name and page can be found, every module has its layer."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import smartipc
from smartipc.ipc import sync

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.name != "index.md")


def unplaced() -> list[tuple[str, str]]:
    """List the modules and packages of layered containers that no layer names: nothing keeps their arrows down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = []
    for contract in contracts:
        for container in contract.get("containers", ()):
            layered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
            folder = ROOT / container.removeprefix("smartipc.").replace(".", "/")
            modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
            packages = {path.parent.name for path in folder.glob("*/__init__.py")}
            found += [(container, name) for name in sorted((modules | packages) - layered)]
    return found


def test_every_module_has_its_layer() -> None:
    assert unplaced() == []


def test_the_design_draws_the_layers_in_their_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    drawn = re.search(r"## Layers.*?```\n(.*?)```", (DOCS / "explanation" / "design.md").read_text(), re.DOTALL)
    assert drawn is not None
    rooms = re.findall(r"^(\w+): (.*?)(?=^\w+:|\Z)", drawn[1], re.DOTALL | re.MULTILINE)
    assert [name for name, _ in rooms] == ["ipc", "supervisor", "workers"]
    for name, picture in rooms:
        (layers,) = [one["layers"] for one in contracts if one.get("containers") == [f"smartipc.{name}"]]
        place = {module.strip(): number for number, layer in enumerate(layers) for module in layer.split("|")}
        levels = [re.findall(r"\w+", level) for level in picture.split(">")]
        assert [place[level[0]] for level in levels] == sorted({place[level[0]] for level in levels})
        for level in levels:
            assert {place[module] for module in level} == {place[level[0]]}, level


@pytest.mark.parametrize("name", sorted({*smartipc.__all__, *sync.__all__}))
def test_the_reference_lists_every_public_name(name: str) -> None:
    reference = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert re.search(rf"\b{name}\b", reference)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_index_lists_every_page(page: Path) -> None:
    assert f"]({page.relative_to(DOCS)})" in (DOCS / "index.md").read_text()


@pytest.mark.parametrize("page", [DOCS / "index.md", *PAGES], ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
