"""`smallgpt prepare`: a corpus becomes a data folder."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from smallgpt.domain.config import DataConfig
from smallgpt.interfaces.cli.flags import Json, Switch, Whole

if TYPE_CHECKING:
    from rich.console import Console

    from smallgpt.infrastructure.manifest import Manifest
    from smallgpt.infrastructure.tokenizers import Progress

DEFAULT_VOCABULARY = 2048

ABOUT = """Turn a corpus into a data folder: tokens, tokenizer, and what is known about them.

Try:
  smallgpt prepare demo
  smallgpt prepare tinystories --tokenizer bpe --vocab-size 2048
  smallgpt prepare text letters.txt diary.jsonl.gz --out data/mine
"""

app = App(name="prepare", help=ABOUT)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the data goes, and how it is shown."""

    out: Path | None = None
    """Folder to make. Default: data/ and the name of corpus and tokenizer."""
    overwrite: Switch = False
    """Replace a data folder that is there."""
    json: Json = False
    """Print the manifest as a JSON object instead."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnTokens(Target):
    """A target whose tokens are made here."""

    vocab_size: Whole = DEFAULT_VOCABULARY
    """Ids of an own BPE."""


TokenizerFlag = Annotated[str, Parameter(help="gpt2, bpe (trained on the corpus), bytes, or a tokenizer.json.")]
Share = Annotated[float, Parameter(help="Part of the text held out, when the corpus has no validation split.")]


@app.command
def demo(*, tokenizer: TokenizerFlag = "bpe", target: OwnTokens = OwnTokens()) -> None:
    """The embedded corpus: simple children's stories from a grammar. Needs no network.

    Try:
      smallgpt prepare demo
      smallgpt prepare demo --tokenizer bytes --out data/demo-bytes
    """
    from smallgpt.infrastructure.preparing import prepare_demo

    def make(out: Path, progress: "Progress") -> "Manifest":
        return prepare_demo(
            out,
            tokenizer=tokenizer,
            vocab_size=target.vocab_size,
            overwrite=target.overwrite,
            progress=progress,
        )

    _prepare(make, default_folder("demo", tokenizer, target.vocab_size), target)


@app.command
def tinystories(*, tokenizer: TokenizerFlag = "gpt2", target: OwnTokens = OwnTokens()) -> None:
    """TinyStories (roneneldan/TinyStories) from the Hugging Face hub.

    Try:
      smallgpt prepare tinystories
      smallgpt prepare tinystories --tokenizer bpe --vocab-size 2048
    """
    hub("tinystories", tokenizer=tokenizer, target=target)


@app.command
def hub(
    name: str,
    /,
    *,
    tokenizer: TokenizerFlag = "gpt2",
    column: str = "text",
    config: str | None = None,
    validation_share: Share = 0.05,
    target: OwnTokens = OwnTokens(),
) -> None:
    """A text data set from the Hugging Face hub, or a local folder in hub layout.

    Try:
      smallgpt prepare hub roneneldan/TinyStories
      smallgpt prepare hub wikitext --config wikitext-2-raw-v1 --tokenizer bpe
      smallgpt prepare hub ./my-data-set --column story

    Args:
        name: OWNER/NAME on the hub, or a folder.
        column: Column that holds the text.
        config: Subset, for data sets that have several.
    """
    from smallgpt.infrastructure.preparing import prepare_hub

    def make(out: Path, progress: "Progress") -> "Manifest":
        return prepare_hub(
            name,
            out,
            tokenizer=tokenizer,
            vocab_size=target.vocab_size,
            column=column,
            config=config,
            validation_share=validation_share,
            overwrite=target.overwrite,
            progress=progress,
        )

    _prepare(make, default_folder(Path(name).name.lower(), tokenizer, target.vocab_size), target)


@app.command
def text(
    *paths: Path,
    tokenizer: TokenizerFlag = "bpe",
    separator: str = "<|endoftext|>",
    field: str = "text",
    encoding: str | None = None,
    validation_share: Share = 0.05,
    target: OwnTokens = OwnTokens(),
) -> None:
    """Own text: .txt, .jsonl and .parquet files, also as .gz or .zst, and folders of them.

    Try:
      smallgpt prepare text book.txt --out data/book
      smallgpt prepare text letters/ --separator "" --tokenizer bytes
      smallgpt prepare text posts.jsonl.gz --field body --vocab-size 4096

    Args:
        paths: Files and folders.
        separator: Line of a .txt file that ends a document; "" stands for a blank line.
        field: Field of a .jsonl object or column of a .parquet table that holds the text.
        encoding: Of .txt and .jsonl files; by default what the file says, else UTF-8.
    """
    from smallgpt.domain.errors import ConfigError
    from smallgpt.infrastructure.preparing import prepare_text

    if not paths:
        raise ConfigError("name the files or folders to read: smallgpt prepare text book.txt")

    def make(out: Path, progress: "Progress") -> "Manifest":
        return prepare_text(
            paths,
            out,
            tokenizer=tokenizer,
            vocab_size=target.vocab_size,
            separator=separator,
            field=field,
            encoding=encoding,
            validation_share=validation_share,
            overwrite=target.overwrite,
            progress=progress,
        )

    _prepare(make, default_folder(paths[0].name.partition(".")[0] or "text", tokenizer, target.vocab_size), target)


@app.command
def bins(folder: Path, /, *, tokenizer: str = "auto", target: Target = Target()) -> None:
    """Adopt token files that nanoGPT or another program wrote: train.bin and val.bin or validation.bin.

    Try:
      smallgpt prepare bins ../nanoGPT/data/openwebtext --out data/openwebtext
      smallgpt prepare bins my-ids --tokenizer none

    Args:
        folder: Folder with the token files.
        tokenizer: gpt2, bytes, a tokenizer.json, none, or auto: what the files suggest.
    """
    from smallgpt.infrastructure.preparing import adopt_bins

    def make(out: Path, progress: "Progress") -> "Manifest":
        return adopt_bins(folder, out, tokenizer=tokenizer, overwrite=target.overwrite, progress=progress)

    _prepare(make, Path("data") / f"{folder.resolve().name}-bins", target)


def default_folder(corpus: str, tokenizer: str, vocab_size: int) -> Path:
    """data/CORPUS-TOKENIZER, with the vocabulary of an own BPE that is not the usual one; data/demo for short."""
    kind = Path(tokenizer).stem
    parts = [corpus] if (corpus, kind) == ("demo", "bpe") else [corpus, kind]
    if kind == "bpe" and vocab_size != DEFAULT_VOCABULARY:
        parts.append(str(vocab_size))
    return Path("data") / "-".join(parts)


def corpus_folder(settings: DataConfig) -> Path:
    """The data folder of a run's corpus, there or not."""
    return default_folder(str(settings.corpus), settings.tokenizer, settings.vocab_size)


def prepare_corpus(settings: DataConfig, folder: Path, console: "Console") -> None:
    """Make the data folder of a run's corpus."""
    from smallgpt.infrastructure.preparing import prepare_demo, prepare_hub
    from smallgpt.interfaces.cli.progress import shown

    corpus = str(settings.corpus)
    console.print(f"data     preparing {folder}", highlight=False, soft_wrap=True)
    with shown(console) as progress:
        if corpus == "demo":
            prepare_demo(folder, tokenizer=settings.tokenizer, vocab_size=settings.vocab_size, progress=progress)
        else:
            prepare_hub(corpus, folder, tokenizer=settings.tokenizer, vocab_size=settings.vocab_size, progress=progress)


def _prepare(make: Callable[[Path, "Progress"], "Manifest"], default: Path, target: Target) -> None:
    from rich.console import Console

    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.phases import Phases, in_words

    phases = Phases.of_command()
    phases.end("imports")
    out = target.out or default
    with shown(Console(stderr=True)) as tell:
        current = "reading"

        def progress(done: int, total: int | None, what: str) -> None:
            nonlocal current
            if what != current:
                phases.end(current)
                current = what
            tell(done, total, what)

        manifest = make(out, progress)
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
