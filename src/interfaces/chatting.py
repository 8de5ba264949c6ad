"""A story that a person and a model write in turns, and the commands that steer it. Knows no terminal and no model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from smallgpt.domain.errors import ConfigError
from smallgpt.domain.sampling import Sampling
from smallgpt.infrastructure.files import write_atomically
from smallgpt.interfaces.cli.errors import did_you_mean
from smallgpt.interfaces.continuing import Settings

ATTACHED = ",.;:!?)]}…"  # what follows a word without a space
WHOLE = ("top-k", "max-new-tokens", "min-new-tokens")
OPTIONAL = ("top-k", "top-p", "min-p")
SETTINGS = {
    "temperature": "X        below 1 bolder in what is likely, above 1 more varied; 0: the likeliest token",
    "top-k": "N              choose among the N likeliest tokens; or off",
    "top-p": "X              choose among the likeliest tokens that together reach this probability; or off",
    "min-p": "X              choose among tokens at least X times as likely as the likeliest; or off",
    "repetition-penalty": "X above 1 makes tokens that occurred less likely",
    "max-new-tokens": "N     how far the model goes on at most",
    "min-new-tokens": "N     the story's end is not chosen before so many tokens",
}
COMMANDS = {
    "help": "                this list",
    "set": "                 list all settings",
    **SETTINGS,
    "seed": "N               the same seed, lines and settings give the same story again",
    "stop": "TEXT            end the model's text before TEXT (\\n is a line end); without TEXT, before none",
    "retry": "               another continuation of your last line",
    "undo": "                take back your last line and what followed it",
    "new": "                 begin a new story",
    "show": "                the story so far",
    "save": "FILE            write the story to a new file; /save! FILE replaces one",
    "quit": "                leave, as Ctrl-D does",
}
HELP = """\
What you type is added to the story, and the model goes on from there.
Enter alone lets it go on. Ctrl-C stops its text and keeps what came.
"""


@dataclass(frozen=True)
class Turn:
    """What a person added to the story, and what the model told after it."""

    typed: str
    """With the space before it that it needed."""
    told: str


class Screen(Protocol):
    """Where a chat is shown."""

    def tell(self, story: str, seed: int, settings: Settings) -> str:
        """Show how the story goes on, and give it: what came so far when somebody stops it."""

    def show(self, turns: Sequence[Turn]) -> None:
        """Show the story."""

    def say(self, words: str) -> None:
        """Show what is no part of the story."""


class Chat:
    """The session: a story, settings, and the seed of the next text, one more after each."""

    def __init__(self, settings: Settings, seed: int, screen: Screen) -> None:
        self.settings, self.seed, self.screen = settings, seed, screen
        self.turns: list[Turn] = []

    def do(self, line: str) -> bool:
        """What a line asks for; False when the session is to end.

        Raises ConfigError for a command that cannot be obeyed, and OSError; then everything is as it was.
        """
        line = line.strip()
        if not line.startswith("/"):
            story = _text(self.turns)
            typed = _attached(story, line)
            self.turns.append(Turn(typed, self._tell(story + typed)))
            return True
        name, _, rest = line[1:].partition(" ")
        if name == "quit":
            return False
        self._obey(name, rest.strip())
        return True

    def _obey(self, name: str, rest: str) -> None:
        match name:
            case "help":
                self.screen.say(HELP + "\n".join(f"  /{name} {words}" for name, words in COMMANDS.items()))
            case "set":
                self.screen.say(self._listed())
            case "seed":
                self._set_seed(rest)
            case "stop":
                stops = (rest.replace("\\n", "\n"),) if rest else ()
                self.settings = replace(self.settings, stops=stops)
            case "retry":
                self._retry()
            case "undo":
                self._undo()
            case "new":
                self.turns = []
            case "show":
                self.screen.show(self.turns)
            case "save" | "save!":
                self._save(rest, replaces=name == "save!")
            case _ if name in SETTINGS:
                self.settings = _changed(self.settings, name, rest)
            case _:
                raise ConfigError(f"unknown command '/{name}'{_hint(name)}\n/help lists them all")

    def _tell(self, story: str) -> str:
        told = self.screen.tell(story, self.seed, self.settings)
        self.seed += 1
        return told

    def _retry(self) -> None:
        last = self._last("retry")
        self.turns[-1] = replace(last, told=self._tell(_text(self.turns[:-1]) + last.typed))

    def _undo(self) -> None:
        self._last("undo")
        self.turns.pop()
        end = _text(self.turns)[-60:]
        self.screen.say(f"the story ends now: …{end}" if end else "the story is empty now")

    def _last(self, command: str) -> Turn:
        if not self.turns:
            raise ConfigError(f"there is nothing to {command}; write a beginning first")
        return self.turns[-1]

    def _set_seed(self, word: str) -> None:
        if not word.isdecimal() or int(word) >= 2**62:
            raise ConfigError(f"seed is {word!r}; it must be a whole number from 0 to 2^62")
        self.seed = int(word)

    def _save(self, name: str, *, replaces: bool) -> None:
        if not name:
            raise ConfigError("a file name is missing: /save FILE")
        self._last("save")
        path = Path(name).expanduser()
        if path.exists() and not replaces:
            raise ConfigError(f"{path} is there; /save! {name} replaces it")
        try:
            write_atomically(path, _text(self.turns) + "\n")
        except OSError as error:
            error.filename = str(path)  # and not the file's name while it is written
            raise
        self.screen.say(f"saved as {path}")

    def _listed(self) -> str:
        settings = self.settings
        stops = " ".join(map(repr, settings.stops)) or "off"
        values = {name: _value(settings, name) for name in SETTINGS} | {"seed": str(self.seed), "stop": stops}
        return "\n".join(f"  {name:<19}{value}" for name, value in values.items())


def _hint(name: str) -> str:
    """The command that a wrong one begins or is spelt like."""
    begun = [known for known in COMMANDS if name and known.startswith(name)]
    return did_you_mean(begun[0] if len(begun) == 1 else name, COMMANDS, prefix="/")


def _text(turns: Sequence[Turn]) -> str:
    return "".join(turn.typed + turn.told for turn in turns)


def _attached(story: str, typed: str) -> str:
    """typed, with a space before it where words meet."""
    apart = story and not story[-1].isspace() and typed and typed[0] not in ATTACHED
    return f" {typed}" if apart else typed


def _value(settings: Settings, name: str) -> str:
    field = name.replace("-", "_")
    value = getattr(settings if hasattr(settings, field) else settings.sampling, field)
    return "off" if value is None else str(value)


def _changed(settings: Settings, name: str, word: str) -> Settings:
    """The settings with one of another value. Raises ConfigError."""
    kind, wanted = (int, "a whole number") if name in WHOLE else (float, "a number")
    try:
        value = None if word == "off" and name in OPTIONAL else kind(word)
    except ValueError:
        raise ConfigError(f"{name} is {word!r}; it must be {wanted}: /{name} {SETTINGS[name].split()[0]}") from None
    changes = {name.replace("-", "_"): value}
    if not changes.keys() <= {field.name for field in fields(Sampling)}:
        return replace(settings, **changes)  # type: ignore[arg-type]
    return replace(settings, sampling=replace(settings.sampling, **changes))  # type: ignore[arg-type]
