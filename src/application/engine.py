"""Many sequences continued together: each step reads the model's weights once and gives every sequence its next token.

A sequence may come and go between any two steps (continuous batching, OSDI 2022's Orca), and its tokens do not depend on its
company but for rounding: it has its own settings, its own random numbers, and its own rows of the cache.

Positions are learned, so past the block every token's keys and values change with each new token. `slide` computes the last
block_size tokens anew for each, which is exact; `refill` reads the last half of them into an empty cache and goes on from
there, a pass every half block.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from smallgpt.application.cuda_graphs import Graphs
from smallgpt.application.prompt_lookup import lookup
from smallgpt.application.streams import Request, Stream, Token
from smallgpt.domain.cache import KVCache
from smallgpt.domain.errors import ConfigError, NumericsError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling, log_probabilities, next_token_at

PastBlock = Literal["slide", "refill"]
GRAPH_FAILURE = "decoding could not be captured as a CUDA graph: {why}\nGenerate on the CPU: --device cpu."


class Engine:
    """Continues up to n_streams sequences of a model in eval mode. Not thread-safe."""

    def __init__(
        self, model: GPT, n_streams: int = 1, *, past_block: PastBlock = "slide", n_draft: int = 0, graphs: bool = True
    ) -> None:
        """With n_draft, that many tokens are guessed by prompt lookup and checked at once; the tokens stay the same.

        On a GPU, with `graphs`, a step is captured as a CUDA graph for each number of streams. Raises ConfigError.
        """
        if past_block not in get_args(PastBlock):
            raise ConfigError(f"past-block is {past_block!r}; choose slide or refill")
        if n_draft < 0:
            raise ConfigError(f"the number of tokens to guess is {n_draft}; it must be 0 or more")
        self.model, self.n_streams, self.past_block, self.n_draft = model, n_streams, past_block, n_draft
        self.block_size = model.config.block_size
        weight = model.transformer.wpe.weight
        self.device = weight.device
        self.cache = KVCache(model.config, n_streams, self.device, weight.dtype)
        self.waiting: list[Stream] = []
        self.cached: list[Stream] = []  # the i-th is in the cache's row i
        self.sliding: list[Stream] = []  # past the block: no cache helps
        self.graphs = Graphs(self.device, GRAPH_FAILURE) if graphs and self.device.type == "cuda" else None

    @property
    def n_free(self) -> int:
        """How many more sequences there is room for."""
        return self.n_streams - len(self.waiting) - len(self.cached) - len(self.sliding)

    def add(self, request: Request) -> Stream:
        """Take in a sequence; the next step gives its first token. Raises ConfigError when there is no room."""
        if not self.n_free:
            raise ConfigError(f"all {self.n_streams} streams are in use")
        stream = Stream(request)
        self.waiting.append(stream)
        return stream

    def remove(self, stream: Stream) -> None:
        """Let a sequence go, finished or not; one that is not here is ignored."""
        for group in (self.waiting, self.sliding):
            if stream in group:
                group.remove(stream)
        if stream in self.cached:
            self._free_row(self.cached.index(stream))

    @torch.inference_mode()
    def step(self) -> list[tuple[Stream, list[Token]]]:
        """The next token of every sequence, or several where a guess was right; empty for one that ends without another.

        A sequence that has ended has its `finish` set and is gone. Raises NumericsError.
        """
        try:
            given = self._step()
        except NumericsError:
            self.cache.slots.zero_()  # 0 · nan is nan: what is masked would spoil whoever comes next
            raise
        for stream, _ in given:
            if stream.finish:
                self.remove(stream)
        return given

    def _step(self) -> list[tuple[Stream, list[Token]]]:
        self._make_room()
        given = []
        if decoding := list(self.cached):
            given += self._decode(decoding)
        if self.sliding:
            windows = torch.tensor([s.ids[-self.block_size :] for s in self.sliding], device=self.device)
            ends = torch.full((len(windows),), self.block_size - 1, device=self.device)
            given += self._take(list(self.sliding), self.model(windows, last=ends))
        if self.waiting:
            given += self._admit()
        return given

    def _make_room(self) -> None:
        """Streams whose context has outgrown the block slide from now on, or begin a new cache with its last half."""
        for stream in [s for s in self.cached if len(s.ids) - s.start > self.block_size]:
            row = self.cached.index(stream)
            if self.past_block == "slide":
                self._free_row(row)
                self.sliding.append(stream)
            else:
                stream.start, stream.read = len(stream.ids) - max(1, self.block_size // 2), 0
                self._refill(stream, row)

    def _free_row(self, row: int) -> None:
        last = len(self.cached) - 1
        if row < last:
            self.cache.move(last, row)
            self.cached[row] = self.cached[last]
        self.cached.pop()

    def _refill(self, stream: Stream, row: int) -> None:
        """Read the context anew, but for the newest token, which is decoded as ever."""
        if tokens := stream.unread[:-1]:
            self.model(
                torch.tensor([tokens], device=self.device),
                past=self.cache.after([0], len(tokens), row),
                last=torch.zeros(1, dtype=torch.int64, device=self.device),
            )
            stream.read = len(tokens)

    def _admit(self) -> list[tuple[Stream, list[Token]]]:
        """Read the prompts of those who wait in one pass, and give their first tokens."""
        new, self.waiting = self.waiting, []
        for stream in new:
            stream.start = max(0, len(stream.ids) - self.block_size)
        counts = [len(s.unread) for s in new]
        tokens = _padded([s.unread for s in new]).to(self.device)
        past = self.cache.after([0] * len(new), tokens.size(1), len(self.cached))
        logits = self.model(tokens, past=past, last=torch.tensor(counts, device=self.device) - 1)
        self.cached += new
        for stream, count in zip(new, counts, strict=True):
            stream.read = count
        return self._take(new, logits)

    def _decode(self, streams: list[Stream]) -> list[tuple[Stream, list[Token]]]:
        """One pass over each stream's newest token and the guesses that follow it."""
        lengths = [s.read for s in streams]
        room = self.block_size - max(lengths) - 1
        drafts = [lookup(s.ids[s.start :], min(self.n_draft, room)) for s in streams] if self.n_draft else None
        if drafts is None or not any(drafts):
            logits, drafts = self._decode_one([s.ids[-1] for s in streams], lengths), None
        else:
            for stream, draft in zip(streams, drafts, strict=True):
                stream.guesses += len(draft)
            tokens = _padded([[s.ids[-1], *draft] for s, draft in zip(streams, drafts, strict=True)]).to(self.device)
            logits = self.model(tokens, past=self.cache.after(lengths, tokens.size(1)))
        given = self._take(streams, logits, drafts)
        for stream, tokens_given in given:
            stream.read += max(1, len(tokens_given))
        return given

    def _decode_one(self, newest: list[int], lengths: list[int]) -> Tensor:
        tokens = torch.tensor(newest, device=self.device)[:, None]
        if self.graphs is None:
            logits: Tensor = self.model(tokens, past=self.cache.after(lengths, 1))
            return logits
        return self.graphs(
            lambda tokens, lengths: self.model(tokens, past=self.cache.after_on_device(lengths)),
            tokens,
            torch.tensor(lengths, device=self.device),
        )

    def _take(
        self, streams: list[Stream], logits: Tensor, drafts: list[list[int]] | None = None
    ) -> list[tuple[Stream, list[Token]]]:
        """Choose each stream's next token by logits (B, 1 + guesses, V), and while it is the one guessed, the one after it."""
        for stream in streams:
            stream.passes += 1
        given: list[list[Token]] = [[] for _ in streams]
        going = list(range(len(streams)))
        for at in range(logits.size(1)):
            own = logits[:, at] if len(going) == len(streams) else logits[going, at]
            for row, token in zip(going, self._choose([streams[i] for i in going], own), strict=True):
                if token is not None:
                    given[row].append(token)
            if drafts is None:
                break
            going = [i for i in going if drafts[i][at : at + 1] == [token.id for token in given[i][at:]] != []]
            going = [i for i in going if not streams[i].finish]
            for i in going:
                streams[i].right_guesses += 1
            if not going:
                break
        return list(zip(streams, given, strict=True))

    def _choose(self, streams: list[Stream], logits: Tensor) -> list[Token | None]:
        """The next token of each stream by logits (B, V), or None for the end; those with the same settings at once."""
        ids = [0] * len(streams)
        groups: dict[tuple[Sampling, int | None], list[int]] = {}
        for row, stream in enumerate(streams):
            request = stream.request
            banned = request.end if stream.n_new < request.min_new_tokens else None
            groups.setdefault((request.sampling, banned), []).append(row)
        for (sampling, banned), rows in groups.items():
            own = logits if len(rows) == len(streams) else logits[rows]
            if banned is not None:
                own = own.index_fill(1, torch.tensor([banned], device=self.device), -torch.inf)
            for row, chosen in zip(rows, self._draw([streams[i] for i in rows], own, sampling), strict=True):
                ids[row] = chosen
        return [
            self._extend(stream, id, logits[row : row + 1])
            for row, (stream, id) in enumerate(zip(streams, ids, strict=True))
        ]

    def _draw(self, streams: list[Stream], logits: Tensor, sampling: Sampling) -> list[int]:
        seen = torch.zeros(len(streams), 0, dtype=torch.int64, device=self.device)
        draws = torch.zeros(len(streams), 1, dtype=torch.float64)
        if sampling.temperature > 0:
            draws = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=s.generator) for s in streams])
        if sampling.repetition_penalty == 1.0:
            chosen: list[int] = next_token_at(logits, seen, sampling, draws.to(self.device))[:, 0].tolist()
            return chosen
        return [
            int(
                next_token_at(
                    logits[i : i + 1],
                    torch.tensor([s.ids], device=self.device),
                    sampling,
                    draws[i : i + 1].to(self.device),
                )
            )
            for i, s in enumerate(streams)
        ]

    def _extend(self, stream: Stream, id: int, logits: Tensor) -> Token | None:
        request = stream.request
        if id == request.end:
            stream.finish = "end"
            return None
        stream.ids.append(id)
        if stream.n_new == request.max_new_tokens:
            stream.finish = "length"
        if request.alternatives is None:
            return Token(id)
        logprobs = log_probabilities(logits, request.sampling.n_tokens)[0]
        best = logprobs.topk(min(request.alternatives, len(logprobs)))
        return Token(id, float(logprobs[id]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _padded(rows: list[list[int]]) -> Tensor:
    """Rows of ids as one (B, T) tensor, the shorter ones with zeros behind."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])
