"""What all ways of preparing data share: where it goes, what is shown while it is made, what is said of it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from smallgpt.domain.errors import ConfigError
from smallgpt.interfaces.cli.flags import Json, Switch, Whole

if TYPE_CHECKING:
    from rich.console import Console

    from smallgpt.domain.config import DataConfig, GPTConfig
    from smallgpt.infrastructure.corpora.parts import Corpus
    from smallgpt.infrastructure.manifest import Manifest
    from smallgpt.infrastructure.progress import Progress
    from smallgpt.infrastructure.vocabulary_sizes import SizeTable

DEFAULT_VOCABULARY = 2048
N_LAYER, N_EMBD, BLOCK_SIZE = 4, 256, 128  # GPTConfig's own, which takes a fifth of a second to import


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the data goes, and how it is shown."""

    out: Path | None = None
    """Folder to make. Default: data/ and the name of corpus and tokenizer."""
    overwrite: Switch = False
    """Replace a data folder that is there and holds nothing else."""
    json: Json = False
    """Print the manifest as a JSON object instead."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnTokens(Target):
    """A target whose tokens are made here."""

    vocab_size: Whole | Literal["auto"] | None = None
    """Ids of an own BPE, 2048 unless given; auto: what suits the corpus and a model of the next three sizes."""
    n_layer: Whole = N_LAYER
    """Blocks of that model."""
    n_embd: Whole = N_EMBD
    """Its width."""
    block_size: Whole = BLOCK_SIZE
    """Its context."""
    special: tuple[str, ...] = ()
    """Name of a special token that an own BPE has beside end-of-text, such as "<|user|>"; may be repeated."""
    vocab_trim: Switch = False
    """Keep only the tokenizer's ids that occur in the corpus, renumbered; other text is still taken, byte by byte."""
    deduplicate: Literal["exact", "near"] | None = None
    """Leave out documents that repeat another one, across splits too: equal ones, or nearly equal ones too."""
    no_baselines: Switch = False
    """Leave out the n-gram lines, which take half a second to count."""
    workers: Whole | None = None
    """Processes that tokenize. Default: one a processor."""


def default_folder(corpus: str, tokenizer: str, vocab_size: int | Literal["auto"]) -> Path:
    """data/CORPUS-TOKENIZER, with the vocabulary of an own BPE that is not the usual one; data/demo for short."""
    kind = Path(tokenizer).stem
    parts = [corpus] if (corpus, kind) == ("demo", "bpe") else [corpus, kind]
    if kind == "bpe" and vocab_size != DEFAULT_VOCABULARY:
        parts.append(str(vocab_size))
    return Path("data") / "-".join(parts)


def corpus_folder(settings: "DataConfig") -> Path:
    """The data folder of a run's corpus, there or not."""
    return default_folder(str(settings.corpus), settings.tokenizer, settings.vocab_size)


def prepare_corpus(settings: "DataConfig", folder: Path, console: "Console") -> None:
    """Make the data folder of a run's corpus."""
    from smallgpt.infrastructure.corpora.hub import hub_corpus
    from smallgpt.infrastructure.corpora.sources import demo_corpus
    from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
    from smallgpt.infrastructure.tokenizing.making import Options, make_data_folder
    from smallgpt.interfaces.cli.progress import shown

    name = str(settings.corpus)
    console.print(f"data     preparing {folder}", highlight=False, soft_wrap=True)
    with shown(console) as progress:
        corpus = demo_corpus() if name == "demo" else hub_corpus(name, progress=progress)
        choice = TokenizerChoice(settings.tokenizer, settings.vocab_size)
        make_data_folder(corpus, folder, Options(choice), progress)


def prepare(
    corpus: "Callable[[Progress], Corpus]",
    name: str,
    tokenizer: str,
    target: OwnTokens,
    validation_share: float = 0.05,
    inputs: Sequence[Path] = (),
) -> None:
    """Prepare a corpus, which is found while progress is shown; `inputs` are the local files and folders it is read from."""
    from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice
    from smallgpt.infrastructure.tokenizing.making import Options, check_place, make_data_folder

    _check(tokenizer, target)
    vocab_size = DEFAULT_VOCABULARY if target.vocab_size is None else target.vocab_size
    out = target.out or default_folder(name, tokenizer, vocab_size)
    choice = TokenizerChoice(
        tokenizer,
        vocab_size,
        _model(target) if vocab_size == "auto" else None,
        target.special,
        target.vocab_trim,
        _show_sizes,
    )
    options = Options(
        choice,
        validation_share,
        target.overwrite,
        target.deduplicate,
        not target.no_baselines,
        target.workers,
    )

    def make(progress: "Progress") -> "Manifest":
        check_place(out, target.overwrite, inputs)
        return make_data_folder(corpus(progress), out, options, progress)

    shown_making(make, out, target)


def _check(tokenizer: str, target: OwnTokens) -> None:
    """Raises ConfigError for flags that would do nothing."""
    if target.vocab_size is not None and tokenizer != "bpe":
        raise ConfigError(
            f"--vocab-size {target.vocab_size} is for an own BPE, not for {tokenizer}, which has its own ids; "
            "say --tokenizer bpe, or leave it out"
        )
    if target.workers is not None and target.workers < 1:
        raise ConfigError(f"--workers is {target.workers}; it must be 1 or more")


def _model(target: OwnTokens) -> "GPTConfig":
    """What --vocab-size auto chooses for."""
    from smallgpt.domain.config import GPTConfig

    return GPTConfig(n_layer=target.n_layer, n_head=1, n_embd=target.n_embd, block_size=target.block_size)


def _show_sizes(table: "SizeTable") -> None:
    """What --vocab-size auto chose from, beside what is written for other programs."""
    from rich.console import Console

    from smallgpt.interfaces.cli.vocabulary_table import vocabulary_table

    Console(stderr=True, width=None if sys.stderr.isatty() else 120).print(vocabulary_table(table.rows, table.chosen))


def shown_making(make: "Callable[[Progress], Manifest]", out: Path, target: Target) -> None:
    """Make a data folder, with what is done and how long it took."""
    from rich.console import Console

    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.phases import Phases, in_words

    phases = Phases.of_command()
    phases.end("imports")
    with shown(Console(stderr=True)) as tell:
        current = "reading"

        def progress(done: int, total: int | None, what: str, details: str = "") -> None:
            nonlocal current
            if what != current:
                phases.end(current)
                current = what
            tell(done, total, what, details)

        manifest = make(progress)
        phases.end(current)
    print(manifest.model_dump_json(indent=2) if target.json else _words(manifest, out))
    print(f"time  {in_words(phases.seconds)}", file=sys.stderr)


def _words(manifest: "Manifest", out: Path) -> str:
    from smallgpt.interfaces.cli.display import baseline_words, size

    kind = manifest.tokenizer.kind if manifest.tokenizer else "unknown tokenizer"
    lines = [f"{out}: {manifest.vocab_size:,} token ids ({kind})"]
    for name, split in manifest.splits.items():
        documents = "" if split.documents is None else f" in {split.documents:,} documents"
        text_size = "" if split.text_bytes is None else f", {size(split.text_bytes)} of text"
        lines.append(f"  {name:10}  {split.tokens:,} tokens{documents}{text_size}")
    if manifest.baselines:
        lines.append(f"  to beat     {baseline_words(manifest.baselines)}")
    lines.append(f"next: smallgpt train --data {out}")
    return "\n".join(lines)
