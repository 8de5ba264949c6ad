"""`smallgpt import`: a model of another tool becomes a folder that every command takes."""

from json import dumps
from pathlib import Path

from smallgpt.interfaces.cli.flags import Json, Switch


def import_model(
    source: str,
    /,
    *,
    out: Path,
    tokenizer: str | None = None,
    revision: str | None = None,
    overwrite: Switch = False,
    json: Json = False,
) -> None:
    """Take over a model that another tool trained.

    Nothing in its files is executed. What was written is compared with the source before it is kept: logits, and 64 greedy
    tokens. A difference is an error, and leaves nothing behind.

    Try:
      smallgpt import Model/ --out models/seed
      smallgpt import openai-community/gpt2 --out models/gpt2
      smallgpt generate models/seed --prompt "Once upon a time"
      smallgpt import ckpt.pt --out models/plays --tokenizer meta.pkl

    Args:
        source: The file or folder, or OWNER/NAME of a model on the Hugging Face hub.
        out: Folder to write.
        revision: Commit, tag or branch of a model on the hub.
        tokenizer: For files without one: gpt2, bytes, a tokenizer.json, nanoGPT's meta.pkl, or none.
        overwrite: Replace what an earlier import or export wrote there.
        json: Print a JSON object instead: out, format, reader, parity, exact, change, notes.
    """
    from rich.console import Console

    from smallgpt.infrastructure.formats.hub_models import local_path
    from smallgpt.interfaces.cli.conversion_words import conversion_words, working
    from smallgpt.interfaces.cli.progress import shown
    from smallgpt.interfaces.converting import check_free, import_model

    check_free(out, overwrite)  # before anything is fetched
    with shown(Console(stderr=True)) as progress:
        path = local_path(source, revision, progress)
    with working(f"writing {out}, and comparing it with {source}"):
        conversion = import_model(path, out, tokenizer=tokenizer, overwrite=overwrite)
    print(dumps(conversion.as_dict(), indent=2) if json else conversion_words(conversion))
