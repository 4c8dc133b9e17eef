"""LimitedProcess: answers in turn, ends with whoever asked, holds nothing but its pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import edgelm
from edgelm.errors import EdgeLMError
from edgelm.text import limited_process
from edgelm.text.limited_process import (
    LimitedProcess,
    LimitExceededError,
    Limits,
    QuestionError,
)
from edgelm.text.template_process import run_template

LIMITS = Limits(seconds=1.0, nbytes=64 * 2**20)
SCRIPT = """
import ctypes, os, time
def answer(question):
    kind, value = question
    if kind == "sum":
        return sum(value)
    if kind == "raise":
        raise ValueError(value)
    if kind == "eval":
        return eval(value)
    if kind == "crash":
        os.kill(os.getpid(), 11)
    while True:
        pass
"""
LIMITED = pytest.mark.skipif(sys.platform == "win32", reason="no resource limits here")


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[LimitedProcess]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    process = LimitedProcess(str(script), [])
    yield process
    process.close()


def pid_of(process: LimitedProcess) -> int:
    return int(process.ask(["eval", "os.getpid()"], LIMITS))


def ends(pid: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not psutil.pid_exists(pid):
            return True
        time.sleep(0.02)
    return False


def test_one_process_answers_many_questions(asked: LimitedProcess) -> None:
    pid = pid_of(asked)
    assert [asked.ask(["sum", [n, n]], LIMITS) for n in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(QuestionError, match="ValueError: é"):
        asked.ask(["raise", "é"], LIMITS)
    assert pid_of(asked) == pid


def test_what_exceeds_its_limits_is_replaced(asked: LimitedProcess) -> None:
    for question, words in (
        (["loop", None], "longer than 1 s"),
        (["eval", "len('a' * 10**9)"], "64 MiB of memory"),
        (["eval", "10 ** 10 ** 10"], "longer than 1 s|64 MiB of memory"),
        (["crash", None], "crashed"),
    ):
        pid = pid_of(asked)
        with pytest.raises(LimitExceededError, match=words):
            asked.ask(question, LIMITS)
        assert ends(pid) and asked.ask(["sum", [1, 2]], LIMITS) == 3


@LIMITED
def test_it_can_open_no_file_and_start_no_process(asked: LimitedProcess, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for attack in (f"open({str(mark)!r}, 'w')", "os.fork()", "os.pipe()"):
        if attack == "os.fork()" and os.geteuid() == 0:
            continue  # root may always
        with pytest.raises(QuestionError, match="Error"):
            asked.ask(["eval", attack], LIMITS)
    assert not mark.exists()


def test_it_inherits_nothing_but_pipes(
    asked: LimitedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    assert not asked.ask(["eval", "'SECRET' in os.environ or 'PYTHONPATH' in os.environ"], LIMITS)
    if sys.platform == "linux":
        numbers = os.listdir(f"/proc/{pid_of(asked)}/fd")
        assert {int(number) for number in numbers} == {0, 1, 2, 3}  # 3: its own /proc/self/statm
        limit = "__import__('resource').getrlimit(__import__('resource').RLIMIT_AS)[0]"
        assert 0 < asked.ask(["eval", limit], LIMITS) < 2**30


def test_threads_take_turns(asked: LimitedProcess) -> None:
    got: dict[int, int] = {}

    def ask(number: int) -> None:
        got[number] = asked.ask(["sum", [number, 1]], LIMITS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: number + 1 for number in range(8)}
    assert not [t for t in threading.enumerate() if t.name == "edgelm-limits"]


@LIMITED
def test_an_interrupt_ends_the_question(asked: LimitedProcess) -> None:
    """Its answer would be taken for the next one's; Ctrl-C itself does not reach the process."""
    pid = pid_of(asked)
    # A shell without job control has its background jobs, and so these tests, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            asked.ask(["loop", None], Limits(10.0, 2**26))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ends(pid) and asked.ask(["sum", [2]], LIMITS) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_its_own(asked: LimitedProcess) -> None:
    pid = pid_of(asked)
    child = os.fork()
    if child == 0:
        if asked._process is not None:  # whose stdin would stay open when the asker is killed
            os._exit(2)
        own = pid_of(asked)
        asked.close()
        os._exit(0 if own != pid else 1)
    assert os.waitpid(child, 0)[1] == 0 and pid_of(asked) == pid


@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)", "1 / 0"])
def test_it_ends_with_whoever_asked(end: str) -> None:
    if sys.platform == "win32" and "kill" in end:
        pytest.skip("no such signal")
    program = (
        "import os, sys, types\n"
        "package = sys.modules['edgelm'] = types.ModuleType('edgelm')\n"  # without torch
        f"package.__path__ = [{str(Path(edgelm.__file__).parent)!r}]\n"
        "from edgelm.text import template_process as t\n"
        "t.run_template('{{ 1 }}', {})\nprint(t._PROCESS._process.pid, flush=True)\n" + end
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ends(int(done.stdout)), done.stderr


def test_no_interpreter_is_said(asked: LimitedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "_interpreter", lambda: "/no/such/python")
    with pytest.raises(EdgeLMError, match=r"does not start.*/no/such/python"):
        asked.ask(["sum", [1]], LIMITS)


def test_later_templates_start_no_process() -> None:
    from edgelm.text.template_process import _PROCESS

    run_template("{{ 1 }}", {})
    before = _PROCESS._process
    start = time.perf_counter()
    for number in range(20):
        assert run_template("{{ n }}", {"n": number}) == str(number)
    print(f"{(time.perf_counter() - start) / 20 * 1e3:.2f} ms")
    assert _PROCESS._process is before
