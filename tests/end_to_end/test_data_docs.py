"""The script of docs/data.md, as it stands there: what a cluster's tasks write is a data folder."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.verifying import verify_store
from tests.infrastructure.texts import write_texts

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
TEXTS = [f"Story {n}: once upon a time there was a dog and {n * 7 % 5} cats." for n in range(60)]


def test_shards_of_many_tasks_are_the_folder_that_one_process_writes(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(script, str(DOCUMENT), "exec"), names)
    folder, tokenizer = tmp_path / "cluster", train_bpe(TEXTS, 300)
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    for task in (2, 0, 1):  # in any order
        names["write_shard"](folder, "train", task, TEXTS[20 * task : 20 * task + 20])
    names["write_shard"](folder, "validation", 0, TEXTS[:9])
    names["write_manifest"](folder, "test")

    ours = verify_store(folder)
    write_texts(TEXTS, TEXTS[:9], tmp_path / "alone", str(folder / "tokenizer.json"))
    theirs = verify_store(tmp_path / "alone")
    for split in ("train", "validation"):
        assert ours.tokens(split)[:].tolist() == theirs.tokens(split)[:].tolist()
        assert np.array_equal(ours.folders[0].starts(split), theirs.folders[0].starts(split))
    alike = {"files": None, "sha256": None}
    found = [json.loads((place / "dataset.json").read_text()) for place in (folder, tmp_path / "alone")]
    for document in found:
        document["baselines"] = None
        document["splits"] = {name: facts | alike for name, facts in document["splits"].items()}
    assert found[0] == found[1]
