"""Streams that are closed, full or missing, and Ctrl-C before there is anything to stop."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from test_cli import Run, nano, run  # noqa: F401  (fixtures)

from edgelm.cli.main import main
from edgelm.evaluation import evaluate as evaluation
from edgelm.planning import kernel_choice

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120
posix = pytest.mark.skipif(os.name == "nt", reason="descriptors and signals of POSIX")


class Full(io.StringIO):
    """A stream on a disk that is full at once, or notices when it is flushed."""

    def __init__(self, takes_text: bool = False) -> None:
        super().__init__()
        self.takes_text = takes_text

    def write(self, text: str) -> int:
        if not self.takes_text:
            raise OSError(28, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.getvalue():
            raise OSError(28, "No space left on device")


VERBS = {
    "help": ("plan", "--help"),
    "version": ("--version",),
    "plan": ("plan", "MODEL"),
    "table": ("plan", "MODEL", "--table"),
    "generate": ("generate", "MODEL", "Once", "--max-tokens", "2"),
    "json": ("generate", "MODEL", "Once", "--max-tokens", "2", "--json"),
    "error": ("generate", "MODEL", "", "--json"),
    "chat": ("chat", "MODEL", "--max-tokens", "2"),
    "bench": ("bench", "MODEL", "--prompt-tokens", "8", "--decode-tokens", "2", "--repeat", "1"),
    "inspect": ("inspect", "MODEL"),
    "mask": ("mask", "MODEL", "Hello"),
    "doctor": ("doctor",),
    "quantize": ("quantize", "MODEL", "OUT"),
}


@pytest.mark.parametrize("takes_text", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_stdout_that_fails_is_one_line(
    verb: str, takes_text: bool, run: Run, nano: Path, tmp_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (nano / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    monkeypatch.setattr(kernel_choice, "measure", lambda cache, device: {})
    words = {"MODEL": str(nano), "OUT": str(tmp_path / "out")}
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    monkeypatch.setattr(sys, "stdout", Full(takes_text))
    code = main([words.get(word, word) for word in VERBS[verb]])
    err = capsys.readouterr().err
    assert code == (2 if verb == "error" else 1)
    assert err.count("\n") == 1 and err.startswith("edgelm: ")
    assert verb == "error" or "stdout cannot be written: No space left" in err


def test_a_stderr_that_fails_changes_nothing(
    run: Run, nano: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stderr", Full())
    assert run("inspect", nano, "-v").code == 0
    assert run("inspect", nano / "absent").code == 4
    assert run("generate", nano, "Once", "--max-tokens", 2, "-v").out


def test_any_failure_of_a_disk_is_one_line(
    run: Run, nano: Path, assets: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("edgelm.reports.inspection.inspect_files", refuse)
    ran = run("inspect", nano, "--json")
    assert (ran.code, ran.document["error"]["exit_code"]) == (1, 1)
    assert "/some/file: Permission denied" in ran.err
    text = assets / "nano" / "heldout.txt"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.tempfile, "TemporaryDirectory", refuse)
        ran = run("eval", nano, "--text", text, "--limit", 1)
    assert ran.code == 1 and "baseline could not be written (/some/file" in ran.err
    ran = run("eval", nano, "--text", text, "--limit", 1, "--baseline", nano / "no/x.baseline")
    assert ran.code == 1 and "baseline could not be written" in ran.err and "TMPDIR" in ran.err


def _close(*handles: int) -> Callable[[], None]:
    return lambda: [os.close(handle) for handle in handles] and None


# Runs the command line with a verb that needs no torch, whose import takes seconds.
PROGRAM = """
import sys, types
import edgelm.cli
own = types.ModuleType("edgelm.cli.commands")
own.run = lambda given: print("read", repr(sys.stdin.read()), open("file").fileno()) or 0
sys.modules["edgelm.cli.commands"] = edgelm.cli.commands = own
from edgelm.cli.main import main
sys.exit(main())
"""
STREAMS = {
    "no stdin": ((0,), 0, "read '' 3\n", ""),
    "no stdout": ((1,), 1, "", "edgelm: stdout cannot be written: "),
    "no stderr": ((2,), 0, "read 'Hi' 3\n", ""),
    "nothing": ((0, 1, 2), 1, "", ""),
}


@posix
@pytest.mark.parametrize("case", STREAMS)
def test_started_without_a_stream(case: str, tmp_path: Path) -> None:
    """As by a service or a shell's ``>&-``; no file gets the stream's number."""
    closed, code, out, words = STREAMS[case]
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input="Hi", capture_output=True, text=True, cwd=tmp_path,
        preexec_fn=_close(*closed), timeout=TIMEOUT_S, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.startswith(words) and done.stderr.count("\n") == bool(words)


@posix
@pytest.mark.parametrize("target", ["/dev/full", "a pipe that nobody reads"])
def test_the_interpreter_has_nothing_to_complain_of(target: str, tmp_path: Path) -> None:
    """Text that is still to be written when the interpreter ends: one line, and exit code 1."""
    (tmp_path / "file").write_text("")
    if target == "/dev/full" and not os.path.exists(target):
        pytest.skip("no such device")
    reading, writing = (None, os.open(target, os.O_WRONLY)) if target[0] == "/" else os.pipe()
    if reading is not None:
        os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.DEVNULL, stdout=writing,
        stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=TIMEOUT_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 1 and done.stderr.startswith("edgelm: stdout cannot be written: ")
    assert done.stderr.count("\n") == 1


@posix
@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_importing(module: str, words: tuple[str, ...], tmp_path: Path) -> None:
    """The slow imports say one line too, before the command is known and after; here they are
    slower still."""
    (tmp_path / f"{module}.py").write_text(
        # Unbuffered: a signal within a print would find the stream's lock taken.
        "import os, time\nos.write(2, b'importing\\n')\ntime.sleep(600)\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-m", "edgelm", "plan", "absent", *words], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell without job control has its background jobs, and theirs, ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert program.stderr is not None and program.stderr.readline() == "importing\n"
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=TIMEOUT_S)
    assert (program.returncode, err) == (130, "edgelm: stopped by Ctrl-C\n")
    assert (json.loads(out)["error"]["type"] if words else "CancelledError") == "CancelledError"
    assert bool(out) == bool(words)
