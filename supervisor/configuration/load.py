"""The pipeline from a file to an AppSpec; each stage is one function, and all problems are reported at once."""

from __future__ import annotations

import os
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from smartipc.ipc.errors import ConfigError
from smartipc.supervisor.configuration import keys
from smartipc.supervisor.configuration.build import app_spec
from smartipc.supervisor.configuration.fields import INVALID
from smartipc.supervisor.configuration.interpolate import interpolate
from smartipc.supervisor.configuration.nodes import Items, Mapping, Node, Value, parse, read
from smartipc.supervisor.configuration.problems import Place, Problems
from smartipc.supervisor.configuration.validate import validate
from smartipc.supervisor.core.spec import AppSpec


@dataclass(frozen=True, slots=True)
class Source:
    """A read and interpolated file, with its workers' nodes after defaults."""

    path: Path
    root: Mapping


def load(path: str | Path, *, environ: AbstractMapping[str, str] | None = None) -> AppSpec:
    """Read a configuration.

    Args:
        path: the file.
        environ: variables for interpolation; default the process's own.

    Raises:
        ConfigError: with every problem found, in the order of files and lines.
    """
    problems = Problems()
    environment = os.environ if environ is None else environ
    return _spec(_read(Path(path), str(path), environment, problems), environment, problems)


def load_mapping(
    data: AbstractMapping[str, Any], base: str | Path, *, environ: AbstractMapping[str, str] | None = None
) -> AppSpec:
    """Read a configuration that is no file: the same keys as plain data.

    Args:
        data: what the file would hold; the key `app` must be there.
        base: the directory that paths are relative to.
        environ: variables for interpolation; default the process's own.

    Raises:
        ConfigError: with every problem found; places count the lines of the data as YAML.
    """
    problems = Problems()
    environment = os.environ if environ is None else environ
    root = parse(yaml.safe_dump(dict(data), sort_keys=False), "configuration", problems)
    main = None
    if root is not None:
        interpolated = interpolate(root, environment, problems)
        assert isinstance(interpolated, Mapping)
        main = Source(Path(base) / "configuration", interpolated)
    return replace(_spec(main, environment, problems), config_path="")


def target_places(path: str | Path, *, environ: AbstractMapping[str, str] | None = None) -> dict[str, Place]:
    """Return where the target of each worker is written, for problems that only an import finds.

    Args:
        path: a file that `load` accepts.
        environ: as in `load`.
    """
    problems = Problems()
    environment = os.environ if environ is None else environ
    main = _read(Path(path), str(path), environment, problems)
    workers = _include(main, environment, problems).entries.get("workers") if main is not None else None
    nodes = workers.entries.items() if isinstance(workers, Mapping) else ()
    found = {name: node.entries.get("target") for name, node in nodes if isinstance(node, Mapping)}
    return {name: node.place for name, node in found.items() if node is not None}


def _spec(main: Source | None, environment: AbstractMapping[str, str], problems: Problems) -> AppSpec:
    if main is not None:
        merged = _include(main, environment, problems)
        root = _with_defaults(merged, problems)
        decoded = keys.APP.check(root, "", problems)
        if "workers" not in root.entries:
            problems.add(root.place, "", "key 'workers' is missing", "a configuration needs at least one worker")
        elif isinstance(root.entries["workers"], Mapping) and not root.entries["workers"].keys:
            problems.add(root.entries["workers"].place, "workers", "has no workers")
        spec = app_spec(decoded if decoded is not INVALID else {}, root, main.path, problems)
        validate(spec, root, problems)
        if not problems.found:
            return spec
    raise ConfigError(sorted(problems.found))


def _read(path: Path, shown: str, environ: AbstractMapping[str, str], problems: Problems) -> Source | None:
    root = read(path, shown, problems)
    if root is None:
        return None
    interpolated = interpolate(root, environ, problems)
    assert isinstance(interpolated, Mapping)
    return Source(path, interpolated)


def _include(main: Source, environ: AbstractMapping[str, str], problems: Problems) -> Mapping:
    """Add the workers of included files; each names at most workers, and may include further ones."""
    workers = main.root.entries.get("workers")
    entries: dict[str, Node] = dict(workers.entries) if isinstance(workers, Mapping) else {}
    places: dict[str, Place] = dict(workers.keys) if isinstance(workers, Mapping) else {}
    seen = {main.path.resolve()}
    queue = [(main, pattern) for pattern in _patterns(main.root)]
    while queue:
        source, pattern = queue.pop(0)
        base = source.path.parent
        found = (
            sorted(base.glob(str(pattern.value)))
            if not os.path.isabs(str(pattern.value))
            else [Path(str(pattern.value))]
        )
        if not found and not any(mark in str(pattern.value) for mark in "*?["):
            problems.add(pattern.place, "include", f"file {pattern.value} does not exist", "check the path")
        for path in found:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            more = _read(path, str(path), environ, problems)
            if more is None:
                continue
            for key in more.root.entries:
                if key not in ("workers", "include"):
                    problems.add(more.root.keys[key], key, "an included file may hold only workers and include")
            theirs = more.root.entries.get("workers")
            if isinstance(theirs, Mapping):
                for name, node in theirs.entries.items():
                    if name in entries:
                        problems.add(theirs.keys[name], f"workers.{name}", f"is defined already at {places[name]}")
                    else:
                        entries[name], places[name] = node, theirs.keys[name]
            queue += [(more, one) for one in _patterns(more.root)]
    if not entries or (workers is not None and not isinstance(workers, Mapping)):
        return main.root
    place = workers.place if workers is not None else main.root.place
    root_keys = {"workers": place, **main.root.keys}
    return Mapping(main.root.place, {**main.root.entries, "workers": Mapping(place, entries, places)}, root_keys)


def _patterns(root: Mapping) -> list[Value]:
    node = root.entries.get("include")
    found = node.items if isinstance(node, Items) else (node,) if node is not None else ()
    return [one for one in found if isinstance(one, Value) and isinstance(one.value, str) and one.value]


def _with_defaults(root: Mapping, problems: Problems) -> Mapping:
    """Give every worker the keys of `defaults:` that it does not have; mappings are merged key by key."""
    defaults, workers = root.entries.get("defaults"), root.entries.get("workers")
    if not isinstance(workers, Mapping):
        return root
    if not isinstance(defaults, Mapping):
        return root
    before = len(problems.found)
    keys.DEFAULTS.check(defaults, "defaults", problems)
    if len(problems.found) > before:
        return root  # told once, not once per worker
    merged = {
        name: _merged(defaults, node) if isinstance(node, Mapping) else node for name, node in workers.entries.items()
    }
    return Mapping(root.place, {**root.entries, "workers": Mapping(workers.place, merged, workers.keys)}, root.keys)


_ALONE = {"depends_on", "kwargs"}
"""Mappings that are replaced as a whole: merging arguments or conditions by accident surprises."""


def _merged(defaults: Mapping, own: Mapping) -> Mapping:
    entries: dict[str, Node] = dict(own.entries)
    places = dict(own.keys)
    for name, node in defaults.entries.items():
        mine = own.entries.get(name)
        if name not in own.keys:
            if name in ("args", "kwargs", "start_method", "preload", "heartbeat") and "command" in own.entries:
                continue  # defaults for targets are not the commands' business
            entries[name], places[name] = node, defaults.keys[name]
        elif isinstance(mine, Mapping) and isinstance(node, Mapping) and name not in _ALONE:
            entries[name] = _merged(node, mine)
    return Mapping(own.place, entries, places)
