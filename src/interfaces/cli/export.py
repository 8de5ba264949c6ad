"""`smallgpt export`: a model in another tool's format."""

from json import dumps
from pathlib import Path
from typing import Literal

from smallgpt.interfaces.cli.flags import Json, Switch


def export(run: Path, /, *, to: Literal["seed"], out: Path, overwrite: Switch = False, json: Json = False) -> None:
    """Write a model as another tool loads it.

    What was written is read back and computed by other code than smallgpt's before it is kept: logits, and 64 greedy tokens.
    A difference is an error, and leaves nothing behind.

    Try:
      smallgpt export runs/demo --to seed --out exports/Model

    Args:
        run: Run, checkpoint or imported folder.
        to: The format.
        out: Folder to write.
        overwrite: Replace what an earlier import or export wrote there.
        json: Print a JSON object instead: out, format, reader, parity, exact, change, notes.
    """
    from smallgpt.interfaces.cli.conversion_words import conversion_words
    from smallgpt.interfaces.converting import export_model
    from smallgpt.interfaces.opening import open_model, portable

    conversion = export_model(portable(open_model(run)), to, out, overwrite=overwrite)
    print(dumps(conversion.as_dict(), indent=2) if json else conversion_words(conversion))
