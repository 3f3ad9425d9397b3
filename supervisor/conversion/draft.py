"""The configuration that a conversion builds up: keys with their comments, and how they are written as YAML."""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_TRUE = frozenset({"true", "yes", "on", "1"})


@dataclass
class Block:
    """One worker, group or socket: its keys in order, and what is said above it."""

    keys: dict[str, Any] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)

    def put(self, path: str, value: Any) -> None:
        """Set a key such as "stop.timeout"."""
        *parents, last = path.split(".")
        place = self.keys
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value

    def note(self, key: str, value: str, why: str) -> None:
        """Say that a setting has no equivalent, and what to do instead."""
        shown = " ".join(value.split())
        self.comments.append(f"{key} = {shown}: {why}" if shown else f"{key}: {why}")


@dataclass
class Draft:
    """A whole configuration."""

    source: str
    top: Block = field(default_factory=Block)
    workers: dict[str, Block] = field(default_factory=dict)
    groups: dict[str, Block] = field(default_factory=dict)
    sockets: dict[str, Block] = field(default_factory=dict)

    def worker(self, name: str) -> Block:
        """Begin a worker.

        Raises:
            ValueError: two names of the other configuration become the same.
        """
        ours = worker_name(name)
        if ours in self.workers:
            raise ValueError(f"{self.source}: two workers would be named {ours!r}; rename one of them")
        block = self.workers[ours] = Block()
        if ours != name:
            block.comments.append(f"was named {name}")
        return block

    def text(self) -> str:
        """Return the YAML."""
        lines = [f"# Converted from {self.source}. Check it: smartipc check FILE", *_comments(self.top.comments)]
        lines += _mapping(self.top.keys, 0)
        for title, blocks in (("workers", self.workers), ("groups", self.groups), ("sockets", self.sockets)):
            if not blocks:
                continue
            lines.append(f"{title}:")
            for name, block in blocks.items():
                lines += ["  " + line for line in _comments(block.comments)]
                lines.append(f"  {name}:")
                lines += _mapping(block.keys, 4)
        return "\n".join(lines) + "\n"


def _comments(comments: list[str]) -> list[str]:
    return [f"# {line}" for comment in comments for line in comment.splitlines()]


def _mapping(keys: dict[str, Any], indent: int) -> list[str]:
    pad = " " * indent
    return [f"{pad}{key}: {_flow(value)}" for key, value in keys.items()]


def _flow(value: Any) -> str:
    """Write a value on one line; a scalar would come with an end-of-document mark."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def worker_name(name: str) -> str:
    """Return the nearest name that is allowed: a lower-case letter, then letters, digits, - and _."""
    ours = re.sub(r"[^a-z0-9_-]", "-", name.lower()).strip("-_") or "worker"
    return ours if ours[0].isalpha() else f"w{ours}"


def literal(text: str) -> str:
    """Keep the dollars of a text that another program shall see."""
    return text.replace("$$", "$$$$").replace("${", "$${")


def is_true(text: str) -> bool:
    """Read a boolean of an INI file."""
    return text.strip().lower() in _TRUE


def number(source: str, section: str, key: str, text: str) -> int | float:
    """Read a number.

    Raises:
        ValueError: it is none; names the place.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{source}: [{section}] {key}: {text!r} is not a number") from None
    return int(value) if value.is_integer() else value


def size(text: str) -> str | int:
    """Return a size such as 50MB as ours; supervisord and circus mean powers of 1024 too."""
    found = re.fullmatch(r"\s*(\d+)\s*(KB|MB|GB|)\s*", text, re.IGNORECASE)
    if found is None:
        return text.strip()
    unit = {"": "", "KB": "KiB", "MB": "MiB", "GB": "GiB"}[found[2].upper()]
    return found[1] + unit if unit else int(found[1])


def sections(source: str, text: str, *, comments: tuple[str, ...]) -> configparser.RawConfigParser:
    """Read an INI file without interpolation.

    Raises:
        ValueError: it is malformed; the message has the line.
    """
    parser = configparser.RawConfigParser(inline_comment_prefixes=comments, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    return parser
