"""The configuration pipeline: what is accepted means what it says, what is wrong is named with its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smartipc.ipc.errors import ConfigError
from smartipc.supervisor.configuration import load, schema
from smartipc.supervisor.configuration.build import usable_cores
from smartipc.supervisor.configuration.schema import reference, text
from smartipc.supervisor.core.spec import AppSpec

ROOT = Path(__file__).parents[3]
CORPUS = ROOT / "tests" / "corpus" / "config"
INVALID: dict[str, list[tuple[int, str]]] = json.loads((CORPUS / "invalid.json").read_text())


def loaded(tmp_path: Path, content: str, **environ: str) -> AppSpec:
    path = tmp_path / "app.yaml"
    path.write_text(content)
    return load(path, environ=environ)


def problems(tmp_path: Path, content: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, content, **environ)
    return [str(problem) for problem in caught.value.problems]


# what is wrong


@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_files_are_refused_with_every_problem_and_its_place(name: str) -> None:
    path = CORPUS / "invalid" / f"{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    found = [str(problem) for problem in caught.value.problems]
    for line, phrase in INVALID[name]:
        assert any(f":{line}:" in one and phrase in one for one in found), (line, phrase, found)
    assert len(found) == len(INVALID[name]), found
    assert all(one.startswith(f"{path}:") for one in found)


def test_an_alias_bomb_is_bounded() -> None:
    with pytest.raises(ConfigError, match="endless or too large"):
        load(CORPUS / "alias_bomb.yaml", environ={})


def test_the_corpus_is_complete() -> None:
    assert {path.stem for path in (CORPUS / "invalid").glob("*.yaml")} == set(INVALID)
    assert len(INVALID) >= 40


def test_the_command_lists_them_and_starts_nothing() -> None:
    command = [str(Path(sys.executable).parent / "smartipc-supervise"), str(CORPUS / "invalid" / "many_at_once.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == len(INVALID["many_at_once"]) + 1
    assert "nothing started" in done.stderr


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"app: caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(tmp_path / "latin.yaml")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_arbitrary_text_raises_nothing_else(content: str) -> None:
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"smartipc-arbitrary-{os.getpid()}.yaml"
    path.write_text(content, newline="")
    try:
        load(path, environ={})
    except ConfigError:
        pass
    finally:
        path.unlink()


# what is accepted


def test_defaults_of_everything(tmp_path: Path) -> None:
    spec = loaded(tmp_path, "workers: {a: {target: m:f}, b: {command: [sleep, '1']}}")
    a, b = spec.workers
    assert (spec.app, spec.supervisor.on_idle) == ("app", "wait")
    assert (a.instances, a.ready, a.says_ready, a.restart.policy) == (1, "ipc", False, "on-failure")
    assert (a.stop.signal, a.stop.timeout, a.cwd) == ("SIGTERM", 10.0, str(tmp_path))
    assert (b.command, b.ready) == (("sleep", "1"), "started")
    assert a.names == ("a:0",)
    with pytest.raises(KeyError):
        spec.worker("c")


def test_short_and_long_forms(tmp_path: Path) -> None:
    spec = loaded(
        tmp_path,
        """
        workers:
          a: {target: m:f, restart: always, heartbeat: off, depends_on: b}
          b: {target: m:f, restart: {policy: never, delay: 1m30s, max_delay: 2h}, heartbeat: {from: loop}, ready: ipc}
          c: {target: m:f, depends_on: [a, b], stop: {signal: SIGINT, timeout: 250ms}, instances: auto}
          d: {target: m:f, depends_on: {a: completed, b: started}, start_timeout: 2h, restart: {delay: 0.5}}
        """,
    )
    a, b, c, d = spec.workers
    assert (a.restart.policy, a.heartbeat.source, a.depends_on) == ("always", "off", (("b", "ready"),))
    assert (b.restart.policy, b.restart.delay, b.heartbeat.source, b.says_ready) == ("never", 90.0, "loop", True)
    assert (c.depends_on, c.stop.signal, c.stop.timeout) == ((("a", "ready"), ("b", "ready")), "SIGINT", 0.25)
    assert c.instances == usable_cores()
    assert d.depends_on == (("a", "completed"), ("b", "started"))
    assert (d.start_timeout, d.restart.delay) == (7200.0, 0.5)


def test_interpolation(tmp_path: Path) -> None:
    spec = loaded(
        tmp_path,
        """
        workers:
          a:
            target: m:f
            instances: ${N}
            kwargs: {x: "${N}", y: $$5, z: "a$b ${M:-d e f}", w: "${E:-fallback}"}
        """,
        N="3",
        E="",
    )
    (a,) = spec.workers
    assert a.instances == 3
    assert a.kwargs == {"x": "3", "y": "$5", "z": "a$b d e f", "w": "fallback"}


def test_an_unset_variable_is_named(tmp_path: Path) -> None:
    (one,) = problems(tmp_path, "workers:\n  a: {target: 'm:f', cwd: '/x/${WHERE}'}\n")
    assert "app.yaml:2:27: workers.a.cwd: variable WHERE is not set (set it, or write ${WHERE:-default})" in one


def test_environment_precedence(tmp_path: Path) -> None:
    (tmp_path / "top.env").write_text("A=top-file\nB=top-file\n# remark\nexport Q='quo ted'\nR=x # why\n")
    (tmp_path / "own.env").write_text("B=own-file\nC=own-file\n")
    spec = loaded(
        tmp_path,
        """
        env_file: top.env
        env: {B: top, C: top, N: 1, T: true}
        workers: {a: {target: m:f, env_file: own.env, env: {C: own}}}
        """,
    )
    expected = {"A": "top-file", "B": "own-file", "C": "own", "N": "1", "T": "true", "Q": "quo ted", "R": "x"}
    assert spec.workers[0].env == expected


def test_a_bad_environment_file(tmp_path: Path) -> None:
    (tmp_path / "bad.env").write_text("fine=1\nnot an assignment\n")
    (one,) = problems(tmp_path, "env_file: bad.env\nworkers: {a: {target: m:f}}\n")
    assert "bad.env, line 2: expected NAME=value" in one


def test_include(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.yaml").write_text("include: deeper.yaml\nworkers: {b: {target: m:f, depends_on: a}}\n")
    (tmp_path / "more" / "deeper.yaml").write_text("include: ../app.yaml\nworkers: {c: {target: m:f}}\n")
    spec = loaded(tmp_path, "include: [more/b.yaml, 'none/*.yaml']\nworkers: {a: {target: m:f}}\n")
    assert [worker.name for worker in spec.workers] == ["a", "b", "c"]


def test_include_only_brings_workers_once(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("app: x\nworkers: {a: {target: m:g}}\n")
    twice, other = problems(tmp_path, "include: b.yaml\nworkers: {a: {target: m:f}}\n")[::-1]
    assert "is defined already at" in twice
    assert "may hold only workers and include" in other


def test_defaults_are_merged_key_by_key(tmp_path: Path) -> None:
    spec = loaded(
        tmp_path,
        """
        defaults:
          restart: {delay: 1s, max_restarts: 9}
          heartbeat: {interval: 2s}
          kwargs: {a: 1}
        workers:
          a: {target: m:f, restart: {delay: 2s}, kwargs: {b: 2}}
          b: {target: m:f, restart: always}
          c: {command: [x]}
        """,
    )
    a, b, c = spec.workers
    assert (a.restart.delay, a.restart.max_restarts, a.kwargs) == (2.0, 9, {"b": 2})
    assert (b.restart.policy, b.restart.delay, b.heartbeat.interval) == ("always", 0.2, 2.0)
    assert c.restart.max_restarts == 9


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    spec = loaded(
        tmp_path,
        "python_path: [., lib]\nsupervisor: {runtime_dir: r, log: {file: s.log}}\n"
        "workers: {a: {target: m:f, cwd: w, logs: {stdout: o.log, stderr: inherit}}}",
    )
    assert spec.python_path == (str(tmp_path), str(tmp_path / "lib"))
    assert spec.supervisor.runtime_dir == str(tmp_path / "r")
    assert spec.supervisor.log.file == str(tmp_path / "s.log")
    (a,) = spec.workers
    assert (a.cwd, a.logs.stdout, a.logs.stderr) == (str(tmp_path / "w"), str(tmp_path / "o.log"), "inherit")


def test_an_odd_file_name_needs_an_app_key(tmp_path: Path) -> None:
    (tmp_path / "7up.yaml").write_text("workers: {a: {target: m:f}}")
    with pytest.raises(ConfigError, match="add a key `app:`"):
        load(tmp_path / "7up.yaml")


# what is generated


def test_the_schema_file_is_current() -> None:
    assert (ROOT / "config" / "workers.schema.json").read_text() == text(), "run: make schema"


def test_the_reference_page_is_current() -> None:
    assert reference() in (ROOT / "docs" / "reference" / "configuration.md").read_text(), "paste the new table"


def test_the_schema_accepts_what_the_pipeline_accepts() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    valid = yaml.safe_load((ROOT / "config" / "workers.yaml").read_text())
    jsonschema.validate(valid, schema())


@pytest.mark.parametrize(
    "name", ["unknown_key", "unknown_worker_key", "target_number", "command_string", "restart_jitter"]
)
def test_the_schema_refuses_what_the_pipeline_refuses(name: str) -> None:
    content = yaml.safe_load((CORPUS / "invalid" / f"{name}.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema())


def test_the_default_configuration_is_valid() -> None:
    spec = load(ROOT / "config" / "workers.yaml", environ={"PWD": "/somewhere"})
    assert [worker.name for worker in spec.workers] == ["catalog", "hasher", "scanner", "reporter"]
    assert spec.workers[0].cwd == "/somewhere"


def test_one_wrong_entry_hides_none_of_the_rules_between_the_others(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """workers:
  i: {command: [x], depends_on: {nope: ready, a: nonsense}}
  a: {command: [x]}
  J: {command: [x]}
  j: {command: [x], depends_on: [k]}
  k: {command: [x], depends_on: [j], sockets: [web]}
groups:
  g1: {members: [a, g2]}
  g2: {members: [g1]}
""",
    )
    told = [one.partition("app.yaml:")[2] for one in found]
    phrases = (
        "there is no worker 'nope'", "got 'nonsense'", "'J' is not a name", "cycle: j -> k -> j",
        "there is no socket 'web' (known: none)", "the groups form a cycle: g1 -> g2 -> g1",
    )  # fmt: skip
    for phrase in phrases:
        assert any(phrase in one for one in told), (phrase, told)
    assert len(told) == len(phrases)


def test_a_variable_in_quotes_may_be_a_number_where_text_makes_no_sense(tmp_path: Path) -> None:
    text = """workers:
  w: {command: [echo, "${N}"], instances: "${N}", start_timeout: "${N}", env: {A: "${N}"}, significant: "${B}",
      logs: {max_bytes: "${N}"}, restart: {factor: "${N}", max_restarts: "${X:-7}"}}
groups:
  g: {members: [w], auto_shutdown: any-significant}
"""
    (one,) = loaded(tmp_path, text, N="3", B="true").workers
    assert (one.command, one.env, one.instances, one.start_timeout) == (("echo", "3"), {"A": "3"}, 3, 3.0)
    assert (one.significant, one.logs.max_bytes, one.restart.factor, one.restart.max_restarts) == (True, 3, 3, 7)
    (target,) = loaded(tmp_path, 'workers: {w: {target: "m:f", kwargs: {n: "${N}"}}}', N="3").workers
    assert target.kwargs == {"n": "3"}
    assert "expected a whole number or 'auto', got 'x'" in str(problems(tmp_path, text, N="x", B="true"))
    assert "got '3'" in problems(tmp_path, 'workers: {w: {command: [x], instances: "3"}}')[0], "no variable, no number"


def test_a_bare_variable_inside_braces_is_explained(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "workers:\n  w: {command: [x], instances: ${N}}\n", N="3")
    assert ":2:" in found
    assert 'write variables in quotes: "${NAME}"' in found
