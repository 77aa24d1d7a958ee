"""Stage 1, sample captions: image-caption collections as people have them -> a uniform sample, sorted by key."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

from pydantic import Field

from thinkdiff.schemas.artifact import Artifact, Frozen, Spec, Stage

CollectionFormat = Literal["cc3m-tsv", "cc12m-tsv", "sbu-json"]


class Collection(Frozen):
    """One image-caption collection, its format declared and not guessed."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$", description="enters every sample's key")
    format: CollectionFormat = Field(
        description="cc3m-tsv: caption<TAB>url; cc12m-tsv: url<TAB>caption; sbu-json: parallel lists in one object"
    )
    url: str = Field(min_length=1, description="the caption file; a relative path starts at the data root")
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="expected digest of the file, checked"
    )


class CaptionSpec(Spec):
    """A uniform sample without replacement over the union of the collections.

    It depends on (seed, key) alone, not on the order of files or rows: bottom-n by a keyed hash.
    """

    stage: ClassVar[Stage] = "sample_captions"
    collections: tuple[Collection, ...] = Field(min_length=1)
    n: int = Field(ge=1, description="captions to sample; fewer are an error")
    seed: int = Field(default=0, ge=0)


class CaptionSet(Artifact):
    """Parquet of (key, collection, url, caption, file, row), sorted by key; `malformed.parquet` lists bad rows."""


def sample_key(collection: str, url: str, caption: str) -> str:
    """The name of a sample, everywhere and for ever: 128 bits of sha256 as 32 hex digits.

    The three fields are hashed as UTF-8, each after its length in bytes (8 bytes, little-endian), so that no two
    triples share an encoding. File and row number are provenance and enter no digest.
    """
    hasher = hashlib.sha256()
    for field in (collection, url, caption):
        data = field.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()[:32]
