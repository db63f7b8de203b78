"""Training and validation: two disjoint sets of whole records."""

from __future__ import annotations

import hashlib
import random

from fxprune.data.records import Conversation, Document, Record, Records
from fxprune.errors import RecoveryError


def split(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """Draw records to validate on; the rest train.

    Records that differ in white space alone count once: the first stays, the others are listed in
    ``skipped`` of the training part. No record is cut, and both parts keep the order.

    Args:
        records: what to split.
        fraction: of the records, to validate on: from 0, for none, to 0.5. Above 0 there is at
            least one in each part.
        seed: the same seed gives the same parts.

    Returns:
        Records to train on and records to validate on.

    Raises:
        RecoveryError: the fraction is out of its range, or a single record cannot be split.
    """
    if not 0 <= fraction <= 0.5:
        raise RecoveryError(f"a fraction of {fraction} to validate on: take 0 to 0.5")
    single, repeated = _without_repeats(records.records)
    skipped = (*records.skipped, *repeated)
    name = f"{records.name}, validation part"
    if fraction == 0:
        return Records(records.name, single, skipped), Records(name, ())
    total = len(single)
    if total < 2:
        raise RecoveryError(
            f"{records.name} has {total} different document(s), too few to split: give a file to "
            "validate on, or a fraction of 0 to train without validation"
        )
    count = max(1, min(round(fraction * total), total // 2))
    chosen = set(random.Random(seed).sample(range(total), count))
    training = tuple(record for place, record in enumerate(single) if place not in chosen)
    validation = tuple(single[place] for place in sorted(chosen))
    return Records(f"{records.name}, training part", training, skipped), Records(name, validation)


def _without_repeats(records: tuple[Record, ...]) -> tuple[tuple[Record, ...], list[str]]:
    """The first of each family of equal records, and a line for each that is left out."""
    first: dict[bytes, Record] = {}
    repeated = []
    for record in records:
        same = first.setdefault(_key(record), record)
        if same is not record:
            repeated.append(f"{record.where}: the same as {same.where}")
    return tuple(first.values()), repeated


def _key(record: Record) -> bytes:
    """A digest without differences in white space, so that no text is held twice."""
    if isinstance(record, Document):
        parts = [record.text]
    elif isinstance(record, Conversation):
        parts = [part for turn in record.chat.turns for part in turn]
    else:
        parts = [record.instruction, record.input, record.output]
    # The separator is white space to str.split, so it is in no part.
    joined = "\x1f".join(" ".join(part.split()) for part in parts)
    return hashlib.blake2b(joined.encode(), digest_size=16).digest()
