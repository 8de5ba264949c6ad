"""A model as Python programs use it: a GPT that also takes text. `smallgpt.load` gives one."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from smallgpt.application.evaluation import eval_mode, nats_and_targets, score_of
from smallgpt.domain import hooks
from smallgpt.domain.errors import CheckpointError, ConfigError, DataError, HardwareError, KernelError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score
from smallgpt.domain.places import is_url
from smallgpt.infrastructure.evaluation_blocks import evaluation_blocks, text_tokens
from smallgpt.infrastructure.files import folder_written_whole
from smallgpt.infrastructure.formats import own
from smallgpt.infrastructure.surrogates import well_formed
from smallgpt.infrastructure.tokenizers import AnyTokenizer
from smallgpt.interfaces.cli.errors import did_you_mean
from smallgpt.interfaces.cli.text_flags import TextFlags, first_seed
from smallgpt.interfaces.continuing import AT_ONCE, Continuation, Continuer, Settings
from smallgpt.interfaces.opening import OpenedModel, open_model, portable
from smallgpt.interfaces.places import model_at_hand


class TextSettings(TypedDict, total=False):
    """How a text is continued: the flags of `smallgpt generate`, with its defaults."""

    max_new_tokens: int
    """Longest continuation, in tokens; 200."""
    min_new_tokens: int
    """The end of the text is not chosen before so many tokens; 0."""
    temperature: float
    """Below 1 bolder in what is likely, above 1 more varied; 0 takes the most likely token; 0.8."""
    top_k: int | None
    """Choose among the k most likely tokens."""
    top_p: float | None
    """Choose among the most likely tokens that together reach this probability."""
    min_p: float | None
    """Choose among tokens at least this many times as likely as the most likely one."""
    repetition_penalty: float
    """Above 1 makes tokens that occurred less likely; 1."""
    stop: str | Sequence[str]
    """End before the first of these texts."""


class ScoredToken(NamedTuple):
    """A token of a scored text."""

    id: int
    text: str
    """U+FFFD where it is a part of a character."""
    logprob: float
    """Natural logarithm of its probability among all of the model's ids, given the tokens before it in its block."""


@dataclass(frozen=True)
class TextScore(Score):
    """A model's cross-entropy on a text: `nats_per_token`, `bits_per_byte`, `perplexity`, and each token's part in it.

    Over all of the model's ids, those that pad the vocabulary too, as the training loss is. The commands `generate --logprobs`
    and `inspect` leave padding out, so that their probabilities are a little higher.
    """

    each: tuple[ScoredToken, ...] = ()
    """Every predicted token, the end-of-text that follows the text included."""


def load(path: str | Path, device: str = "cpu", *, kernels: str = "torch") -> "LanguageModel":
    """The model of a run, a checkpoint, an exported folder or another tool's files, in eval mode, with its tokenizer.

    A run or checkpoint may be behind a URL, such as s3://bucket/runs/first.
    device: auto, cpu, cuda or cuda:N. kernels: torch, auto, triton or reference. Raises CheckpointError, HardwareError.

        model = smallgpt.load("runs/demo")
        print(model.generate("Once upon a time", max_new_tokens=40, seed=1))
    """
    there = str(path)
    folder = model_at_hand(there if is_url(there) else Path(path))
    try:
        return LanguageModel(open_model(folder, device, kernels))
    except KernelError as error:
        raise HardwareError(f"{error}.\nUse kernels='auto', or another device.") from None


class LanguageModel(GPT):
    """A GPT that also reads and writes text; `load` makes it.

    All that a GPT does it does: called with ids it gives logits or the loss, `train()` and an optimizer fine-tune it.
    Without a tokenizer the methods that take text raise CheckpointError.
    """

    def __init__(self, opened: OpenedModel) -> None:
        """Takes over the parts of an opened model."""
        nn.Module.__init__(self)
        self.config, self.ops = opened.model.config, opened.model.ops
        self.transformer, self.lm_head = opened.model.transformer, opened.model.lm_head
        self.train(opened.model.training)
        self.path = opened.path
        """Where it came from; of a run, the checkpoint."""
        self._tokenizer = opened.tokenizer

    @property
    def tokenizer(self) -> AnyTokenizer:
        """Text to token ids and back. Raises CheckpointError when the model came without one."""
        if self._tokenizer is None:
            raise CheckpointError(f"{self.path} has no tokenizer.json, so it takes token ids alone, no text")
        return self._tokenizer

    def encode(self, text: str) -> Tensor:
        """The ids of a text, (1, T) int64 on the model's device; an empty one gives end-of-text, with which texts begin.

        `model(model.encode("Once upon"))` gives logits (1, T, V).
        """
        end = self.tokenizer.end_of_text
        ids = self.tokenizer.encode(_one_text(text)) or ([] if end is None else [end])
        if not ids:
            raise ConfigError("the text is empty, and this tokenizer has no end-of-text to begin with; give some text")
        return torch.tensor([ids], device=self.lm_head.weight.device)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids, (T,) or (1, T): `model.decode(model.encode("Once"))` is "Once". Raises DataError."""
        if isinstance(ids, Tensor):
            if ids.shape[:-1].numel() > 1:
                raise DataError(f"ids of shape {tuple(ids.shape)} are several texts; decode them row by row")
            ids = ids.flatten().tolist()
        return self.tokenizer.decode(ids)

    @overload
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        *,
        n_tokens: int | None = None,
    ) -> Tensor: ...

    @overload
    def generate(
        self, text: str, /, *, num_samples: None = None, seed: int | None = None, **settings: Unpack[TextSettings]
    ) -> str: ...

    @overload
    def generate(
        self, text: str, /, *, num_samples: int, seed: int | None = None, **settings: Unpack[TextSettings]
    ) -> list[str]: ...

    def generate(self, idx: Tensor | str, *args: Any, **settings: Any) -> Any:
        """Continue a text, or token ids as GPT.generate does.

            generate(text, *, seed=None, num_samples=None, **settings) -> the text and its continuation; or a list of them
            generate(idx, max_new_tokens, temperature=1.0, top_k=None, *, n_tokens=None) -> (B, T + max_new_tokens) int64

        The settings of a text are TextSettings: max_new_tokens, min_new_tokens, temperature, top_k, top_p, min_p,
        repetition_penalty and stop. The same seed and settings give what `smallgpt generate` gives, sample i with seed + i;
        without a seed, one is drawn from torch's global generator. Ids that pad the vocabulary, those from n_tokens on, are
        never chosen; n_tokens is the tokenizer's count unless given. Raises ConfigError for what it does not take.

            model.generate("One day", seed=1, temperature=0.5, stop=".")
            model.generate("One day", num_samples=3, max_new_tokens=20)
        """
        if isinstance(idx, str):
            return self._texts(idx, *args, **settings)
        real = None if self._tokenizer is None else self._tokenizer.vocab_size
        return super().generate(self._ids(idx), *args, **{"n_tokens": real, **settings})

    def stream_text(self, text: str, *, seed: int | None = None, **settings: Unpack[TextSettings]) -> Iterator[str]:
        """What generate would add to the text, piece by piece as it comes, in whole characters.

        for piece in model.stream_text("Once upon a time", seed=1):
            print(piece, end="", flush=True)
        """
        chosen, beginning = _settings(settings, "seed"), Continuation(_one_text(text), _seed(seed, 1))
        continuer = self._continuer(1)

        def pieces() -> Iterator[str]:
            with eval_mode(self), closing(continuer.run([beginning], chosen)) as running:
                for _, piece in running:
                    yield piece

        return pieces()

    def score(self, text: str) -> TextScore:
        """The cross-entropy of the model on a text and the end-of-text after it, as `smallgpt evaluate RUN --text FILE` has it.

        The text is read in consecutive blocks of block_size tokens. Raises DataError for an empty one.

            score = model.score("Once upon a time, there was a cat.")
            print(score.bits_per_byte, min(score.each, key=lambda token: token.logprob))
        """
        if not _one_text(text):
            raise DataError("there is no text to score; give at least one character")
        tokens, text_bytes = text_tokens(self.tokenizer, [well_formed(text)])
        blocks = evaluation_blocks(tokens, self.config.block_size, self.tokenizer.end_of_text)
        found = list(nats_and_targets(self, blocks))
        nats, targets = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))  # (blocks, T) each
        is_target = targets != -100
        ids, logprobs = targets[is_target].tolist(), (-nats[is_target]).tolist()
        each = (ScoredToken(id, self.decode([id]), logprob) for id, logprob in zip(ids, logprobs, strict=True))
        score = score_of(nats.double().sum(1), is_target.sum(1), text_bytes)
        return TextScore(**vars(score), each=tuple(each))

    def run_with_hooks(self, text: str | Tensor, fwd_hooks: Sequence[tuple[hooks.Names, hooks.Hook]] = ()) -> Tensor:
        """A text, or ids (B, T) -> logits (B, T, V), with hooks called on the way: see domain.hooks.run_with_hooks."""
        return hooks.run_with_hooks(self, self._ids(text), fwd_hooks)

    def run_with_cache(
        self,
        text: str | Tensor,
        names_filter: hooks.Names | None = None,
        fwd_hooks: Sequence[tuple[hooks.Names, hooks.Hook]] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A text, or ids (B, T) -> logits (B, T, V) and what was computed on the way: see domain.hooks.run_with_cache.

        logits, cache = model.run_with_cache("Once upon a time")
        pattern = cache["blocks.0.attn.hook_pattern"]  # (1, H, T, T)
        """
        return hooks.run_with_cache(self, self._ids(text), names_filter, fwd_hooks)

    def save(self, folder: str | Path) -> None:
        """Write it as a folder that `load` and every command take. Raises ConfigError for one that is there already."""
        if Path(folder).exists():
            raise ConfigError(f"{folder} is there already; choose another folder")
        with folder_written_whole(Path(folder)) as draft:
            own.write(portable(self._opened()), draft)

    def _texts(
        self, text: str, *, num_samples: int | None = None, seed: int | None = None, **settings: Unpack[TextSettings]
    ) -> str | list[str]:
        if num_samples is not None and num_samples < 1:
            raise ConfigError(f"num_samples is {num_samples}; it must be 1 or more")
        n, chosen = num_samples or 1, _settings(settings, "seed", "num_samples")
        first = _seed(seed, n)
        texts = [Continuation(text, first + sample) for sample in range(n)]
        with eval_mode(self):
            for _ in self._continuer(min(AT_ONCE, n)).run(texts, chosen):
                pass  # each of the texts grows
        whole = [each.prompt + each.text for each in texts]
        return whole[0] if num_samples is None else whole

    def _continuer(self, n_streams: int) -> Continuer:
        return Continuer(self._opened(), n_streams)

    def _opened(self) -> OpenedModel:
        return OpenedModel(self, self._tokenizer, None, self.path, None)

    def _ids(self, text: str | Tensor) -> Tensor:
        if isinstance(text, str):
            return self.encode(text)
        if isinstance(text, Tensor) and text.dim() == 2:
            return text
        given = f"a tensor of shape {tuple(text.shape)}" if isinstance(text, Tensor) else _kind(text)
        raise ConfigError(f"{given} is neither a text nor ids (B, T): give one text, or torch.tensor([ids])")


def _one_text(text: str) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"{_kind(text)} is not a text; give a str, and several texts one by one")
    return text


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _settings(settings: TextSettings, *others: str) -> Settings:
    """`others` are what a method takes beside them. Raises ConfigError."""
    known = list(TextSettings.__annotations__)
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, [*known, *others]) or f"; there are {', '.join([*known, *others])}"
            raise ConfigError(f"{name} is not a setting of a text{hint}")
    stop = settings.get("stop", ())
    flags: dict[str, Any] = {**settings, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return TextFlags(**flags).settings()


def _seed(seed: int | None, texts: int) -> int:
    return first_seed(int(torch.randint(2**31, ())) if seed is None else seed, texts)
