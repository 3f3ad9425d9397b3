"""Commands as children: readiness, sockets, hooks, limits, users; probes and what escapes. Real processes."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import App, alive, marked, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CHILD = """
import os, signal, socket, subprocess, sys, time

def tell(*lines, pid=None):
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\\n".join(lines).encode(), "\\0" + address[1:] if address[0] == "@" else address)

mode = sys.argv[1]
if mode == "ready":
    tell("STATUS=warming up")
    input_file = sys.argv[2]
    while not os.path.exists(input_file):
        time.sleep(0.01)
    tell("READY=1", "STATUS=at work")
    signal.pause()
elif mode == "slow":
    tell("EXTEND_TIMEOUT_USEC=20000000")
    time.sleep(1.2)
    tell("READY=1")
    signal.pause()
elif mode == "watchdog":
    assert os.environ["WATCHDOG_PID"] == str(os.getpid())
    tell("READY=1")
    generation = os.environ["SMARTIPC_GENERATION"]
    for _ in range(6 if generation == "1" else 10**9):
        tell("WATCHDOG=1")
        time.sleep(int(os.environ["WATCHDOG_USEC"]) / 4e6)
    signal.pause()
elif mode == "trigger":
    tell("READY=1", *(["WATCHDOG=trigger"] if os.environ["SMARTIPC_GENERATION"] == "1" else []))
    signal.pause()
elif mode == "daemon":
    if os.fork():
        time.sleep(0.2)
        os._exit(0)
    os.setsid()
    pid = os.fork()
    if pid:
        os._exit(0)
    def asked(*_):
        time.sleep(0.2)
        open("asked", "w").close()
        os._exit(0)
    signal.signal(signal.SIGTERM, asked)
    tell("MAINPID=%d" % os.getpid(), "READY=1")
    while True:
        signal.pause()
elif mode == "impostor":
    tell("MAINPID=1")
    tell("MAINPID=%s" % os.getppid())
    tell("READY=1")
    signal.pause()
elif mode == "listen":
    n = int(os.environ["LISTEN_FDS"])
    assert os.environ["LISTEN_PID"] == str(os.getpid())
    print(os.environ["LISTEN_FDNAMES"], n, sorted(map(int, os.listdir("/proc/self/fd")))[: 3 + n], flush=True)
    sock = socket.socket(fileno=3)
    while True:
        peer, _ = sock.accept()
        peer.sendall(b"%d" % os.getpid())
        peer.close()
elif mode == "escape":
    env = {} if len(sys.argv) > 2 else None
    subprocess.Popen(["sleep", "1000"], start_new_session=True, env=env, stdout=subprocess.DEVNULL)
    subprocess.Popen(["sh", "-c", "setsid sh -c 'sleep 1001 & echo escaped; sleep 1002' & exit"], env=env)
    signal.pause()
elif mode == "facts":
    import json, resource
    print(json.dumps({
        "uid": os.getuid(), "groups": os.getgroups(), "umask": os.umask(0), "cwd": os.getcwd(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cores": sorted(os.sched_getaffinity(0)), "oom": open("/proc/self/oom_score_adj").read().strip(),
        "notify": os.environ.get("NOTIFY_SOCKET"), "fds": sorted(os.listdir("/proc/self/fd"))[:-1],
        "blocked": [line for line in open("/proc/self/status") if line.startswith("SigBlk")][0].split()[1],
        "session": os.getsid(0) == os.getpid(),
    }), flush=True)
    signal.pause()
"""


@pytest.fixture
def run(app: Callable[..., App], folder: Path) -> Callable[..., App]:
    (folder / "child.py").write_text(CHILD)

    def start(text: str, **env: str) -> App:
        return app(text.replace("PYTHON", sys.executable), **env)

    return start


def causes(one: App, instance: str = "w:0") -> list[str]:
    return [event["cause"] for event in one.events() if event["instance"] == instance]


# readiness


def test_ready_by_sd_notify_with_status(run: Callable[..., App], folder: Path) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, ready, go], ready: notify}
  after: {command: [sleep, "100"], depends_on: [w]}
""")
    wait_for(lambda: one.status().get("w:0", {}).get("status") == "warming up", "its status is shown")
    assert one.status()["w:0"]["state"] == "running"
    assert one.status()["after:0"]["state"] == "waiting"
    (folder / "go").touch()
    one.wait_state("after:0", "ready")
    assert one.status()["w:0"]["status"] == "at work"


def test_a_command_that_never_says_ready_is_a_failed_start(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [sleep, "100"], ready: notify, start_timeout: 300ms, restart: never}
""")
    one.wait_state("w:0", "failed")
    assert any("start timeout: not ready within 0.3 s" in cause for cause in causes(one))


def test_a_start_is_extended_on_request(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, slow], ready: notify, start_timeout: 1s}
""")
    assert one.wait_state("w:0", "ready", "failed", "backoff")["state"] == "ready"


def test_a_silent_watchdog_is_a_hang(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, watchdog], ready: notify, heartbeat: {interval: 100ms, timeout: 400ms},
      restart: {delay: 1ms}}
""")
    one.wait_state("w:0", "ready", generation=2)
    assert any(cause.startswith("hang: no heartbeat for 0.4 s") for cause in causes(one))
    (exit_,) = [event["exit"] for event in one.events() if event["to"] == "backoff"]
    assert exit_["signal"] == "SIGABRT"


def test_it_may_say_itself_that_it_hangs(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, trigger], ready: notify, restart: {delay: 1ms}}
""")
    one.wait_state("w:0", "ready", generation=2)
    assert any("WATCHDOG=trigger" in cause for cause in causes(one))


def test_a_daemon_that_tells_its_main_process_is_followed(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, daemon], ready: notify, restart: {delay: 1ms}}
""")
    row = one.wait_state("w:0", "ready")
    first = row["pid"]
    wait_for(lambda: one.status()["w:0"]["pid"] != 0 and os.getsid(one.status()["w:0"]["pid"]) != one.pid, "followed")
    row = one.status()["w:0"]
    assert (row["generation"], row["state"]) == (1, "ready")
    os.kill(row["pid"], signal.SIGKILL)
    row = one.wait_state("w:0", "ready", generation=2)
    assert row["pid"] != first
    (exit_,) = [event["exit"] for event in one.events() if event["to"] == "backoff"]
    assert exit_["signal"] == "SIGKILL"
    assert one.ctl("stop", "w").returncode == 0
    assert not alive(row["pid"])


def test_a_daemon_that_is_followed_keeps_its_grace_when_the_supervisor_is_killed(
    run: Callable[..., App], folder: Path
) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, daemon], ready: notify}
""")
    pid = one.wait_state("w:0", "ready")["pid"]
    assert os.getpgid(pid) != pid, "it is not the process that was started"
    assert one.process is not None
    one.process.kill()
    one.wait_ended()
    wait_for(lambda: not alive(pid), "it ends")
    assert (folder / "asked").exists(), "it was asked to, and given time"


def test_a_main_process_that_is_not_its_own_is_refused(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, impostor], ready: notify}
""")
    row = one.wait_state("w:0", "ready")
    assert row["pid"] not in (1, one.pid)
    assert one.err.read_text().count("is no process of its own") == 2


def test_a_stranger_cannot_say_ready_for_a_worker(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, -c, "import os, time; print(os.environ['NOTIFY_SOCKET'], flush=True); time.sleep(100)"],
      ready: notify}
""")
    wait_for(lambda: "smartipc-notify" in one.out.read_text(), "the address is told")
    address = one.out.read_text().partition("| ")[2].strip()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\n\x1b[2J=", "\0" + address[1:])
        for _ in range(100):
            sock.sendto(b"READY=1\nAGAIN=1", "\0" + address[1:])
    wait_for(lambda: "tells READY" in one.err.read_text(), "the stranger is noticed")
    assert one.status()["w:0"]["state"] == "running"
    assert "tells READY, \\x1b[2J\n" in one.err.read_text(), "its words command no terminal"
    assert one.err.read_text().count("AGAIN") < 20, "and fill no disk"


def test_ready_by_a_line_of_the_log(run: Callable[..., App], folder: Path) -> None:
    one = run("""
workers:
  w:
    command: [sh, -c, "echo starting; while [ ! -e go ]; do sleep 0.01; done; echo now listening on 80; exec sleep 100"]
    ready: {log: 'listening on \\d+'}
""")
    wait_for(lambda: "w:0 | starting" in one.out.read_text(), "it starts")
    assert one.status()["w:0"]["state"] == "running"
    (folder / "go").touch()
    one.wait_state("w:0", "ready")


def test_ready_by_a_probe(run: Callable[..., App], folder: Path) -> None:
    one = run("""
workers:
  w: {command: [sleep, "100"], ready: {probe: {exec: [test, -e, go], interval: 100ms}}}
""")
    one.wait_state("w:0", "running")
    (folder / "go").touch()
    one.wait_state("w:0", "ready")


# liveness


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_stopped_http_server_is_degraded_then_replaced(run: Callable[..., App]) -> None:
    port = free_port()
    one = run(f"""
workers:
  web:
    command: [PYTHON, -m, http.server, "{port}", --bind, 127.0.0.1]
    ready: {{probe: {{http: "http://127.0.0.1:{port}/"}}}}
    liveness: {{http: "http://127.0.0.1:{port}/", interval: 100ms, timeout: 200ms, failures: 3}}
    restart: {{delay: 1ms}}
    stop: {{timeout: 2s}}
""")
    row = one.wait_state("web:0", "ready")
    os.kill(row["pid"], signal.SIGSTOP)
    one.wait_state("web:0", "degraded")
    again = one.wait_state("web:0", "ready", generation=2)
    assert again["pid"] != row["pid"]
    states = [event["to"] for event in one.events() if event["event"] == "instance.state"]
    assert states[2:5] == ["ready", "degraded", "backoff"]
    assert any(cause.startswith("liveness: 3 failed in a row: http") for cause in causes(one, "web:0"))


@pytest.mark.parametrize("kind", ["tcp", "exec"])
def test_liveness_recovers(run: Callable[..., App], folder: Path, kind: str) -> None:
    port = free_port()
    probe = {"tcp": f'tcp: "127.0.0.1:{port}"', "exec": "exec: [test, -e, alive]"}[kind]
    one = run(f"""
workers:
  w: {{command: [sleep, "100"], liveness: {{{probe}, interval: 50ms, failures: 1000}}}}
""")
    one.wait_state("w:0", "degraded")
    with socket.create_server(("127.0.0.1", port)):
        (folder / "alive").touch()
        one.wait_state("w:0", "ready")
    (folder / "alive").unlink()
    one.wait_state("w:0", "degraded")
    assert one.status()["w:0"]["generation"] == 1


def test_liveness_by_request_asks_that_very_instance(app: Callable[..., App], folder: Path) -> None:
    (folder / "pool.py").write_text("""
async def pool(ipc):
    sick = False
    @ipc.handler("ping")
    def _(_):
        if sick:
            raise RuntimeError("sick")
        return "pong"
    @ipc.handler("sicken")
    def _(value):
        nonlocal sick
        sick = value
    await ipc.serve()
""")
    one = app("""
python_path: [.]
workers:
  pool:
    target: pool:pool
    instances: 2
    liveness: {request: pool.ping, interval: 50ms, failures: 1000}
""")
    one.wait_state("pool:0", "ready")
    one.wait_state("pool:1", "ready")
    assert one.ctl("request", "pool.sicken", "true", "--slot", "1").returncode == 0
    one.wait_state("pool:1", "degraded")
    for _ in range(4):
        assert one.ctl("request", "pool.ping").stdout == '"pong"\n', "the degraded one is out of routing"
    assert one.status()["pool:0"]["state"] == "ready"


# what a process is given


def test_limits_umask_and_nothing_else(run: Callable[..., App], folder: Path) -> None:
    core = max(os.sched_getaffinity(0))
    one = run(f"""
workers:
  w:
    command: [PYTHON, child.py, facts]
    limits: {{open_files: 99, nice: 7, affinity: [{core}], oom_score_adj: 500}}
    umask: "027"
""")
    facts = json.loads(wait_for(lambda: one.out.read_text().partition("| ")[2], "its facts"))
    assert facts == {
        "uid": os.getuid(), "groups": facts["groups"], "umask": 0o027, "cwd": str(folder), "nice": 7, "files": 99,
        "cores": [core], "oom": "500", "notify": None, "fds": ["0", "1", "2"], "blocked": "0" * 16, "session": True,
    }  # fmt: skip


def test_limits_of_function_workers(app: Callable[..., App], folder: Path) -> None:
    (folder / "w.py").write_text("""
import os, resource
async def w(ipc):
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.getpriority(os.PRIO_PROCESS, 0), os.umask(0), flush=True)
    await ipc.serve()
""")
    one = app("""
python_path: [.]
workers:
  w: {target: "w:w", limits: {open_files: 200, nice: 3}, umask: "077"}
""")
    wait_for(lambda: "w:0 | 200 3 63\n" in one.out.read_text(), "its limits")


def test_a_limit_that_the_kernel_refuses_is_a_failed_start(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [sleep, "100"], limits: {affinity: [1000]}, restart: {delay: 1ms, max_restarts: 1}}
""")
    row = one.wait_state("w:0", "failed")
    assert "limits: affinity (1000,): " in row["last_exit"]["reason"]


def test_no_signal_stays_ignored(run: Callable[..., App]) -> None:
    one = run("workers: {w: {command: [grep, SigIgn, /proc/self/status], restart: never}}")
    one.wait_state("w:0", "exited")
    assert one.out.read_text().split()[-1] == "0" * 16, "Python ignores SIGPIPE; a child must not inherit that"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_privileges_are_dropped(run: Callable[..., App], folder: Path) -> None:
    folder.chmod(0o755)
    one = run("""
workers:
  w: {command: [sh, -c, "echo $(id -un) $(id -Gn); cat /etc/shadow; exec sleep 100"], user: nobody, cwd: /}
""")
    row = one.wait_state("w:0", "ready")
    entry = pwd.getpwnam("nobody")
    group = grp.getgrgid(entry.pw_gid).gr_name
    wait_for(lambda: one.out.read_text() == f"w:0 | nobody {group}\n", "its ids")
    wait_for(lambda: "Permission denied" in one.err.read_text(), "what it may not read")
    os.kill(one.pid, signal.SIGKILL)
    wait_for(lambda: not alive(row["pid"]), "the parent-death signal survives the change of user", 2.0)


def test_an_unknown_user_is_refused_before_anything_starts(run: Callable[..., App]) -> None:
    one = run("workers: {w: {command: [sleep, '9'], user: nosuchuser}}")
    assert one.wait_ended() == 2
    assert "there is no user 'nosuchuser'" in one.err.read_text() or "needs root" in one.err.read_text()


# sockets


def test_sockets_outlive_their_workers(run: Callable[..., App]) -> None:
    one = run(
        """
sockets:
  web: {address: "tcp://127.0.0.1:0"}
  local: {address: "unix:@sipc-test-PID"}
workers:
  w: {command: [PYTHON, child.py, listen], sockets: [web, local], restart: {delay: 500ms, jitter: 0}}
""".replace("PID", str(os.getpid()))
    )
    row = one.wait_state("w:0", "ready")
    wait_for(lambda: one.out.read_text().count("\n") == 1, "what it was given")
    assert one.out.read_text() == "w:0 | web:local 2 [0, 1, 2, 3, 4]\n"
    port = one.err.read_text().partition("socket web listens at tcp://127.0.0.1:")[2].split()[0]

    def ask() -> int:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as sock:
            return int(sock.recv(100))

    assert ask() == row["pid"]
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("w:0", "backoff")
    assert ask() != row["pid"], "the connection waits for the successor"


def test_sockets_reach_function_workers(app: Callable[..., App], folder: Path) -> None:
    (folder / "w.py").write_text("""
import os, socket
async def w(ipc):
    assert os.environ["LISTEN_PID"] == str(os.getpid())
    print(socket.socket(fileno=3).getsockname(), os.environ["LISTEN_FDNAMES"], flush=True)
    await ipc.serve()
""")
    for method in ("forkserver", "spawn"):
        (folder / "stdout").unlink(missing_ok=True)
        one = app(f"""
python_path: [.]
sockets: {{web: {{address: "unix:@sipc-f-{os.getpid()}"}}}}
workers:
  w: {{target: "w:w", sockets: web, start_method: {method}}}
""")
        one.wait_state("w:0", "ready")
        assert f"w:0 | b'\\x00sipc-f-{os.getpid()}' web\n" in one.out.read_text()
        one.stop()


def test_an_address_in_use_fails_the_start(run: Callable[..., App]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one = run(f"""
sockets: {{web: {{address: "tcp://127.0.0.1:{taken.getsockname()[1]}"}}}}
workers: {{w: {{command: [sleep, "9"], sockets: web}}}}
""")
        assert one.wait_ended() == 1
    assert "socket web: tcp://127.0.0.1:" in one.err.read_text()
    assert "Address already in use" in one.err.read_text()


# hooks


def test_hooks_run_around_each_life(run: Callable[..., App], folder: Path) -> None:
    one = run("""
workers:
  w:
    command: [sh, -c, "echo life $SMARTIPC_GENERATION >> story; exec sleep 100"]
    hooks:
      before_start: [[sh, -c, "echo before $SMARTIPC_GENERATION >> story"], [sh, -c, "echo and >> story"]]
      after_stop: [sh, -c, "sleep 0.1; echo after $SMARTIPC_GENERATION $SMARTIPC_EXIT_SIGNAL >> story"]
    restart: {delay: 1ms}
""")
    row = one.wait_state("w:0", "ready")
    wait_for(lambda: "life 1" in (folder / "story").read_text(), "its first life")
    os.kill(row["pid"], signal.SIGKILL)
    one.wait_state("w:0", "ready", generation=2)
    wait_for(lambda: "life 2" in (folder / "story").read_text(), "its second life")
    one.process.send_signal(signal.SIGTERM)
    assert one.wait_ended() == 0
    assert (folder / "story").read_text().splitlines() == [
        "before 1", "and", "life 1", "after 1 SIGKILL", "before 2", "and", "life 2", "after 2 SIGTERM",
    ]  # fmt: skip


def test_the_app_ends_after_the_hooks_of_all_its_lives(run: Callable[..., App], folder: Path) -> None:
    """Two lives of one slot may end at about the same time."""
    one = run("""
workers:
  w:
    command: [sleep, "100"]
    hooks: {after_stop: [sh, -c, "[ $SMARTIPC_GENERATION = 2 ] || sleep 1; echo $SMARTIPC_GENERATION >> story"]}
""")
    one.wait_state("w:0", "ready")
    assert one.ctl("reload", "w").returncode == 0
    assert one.ctl("shutdown").returncode == 0
    assert one.wait_ended() == 0
    assert (folder / "story").read_text().split() == ["2", "1"]


def test_a_failing_before_start_is_a_failed_start(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [sleep, "9"], hooks: {before_start: [sh, -c, "echo no luck; exit 3"]},
      restart: {delay: 1ms, max_restarts: 2}}
""")
    row = one.wait_state("w:0", "failed")
    assert row["restarts"] == 2
    assert row["last_exit"]["reason"] == "before_start: sh -c echo no luck; exit 3: exit code 3"
    assert "w:0 | no luck\n" in one.out.read_text()


def test_a_stop_during_before_start_is_quick(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [sleep, "9"], hooks: {before_start: [sleep, "1000"]}}
""")
    one.wait_state("w:0", "starting")
    begun = time.monotonic()
    assert one.ctl("stop", "w").returncode == 0
    assert time.monotonic() - begun < 3
    assert one.status()["w:0"]["state"] == "stopped"
    wait_for(lambda: len(marked(one.mark)) <= 2, "the hook is gone")  # the supervisor and its guardian


# what escapes


def descendants_of(one: App) -> list[str]:
    return sorted(" ".join(process.cmdline()) for process in marked(one.mark) if process.cmdline()[:1] == ["sleep"])


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_escaped_is_swept_and_named(run: Callable[..., App], how: str) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, escape], restart: {delay: 1ms}}
""")
    row = one.wait_state("w:0", "ready")
    wait_for(lambda: "escaped" in one.out.read_text(), "children in sessions of their own")
    wait_for(lambda: descendants_of(one) == ["sleep 1000", "sleep 1001", "sleep 1002"], "all three children")
    if how == "stop":
        assert one.ctl("stop", "w").returncode == 0
        assert descendants_of(one) == [], "success is reported when all are gone"
    else:
        os.kill(row["pid"], signal.SIGKILL)
        one.wait_state("w:0", "ready", generation=2)
        wait_for(lambda: one.out.read_text().count("escaped") == 2, "the successor's children")
        wait_for(lambda: len(descendants_of(one)) == 3, "the successor's three children, the predecessor's gone")
    (swept,) = [event for event in one.events() if event["event"] == "instance.swept"]
    for name in ("sleep 1000", "sleep 1001", "sleep 1002"):
        assert name in swept["cause"]
    assert "left behind and killed" in one.err.read_text()


def test_what_escaped_dies_with_a_killed_supervisor(run: Callable[..., App]) -> None:
    one = run("""
workers:
  w: {command: [PYTHON, child.py, escape], stop: {timeout: 200ms}}
""")
    wait_for(lambda: "escaped" in one.out.read_text(), "children in sessions of their own")
    one.process.kill()
    one.process.wait()
    one.wait_gone(5.0)


# upward, and as process 1


def test_the_supervisor_tells_systemd(run: Callable[..., App], folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "systemd"))
        systemd.settimeout(20)
        one = run(
            "workers: {w: {command: [sh, -c, 'echo inherited: $NOTIFY_SOCKET; exec sleep 100']}}",
            NOTIFY_SOCKET=str(folder / "systemd"),
            WATCHDOG_USEC="200000",
        )
        heard = ""
        while "READY=1" not in heard or heard.count("WATCHDOG=1") < 3:
            heard += systemd.recv(4096).decode() + "\n"
        assert f"MAINPID={one.pid}" in heard
        assert "STATUS=1 of 1 ready" in heard
        one.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard += systemd.recv(4096).decode() + "\n"
        assert one.wait_ended() == 0
    assert "w:0 | inherited:\n" in one.out.read_text()


@pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False).returncode
    != 0,
    reason="no new pid namespace may be made here",
)
@pytest.mark.parametrize(("config", "code"), [("restart: never", 0), ("restart: never, on_failed: shutdown", 1)])
def test_as_process_1_strangers_are_reaped_and_the_code_is_true(folder: Path, config: str, code: int) -> None:
    (folder / "app.yaml").write_text(f"""
supervisor: {{runtime_dir: r, state_dir: s, on_idle: exit}}
workers:
  orphaner:
    command: [sh, -c, "for i in 1 2 3 4 5; do (setsid env -i sleep 0.0$i &) ; done; sleep 0.3; ps -eo stat,comm > ps"]
  w: {{command: [sh, -c, "sleep 0.5; exit {code}"], {config}}}
""")
    done = subprocess.run(
        [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            Path(sys.executable).parent / "smartipc-supervise",
            "app.yaml",
        ],
        cwd=folder,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Z" not in {line.split()[0][0] for line in (folder / "ps").read_text().splitlines()[1:]}
    assert "supervisor 1," in done.stderr
