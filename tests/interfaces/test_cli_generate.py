"""`smallgpt generate`, from the words typed to what is printed."""

import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from smallgpt.application.engine import Engine
from smallgpt.application.streams import Stream, Token
from smallgpt.interfaces.continuing import AT_ONCE
from tests.interfaces.conftest import Run
from tests.interfaces.pseudo_terminal import CTRL_C, Terminal
from tests.interfaces.written_model import BLOCK_SIZE, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("endless"), ends=False))


def test_a_seed_repeats_and_sample_i_uses_the_next_one(run: Run, model: str) -> None:
    words = ["generate", model, "--prompt", "abc", "--max-new-tokens", "40", "--json"]
    first = json.loads(run(*words, "--seed", "5", "--num-samples", "2")[1])
    assert json.loads(run(*words, "--seed", "5", "--num-samples", "2")[1]) == first
    assert json.loads(run(*words, "--seed", "6")[1]) == first[1:]
    assert first[0]["text"] != first[1]["text"]
    last = json.loads(run(*words, f"--seed={2**63 - 2}", "--num-samples=2")[1])[1]
    assert last["seed"] == 2**63 - 1
    assert json.loads(run(*words, f"--seed={2**63 - 1}")[1]) == [last]
    again = json.loads(run(*words)[1])[0]["seed"]
    assert again != json.loads(run(*words)[1])[0]["seed"]


def test_what_is_printed_is_what_json_reports_in_order(run: Run, model: str) -> None:
    words = ["generate", model, "--prompt", "abc", "--max-new-tokens=40", "--seed=3"]
    result = json.loads(run(*words, "--json")[1])[0]
    assert set(result) == {"prompt", "text", "tokens", "end", "seed"}
    assert result["text"].startswith("abc")
    assert run(*words) == (0, result["text"] + "\n", "")
    many = AT_ONCE + 3  # more than are continued at once
    results = json.loads(run(*words, "--json", f"--num-samples={many}")[1])
    assert len({each["tokens"] for each in results}) > 2, "they end at different times"
    printed = "".join(f"--- {at} of {many}\n{each['text']}\n" for at, each in enumerate(results, start=1))
    assert run(*words, f"--num-samples={many}")[1] == printed


def test_prompts_from_a_file_are_continued_together_each_as_if_alone(run: Run, model: str, tmp_path: Path) -> None:
    prompts = ["a", "abc dé", "b" * (BLOCK_SIZE + 5)]
    file = tmp_path / "prompts.txt"
    file.write_bytes("\r\n".join([prompts[0], "", *prompts[1:], "  "]).encode("utf-8-sig"))
    common = ["--max-new-tokens=30", "--seed=2", "--num-samples=2", "--json"]
    code, out, _ = run("generate", model, "--prompts-file", str(file), *common)
    alone = [json.loads(run("generate", model, "--prompt", prompt, *common)[1]) for prompt in prompts]
    assert code == 0
    assert json.loads(out) == [sample for samples in alone for sample in samples]


def test_guesses_change_no_text_and_are_counted(run: Run, model: str) -> None:
    words = [
        "generate",
        model,
        "--prompt",
        "abab",
        "--max-new-tokens=120",
        "--temperature=0",
        "--seed=3",
        "--past-block=refill",
    ]
    plain = json.loads(run(*words, "--json")[1])[0]
    guessed = json.loads(run(*words, "--json", "--lookup=4")[1])[0]
    right, guesses = guessed["right_guesses"], guessed["guesses"]
    assert 0 < right < guesses
    assert guessed == {**plain, "guesses": guesses, "right_guesses": right}
    code, out, err = run(*words, "--lookup=4")
    assert (code, out) == (0, plain["text"] + "\n")
    share = f"{right / plain['tokens']:.0%} of {plain['tokens']} tokens"
    assert err == f"lookup  {right} of {guesses} guesses were right ({right / guesses:.0%}): {share}\n"


def test_a_stop_text_is_not_printed(run: Run, model: str) -> None:
    words = ["generate", model, "--prompt", "abc", "--max-new-tokens=90", "--min-new-tokens=90", "--seed=3"]
    whole = json.loads(run(*words, "--json")[1])[0]["text"]
    assert "." in whole
    code, out, _ = run(*words, "--stop", "nowhere", ".", "--stop", "nor here")
    assert (code, out) == (0, whole[: whole.index(".")] + "\n")
    stopped = json.loads(run(*words, "--stop", ".", "--json")[1])[0]
    assert (stopped["end"], stopped["text"] + "\n") == ("stop", out)


def test_log_probabilities_are_a_table_or_json(run: Run, model: str) -> None:
    words = ["generate", model, "--prompt", "abc", "--max-new-tokens=5", "--min-new-tokens=5", "--seed=3"]
    _, out, _ = run(*words, "--logprobs=2", "--json")
    tokens = json.loads(out)[0]["logprobs"]
    assert len(tokens) == 5
    assert all(len(token["top"]) == 2 and token["top"][0]["logprob"] >= token["logprob"] for token in tokens)
    text, _, table = run(*words, "--logprobs=2")[1].partition("\n" + " " * 9)
    assert text == json.loads(out)[0]["text"]
    rows = [line for line in table.splitlines() if "%" in line]
    assert len(rows) == 5
    for token, row in zip(tokens, rows, strict=True):
        assert f" {json.dumps(token['token'], ensure_ascii=False)} " in row
        assert f" {token['logprob']:.4f} " in row
    assert "likeliest" not in run(*words, "--logprobs=0")[1]


def test_the_speed_stands_on_stderr(run: Run, model: str) -> None:
    words = ["generate", model, "--max-new-tokens=30", "--seed=1", "--num-samples=3", "--json"]
    _, out, err = run(*words, "--speed")
    tokens = sum(sample["tokens"] for sample in json.loads(out))
    line = rf"speed  first token \d+ ms, [\d,]+ tokens/s \({tokens} tokens in \d+\.\d\d s\)\n"
    assert re.fullmatch(line, err)
    assert run(*words)[1:] == (out, "")


def test_past_the_block_there_are_two_ways_to_go_on(run: Run, model: str) -> None:
    words = ["generate", model, "--prompt=abc", "--max-new-tokens=90", "--min-new-tokens=90", "--seed=1"]
    slid, refilled = run(*words)[1], run(*words, "--past-block=refill")[1]
    assert slid == run(*words, "--past-block=slide")[1]
    assert slid != refilled
    assert slid[:10] == refilled[:10]


def test_padding_is_never_chosen(run: Run, model: str) -> None:
    # 127 of the 384 rows are padding; at this temperature every row is about as likely as any other
    words = ["generate", model, "--max-new-tokens=200", "--temperature=1e6", "--num-samples=5", "--json", "--seed=0"]
    code, out, _ = run(*words)
    assert code == 0
    assert sum(sample["tokens"] for sample in json.loads(out)) > 300


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b"Once\n", "Once"),
        (b"\xef\xbb\xbfOnce\r\nmore\r\n", "Once\nmore"),
        ("Once".encode("utf-16"), "Once"),
        (b"Once\n\n", "Once\n"),
        (b"", ""),
    ],
)
def test_prompts_come_from_files_and_standard_input(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, prompt: str
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    for name in (str(file), "-"):
        code, out, _ = run("generate", model, "--prompt-file", name, "--max-new-tokens", "2", "--json")
        assert code == 0
        assert json.loads(out)[0]["prompt"] == prompt


def test_files_that_are_no_prompt_are_refused(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "blank").write_text("\n \n")
    for words, message in (
        (["--prompt-file", str(tmp_path / "latin")], "byte 3 is not UTF-8"),
        (["--prompt-file", str(tmp_path / "nope")], "nope: No such file or directory"),
        (["--prompts-file", str(tmp_path / "latin")], "byte 3 is not UTF-8"),
        (["--prompts-file", str(tmp_path / "blank")], "has no line with a prompt"),
    ):
        code, out, err = run("generate", model, *words)
        assert (code, out) == (3, "")
        assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prompts-file a --prompt-file b", "give --prompt-file or --prompts-file, not both"),
        ("--min-new-tokens 9 --max-new-tokens 8", "min-new-tokens is 9; it must be between 0 and max-new-tokens, 8"),
        ("--stop=", "a stop text is empty"),
        ("--logprobs=-1", "logprobs is -1; it must be 0 or more"),
        ("--lookup=-1", "lookup is -1; it must be 0 or more"),
        ("--seed=-1", "seed is -1; it must be between 0 and 2^63 - 1"),
        (f"--seed={2**63}", "it must be between 0 and 2^63 - 1"),
        (f"--seed={2**63 - 2} --num-samples=3", "between 0 and 2^63 - 3, for 3 samples with seeds from there on"),
        ("--past-block=jump", "--past-block"),
        ("--weights=int3", "--weights"),
        ("--kernels=cuda", "--kernels"),
    ],
)
def test_bad_values_are_refused_before_a_model_is_looked_for(run: Run, words: str, message: str) -> None:
    code, out, err = run("generate", "no/model", *words.split())
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_kernels_that_cannot_run_are_refused_in_the_command_s_own_flags(
    run: Run, model: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smallgpt.kernels.launching.INTERPRETING", False)
    code, out, err = run(command, model, "--kernels=triton", "--device=cpu")
    assert (code, out) == (6, "")
    why, remedy = err.splitlines()
    assert why.startswith("smallgpt: attention: triton does not run on cpu: the Triton kernels need a GPU, and")
    assert "TRITON_INTERPRET=1 in the environment" in why
    assert remedy == "Use --kernels auto, or another --device."


def test_a_tokenizer_is_needed_beside_the_model(run: Run, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    code, out, err = run("generate", str(folder))
    assert (code, out) == (4, "")
    assert "has no tokenizer.json" in err


@pytest.fixture
def ctrl_c_at_step_9(monkeypatch: pytest.MonkeyPatch) -> None:
    step, count = Engine.step, iter(range(99999))

    def pressed(engine: Engine) -> list[tuple[Stream, list[Token]]]:
        if next(count) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(Engine, "step", pressed)


@pytest.mark.usefixtures("ctrl_c_at_step_9")
def test_ctrl_c_prints_what_is_there_of_every_text_that_has_begun(run: Run, endless: str) -> None:
    words = ["generate", endless, "--prompt=abc", "--seed=3", f"--num-samples={AT_ONCE + 1}", "--max-new-tokens=5000"]
    code, out, err = run(*words)
    assert (code, err) == (130, "")
    texts = [text.removesuffix("\n") for text in re.split(r"--- \d+ of \d+\n", out)[1:]]
    assert len(texts) == AT_ONCE, "the last one had not begun"
    assert all(text.startswith("abc") and 3 + 5 <= len(text) <= 3 + 9 for text in texts)


@pytest.mark.usefixtures("ctrl_c_at_step_9")
def test_ctrl_c_leaves_whole_json(run: Run, endless: str) -> None:
    code, out, _ = run("generate", endless, "--num-samples=2", "--max-new-tokens=5000", "--json", "--seed=3")
    assert code == 130
    assert [(sample["tokens"], sample["end"]) for sample in json.loads(out)] == [(9, "interrupted")] * 2


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_ends_the_text_and_control_characters_do_nothing(endless: str, tmp_path: Path) -> None:
    words = ["generate", endless, "--prompt=abc\033[2J", "--max-new-tokens=100000", "--seed=1", "--temperature=3"]
    with Terminal(*words, term="xterm", cwd=tmp_path) as terminal:
        terminal.wait_for("abc\ufffd[2J")
        terminal.wait_for_more(20)
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    assert "Traceback" not in terminal.screen
    assert terminal.screen.endswith("\n")
    assert "\033" not in terminal.screen
