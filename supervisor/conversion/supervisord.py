"""supervisord.conf to ours. Its manual's section names and defaults; only what differs from our defaults is written."""

from __future__ import annotations

import re
import shlex

from smartipc.supervisor.conversion.draft import Block, Draft, is_true, literal, number, sections, size, worker_name

_RESTART = {"true": "always", "false": "never", "unexpected": "on-failure"}
_SILENT = frozenset(
    {"process_name", "stopasgroup", "killasgroup", "redirect_stderr", "stderr_logfile", "stdout_logfile_backups",
     "stdout_logfile_maxbytes", "numprocs_start"}
)  # fmt: skip
"""Keys that are read with others, or ask for what always holds: a whole process group is stopped and killed."""
_ADVICE = {
    "autostart": "every worker is started with the app; stop it by `smartipc stop`, or leave it out",
    "startsecs": "a start counts as stable after restart.reset_after; see also `ready`",
    "priority": "the order of starts is `depends_on`, or the order of `members` in a group",
    "serverurl": "the control socket is found by the app's name",
    "stdout_capture_maxbytes": "process communication events do not exist; send messages with the ipc handle",
    "stdout_events_enabled": "subscribe to `smartipc events -f` or `smartipc logs -f`",
    "stderr_events_enabled": "subscribe to `smartipc events -f` or `smartipc logs -f`",
    "stdout_syslog": "run under systemd, or forward the supervisor's log",
    "stderr_syslog": "run under systemd, or forward the supervisor's log",
}
_LATER = "no equivalent"
_MARK = "SLOTNUMBER"
"""Stands for the process number until the words are quoted."""


def from_supervisord(source: str, text: str) -> str:
    """Convert supervisord.conf.

    Raises:
        ValueError: it is malformed; names the section and key.
    """
    draft = Draft(source)
    parser = sections(source, text, comments=(";",))
    for section in parser.sections():
        kind, _, name = section.partition(":")
        options = dict(parser[section])
        if kind == "program":
            _program(draft, section, name, options)
        elif kind == "group":
            _group(draft, name, options)
        elif kind == "supervisord":
            _daemon(draft, options)
        elif kind == "include":
            draft.top.note("[include] files", options.get("files", ""), "convert those files too, then use `include`")
        elif kind in ("unix_http_server", "supervisorctl", "rpcinterface"):
            continue  # the control socket needs no configuration
        elif kind == "inet_http_server":
            draft.top.note(section, options.get("port", ""), "see supervisor.http for a dashboard on a port")
        else:
            draft.top.note(f"[{section}]", options.get("command", ""), _LATER)
    return draft.text()


def _program(draft: Draft, section: str, name: str, options: dict[str, str]) -> None:
    block = draft.worker(name)
    if "command" not in options:
        raise ValueError(f"{draft.source}: [{section}] has no command")
    block.put("command", _command(block, _words(draft, section, options.pop("command")), name))
    policy = options.pop("autorestart", "unexpected").lower()
    if policy not in _RESTART:
        raise ValueError(f"{draft.source}: [{section}] autorestart: {policy!r} is not true, false or unexpected")
    restart = _RESTART[policy]
    retries = options.pop("startretries", None)
    codes = options.pop("exitcodes", None)
    if retries is not None or codes is not None:
        block.put("restart.policy", restart)
        if retries is not None:
            block.put("restart.max_restarts", number(draft.source, section, "startretries", retries))
        if codes is not None:
            block.put("restart.success_codes", [int(code) for code in re.findall(r"\d+", codes)])
    elif restart != "on-failure":
        block.put("restart", restart)
    _plain(draft, block, section, name, options)
    _logs(block, section, draft.source, name, options)
    for key, value in options.items():
        if key not in _SILENT:
            block.note(key, value, _ADVICE.get(key, _LATER))


def _plain(draft: Draft, block: Block, section: str, name: str, options: dict[str, str]) -> None:
    """Take the keys that have one of ours."""
    copies = number(draft.source, section, "numprocs", options.pop("numprocs", "1"))
    if copies != 1:
        block.put("instances", copies)
    if "directory" in options:
        block.put("cwd", _expanded(block, options.pop("directory"), name))
    if "user" in options:
        block.put("user", options.pop("user"))
    if "umask" in options:
        block.put("umask", options.pop("umask"))
    if options.get("stopsignal", "").upper().removeprefix("SIG") == "KILL":
        block.note("stopsignal", options.pop("stopsignal"), "SIGKILL follows after stop.timeout; shorten that")
    if "stopsignal" in options:
        block.put("stop.signal", options.pop("stopsignal").upper().removeprefix("SIG"))
    if "stopwaitsecs" in options:
        seconds = number(draft.source, section, "stopwaitsecs", options.pop("stopwaitsecs"))
        block.put("stop.timeout", f"{seconds}s")
    if is_true(options.get("autostart", "true")):
        options.pop("autostart", None)
    if "environment" in options:
        block.put("env", _environment(draft, block, section, options.pop("environment"), name))


def _logs(block: Block, section: str, source: str, name: str, options: dict[str, str]) -> None:
    out = options.pop("stdout_logfile", "AUTO")
    err = options.get("stderr_logfile", "AUTO")
    if is_true(options.get("redirect_stderr", "false")):
        err = out
    for stream, path in (("stdout", out), ("stderr", err)):
        if path.upper() in ("NONE", "/DEV/NULL"):
            block.put(f"logs.{stream}", "/dev/null")
        elif path.upper() not in ("AUTO", "/DEV/STDOUT", "/DEV/STDERR", "/DEV/FD/1", "/DEV/FD/2", "SYSLOG"):
            block.put(f"logs.{stream}", _expanded(block, path, name))
    if "logs" in block.keys:
        if "stdout_logfile_maxbytes" in options and options["stdout_logfile_maxbytes"] != "0":
            block.put("logs.max_bytes", size(options["stdout_logfile_maxbytes"]))
        if "stdout_logfile_backups" in options:
            backups = number(source, section, "stdout_logfile_backups", options["stdout_logfile_backups"])
            block.put("logs.backups", backups)
    for key in ("stderr_logfile_maxbytes", "stderr_logfile_backups"):
        options.pop(key, None)  # one bound for both files


def _group(draft: Draft, name: str, options: dict[str, str]) -> None:
    members = [worker_name(one) for one in re.split(r"[,\s]+", options.pop("programs", "")) if one]
    block = Block()
    block.put("members", members)
    for key, value in options.items():
        block.note(key, value, _ADVICE.get(key, _LATER))
    draft.groups[worker_name(name)] = block


def _daemon(draft: Draft, options: dict[str, str]) -> None:
    if "environment" in options:
        draft.top.put("env", _environment(draft, draft.top, "supervisord", options.pop("environment"), ""))
    level = options.pop("loglevel", "info")
    levels = {"critical": "error", "error": "error", "warn": "warning", "info": "info"}
    draft.top.put("supervisor.log.level", levels.get(level, "debug"))
    path = options.pop("logfile", "")
    if path and path.upper() != "NONE" and not path.startswith("/dev/"):
        draft.top.put("supervisor.log.file", _expanded(draft.top, path, ""))
    for key in ("nodaemon", "pidfile", "minfds", "minprocs", "identifier", "childlogdir", "strip_ansi"):
        options.pop(key, None)  # it runs in the foreground, finds itself, and needs none of them
    for key, value in options.items():
        draft.top.note(key, value, _LATER)


def _command(block: Block, words: list[str], name: str) -> list[str]:
    """Return the command; one that holds its process number needs a shell to put it in."""
    expanded = [_expanded(block, word, name, number=_MARK) for word in words]
    if not any(_MARK in word for word in expanded):
        return expanded
    quoted = [
        shlex.quote(word).replace(_MARK, "'\"$SMARTIPC_SLOT\"'" if "'" in shlex.quote(word) else "$SMARTIPC_SLOT")
        for word in expanded
    ]
    return ["sh", "-c", "exec " + " ".join(quoted)]


def _words(draft: Draft, section: str, command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{draft.source}: [{section}] command: {error}") from None


def _environment(draft: Draft, block: Block, section: str, text: str, name: str) -> dict[str, str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace = ",\n"
    lexer.whitespace_split = True
    found = {}
    for pair in lexer:
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise ValueError(f"{draft.source}: [{section}] environment: {pair!r} has no '='")
        found[key.strip()] = _expanded(block, value, name)
    return found


def _expanded(block: Block, text: str, name: str, number: str = "{instance}") -> str:
    """Replace supervisord's %(…)s: an environment variable becomes ${NAME}, what is known its value."""

    def replace(found: re.Match[str]) -> str:
        key = found[1]
        if key.startswith("ENV_"):
            return "${" + key.removeprefix("ENV_") + "}"
        if key in ("program_name", "group_name"):
            return name
        if key == "here":
            return "."
        if key == "process_num":
            return number
        block.note(f"%({key})s", "", "no equivalent; a process finds its name in SMARTIPC_INSTANCE")
        return found[0]

    return re.sub(r"%\((\w+)\)\d*[sd]", replace, literal(text)).replace("%%", "%")
