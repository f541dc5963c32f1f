"""The `gnomon` command itself: quick help, clear mistakes."""

import os
import statistics
import subprocess
import sys
import time

import pytest

from gnomon.cli.main import COMMANDS, main


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from gnomon.cli.main import main; main(['--help']);"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & {'torch','transformers','lightning','timm','numpy'}))"
    )
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert done.stdout.splitlines()[-1].strip() == ""
    assert all(name in done.stdout for name in COMMANDS)
    assert statistics.median(seconds) < 0.3


def test_methods_imports_no_torch():
    code = "import sys; from gnomon.cli.main import main; main(['methods']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_it_without_a_word(unbuffered):
    command = [sys.executable, "-m", "gnomon.cli.main", "methods"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_a_pipe_of_something_else_is_told(monkeypatch, capfd):
    def broken(argv):
        raise BrokenPipeError(32, "a worker is gone")

    monkeypatch.setattr("gnomon.cli.methods.main", broken)
    assert main(["methods"]) == 2
    assert capfd.readouterr().err == "gnomon: [Errno 32] a worker is gone\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["evalute"], "did you mean 'evaluate'"),
        (["methods", "conectors"], "did you mean 'connectors'"),
        (["data", "make", "diagrams", "--count", "0", "--out", "x"], "--count 0 is too small"),
        (["data", "show", "nothing.xyz"], "nothing.xyz is neither"),
        (["export", "no/such/model", "--to", "hf"], "no/such/model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, told, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.startswith("gnomon: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"gnomon {name}" in capsys.readouterr().out
