"""Every command and every Python block of the documentation works as it stands; those that train are shortened.

A command is shortened by SHORTER: flags whose values are replaced or, where the text does not give them, added. A command
that nobody thought of is run as it is; a line that is no command of a known kind fails the test.
"""

import io
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from smallgpt.infrastructure.formats import gguf_files, hugging_face, onnx_files
from smallgpt.interfaces.cli import COMMANDS, _application, main
from smallgpt.interfaces.cli.settings import preset_names
from tests.infrastructure.formats.folders import as_openai
from tests.infrastructure.formats.untrained import untrained
from tests.interfaces.written_model import write_model
from tests.loopback.hub import Hub, hub_of_this_process
from tests.loopback.model_server import model_server

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

SMALL_MODEL = {
    "--model.n-layer": "1",
    "--model.n-head": "2",
    "--model.n-embd": "32",
    "--model.block-size": "32",
    "--training.batch-size": "4",
}
SHORT_LOOKS = {"--evaluation.max-tokens": "2000", "--evaluation.sample-tokens": "8", "--training.threads": "1"}
SMALL_BENCH = {
    "--system": "smallgpt",
    "--rounds": "1",
    "--n-layer": "1",
    "--n-head": "2",
    "--n-embd": "32",
    "--block-size": "16",
    "--vocab-size": "300",
}
SHORTER: dict[str, dict[str, str]] = {
    "train --resume": SHORT_LOOKS,
    "train": {**SMALL_MODEL, **SHORT_LOOKS, "--training.max-minutes": "0.02"},
    "bench train": {**SMALL_BENCH, "--steps": "1", "--batch-size": "2"},
    "bench generate": {**SMALL_BENCH, "--streams": "1", "--prompt-tokens": "4", "--new-tokens": "4"},
    "bench scaling": {
        **{flag: size for flag, size in SMALL_BENCH.items() if flag not in ("--system", "--n-head")},
        "--batch-size": "2",
        "--stories": "60",
    },
    "bench attention": {"--seq-lens": "16", "--rounds": "1", "--seconds": "0.01"},
    "kernels check": {"--backend": "torch"},
    "serve": {"--port": "0"},
    "prepare hub": {"--tokenizer": "bytes"},  # the usual one needs tiktoken's files
    "prepare tinystories": {"--tokenizer": "bytes"},
}
EXPORTED = {"exports/demo": hugging_face, "exports/gguf": gguf_files, "exports/onnx": onnx_files}
"""Folders that the Python of a page takes for granted."""
DOCUMENTED_SERVER = "http://127.0.0.1:8000"
STEPS_TO_ONE = 50  # so many steps of a page become one; "200, then 300 more" stays in proportion


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    lines = [*(ROOT / page).read_text(encoding="utf-8").splitlines(), ""]
    inside: list[str] = []
    language, began = "", 0
    fenced = indented = False
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("```"):
            if fenced:
                yield Block(page, began, language, "\n".join(inside))
            fenced, inside, language, began = not fenced, [], line.strip("` "), number
        elif fenced:
            inside.append(line)
        elif line.startswith("    ") and (indented or not lines[number - 2].strip()):
            indented, began, inside = True, began if indented else number, [*(inside if indented else []), line[4:]]
        elif indented and line.strip():
            indented = False
            yield Block(page, began, "", "\n".join(inside))
    assert not fenced, f"{page}: a fence is not closed"


def shortened(words: list[str]) -> list[str]:
    """The words of a command with the values of SHORTER: given ones replaced, others added."""
    name = next((key for key in SHORTER if words[: len(key.split())] == key.split()), None)
    if name is None:
        return words
    changes = dict(SHORTER[name])
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--training.max-steps" in parts:
        at = parts.index("--training.max-steps") + 1
        parts[at] = str(max(1, int(parts[at].replace(",", "")) // STEPS_TO_ONE))
        changes.pop("--training.max-minutes", None)
    if "--config" in parts:
        changes = {flag: value for flag, value in changes.items() if flag in SHORT_LOOKS}
    for flag, value in changes.items():
        if flag in parts:
            parts[parts.index(flag) + 1] = value
        else:
            parts += [flag, value]
    return parts


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def typed(text: str, arguments: list[str]) -> object:
    """Run the command with text on standard input -> its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        with pytest.raises(SystemExit) as left:
            main(shortened(arguments))
    return left.value.code


def run_line(line: str) -> None:
    """Run one line of a block."""
    words = shlex.split(line, comments=True)
    match words:
        case []:
            return
        case ["make", target, *_]:
            assert target in targets(), line
        case ["smallgpt", "kernels", "compile", *_]:  # where the kernels are not the interpreter's
            outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, timeout=240, env=outside)
        case ["smallgpt", "import", "openai-community/gpt2", *_]:
            with hub_with_gpt2():
                assert typed("", words[1:]) == 0, line
        case ["smallgpt", "serve", *_]:
            started_and_stopped(shortened(words[1:]))
        case ["curl", *_] if DOCUMENTED_SERVER in line:
            with model_server(name="demo") as server:
                command = [word.replace(DOCUMENTED_SERVER, server.url) for word in words]
                subprocess.run([*command, "--fail", "--silent"], check=True, capture_output=True, timeout=60)
        case ["smallgpt" | ".venv/bin/smallgpt", *arguments]:
            assert typed("", arguments) == 0, line
        case ["echo" | "printf" as how, text, "|", "smallgpt", *arguments]:
            assert typed(f"{text}\n" if how == "echo" else text.replace("\\n", "\n"), arguments) == 0, line
        case ["torchrun", *_] if "-m" in words:  # one process of it: tests/scale_out starts several
            run_line(shlex.join(words[words.index("-m") + 1 :]))
        case ["python" | ".venv/bin/python", script, *_] if script.endswith(".py"):
            path = str(ROOT / script)
            subprocess.run([sys.executable, path, "--help"], check=True, capture_output=True, timeout=60)
        case [path, *_] if path.startswith("runs/"):  # a listing of what is there
            assert list(Path().glob(path)), line
            for name in re.findall(r"[a-z]+\.(?:safetensors|json)\b", line):
                assert list(Path().glob(f"{path}/{name}")), name
        case _:
            pytest.fail(f"no way is known to run {line!r}; teach this test, or change the page")


@contextmanager
def hub_with_gpt2() -> Iterator[None]:
    """A hub that has a model of GPT-2's name, but not of its size."""
    as_openai(Path("gpt2-of-the-hub"))
    files = {path.name: path.read_bytes() for path in Path("gpt2-of-the-hub").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        hub = Hub("openai-community/gpt2", files, "models")
        with hub_of_this_process(hub, Path("home"), patch):
            yield


def started_and_stopped(words: list[str]) -> None:
    """Run a server until it says that it is ready."""
    command = [sys.executable, "-m", "smallgpt", *words]
    environment = {**os.environ, "SMALLGPT_API_KEY": "a key"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving ")
        process.terminate()
    assert process.returncode == 143


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer without a GPU: the Triton kernels do not run, not even slowly."""
    monkeypatch.setattr("smallgpt.kernels.launching.INTERPRETING", False)


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what the pages take for granted: somebody's letters and notes, and a hub that answers."""
    pick = random.Random(0).choice
    letters = [
        f"Dear {pick(['Ann', 'Bob'])}, I have {n} hats and a {pick(['dog', 'cat'])}. Yours, Tom." for n in range(80)
    ]
    (tmp_path / "letters.txt").write_text("\n<|endoftext|>\n".join(letters))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "monday.txt").write_text("It rained all day, and the dog slept. " * 40)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text("\n".join(f'{{"text": "{letter}"}}' for letter in letters))
    monkeypatch.setattr("smallgpt.infrastructure.corpora.hub.TINYSTORIES", str(tmp_path / "hub"))
    monkeypatch.setenv("SMALLGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work_in_their_order(page: str, newcomer: Path) -> None:
    for block in blocks(page):
        if block.language in ("", "sh", "bash", "console"):
            for line in block.text.splitlines():
                run_line(line.removeprefix("$ "))
        elif block.text.startswith("# makes "):  # files that the commands below it take
            exec(compile(block.text, f"{page}:{block.line}", "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))])
def test_the_python_of_a_page_works(page: str, newcomer: Path) -> None:
    """Its blocks in their order, in one program; runs/demo is a small model."""
    write_model(newcomer / "runs" / "demo")
    program: dict[str, object] = {}
    for block in blocks(page):
        text, where = block.text, f"{page}:{block.line}"
        if block.language != "python":
            continue
        for folder, module in EXPORTED.items():
            if folder in text and not (newcomer / folder).exists():
                (newcomer / folder).mkdir(parents=True)
                module.write(untrained(block_size=64), newcomer / folder)
        if DOCUMENTED_SERVER not in text:
            exec(compile(text, where, "exec"), program)
            continue
        with model_server(name="demo") as server:
            exec(compile(text.replace(DOCUMENTED_SERVER, server.url), where, "exec"), program)


def test_the_pages_are_found_and_every_block_is_of_a_kind_that_is_tested() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found} <= {"", "sh", "bash", "console", "python", "text", "toml"}
    lines = [line for block in found for line in block.text.splitlines()]
    for command in COMMANDS:
        assert [line for line in lines if line.startswith(f"smallgpt {command}")], command
    assert sum(block.language == "python" for block in found) >= 2
    assert [line for line in lines if line.startswith("make ")]


def test_a_line_that_nobody_knows_fails(newcomer: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="no way is known"):
        run_line("curl https://example.org | sh")
    with pytest.raises(AssertionError):
        run_line("make coffee")
    with pytest.raises(AssertionError):
        run_line("smallgpt brew --strong")


def test_commands_are_shortened_and_never_lengthened() -> None:
    assert shortened(["evaluate", "runs/a"]) == ["evaluate", "runs/a"]
    short = shortened(shlex.split("train demo --training.max-steps=200 --model.n-layer 6"))
    assert short[short.index("--training.max-steps") + 1] == "4"
    assert short[short.index("--model.n-layer") + 1] == "1"
    assert "--training.max-minutes" not in short
    resumed = shortened(["train", "--resume", "runs/a", "--training.max-steps", "300"])
    assert resumed[:5] == ["train", "--resume", "runs/a", "--training.max-steps", "6"]
    assert not SMALL_MODEL.keys() & set(resumed)


# --- commands in running text, in messages, and in the help


def parsed(command: str) -> None:
    """Raises when the command line would refuse these words; placeholders in capitals stand for anything."""
    words = shlex.split(command, comments=True)[1:]
    app = _application(words[0] if words else "--help")
    if words and words[0] in COMMANDS:
        app.parse_args(words, print_error=False, exit_on_error=False)
    else:
        assert words in ([], ["--help"], ["COMMAND", "--help"]), command


def commands_in(text: str) -> list[str]:
    """`smallgpt ...` between backticks."""
    return [" ".join(found.split()) for found in re.findall(r"`(smallgpt [^`]+)`", text)]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_in_running_text_are_commands(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for command in commands_in(text):
        parsed(command.replace("...", ""))
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "src"))
)
def test_commands_in_messages_are_commands(path: Path) -> None:
    # neighbouring string literals are one, and what is put in braces stands for a word
    text = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
    for command in commands_in(text):
        if len(command.split()) > 2:  # not the bare name of a command
            parsed(re.sub(r"\{[^}]*\}", "x", command))


HELPED = [[], *([name] for name in COMMANDS), ["prepare", "demo"], ["prepare", "hub"], ["prepare", "text"]]
HELPED += [["prepare", "tinystories"], ["prepare", "bins"], ["prepare", "tokenizers"], ["prepare", "card"]]
HELPED += [["prepare", "verify"], ["kernels", "list"]]
HELPED += [["bench", "train"], ["bench", "generate"], ["bench", "scaling"]]
HELPED += [["kernels", "check"], ["kernels", "compile"]]
HELPED += [["bench", "attention"], ["bench", "layer-norm"], ["bench", "cross-entropy"]]


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_examples_in_the_help_are_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    examples = [
        line.split(" | ")[-1].strip() for line in text.splitlines() if re.match(r"^  (echo .* \| )?smallgpt ", line)
    ]
    assert examples
    for example in examples:
        parsed(example)


# --- presets


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an own BPE of the stories in ../shared, or of the demo's where they are not."""
    folder = tmp_path_factory.mktemp("stories") / "data"
    shared = ROOT.parent / "shared" / "data" / "tinystories"
    words = ["hub", str(shared), "--tokenizer", "bpe"] if shared.is_dir() else ["demo"]
    with pytest.raises(SystemExit) as left:
        main(["prepare", *words, "--vocab-size", "2048", "--out", str(folder)])
    assert left.value.code == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("preset", preset_names())
def test_a_shipped_preset_trains(preset: str, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", preset, "--data", str(stories), "--training.max-steps", "2", "--schedule.warmup", "1"]
    words += ["--evaluation.max-tokens", "2000", "--evaluation.sample-tokens", "5"]
    if preset not in ("demo", "tinystories-cpu"):  # those as they stand; the others are too large for any test
        words += ["--model.n-layer=1", "--model.n-embd=48", "--model.n-head=4", "--model.block-size=64"]
        words += ["--model.vocab-size=2048", "--training.batch-size=4", "--training.micro-batch=2"]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert (tmp_path / "runs" / preset / "report.html").exists()
    assert (tmp_path / "runs" / preset / "checkpoints" / "step-00000002" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_demo_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` with less time: the corpus is made, and the length is planned to fit the minutes."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["train", "demo", "--training.max-minutes", "0.5", "--training.threads", "1"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    for words in (
        "preparing data/demo",
        "plan     ",
        "compare  uniform",
        "report   runs/demo",
    ):
        assert words in out
    assert re.search(r"is below the (uniform|unigram|bigram|trigram) line", out), "which one depends on the machine"
    shown: Callable[[str], bool] = lambda command: f"  smallgpt {command} runs/demo" in out  # noqa: E731
    assert all(map(shown, ("generate", "evaluate", "doctor")))
