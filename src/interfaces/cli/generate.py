"""`smallgpt generate`: a model's continuations of prompts, as they come."""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.interfaces.cli.flags import Json, PlaceOf, Switch, Whole
from smallgpt.interfaces.cli.terminal import harmless
from smallgpt.interfaces.cli.text_flags import EngineFlags, TextFlags, first_seed

if TYPE_CHECKING:
    from rich.table import Table

    from smallgpt.infrastructure.tokenizers import AnyTokenizer
    from smallgpt.interfaces.continuing import Continuation

File = Annotated[Path | None, Parameter(allow_leading_hyphen=True)]


def generate(
    run: PlaceOf,
    /,
    *,
    prompt: str | None = None,
    prompt_file: File = None,
    prompts_file: File = None,
    num_samples: Whole = 1,
    seed: Whole | None = None,
    text: TextFlags | None = None,
    logprobs: Whole | None = None,
    engine: EngineFlags | None = None,
    speed: Switch = False,
    json: Json = False,
) -> int:
    """Continue a prompt, up to the end of the text.

    Several texts are continued together and printed one after the other.
    Ctrl-C ends them as they are.

    Try:
      smallgpt generate runs/demo --prompt "Once upon a time"
      smallgpt generate runs/demo --prompt "Tom had a kite." --temperature 0
      smallgpt generate runs/demo --num-samples 3 --seed 1 --top-p 0.95
      smallgpt generate runs/demo --prompt "One day" --stop "." --logprobs 3
      echo "One day" | smallgpt generate runs/demo --prompt-file - --json

    Args:
        run: Run, checkpoint or exported folder; a run or checkpoint also by its URL.
        prompt: Text to continue; without one the model starts a text of its own.
        prompt_file: File with the prompt, or - for standard input. One line end at its end is left out.
        prompts_file: File with a prompt in each line, or - for standard input; blank lines are left out.
        num_samples: Continuations of each prompt.
        seed: Makes the text repeatable; sample i uses seed + i. Another one every time when not given.
        logprobs: Show each token's log-probability, and this many of the likeliest.
        speed: Print tokens/s and the time to the first token on stderr at the end.
        json: Print a JSON list instead: prompt, text, tokens, end, seed, logprobs.
    """
    text, engine = text or TextFlags(), engine or EngineFlags()
    prompts = _prompts(prompt, prompt_file, prompts_file)
    if num_samples < 1:
        raise ConfigError(f"num-samples is {num_samples}; it must be 1 or more")
    seed = first_seed(seed, num_samples)
    settings = text.settings(logprobs)
    opened = engine.open(run)

    from smallgpt.interfaces.continuing import AT_ONCE, Continuation, Continuer
    from smallgpt.interfaces.signals import stop_signals

    texts = [Continuation(each, seed + sample) for each in prompts for sample in range(num_samples)]
    n_streams = min(AT_ONCE, len(texts))
    continuer = Continuer(opened, n_streams, past_block=engine.past_block, n_draft=engine.lookup)
    page = None if json else _Page(texts, continuer.tokenizer)
    clock = _Clock()
    with stop_signals() as stop, closing(continuer.run(texts, settings, stop)) as pieces:
        for continuation, piece in pieces:
            clock.note_first()
            if page is not None:
                page.show(continuation, piece)
    begun = [each for each in texts if each.end]
    if page is None:
        print(dumps([each.as_dict(continuer.tokenizer) for each in begun], indent=2))
    else:
        page.end()
        if engine.lookup:
            print(_guesses(begun), file=sys.stderr)
    if speed:
        print(clock.in_words(begun), file=sys.stderr)
    return stop.exit_code if stop() else 0


class _Page:
    """Prints texts one after the other: the first that has not ended as it comes, the next as soon as it is its turn."""

    def __init__(self, texts: "Sequence[Continuation]", tokenizer: "AnyTokenizer") -> None:
        self.texts, self.tokenizer = texts, tokenizer
        self.turn, self.is_open = 0, False
        self._open()

    def show(self, text: "Continuation", piece: str) -> None:
        """`text` has grown by `piece`, or has ended."""
        if text is not self.texts[self.turn]:
            return
        if self.is_open:
            _print(piece)
        else:
            self._open()
        while self.texts[self.turn].end:
            self._close()
            self.turn += 1
            if self.turn == len(self.texts):
                return
            if self.texts[self.turn].tokens or self.texts[self.turn].end:  # others have not begun, and may never
                self._open()

    def _open(self) -> None:
        text = self.texts[self.turn]
        _print(f"--- {self.turn + 1} of {len(self.texts)}\n" if len(self.texts) > 1 else "")
        _print(text.prompt + text.text)
        self.is_open = True

    def _close(self) -> None:
        self.end()
        tokens = self.texts[self.turn].tokens
        if any(token.logprob is not None for token in tokens):
            from rich.console import Console

            table = _table(self.texts[self.turn], self.tokenizer)
            Console(width=None if sys.stdout.isatty() else 120).print(table)

    def end(self) -> None:
        """End the line of a text that was interrupted before it grew."""
        if self.is_open:
            _print("\n")
            self.is_open = False


class _Clock:
    """Times a generation, from now on."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first: float | None = None

    def note_first(self) -> None:
        """A token is there."""
        if self.first is None:
            self.first = time.perf_counter() - self.start

    def in_words(self, texts: "Sequence[Continuation]") -> str:
        seconds, tokens = time.perf_counter() - self.start, sum(len(text.tokens) for text in texts)
        first = "none" if self.first is None else f"{1000 * self.first:.0f} ms"
        return f"speed  first token {first}, {tokens / seconds:,.0f} tokens/s ({tokens:,} tokens in {seconds:.2f} s)"


def _guesses(texts: "Sequence[Continuation]") -> str:
    right, tokens = sum(text.right_guesses for text in texts), sum(len(text.tokens) for text in texts)
    guesses = sum(text.guesses or 0 for text in texts)
    accepted = f"{right:,} of {guesses:,} guesses were right ({right / max(1, guesses):.0%})"
    return f"lookup  {accepted}: {right / max(1, tokens):.0%} of {tokens:,} tokens"


def _table(text: "Continuation", tokenizer: "AnyTokenizer") -> "Table":
    """Each token with its log-probability and share, and the likeliest at its place."""
    from math import exp

    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    def shown(id: int) -> str:
        return dumps(tokenizer.decode([id]), ensure_ascii=False)

    table = Table("token", "log-probability", "share", box=SIMPLE_HEAD)
    if any(token.alternatives for token in text.tokens):
        table.add_column("likeliest")
    for token in text.tokens:
        own = token.logprob or 0.0
        likeliest = "  ".join(f"{shown(id)} {exp(logprob):.1%}" for id, logprob in token.alternatives)
        cells = [shown(token.id), f"{own:.4f}", f"{exp(own):.1%}", likeliest][: len(table.columns)]
        table.add_row(*(Text(harmless(cell)) for cell in cells))
    return table


def _print(piece: str) -> None:
    print(harmless(piece), end="", flush=True)


def _prompts(prompt: str | None, prompt_file: Path | None, prompts_file: Path | None) -> list[str]:
    given = {"--prompt": prompt, "--prompt-file": prompt_file, "--prompts-file": prompts_file}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(f"give {' or '.join(names)}, not both")
    if prompt_file is not None:
        return [_read(prompt_file).removesuffix("\n")]
    if prompts_file is None:
        return [prompt or ""]
    prompts = [line for line in _read(prompts_file).split("\n") if line.strip()]
    if not prompts:
        raise DataError(f"prompts file {prompts_file} has no line with a prompt; write one a line")
    return prompts


def _read(file: Path) -> str:
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt file {file}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    return text.replace("\r\n", "\n")
