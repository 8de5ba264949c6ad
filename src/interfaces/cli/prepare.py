"""`smallgpt prepare`: a corpus becomes a data folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from smallgpt.interfaces.cli.flags import Switch
from smallgpt.interfaces.cli.prepare_card import card
from smallgpt.interfaces.cli.prepare_tokenizers import tokenizers
from smallgpt.interfaces.cli.prepare_verify import verify
from smallgpt.interfaces.cli.preparing import OwnTokens, Target, prepare, shown_making

if TYPE_CHECKING:
    from smallgpt.infrastructure.corpora.parts import Corpus
    from smallgpt.infrastructure.manifest import Manifest
    from smallgpt.infrastructure.progress import Progress

ABOUT = """Turn a corpus into a data folder: tokens, tokenizer, and what is known about them.

Try:
  smallgpt prepare demo
  smallgpt prepare tinystories --tokenizer bpe --vocab-size 2048
  smallgpt prepare text letters.txt diary.jsonl.gz --out data/mine
"""

app = App(name="prepare", help=ABOUT)
app.command(tokenizers)
app.command(card)
app.command(verify)


TokenizerFlag = Annotated[str, Parameter(help="gpt2, bpe (trained on the corpus), bytes, or a tokenizer.json.")]
Streaming = Annotated[Switch, Parameter(help="Fetch each file only while it is read: for data larger than the disk.")]
Share = Annotated[float, Parameter(help="Part of the text held out, when the corpus has no validation split.")]


@app.command
def demo(*, tokenizer: TokenizerFlag = "bpe", target: OwnTokens = OwnTokens()) -> None:
    """The embedded corpus: simple children's stories from a grammar. Needs no network.

    Try:
      smallgpt prepare demo
      smallgpt prepare demo --tokenizer bytes --out data/demo-bytes
    """
    from smallgpt.infrastructure.corpora.sources import demo_corpus

    prepare(lambda progress: demo_corpus(), "demo", tokenizer, target)


@app.command
def tinystories(
    *, tokenizer: TokenizerFlag = "gpt2", streaming: Streaming = False, target: OwnTokens = OwnTokens()
) -> None:
    """TinyStories (roneneldan/TinyStories) from the Hugging Face hub.

    Try:
      smallgpt prepare tinystories
      smallgpt prepare tinystories --tokenizer bpe --vocab-size 2048
    """
    hub("tinystories", tokenizer=tokenizer, streaming=streaming, target=target)


@app.command
def hub(
    name: str,
    /,
    *,
    tokenizer: TokenizerFlag = "gpt2",
    column: str = "text",
    config: str | None = None,
    revision: str | None = None,
    streaming: Streaming = False,
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
        revision: Commit, tag or branch; the manifest notes the commit.
    """
    from smallgpt.infrastructure.corpora.hub import hub_corpus

    def corpus(progress: "Progress") -> "Corpus":
        return hub_corpus(name, column=column, config=config, revision=revision, streaming=streaming, progress=progress)

    inputs = [Path(name)] if Path(name).is_dir() else []
    prepare(corpus, Path(name).name.lower(), tokenizer, target, validation_share, inputs)


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
    from smallgpt.infrastructure.corpora.planning import ReadOptions
    from smallgpt.infrastructure.corpora.sources import text_corpus

    if not paths:
        raise ConfigError("name the files or folders to read: smallgpt prepare text book.txt")

    def corpus(progress: "Progress") -> "Corpus":
        return text_corpus(paths, ReadOptions(separator, field, encoding))

    prepare(corpus, paths[0].name.partition(".")[0] or "text", tokenizer, target, validation_share, paths)


@app.command
def bins(
    folder: Path,
    /,
    *,
    tokenizer: str = "auto",
    dtype: Literal["uint16", "uint32"] = "uint16",
    target: Target = Target(),
) -> None:
    """Adopt token files that nanoGPT or another program wrote: train.bin and val.bin or validation.bin.

    Try:
      smallgpt prepare bins ../nanoGPT/data/openwebtext --out data/openwebtext
      smallgpt prepare bins my-ids --tokenizer none

    Args:
        folder: Folder with the token files.
        tokenizer: gpt2, bytes, a tokenizer.json, nanoGPT's meta.pkl, none, or auto: what the files suggest.
        dtype: How an id is stored, little-endian.
    """
    from smallgpt.infrastructure.adopting import adopt_bins

    out = target.out or Path("data") / f"{folder.resolve().name}-bins"

    def make(progress: "Progress") -> "Manifest":
        return adopt_bins(folder, out, tokenizer=tokenizer, dtype=dtype, overwrite=target.overwrite, progress=progress)

    shown_making(make, out, target)
