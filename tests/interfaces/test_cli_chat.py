"""`smallgpt chat` with a pipe, in a terminal, and in one that knows only lines."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smallgpt.application.engine import Engine
from smallgpt.application.streams import Stream, Token
from tests.interfaces.conftest import Run
from tests.interfaces.pseudo_terminal import CTRL_C, CTRL_D, Terminal
from tests.interfaces.written_model import BLOCK_SIZE, write_model

Piped = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("endless"), ends=False))


@pytest.fixture
def piped(run: Run, endless: str, monkeypatch: pytest.MonkeyPatch) -> Piped:
    """piped(LINES, WORDS...): the command with lines on standard input."""

    def call(lines: bytes, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        return run("chat", endless, "--seed=3", *words)

    return call


def test_a_pipe_gives_the_text_that_generate_gives_and_nothing_else(run: Run, piped: Piped, endless: str) -> None:
    code, out, err = piped(b"abc\n", "--max-new-tokens=30")
    assert (code, err) == (0, "")
    words = ["generate", endless, "--prompt=abc", "--max-new-tokens=30", "--seed=3", "--json"]
    assert "abc" + out == json.loads(run(*words)[1])[0]["text"] + "\n"


def test_a_session_past_the_block_goes_on_from_the_whole_story(run: Run, piped: Piped, endless: str) -> None:
    _, out, _ = piped(b"abc\n\n\nda\n/show\n", f"--max-new-tokens={BLOCK_SIZE}", "--stop=zzz")
    story, before = "", ["abc", "", "", " da"]
    for turn, typed in enumerate(before):
        story += typed if not (typed.startswith(" ") and story[-1].isspace()) else typed[1:]
        words = ["generate", endless, f"--prompt={story}", f"--max-new-tokens={BLOCK_SIZE}", f"--seed={3 + turn}"]
        story = json.loads(run(*words, "--json")[1])[0]["text"]
    assert len(story) > 3 * BLOCK_SIZE
    assert out.endswith(story + "\n")


def test_the_seed_repeats_a_session(piped: Piped) -> None:
    lines = b"abc\n/retry\n/temperature 1.5\nda\n/undo\nde\n/show\n"
    first = piped(lines, "--max-new-tokens=20")
    assert piped(lines, "--max-new-tokens=20") == first
    assert piped(lines, "--max-new-tokens=20", "--seed=4") != first


def test_a_mistake_does_not_end_the_session(piped: Piped, tmp_path: Path) -> None:
    lines = f"/top-k none\n/sav\n/save {tmp_path}/no/file\nabc\n/save! {tmp_path}\n"
    code, out, err = piped(lines.encode(), "--max-new-tokens=5")
    assert code == 0
    assert out
    assert err.splitlines() == [
        "top-k is 'none'; it must be a whole number: /top-k N",
        "unknown command '/sav'; did you mean /save?",
        "/help lists them all",
        "there is nothing to save; write a beginning first",
        f"{tmp_path}: Is a directory",
        "name a file, not a folder",
    ]


def test_lines_that_are_not_utf8_are_read_with_replacement_characters(piped: Piped) -> None:
    code, out, _ = piped(b"caf\xe9\n/show\n", "--max-new-tokens=3")
    assert code == 0
    assert "caf\ufffd" in out


def test_quit_leaves_before_the_end_of_the_lines(piped: Piped) -> None:
    assert piped(b"/quit\nabc\n") == (0, "", "")


def test_bad_flags_end_the_command(run: Run) -> None:
    for words, message in (("--temperature=-1", "temperature is -1.0"), ("--seed=-1", "seed is -1")):
        code, _, err = run("chat", "no/model", words)
        assert code == 2
        assert message in err
    assert run("chat", "no/model")[0] == 4


def press_at(monkeypatch: pytest.MonkeyPatch, number: int, *steps: int) -> None:
    step, count = Engine.step, iter(range(99999))

    def pressed(engine: Engine) -> list[tuple[Stream, list[Token]]]:
        for _ in range(steps.count(next(count))):
            os.kill(os.getpid(), number)
        return step(engine)

    monkeypatch.setattr(Engine, "step", pressed)


@pytest.mark.parametrize("steps", [(5,), (5, 5)], ids=["once", "twice"])
def test_ctrl_c_stops_the_text_and_keeps_what_came(
    piped: Piped, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    press_at(monkeypatch, signal.SIGINT, *steps)
    code, out, err = piped(b"abc\n/show\n/max-new-tokens 7\nda\n", "--max-new-tokens=5000")
    told, rest = out.split("abc", 1)
    assert (code, err) == (0, "")
    assert 3 <= len(told) <= 8
    assert rest.startswith(told), "/show shows it"
    assert len(rest) > len(told), "and the story goes on"


def test_sigterm_while_text_comes_ends_the_session(piped: Piped, monkeypatch: pytest.MonkeyPatch) -> None:
    press_at(monkeypatch, signal.SIGTERM, 5)
    code, out, _ = piped(b"abc\nda\n", "--max-new-tokens=5000")
    assert code == 143
    assert 3 <= len(out) <= 8


@pytest.mark.slow
def test_in_a_terminal(endless: str, tmp_path: Path) -> None:
    words = ["chat", endless, "--seed=3", "--max-new-tokens=20"]
    with Terminal(*words, term="xterm-256color", cwd=tmp_path) as terminal:
        assert "Ctrl-D leaves" in terminal.wait_for("> ")
        terminal.type("abc\r")
        screen = terminal.wait_for("\033[0m\r\n")
        assert "\033[1m" in screen, "the model's text is bold"
        told = screen.split("\033[1m")[1].split("\033[0m")[0]
        terminal.wait_for("> ")
        terminal.type("/show\r")
        assert f"abc\033[1m{told}\033[0m" in terminal.wait_for("\033[0m\r\n")
        terminal.wait_for("> ")
        terminal.type("\033[A\033[A")  # up, up: the line before the last
        terminal.wait_for("abc")
        terminal.interrupt()  # something is typed: the line is cleared
        assert "leaves" not in terminal.wait_for("> ")
        terminal.interrupt()  # nothing is typed
        terminal.wait_for("Ctrl-D or /quit leaves.")
        terminal.wait_for("> ")
        terminal.type("/max-new-tokens 1000000\r")
        terminal.wait_for("> ")
        terminal.type("da\r")
        terminal.wait_for("\033[1m")
        terminal.wait_for_more(200)
        terminal.type(CTRL_C)  # stops the text, not the program
        terminal.wait_for("> ")
        terminal.type("/undo\r")
        terminal.wait_for("the story ends now: …")
        terminal.wait_for("> ")
        terminal.type(f"/save {tmp_path / 'story.txt'}\r")
        terminal.wait_for("saved as")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert (tmp_path / "story.txt").read_text().replace("\n", "\r\n").startswith("abc" + told)
    assert "Traceback" not in terminal.screen


@pytest.mark.slow
def test_in_a_terminal_that_knows_only_lines_nothing_but_text_comes(endless: str, tmp_path: Path) -> None:
    with Terminal("chat", endless, "--seed=3", "--max-new-tokens=20", term="dumb", cwd=tmp_path) as terminal:
        terminal.wait_for("> ")
        assert not terminal.edits_lines_itself()
        terminal.type("abc\n")
        terminal.wait_for("\n> ")
        terminal.type("/max-new-tokens 1000000\n")
        terminal.wait_for("\n> ")
        terminal.type("/retry\n")
        terminal.wait_for_more(200)
        terminal.type(CTRL_C)
        terminal.wait_for("\n> ")
        terminal.type("half a line")
        terminal.interrupt()
        terminal.wait_for("Ctrl-D or /quit leaves.")
        terminal.wait_for("\n> ")
        terminal.type("/set\n")
        terminal.wait_for("stop               off")
        terminal.wait_for("\n> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert "\033" not in terminal.screen
    assert "Traceback" not in terminal.screen
