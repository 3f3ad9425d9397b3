"""`smartipc init` and `smartipc convert`, as a person types them."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from smartipc.supervisor.cli.ctl import cli
from smartipc.supervisor.configuration import load


def test_init_writes_an_app_that_loads(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["init", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    spec = load(str(tmp_path / "new/config/workers.yaml"))
    assert [worker.name for worker in spec.workers] == ["greeter", "visitor"]
    compile((tmp_path / "new/app.py").read_text(), "app.py", "exec")


def test_init_touches_no_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("mine")
    result = CliRunner().invoke(cli, ["init", str(tmp_path)])
    assert result.exit_code == 1
    assert "app.py" in result.output
    assert (tmp_path / "app.py").read_text() == "mine"
    assert not (tmp_path / "config").exists()


def test_convert_prints_yaml_and_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("web: serve\n")
    result = CliRunner().invoke(cli, ["convert", str(tmp_path / "Procfile")])
    assert result.exit_code == 0
    assert "command: [serve]" in result.output
    (tmp_path / "Procfile").write_text("web\n")
    result = CliRunner().invoke(cli, ["convert", str(tmp_path / "Procfile")])
    assert result.exit_code == 2
    assert "Procfile:1" in result.output
    assert CliRunner().invoke(cli, ["convert", str(tmp_path / "none")]).exit_code == 2
