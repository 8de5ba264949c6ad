"""`smallgpt chat`: a story written in turns, in a terminal or from a pipe."""

import io
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from smallgpt.domain.errors import SmallGPTError
from smallgpt.interfaces.cli.errors import describe
from smallgpt.interfaces.cli.flags import PlaceOf, Whole
from smallgpt.interfaces.cli.terminal import BOLD, PLAIN, harmless, is_capable, is_terminal
from smallgpt.interfaces.cli.text_flags import EngineFlags, TextFlags, first_seed

if TYPE_CHECKING:
    from smallgpt.interfaces.chatting import Turn
    from smallgpt.interfaces.continuing import Continuer, Settings

WELCOME = "Write a beginning; the model goes on. /help lists the commands, Ctrl-D leaves."
HOW_TO_LEAVE = "Ctrl-D or /quit leaves."
PROMPT = "> "


def chat(
    run: PlaceOf,
    /,
    *,
    text: TextFlags | None = None,
    seed: Whole | None = None,
    engine: EngineFlags | None = None,
) -> int:
    """Write a story in turns: what you type is added to it, and the model goes on.

    /help lists the commands: settings, retry, undo, save and more.
    Ctrl-C stops the model's text and keeps what came; Ctrl-D leaves.
    Without a terminal each line of standard input is a turn, and only the model's text is printed.

    Try:
      smallgpt chat runs/demo
      smallgpt chat runs/demo --temperature 0.5 --max-new-tokens 40 --stop "."
      echo "Once upon a time" | smallgpt chat runs/demo --seed 1

    Args:
        run: Run, checkpoint or exported folder; a run or checkpoint also by its URL.
        seed: Makes the session repeatable: the first text uses it, the next seed + 1. Another one every time when not given.
    """
    text, engine = text or TextFlags(), engine or EngineFlags()
    settings, seed = text.settings(), first_seed(seed)
    opened = engine.open(run)

    from smallgpt.interfaces.chatting import Chat
    from smallgpt.interfaces.continuing import Continuer

    screen = _Terminal(Continuer(opened, past_block=engine.past_block, n_draft=engine.lookup))
    session = Chat(settings, seed, screen)
    screen.hint(WELCOME)
    while screen.ended_by is None:
        try:
            line = screen.read()
            if line is None or not session.do(line):
                return 0
        except KeyboardInterrupt:
            screen.cleared()
        except BrokenPipeError:
            raise
        except (SmallGPTError, OSError) as error:
            screen.say("\n".join(describe(error)[0]))
    return 128 + screen.ended_by


class _Terminal:
    """The story on stdout, and everything else on stderr; see chatting.Screen. Plain lines where there is no terminal."""

    def __init__(self, continuer: "Continuer") -> None:
        self.continuer = continuer
        self.ended_by: int | None = None
        """The signal, other than Ctrl-C's, that stopped a text."""
        self.has_person = is_terminal(sys.stdin)
        self.readline = None
        self.bold, self.plain = "", ""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        if is_capable():
            import readline  # gives input() a line editor and a history; even its start may write control sequences

            self.readline = readline
            self.bold, self.plain = BOLD, PLAIN

    def read(self) -> str | None:
        """The next line, or None at the end. Raises KeyboardInterrupt."""
        if self.readline is not None:
            try:
                return input(PROMPT)
            except EOFError:
                print()
                return None
        if self.has_person:
            print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""  # a process may be started without one
        if not line and self.has_person:
            print(file=sys.stderr)
        return line or None

    def cleared(self) -> None:
        """Ctrl-C took the line away; where nothing was typed, say how to leave."""
        print(file=sys.stderr)
        if self.readline is None or not self.readline.get_line_buffer():
            self.hint(HOW_TO_LEAVE)

    def tell(self, story: str, seed: int, settings: "Settings") -> str:
        from smallgpt.interfaces.continuing import Continuation
        from smallgpt.interfaces.signals import stop_signals

        text = Continuation(story, seed)
        print(self.bold, end="")
        try:
            with stop_signals() as stop, closing(self.continuer.run([text], settings, stop)) as pieces:
                for _, piece in pieces:
                    print(harmless(piece), end="", flush=True)
        except KeyboardInterrupt:  # pressed again at once; what came is kept all the same
            pass
        finally:
            print(self.plain, flush=True)
        if stop.signal not in (None, signal.SIGINT):
            self.ended_by = stop.signal
        if text.end == "end-of-text":
            self.hint("(the story is at its end; write on, /retry, or /new)")
        return text.text

    def show(self, turns: "Sequence[Turn]") -> None:
        for turn in turns:
            print(f"{harmless(turn.typed)}{self.bold}{harmless(turn.told)}{self.plain}", end="")
        print(flush=True)

    def say(self, words: str) -> None:
        print(harmless(words), file=sys.stderr, flush=True)

    def hint(self, words: str) -> None:
        """Say it to a person; a pipe does not need it."""
        if self.has_person:
            self.say(words)
