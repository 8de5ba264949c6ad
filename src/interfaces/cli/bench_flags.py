"""Flags that the `smallgpt bench` commands share, and what they print around their figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import CoercionError, Parameter, Token
from rich.console import Console

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.flags import Json, Whole, whole_number

if TYPE_CHECKING:
    from smallgpt.domain.config import GPTConfig


def sizes(kind: type[Any], tokens: Sequence[Token]) -> tuple[int, ...]:
    """Several whole numbers of at least 1."""
    return tuple(_size(token) for token in tokens)


def _size(token: Token) -> int:
    try:
        number = whole_number(int, [token])
    except ValueError as error:  # the library tells the flag only where it has a single value
        raise CoercionError(msg=f"Invalid value for {token.keyword}: {error}") from None
    if number < 1:
        raise CoercionError(msg=f"Invalid value for {token.keyword}: {number} is less than 1")
    return number


Several = Parameter(consume_multiple=True, negative="", show_default=False)
Sizes = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="", converter=sizes, show_default=False)]
Systems = Annotated[tuple[str, ...], Several]
MIB = 2**20


@Parameter(name="*")
@dataclass(frozen=True)
class ModelSize:
    """The model's shape; the defaults are the seed's."""

    n_layer: Whole = 4
    """Transformer blocks."""
    n_head: Whole = 4
    """Attention heads."""
    n_embd: Whole = 256
    """Width."""
    block_size: Whole = 128
    """Tokens in a sequence."""
    vocab_size: Whole = 50304
    """Rows of the embedding."""

    def config(self, dropout: float) -> "GPTConfig":
        """These sizes as the model takes them."""
        from smallgpt.domain.config import GPTConfig

        return GPTConfig(dropout=dropout, **asdict(self))


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """Where the figures go."""

    out: Path | None = None
    """Write figures, settings and where they come from: FILE.json."""
    plot: Path | None = None
    """Write a picture: FILE.png, .svg or .pdf."""
    json: Json = False
    """Print a JSON list instead of a table."""
    console: Annotated[Console, Parameter(parse=False)] = field(default_factory=lambda: Console(stderr=True))
    """Where words that are no figures are said."""

    def begin(self) -> None:
        """Before minutes are spent: check the files' names, make their folders, say where the figures come from."""
        from smallgpt.infrastructure.provenance import provenance
        from smallgpt.interfaces.operation_plot import writable

        if self.plot is not None:
            writable(self.plot)
        if self.out is not None:
            if self.out.suffix != ".json":
                raise ConfigError(f"{self.out} is no JSON file; end it in .json")
            self.out.parent.mkdir(parents=True, exist_ok=True)
        for what, words in provenance().items():
            self.say(f"{what:10} {words}")

    def say(self, words: str) -> None:
        """One line on stderr."""
        self.console.print(words, highlight=False, markup=False, soft_wrap=True)

    def end(
        self,
        rows: Sequence[dict[str, Any]],
        settings: Mapping[str, Any],
        table: Callable[[], Any],
        draw: Callable[[Path], None],
    ) -> None:
        """Write and print what is asked for: rows as JSON, or the rich table."""
        from smallgpt.infrastructure.provenance import record

        if self.out is not None:
            self.out.write_text(dumps(record(settings, rows), indent=2) + "\n", encoding="utf-8")
            self.say(f"{'figures':10} {self.out}")
        if self.plot is not None:
            draw(self.plot)
            self.say(f"{'plot':10} {self.plot}")
        if self.json:
            print(dumps(rows, indent=2))
            return
        out = Console() if Console().is_terminal else Console(width=120)  # a file or pipe has room for whole names
        out.print(table())


def at_least_one(**numbers: int) -> None:
    """Raise ConfigError for a flag below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name.replace('_', '-')} {number} is less than 1")
