"""Which documents of a corpus are left out because others are there that are equal, or nearly so."""

from collections.abc import Mapping
from typing import Literal

from smallgpt.infrastructure.cleaning.duplicates import Duplicates, exact_duplicates, together
from smallgpt.infrastructure.cleaning.near_duplicates import near_duplicates
from smallgpt.infrastructure.manifest import LeftOut
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.tokenizing.draft import Draft
from smallgpt.infrastructure.tokenizing.encoding import Split
from smallgpt.infrastructure.tokenizing.merging import Parts

Kind = Literal["exact", "near"]


def find_copies(parts: Mapping[Split, Parts], kind: Kind, draft: Draft, progress: Progress | None) -> Duplicates:
    """Equal documents, and among the others nearly equal ones where `near` is asked for."""
    if progress:
        progress(0, None, "looking for copies")
    train, validation = parts["train"].as_documents(), parts["validation"].as_documents()
    exact = exact_duplicates(train, validation)
    if kind == "exact":
        return exact
    work = draft.folder / "near"
    work.mkdir(exist_ok=True)
    return together(exact, near_duplicates(train, validation, work, exact=exact))


def left_out(kind: Kind, found: Duplicates) -> LeftOut:
    """For the manifest."""
    return LeftOut(copies=kind, train=found.train, train_in_validation=found.across, validation=found.validation)
