"""`smallgpt import`: a model of another tool becomes a folder that every command takes."""

from json import dumps
from pathlib import Path

from smallgpt.interfaces.cli.flags import Json, Switch


def import_model(source: str, /, *, out: Path, overwrite: Switch = False, json: Json = False) -> None:
    """Take over a model that another tool trained.

    Nothing in its files is executed. What was written is compared with the source before it is kept: logits, and 64 greedy
    tokens. A difference is an error, and leaves nothing behind.

    Try:
      smallgpt import Model/ --out models/seed
      smallgpt generate models/seed --prompt "Once upon a time"

    Args:
        source: The file or folder.
        out: Folder to write.
        overwrite: Replace what an earlier import or export wrote there.
        json: Print a JSON object instead: out, format, reader, parity, exact, change, notes.
    """
    from smallgpt.interfaces.cli.conversion_words import conversion_words
    from smallgpt.interfaces.converting import import_model

    conversion = import_model(Path(source), out, overwrite=overwrite)
    print(dumps(conversion.as_dict(), indent=2) if json else conversion_words(conversion))
