"""circus.ini to ours: watchers, sockets and env sections, by the names of its manual."""

from __future__ import annotations

import configparser
import fnmatch
import re
import shlex

from smartipc.supervisor.conversion.draft import Block, Draft, is_true, literal, number, sections, size, worker_name

_SIGNALS = {"1": "HUP", "2": "INT", "3": "QUIT", "9": "KILL", "10": "USR1", "12": "USR2", "15": "TERM"}
_SILENT = frozenset(
    {"copy_env", "copy_path", "stop_children", "send_hup", "singleton", "use_sockets", "close_child_stdin"}
)
"""Keys that ask for what always holds here, or are read with others."""
_ADVICE = {
    "warmup_delay": "use `ready` and `depends_on` instead of a pause",
    "priority": "the order of starts is `depends_on`, or the order of `members` in a group",
    "shell": "write the shell yourself: command: [sh, -c, …]",
    "autostart": "every worker is started with the app",
    "on_demand": "no equivalent: a worker is started with the app",
    "virtualenv": "name its python in `command`",
    "gid": "`user` takes the user's own groups",
}


def from_circus(source: str, text: str) -> str:
    """Convert circus.ini.

    Raises:
        ValueError: it is malformed; names the section and key.
    """
    draft = Draft(source)
    parser = sections(source, text, comments=())
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind == "watcher":
            _watcher(draft, parser, section, name)
        elif kind == "socket":
            _socket(draft, name, dict(parser[section]))
        elif section == "env":
            draft.top.put("env", {key: _expanded(value) for key, value in parser[section].items()})
        elif kind == "plugin":
            draft.top.note(
                f"[{section}]", parser[section].get("use", ""), "no equivalent; see liveness, recycle, events"
            )
        elif section == "circus":
            _daemon(draft, dict(parser[section]))
        elif kind != "env":
            draft.top.note(f"[{section}]", "", "no equivalent")
    return draft.text()


def _watcher(draft: Draft, parser: configparser.RawConfigParser, section: str, name: str) -> None:
    options = dict(parser[section])
    block = draft.worker(name)
    if "cmd" not in options:
        raise ValueError(f"{draft.source}: [{section}] has no cmd")
    words = shlex.split(options.pop("cmd")) + shlex.split(options.pop("args", ""))
    if any("circus.sockets" in word for word in words):
        block.comments.append("$(circus.sockets.…): the sockets are descriptors from 3 on, named in LISTEN_FDNAMES")
    block.put("command", [_expanded(word) for word in words])
    copies = number(draft.source, section, "numprocesses", options.pop("numprocesses", "1"))
    if copies != 1:
        block.put("instances", copies)
    if "max_retry" in options:
        block.put("restart.policy", "always" if is_true(options.pop("respawn", "true")) else "never")
        tries = number(draft.source, section, "max_retry", options.pop("max_retry"))
        block.put("restart.max_restarts", tries if tries >= 0 else 1_000_000)
    else:
        block.put("restart", "always" if is_true(options.pop("respawn", "true")) else "never")
    _plain(draft, block, section, options)
    for stream in ("stdout", "stderr"):
        _stream(block, stream, options)
    if is_true(options.get("use_sockets", "false")):
        names = [worker_name(one.partition(":")[2]) for one in parser.sections() if one.startswith("socket:")]
        block.put("sockets", names)
    env: dict[str, str] = {}
    for other in parser.sections():
        kind, _, patterns = other.partition(":")
        if kind == "env" and any(fnmatch.fnmatch(name, one.strip()) for one in patterns.split(",") if one):
            env |= {key: _expanded(value) for key, value in parser[other].items()}
    if env:
        block.put("env", env)
    for key, value in options.items():
        if key not in _SILENT:
            block.note(key, value, _ADVICE.get(key.partition(".")[0], "no equivalent"))


def _plain(draft: Draft, block: Block, section: str, options: dict[str, str]) -> None:
    """Take the keys that have one of ours."""
    for theirs, ours in (("working_dir", "cwd"), ("uid", "user")):
        if theirs in options:
            block.put(ours, _expanded(options.pop(theirs)))
    if "stop_signal" in options:
        signal = options.pop("stop_signal").upper().removeprefix("SIG")
        if signal in ("KILL", "9"):
            block.note("stop_signal", signal, "SIGKILL follows after stop.timeout; shorten that")
        else:
            block.put("stop.signal", _SIGNALS.get(signal, signal))
    for theirs, ours in (("graceful_timeout", "stop.timeout"), ("max_age", "recycle.age")):
        if theirs in options:
            block.put(ours, f"{number(draft.source, section, theirs, options.pop(theirs))}s")
    if "max_age_variance" in options:
        block.note("max_age_variance", options.pop("max_age_variance"), "recycle.jitter is a share, 0.1 by default")
    if "rlimit_nofile" in options:
        block.put("limits.open_files", number(draft.source, section, "rlimit_nofile", options.pop("rlimit_nofile")))


def _stream(block: Block, stream: str, options: dict[str, str]) -> None:
    prefix = f"{stream}_stream."
    found = {key.removeprefix(prefix): options.pop(key) for key in list(options) if key.startswith(prefix)}
    if "filename" in found:
        block.put(f"logs.{stream}", _expanded(found["filename"]))
        if found.get("max_bytes", "0") != "0":
            block.put("logs.max_bytes", size(found["max_bytes"]))
        if "backup_count" in found:
            block.put("logs.backups", int(found["backup_count"]))
    elif found and "StdoutStream" not in found.get("class", ""):
        block.note(prefix + "class", found.get("class", ""), "output goes to the supervisor's own, or to a file")


def _socket(draft: Draft, name: str, options: dict[str, str]) -> None:
    block = Block()
    if "path" in options:
        block.put("address", f"unix://{options.pop('path')}")
    else:
        block.put("address", f"tcp://{options.pop('host', '127.0.0.1')}:{options.pop('port', '0')}")
    for key, value in options.items():
        block.note(key, value, "no equivalent")
    draft.sockets[worker_name(name)] = block


def _daemon(draft: Draft, options: dict[str, str]) -> None:
    level = options.pop("loglevel", "").lower()
    if level:
        draft.top.put("supervisor.log.level", {"critical": "error", "warn": "warning"}.get(level, level))
    if options.get("logoutput", "-") != "-":
        draft.top.put("supervisor.log.file", options["logoutput"])
    options.pop("logoutput", None)
    for key in ("endpoint", "pubsub_endpoint", "check_delay", "pidfile", "umask", "debug", "loggerconfig"):
        options.pop(key, None)  # the control socket is found by name, and deaths are noticed without looking
    for key, value in options.items():
        draft.top.note(key, value, "no equivalent")


def _expanded(text: str) -> str:
    """Replace circus' $(circus.env.NAME) and ((circus.env.NAME)) by ${NAME}; other dollars stay what they are."""
    return re.sub(r"(?:\$\(|\(\()circus\.env\.(\w+)\)+", lambda found: "${" + found[1].upper() + "}", literal(text))
