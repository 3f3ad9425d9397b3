"""Other supervisors' configurations become ours, and ours loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from smartipc.supervisor.configuration import load
from smartipc.supervisor.conversion import convert

SUPERVISORD = """
[supervisord]
logfile=/var/log/supervisord.log ; main log
loglevel=warn
nodaemon=true
environment=A="1",B="x,y"

[unix_http_server]
file=/tmp/supervisor.sock

[program:Web.App]
command=/usr/bin/gunicorn app:app --bind "0.0.0.0:80%(process_num)02d" --name 'a b'
numprocs=3
directory=%(ENV_HOME)s
autostart=false
autorestart=true
startretries=7
startsecs=5
exitcodes=0,2
stopsignal=SIGQUIT
stopwaitsecs=30
stopasgroup=true
environment=DEBUG="0",PATH="%(ENV_PATH)s:/opt"
redirect_stderr=true
stdout_logfile=/var/log/web-%(process_num)d.log
stdout_logfile_maxbytes=50MB
stdout_logfile_backups=3

[program:job]
command=/bin/echo 100%% ${kept}
autorestart=false

[group:site]
programs=Web.App,job
priority=999

[eventlistener:mem]
command=memmon
"""

CIRCUS = """
[circus]
endpoint = tcp://127.0.0.1:5555
statsd = 1

[watcher:web]
cmd = server
args = -x "a b" $(circus.env.home)
numprocesses = 2
stop_signal = 3
graceful_timeout = 2.5
max_retry = 5
warmup_delay = 2
stdout_stream.class = FileStream
stdout_stream.filename = /tmp/w.log
stdout_stream.max_bytes = 1073741824
stdout_stream.backup_count = 2
hooks.before_start = my.hook

[watcher:once]
cmd = /bin/true
respawn = false

[env:we*]
A = 1

[plugin:flap]
use = circus.plugins.flapping.Flapping
"""

PROCFILE = """
# the site
web: gunicorn app -b 0.0.0.0:$PORT
worker: python w.py 'a b'
R_2: A=1 run ${B} && x
"""


def loaded(name: str, text: str, folder: Path) -> tuple[dict[str, object], str]:
    """Convert, load with the real configuration pipeline, and return plain data and the text."""
    converted = convert(name, text)
    path = folder / "app.yaml"
    path.write_text(converted)
    load(str(path))
    return yaml.safe_load(converted), converted


def test_supervisord_programs_become_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data, text = loaded("supervisord.conf", SUPERVISORD, tmp_path)
    assert data == {
        "env": {"A": "1", "B": "x,y"},
        "supervisor": {"log": {"level": "warning", "file": "/var/log/supervisord.log"}},
        "workers": {
            "web-app": {
                "command": ["sh", "-c", "exec /usr/bin/gunicorn app:app --bind 0.0.0.0:80$SMARTIPC_SLOT --name 'a b'"],
                "restart": {"policy": "always", "max_restarts": 7, "success_codes": [0, 2]},
                "instances": 3,
                "cwd": "${HOME}",
                "stop": {"signal": "QUIT", "timeout": "30s"},
                "env": {"DEBUG": "0", "PATH": "${PATH}:/opt"},
                "logs": {
                    "stdout": "/var/log/web-{instance}.log",
                    "stderr": "/var/log/web-{instance}.log",
                    "max_bytes": "50MiB",
                    "backups": 3,
                },
            },
            "job": {"command": ["/bin/echo", "100%", "$${kept}"], "restart": "never"},
        },
        "groups": {"site": {"members": ["web-app", "job"]}},
    }
    for said in ("was named Web.App", "autostart = false:", "startsecs = 5:", "priority = 999:", "[eventlistener:mem]"):
        assert f"# {said}" in text
    assert "stopasgroup" not in text


def test_circus_watchers_become_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    data, text = loaded("circus.ini", CIRCUS, tmp_path)
    assert data == {
        "workers": {
            "web": {
                "command": ["server", "-x", "a b", "${HOME}"],
                "instances": 2,
                "restart": {"policy": "always", "max_restarts": 5},
                "stop": {"signal": "QUIT", "timeout": "2.5s"},
                "logs": {"stdout": "/tmp/w.log", "max_bytes": 1073741824, "backups": 2},
                "env": {"A": "1"},
            },
            "once": {"command": ["/bin/true"], "restart": "never"},
        }
    }
    for said in ("statsd = 1:", "warmup_delay = 2:", "hooks.before_start = my.hook:", "[plugin:flap] ="):
        assert f"# {said}" in text


def test_a_procfile_gets_a_shell_only_where_it_needs_one(tmp_path: Path) -> None:
    data, text = loaded("Procfile", PROCFILE, tmp_path)
    assert data == {
        "workers": {
            "web": {"command": ["sh", "-c", "exec gunicorn app -b 0.0.0.0:$PORT"], "restart": "always"},
            "worker": {"command": ["python", "w.py", "a b"], "restart": "always"},
            "r_2": {"command": ["sh", "-c", "A=1 run $${B} && x"], "restart": "always"},
        }
    }
    assert "# $PORT" in text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("app.conf", "[other]\na = 1\n", "is no supervisord.conf"),
        ("supervisord.conf", "[program:x]\nautorestart=true\n", "[program:x] has no command"),
        ("supervisord.conf", "[program:x]\ncommand=a 'b\n", "[program:x] command: No closing quotation"),
        ("supervisord.conf", "[program:x]\ncommand=a\nnumprocs=many\n", "numprocs: 'many' is not a number"),
        ("supervisord.conf", "[program:x]\ncommand=a\nautorestart=maybe\n", "'maybe' is not true, false or unexpected"),
        ("supervisord.conf", "[program:x]\ncommand=a\nenvironment=A\n", "'A' has no '='"),
        ("supervisord.conf", "[program:A]\ncommand=a\n[program:a]\ncommand=b\n", "two workers would be named 'a'"),
        ("supervisord.conf", "[program:x]\nnonsense\n", "[line 2]"),
        ("circus.ini", "[watcher:x]\nargs=1\n", "[watcher:x] has no cmd"),
        ("Procfile", "web: run\nnonsense\n", "Procfile:2: expected 'name: command'"),
    ],
)
def test_what_is_malformed_is_named_with_its_place(name: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        convert(name, text)


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("supervisord.conf", "[program:w]\ncommand=x\nstopsignal=KILL\n", "stopsignal = KILL: "),
        ("circus.ini", "[watcher:w]\ncmd = x\nstop_signal = 9\n", "stop_signal = 9: "),
    ],
)
def test_a_stop_by_kill_is_noted(name: str, text: str, note: str, tmp_path: Path) -> None:
    _data, converted = loaded(name, text, tmp_path)
    assert "stop:" not in converted
    assert f"{note}SIGKILL follows after stop.timeout" in converted
