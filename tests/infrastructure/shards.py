"""A data folder as a large one is: a split in many files."""

import json
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from smallgpt.infrastructure.manifest import TokenFile, digest_of


def into_shards(folder: Path, split: str, count: int) -> None:
    """Cut a split's one file into `count` of nearly equal size, and say so in the manifest."""
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    facts, size = document["splits"][split], 2 if document["dtype"] == "uint16" else 4
    source = folder / facts["files"][0]["name"]
    content, files = source.read_bytes(), []
    borders = [facts["tokens"] * number // count for number in range(count + 1)]
    for number, (low, high) in enumerate(pairwise(borders)):
        name, part = f"{split}-{number:05}.bin", content[size * low : size * high]
        (folder / name).write_bytes(part)
        files.append(TokenFile(name=name, tokens=high - low, sha256=sha256(part).hexdigest()))
    source.unlink()
    facts |= {"files": [file.model_dump() for file in files], "sha256": digest_of(files)}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
