"""A corpus becomes a data folder: tokenizer, encoded parts, merged token files, manifest. What is done is never done twice."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure import cpus
from smallgpt.infrastructure.corpora.parts import Corpus, Documents
from smallgpt.infrastructure.corpora.splitting import HeldOut, hold_out
from smallgpt.infrastructure.data_folder import (
    SMALLEST_TEXT,
    check_target,
    count_baselines,
    describe,
    smallest_dtype,
    unwritable,
)
from smallgpt.infrastructure.files import check_replaceable, take_place, write_atomically
from smallgpt.infrastructure.manifest import Manifest, SplitFacts, TokenizerFacts
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizers import AnyTokenizer, load_tokenizer
from smallgpt.infrastructure.tokenizing.choosing import TokenizerChoice, TrainingTexts
from smallgpt.infrastructure.tokenizing.copies import find_copies, left_out
from smallgpt.infrastructure.tokenizing.draft import DONE, REPLACED, Draft, PartFacts, discard, draft_of, forget_if_done
from smallgpt.infrastructure.tokenizing.encoding import SPLITS, Job, PartJob, Split
from smallgpt.infrastructure.tokenizing.merging import Parts, merge, used_ids
from smallgpt.infrastructure.tokenizing.speed import Meter
from smallgpt.infrastructure.tokenizing.workers import Worker, encode_parts, started
from smallgpt.infrastructure.trimming import trim

WORTH_A_WORKER = 2**22
"""Bytes of a corpus."""


@dataclass(frozen=True)
class Options:
    """How a corpus becomes tokens."""

    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    validation_share: float = 0.05
    """Of the text, held out where the corpus has no validation split."""
    overwrite: bool = False
    """Replace a data folder that is there, and nothing else."""
    deduplicate: Literal["exact", "near"] | None = None
    """Copies to leave out: equal documents, or nearly equal ones too."""
    baselines: bool = True
    """Count the n-gram lines: half a second."""
    workers: int | None = None
    """Processes that encode; None: as many as there are processors, and as parts to keep them busy."""


def make_data_folder(corpus: Corpus, out: Path, options: Options, progress: Progress | None = None) -> Manifest:
    """Tokenize a corpus into a new data folder, which appears whole or not at all.

    After an interruption of any kind the next call with the same options takes the parts that were finished. progress is
    told (done, total or None, what, details). Raises DataError for unusable input, an existing `out`, another process at
    work on it, and a disk that is full or cannot be written; the parts that are done are kept.
    """
    check_place(out, options.overwrite)
    try:
        with (
            draft_of(out, options.tokenizer.plan(corpus, options.validation_share)) as draft,
            _keeping(draft, trained=options.tokenizer.kind == "bpe"),
            started(options.workers or _enough(corpus)) as workers,
        ):
            return _make(corpus, out, options, draft, workers, progress)
    except OSError as error:
        raise unwritable(out, error) from error


def check_place(out: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse, before any work, what must not be replaced: see check_target."""
    check_replaceable(out)
    forget_if_done(out)
    check_target(out, overwrite, inputs)


def _make(
    corpus: Corpus, out: Path, options: Options, draft: Draft, workers: Sequence[Worker], progress: Progress | None
) -> Manifest:
    held_out = None
    if corpus.validation is None:
        held_out = hold_out(Documents(corpus.train), options.validation_share, corpus.name)
    tokenizer = _tokenizer(corpus, held_out, options.tokenizer, draft, progress)
    job = Job(draft.folder, tokenizer, smallest_dtype(tokenizer.vocab_size))
    with ThreadPoolExecutor(1) as beside:
        described = beside.submit(_kept, tokenizer, draft)  # while the workers are at work
        facts = _encoded(job, _part_jobs(corpus, held_out), workers, progress)
    manifest = _merged(corpus, job, described.result(), facts, options, draft, progress)
    _place(draft, out)
    return manifest


def _tokenizer(
    corpus: Corpus, held_out: HeldOut | None, choice: TokenizerChoice, draft: Draft, progress: Progress | None
) -> AnyTokenizer:
    """The tokenizer; one that an earlier call has trained is taken from the draft."""
    if choice.kind == "bpe" and draft.tokenizer_file.exists():
        return load_tokenizer(draft.tokenizer_file)
    return choice.make(TrainingTexts(corpus.train, held_out), progress)


def _kept(tokenizer: AnyTokenizer, draft: Draft) -> TokenizerFacts:
    """Write it into the draft."""
    if not draft.tokenizer_file.exists():
        unfinished = draft.folder / "tokenizer.growing"
        tokenizer.save(unfinished)
        unfinished.rename(draft.tokenizer_file)
    return describe(tokenizer)


def _part_jobs(corpus: Corpus, held_out: HeldOut | None) -> list[PartJob]:
    jobs = [PartJob(number, part, held_out or "train") for number, part in enumerate(corpus.train)]
    return jobs + [
        PartJob(number, part, "validation") for number, part in enumerate(corpus.validation or (), len(jobs))
    ]


def _encoded(
    job: Job, part_jobs: Sequence[PartJob], workers: Sequence[Worker], progress: Progress | None
) -> list[PartFacts]:
    """Facts of all parts, in order; those that are finished already are not encoded again."""
    finished = {part_job.key: facts for part_job in part_jobs if (facts := Draft(job.folder).finished(part_job.key))}
    waiting = [part_job for part_job in part_jobs if part_job.key not in finished]
    done_before = sum(part_job.part.size for part_job in part_jobs if part_job.key in finished)
    meter = Meter(waiting, done_before, progress)
    for facts in encode_parts(job, waiting, workers, meter):
        finished[facts.key] = facts
    return [finished[part_job.key] for part_job in part_jobs]


def _enough(corpus: Corpus) -> int:
    """As many workers as there are processors, but none without work for longer than the half second it takes to start."""
    parts = [*corpus.train, *(corpus.validation or ())]
    worth = sum(part.size for part in parts) // WORTH_A_WORKER
    return min(cpus.usable(), cpus.quota() or cpus.usable(), len(parts), max(1, worth))


def _merged(
    corpus: Corpus,
    job: Job,
    described: TokenizerFacts,
    facts: Sequence[PartFacts],
    options: Options,
    draft: Draft,
    progress: Progress | None,
) -> Manifest:
    """The whole data folder, in the draft."""
    shutil.rmtree(draft.whole, ignore_errors=True)
    draft.whole.mkdir()
    parts = {split: Parts(draft, facts, split, job.dtype, job.tokenizer) for split in SPLITS}
    _check_size(corpus.name, facts, draft)
    renumber, kept = None, draft.whole / "tokenizer.json"
    if options.tokenizer.trim:
        trimmed, renumber = trim(job.tokenizer, used_ids(parts["train"]) | used_ids(parts["validation"]))
        trimmed.save(kept)
        described = describe(trimmed)
    else:
        shutil.copyfile(draft.tokenizer_file, kept)
    dtype = smallest_dtype(described.vocab_size)
    kind = options.deduplicate
    copies = find_copies(parts, kind, draft, progress) if kind else None
    keep = {"train": copies.keep_train, "validation": copies.keep_validation} if copies else {}
    splits: dict[Split, SplitFacts] = {
        split: merge(parts[split], draft.whole, dtype, keep=keep.get(split), renumber=renumber, progress=progress)
        for split in SPLITS
    }
    baselines = None
    if options.baselines:
        baselines = count_baselines(draft.whole, splits, dtype, described.vocab_size, progress)
    manifest = Manifest(
        dtype=dtype,
        vocab_size=described.vocab_size,
        tokenizer=described,
        source=corpus.name,
        revision=corpus.revision,
        splits=splits,
        left_out=left_out(kind, copies) if kind and copies else None,
        baselines=baselines,
    )
    manifest.save(draft.whole)
    return manifest


def _check_size(source: str, facts: Sequence[PartFacts], draft: Draft) -> None:
    train, validation = (sum(getattr(part, split).documents for part in facts) for split in SPLITS)
    size = sum(part.train.text_bytes + part.validation.text_bytes for part in facts)
    if size < SMALLEST_TEXT or not (train and validation):
        discard(draft)
        raise DataError(
            f"{source}: {size} bytes of text in {train} training and {validation} validation "
            f"documents are too few to learn from (at least {SMALLEST_TEXT} bytes, some in each); give more text"
        )


def _place(draft: Draft, out: Path) -> None:
    write_atomically(draft.folder / DONE, "")
    take_place(draft.whole, out, draft.folder / REPLACED)
    discard(draft)


@contextmanager
def _keeping(draft: Draft, *, trained: bool) -> Iterator[None]:
    """Adds to what ends the work how much of it is kept; where nothing is, nothing is left. A trained tokenizer is kept."""
    try:
        yield
    except BaseException as error:
        if done := draft.finished_parts():
            error.add_note(f"{done:,} finished parts are kept; the same command goes on from there")
        elif not (trained and draft.tokenizer_file.exists()):
            discard(draft)
        raise
