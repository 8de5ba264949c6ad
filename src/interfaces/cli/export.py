"""`smallgpt export`: a model in another tool's format."""

from json import dumps
from pathlib import Path
from typing import Literal

from smallgpt.interfaces.cli.flags import Json, PlaceOf, Switch


def export(
    run: PlaceOf,
    /,
    *,
    to: Literal["seed", "nanogpt", "hf", "gguf", "onnx", "peft", "smallgpt"],
    out: Path,
    dtype: Literal["f32", "f16", "q8_0"] | None = None,
    overwrite: Switch = False,
    json: Json = False,
) -> None:
    """Write a model as another tool loads it.

    What was written is read back and computed by other code than smallgpt's before it is kept: logits, and 64 greedy tokens.
    A difference is an error, and leaves nothing behind.

    Try:
      smallgpt export runs/demo --to seed --out exports/Model
      smallgpt export runs/demo --to hf --out exports/hf
      smallgpt export runs/demo --to gguf --dtype q8_0 --out exports/gguf
      smallgpt export runs/demo --to onnx --out exports/onnx
      smallgpt export runs/letters --to peft --out exports/letters-adapter
      smallgpt export runs/shares --to smallgpt --out models/joined
      smallgpt export runs/demo --to nanogpt --out exports/out

    Args:
        run: Run, checkpoint or imported folder; a run or checkpoint also by its URL.
        to: The format: hf is a folder for Hugging Face's transformers, gguf llama.cpp's one file with the tokenizer inside,
            onnx a graph for ONNX Runtime and its like; peft takes the low-rank updates alone, of a run with
            --training.lora-rank; smallgpt is a folder of our own with the model alone, of a checkpoint in shards too.
        out: Folder to write.
        dtype: gguf only: what the matrices are kept as; f32 when not given.
        overwrite: Replace what an earlier import or export wrote there.
        json: Print a JSON object instead: out, format, reader, parity, exact, change, notes.
    """
    from smallgpt.domain.errors import ConfigError
    from smallgpt.interfaces.cli.conversion_words import conversion_words, working
    from smallgpt.interfaces.cli.progress import model_fetched
    from smallgpt.interfaces.converting import check_free, export_model
    from smallgpt.interfaces.converting_adapter import export_adapter
    from smallgpt.interfaces.opening import open_model, portable

    if dtype is not None and to != "gguf":
        raise ConfigError(f"--dtype {dtype} is for --to gguf; {to} keeps float32, so leave it out")
    check_free(out, overwrite, run if isinstance(run, Path) else None)
    options = {} if dtype is None else {"dtype": dtype}
    folder = model_fetched(run)
    with working(f"writing {out}, and comparing it with {folder}"):
        opened = open_model(folder)
        if to == "peft":
            conversion = export_adapter(opened, out, overwrite=overwrite)
        else:
            conversion = export_model(portable(opened), to, out, overwrite=overwrite, **options)
    print(dumps(conversion.as_dict(), indent=2) if json else conversion_words(conversion))
