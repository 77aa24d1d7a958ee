"""Stage 1, sample captions: image-caption collections as people have them -> a uniform sample, sorted by key."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from thinkdiff.schemas.artifact import Artifact, Frozen, Spec, Stage

CollectionFormat = Literal[
    "cc3m-tsv", "cc12m-tsv", "sbu-json", "sbu-txt", "webdataset", "img2dataset-parquet", "hub-parquet"
]

# Phrases that stand where a caption should. A collection's own are added to the spec.
BOILERPLATE = (
    "image not available",
    "no image available",
    "photo not available",
    "image coming soon",
    "click to enlarge",
    "click to view",
    "click here to view",
    "this image has been removed",
)


class Collection(Frozen):
    """One image-caption collection, its format declared and not guessed."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$", description="enters every sample's key")
    format: CollectionFormat = Field(
        description="cc3m-tsv: caption<TAB>url; cc12m-tsv: url<TAB>caption; sbu-json: parallel lists in one object; "
        "sbu-txt: a file of urls and one of captions, line by line; webdataset: tars of img2dataset with .json and "
        ".txt; img2dataset-parquet: columns url and caption; hub-parquet: columns image_url and caption"
    )
    url: str = Field(
        min_length=1,
        description="a file or a glob, by path or fsspec URL, plain or .gz, .zst, .bz2; relative: below the data root",
    )
    captions_url: str | None = Field(default=None, description="of sbu-txt: the file of captions beside that of urls")
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="expected digest of the one file, checked"
    )
    weight: float = Field(default=1.0, gt=0, description="chance of a row to be drawn, relative to other collections")

    @model_validator(mode="after")
    def _files_fit(self) -> Self:
        if (self.captions_url is not None) != (self.format == "sbu-txt"):
            raise ValueError("captions_url must be given for the format sbu-txt and for no other")
        return self


class CaptionFilters(Frozen):
    """Which captions are left out, each with a count by reason."""

    min_words: int = Field(default=1, ge=1, description="words between ASCII white space")
    max_words: int | None = Field(default=None, ge=1)
    control_characters: bool = Field(default=False, description="leave out captions with C0, DEL or C1 characters")
    replacement_characters: bool = Field(default=False, description="leave out captions with U+FFFD")
    boilerplate: tuple[str, ...] = Field(
        default=(), description="leave out captions that hold one of these phrases, in any case (ASCII)"
    )

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"max_words {self.max_words} must not be below min_words {self.min_words}")
        for phrase in self.boilerplate:
            if not phrase.strip() or not phrase.isascii() or "\n" in phrase:
                raise ValueError(f"the phrase {phrase!r} must be one line of ASCII and not blank")
        return self


class CaptionSpec(Spec):
    """A uniform sample without replacement over the union of the collections, each distinct URL once.

    Bottom-n by a keyed hash of the normalised URL: it depends on (seed, rows) alone, not on the order of files or rows
    or on how they are split. Among rows of one URL that of the smallest key wins. With weights, the hash is divided
    by the collection's (sequential Poisson sampling, Ohlsson 1998).
    """

    stage: ClassVar[Stage] = "sample_captions"
    version: ClassVar[int] = 2
    collections: tuple[Collection, ...] = Field(min_length=1)
    n: int = Field(ge=1, description="captions to sample; fewer are an error")
    seed: int = Field(default=0, ge=0, lt=2**64)
    filters: CaptionFilters = CaptionFilters()
    distinct_captions: bool = Field(default=False, description="take no caption twice, as text, even with two URLs")
    cleaning: Literal["none", "blip"] = Field(
        default="none",
        description="blip: lower case, some punctuation to spaces, at most 50 words, as the CLIP variant is trained",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [collection.name for collection in self.collections]
        if len(set(names)) != len(names):
            raise ValueError(f"the collections {', '.join(names)} must differ by name")
        return self


class CaptionSet(Artifact):
    """`captions.parquet` of (key, collection, url, caption), sorted by key.

    Beside it, outside of the content digest: `origins.parquet` (key, file, row) and `malformed.parquet`.
    """


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
