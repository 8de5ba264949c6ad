"""README.md of an exported model: the card that the hub shows."""

from smallgpt.infrastructure.formats.portable import PortableModel

FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- smallgpt
---
"""
USE = """\
## Use

```python
from transformers import pipeline

tell = pipeline("text-generation", model="THIS FOLDER")
print(tell("Once upon a time", max_new_tokens=100)[0]["generated_text"])
```

`AutoModelForCausalLM` and `AutoTokenizer` load it as well, and `smallgpt import` takes it back. It sees {block_size} tokens
at most.
"""
PROOF = """\
## Is it the same model?

These files were read back before they were kept, and computed by other code than smallgpt's: logits and 64 greedy tokens
were compared, and `parity.json` beside this file says how near they are.
"""


def model_card(model: PortableModel) -> str:
    """What the model is, what its training reached, how to load it, and why to believe it."""
    config = model.config
    rows = {
        "parameters": f"{sum(tensor.numel() for tensor in model.weights.values()):,}",
        "layers, heads, width": f"{config.n_layer}, {config.n_head}, {config.n_embd}",
        "context": f"{config.block_size} tokens",
        "vocabulary": _vocabulary(model),
        "activation": "the exact GELU" if config.activation == "gelu" else "GELU by tanh",
        **model.figures,
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    origin = "that was trained with smallgpt" if model.figures else "written by smallgpt"
    about = f"# {model.name}\n\nA GPT-2 {origin}.\n\n{table}\n"
    return "\n".join([FRONT_MATTER, about, USE.format(block_size=config.block_size), PROOF])


def _vocabulary(model: PortableModel) -> str:
    ids = f"{model.config.vocab_size:,} ids"
    if model.tokenizer is None or model.tokenizer.vocab_size == model.config.vocab_size:
        return ids
    return f"{ids}, of which {model.tokenizer.vocab_size:,} are tokens and the others padding, never chosen"
