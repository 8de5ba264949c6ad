"""The command as a shell sees it: help, exit codes, one clear line for every mistake."""

import errno
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pydantic import ValidationError

from smallgpt import __version__
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError, ConfigError, DataError, HardwareError, NumericsError
from smallgpt.interfaces.cli import COMMANDS, errors
from tests.interfaces.conftest import Run


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "smallgpt", *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert run("--help")[1] == out
    for command, (_, summary) in COMMANDS.items():
        assert f"{command} " in out
        assert summary in out
    assert "smallgpt train demo" in out
    assert "--debug" in out


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version") == (0, f"smallgpt {__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "generate",
        "chat",
        "kernels list",
        "kernels check",
        "kernels compile",
        "prepare",
        "prepare demo",
        "prepare tinystories",
        "prepare hub",
        "prepare text",
        "prepare bins",
    ],
)
def test_every_help_has_examples_that_call_the_command(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    examples = out.split("Try:\n")[1]
    assert f"smallgpt {command}" in examples


def test_the_help_of_train_shows_every_setting(run: Run) -> None:
    _, out, _ = run("train", "--help")
    for flag in ("--model.n-layer INT", "--training.max-minutes FLOAT", "--kernels.backend CHOICE", "--resume PATH"):
        assert flag in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian demo", "unknown command 'trian'; did you mean train?"),
        ("--bogus", "unknown command '--bogus'"),
        ("train demmo", "no preset 'demmo'; did you mean demo?"),
        ("train demo --model.n-heads 3", "Unknown option: --model.n-heads. Did you mean --model.n-head?"),
        ("train demo --model.n-head five", "model.n_head: must be a valid integer (got 'five')"),
        ("train demo --training.seed 1.5", "training.seed: must be a valid integer (got '1.5')"),
        ("train demo --optimizer.name adamv", 'Invalid value "adamv" for --optimizer.name.'),
        ("train demo extra", "unexpected: extra"),
        ("train demo --track paper", 'Invalid value "paper" for --track.'),
        ("train --config nope.toml", "nope.toml: cannot read this configuration: No such file or directory"),
        ("train", "nothing to train on: name a preset (demo, "),
        ("train demo --resume runs/x", "--resume takes its settings from runs/x; leave the preset 'demo' out"),
        ("generate", 'Command "generate" parameter RUN requires an argument.'),
        ("generate x --top-k 5.5", "Invalid value for --top-k: '5.5' is not a whole number"),
        ("generate x --num-samples 0", "num-samples is 0; it must be 1 or more"),
        ("generate x --max-new-tokens 0", "max-new-tokens is 0; it must be 1 or more"),
        ("generate x --temperature -1", "temperature is -1.0; it must be 0 or more"),
        ("generate x --prompt a --prompt-file b", "give --prompt or --prompt-file, not both"),
        ("evaluate x --split test", 'Invalid value "test" for --split.'),
        ("kernels lst", 'Unknown command "lst". Did you mean "list"?'),
        ("prepare text", "name the files or folders to read"),
    ],
)
def test_a_mistake_in_the_words_is_one_line_and_exit_code_2(run: Run, arguments: str, message: str) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"smallgpt: {message}")
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("generate runs/nope", 4, "runs/nope is not there"),
        ("evaluate runs/nope", 4, "runs/nope is not there"),
        ("train --resume runs/nope", 4, "runs/nope: not a run folder"),
        ("train --data data/nope", 3, "data/nope: no such data folder"),
        ("prepare text nope.txt", 3, "nope.txt: no such file"),
        ("kernels list --device cuda:99", 6, "device 'cuda:99' is not there"),
    ],
)
def test_missing_things_have_their_own_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = run(*arguments.split())
    assert (got, out) == (code, "")
    assert err.startswith(f"smallgpt: {message}")
    assert not list(tmp_path.iterdir())


def raised(error: BaseException) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        raise error

    return command


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as refused:
        GPTConfig.model_validate({"n_head": 0})
    return refused.value


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError("bad value 3"), 2, ["smallgpt: bad value 3"]),
        (DataError("gone\nmake it"), 3, ["smallgpt: gone", "make it"]),
        (CheckpointError("torn"), 4, ["smallgpt: torn"]),
        (NumericsError("nan"), 5, ["smallgpt: nan"]),
        (HardwareError("no GPU"), 6, ["smallgpt: no GPU"]),
        (invalid(), 2, ["smallgpt: n_head: must be greater than or equal to 1 (got 0)"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "/d/x"),
            3,
            ["smallgpt: /d/x: No space left on device", "free"],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/d"), 3, ["smallgpt: /d: Permission denied", "change"]),
        (OSError(errno.EROFS, "Read-only file system", "/d"), 3, ["smallgpt: /d: Read-only file system", "the file"]),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 3, ["smallgpt: I/O error: No", "free"]),
        (OutOfMemoryError("CUDA out of memory."), 6, ["smallgpt: out of memory: CUDA", "try a smaller"]),
        (KeyboardInterrupt(), 130, ["smallgpt: interrupted"]),
        (errors.Terminated(), 143, ["smallgpt: terminated"]),
        (
            ZeroDivisionError("by 0\nmore"),
            1,
            ["smallgpt: internal error: ZeroDivisionError: by 0", "run again"],
        ),
    ],
)
def test_every_error_is_at_most_two_lines_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, lines: list[str]
) -> None:
    assert errors.guard(raised(error), debug=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == len(lines)
    for line, start in zip(err.splitlines(), lines, strict=True):
        assert line.startswith(start)


def test_what_a_command_returns_is_the_exit_code() -> None:
    assert errors.guard(lambda: 7, debug=False) == 7
    assert errors.guard(lambda: None, debug=False) == 0


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")]
)
def test_a_termination_signal_unwinds_and_the_former_handler_comes_back(
    capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int, words: str
) -> None:
    before = signal.getsignal(number)
    cleaned = []

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleaned.append(True)

    assert errors.guard(command, debug=False) == code
    assert cleaned
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err == f"smallgpt: {words}\n"


def test_a_hang_up_that_nohup_ignores_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert errors.guard(lambda: os.kill(os.getpid(), signal.SIGHUP), debug=False) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, place: int) -> None:
    words = ["train", "demmo", "--training.seed=3"]
    _, _, quiet = run(*words)
    code, _, err = run(*words[:place], "--debug", *words[place:])
    assert "Traceback" not in quiet
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.endswith(quiet)


@pytest.mark.parametrize("arguments", [["train", "--help"], ["--help"]])
def test_a_closed_pipe_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with process(*arguments, stdout=write) as ran:
        os.close(write)
        assert ran.stderr is not None
        assert ran.stderr.read() == ""
    assert ran.returncode == 0


def test_characters_that_the_terminal_has_not_are_replaced() -> None:
    with process("train", "démo", env={**os.environ, "PYTHONIOENCODING": "ascii"}) as ran:
        assert ran.stderr is not None
        assert ran.stderr.read().startswith("smallgpt: no preset 'd?mo'; did you mean demo?")
    assert ran.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_named() -> None:
    with Path("/dev/full").open("w") as full, process("--version", stdout=full) as ran:
        assert ran.stderr is not None
        assert ran.stderr.read().startswith("smallgpt: No space left on device\n")
    assert ran.returncode == 3


def test_help_loads_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys\n"
        "from smallgpt.interfaces.cli import main\n"
        "for arguments in (['--help'], ['train', '--help'], ['generate', '--help'], ['prepare', 'text', '--help']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as left: assert left.code == 0\n"
        "heavy = {'torch', 'numpy', 'datasets', 'matplotlib', 'tiktoken', 'tokenizers', 'pyarrow'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "seconds"), [(["--help"], 0.4), (["train", "--help"], 0.9)])
def test_help_comes_at_once(arguments: list[str], seconds: float) -> None:
    def once() -> float:
        before = time.perf_counter()
        subprocess.run([sys.executable, "-m", "smallgpt", *arguments], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - before

    once()  # compiles what was never imported
    assert statistics.median(once() for _ in range(5)) < seconds
