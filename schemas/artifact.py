"""What a stage is asked for (Spec), what it left behind (Artifact) and how the two are tied (fingerprint).

Identity and execution are different things. A Spec holds all that changes the result and nothing else; Execution
holds where and how fast it runs and never enters a fingerprint. The content digests of a stage's parents do enter, so
a parent rebuilt with the same bytes leaves its children cached, and one rebuilt with other bytes does not.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from thinkdiff.schemas.errors import SpecError

PipelineStage = Literal[
    "sample_captions",
    "fetch_images",
    "extract_features",
    "train_aligner",
    "generate_media",
    "score_cobsat",
    "render_report",
]
GalleryStage = Literal["gather_gallery", "score_gallery", "render_gallery"]  # beside the pipeline, not in its order
Stage = Literal[PipelineStage, GalleryStage]
STAGES: tuple[PipelineStage, ...] = get_args(PipelineStage)
EVERY_STAGE: tuple[Stage, ...] = get_args(Stage)

M = TypeVar("M", bound=BaseModel)


class Frozen(BaseModel):
    """Immutable, closed to unknown keys, with no NaN or infinity.

    `later` names fields that came after results were made, with the value these have: at it, the fingerprint is theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[Mapping[str, Any]] = {}


class Spec(Frozen):
    """The identity of a stage's result. Subclasses name their stage and the version of its code."""

    stage: ClassVar[Stage]
    version: ClassVar[int] = 1

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again (`model_copy` does not validate).

        Raises SpecError for an unknown field or a refused value.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return validated(type(self), values | changes)


def validated(kind: type[M], values: Mapping[str, Any]) -> M:
    """`kind(**values)`, with pydantic's report turned into one SpecError sentence."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise SpecError(one_sentence(kind.__name__, error)) from None


def one_sentence(what: str, error: ValidationError) -> str:
    """The first complaint of a pydantic report as `what.field: found X, expected Y`."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in (what, *first["loc"]))
    found = first.get("input")
    more = f" ({error.error_count()} complaints in all.)" if error.error_count() > 1 else ""
    return f"{where}: found {found!r:.120}, expected: {first['msg'][0].lower()}{first['msg'][1:]}.{more}"


class Model(Frozen):
    """A model by name and revision.

    `revision` is the hub's commit, or `sha256:<hex>` of a local folder's files; it is what makes a change of weights
    a change of identity.
    """

    name: str = Field(min_length=1, description="hub id, or a folder below one of the model directories")
    revision: str | None = Field(default=None, description="hub commit, or sha256:<hex> of a local folder")


class Fetching(Frozen):
    """How pictures are fetched by URL and decoded: how many at a time, how patiently, under which name.

    The servers are strangers': `per_host` and the pauses are courtesy, the rest keeps a bad one from holding all up.
    """

    user_agent: str = Field(
        default="thinkdiff/0.1 (image-caption research)",
        pattern="^[ -~]+$",
        description="who we say we are; add a way to reach you",
    )
    concurrency: int = Field(default=64, ge=1, description="requests under way together")
    per_host: int = Field(default=4, ge=1, description="of them to one host")
    connect_seconds: float = Field(default=10.0, gt=0, description="for name and connection")
    read_seconds: float = Field(default=15.0, gt=0, description="without a byte")
    total_seconds: float = Field(default=60.0, gt=0, description="for one request with its answer")
    retries: int = Field(default=2, ge=0, description="further attempts after a fault that can pass")
    backoff_seconds: float = Field(default=1.0, ge=0, description="longest first pause; doubles with each attempt")
    longest_pause: float = Field(default=30.0, ge=0, description="seconds; a host that asks for more is left alone")
    redirects: int = Field(default=5, ge=0)
    host_patience: int = Field(default=16, ge=1, description="requests without answer until a host is given up")
    decoders: int = Field(default=0, ge=0, description="decoding processes; 0: one for each processor")
    decode_seconds: float = Field(default=20.0, gt=0, description="for one picture")
    decode_memory: int = Field(default=2 << 30, ge=1 << 28, description="bytes of address space of a decoding process")


class Execution(Frozen):
    """Where and how fast a stage runs. Never part of a fingerprint."""

    root: str = Field(default="runs", description="artifact root: a path or s3://bucket/prefix")
    data: str | None = Field(default=None, description="where relative collection URLs start; default ROOT/data")
    given: str | None = Field(default=None, description="pictures of another system, for import_media: a path or URL")
    model_dirs: tuple[str, ...] = Field(default=(), description="folders searched for models before the hub")
    engine: Literal["vllm", "two-pass", "transformers"] = "vllm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, description="CPU threads of a model; 0 leaves it to the recipe")
    batch: int = Field(default=64, ge=1, description="pictures, or frames of videos, generated together, or judged")
    max_num_seqs: int = Field(default=256, ge=1, description="requests the engine runs together")
    max_model_len: int | None = Field(
        default=None, ge=1,
        description="tokens of a VLM's prompt and answer together, which must fit into its memory; none: 8192, or what "
        "its largest pictures can need",
    )  # fmt: skip
    ranks: int = Field(default=0, ge=0, description="processes that train together; 0: one for each GPU, else one")
    micro_batch: int = Field(
        default=0, ge=0, description="samples of a process that are in memory together; 0: all of its share of a step"
    )
    compile: bool = Field(default=False, description="a training fuses its decoder's kernels; a minute at the start")
    compile_decoder: bool = Field(
        default=False, description="torch.compile of the diffusion model's repeated blocks; pays off on a GPU"
    )
    offload: Literal["none", "blocks"] = Field(
        default="none",
        description="on a GPU too small for the diffusion model: its blocks lie in main memory and are brought one by "
        "one, at every step",
    )
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        default="tensorboard", description="where a training is drawn; wandb needs its extra"
    )
    stop_loss: float | None = Field(
        default=100.0, gt=0, description="nats per token above which a training has exploded and is stopped"
    )
    checkpoint_every: int = Field(
        default=0, ge=0, description="steps between resumable checkpoints; 0: a tenth of a training, at most 1000"
    )
    judge_seconds: float = Field(default=900.0, gt=0, description="that a VLM judge may take for a batch of pictures")
    keep_checkpoints: int = Field(default=2, ge=1, description="of the newest of a training; the best one is kept too")
    workers: int = Field(
        default=0, ge=0, description="parts of a stage worked on together; 0: as the stage thinks best"
    )
    engines: int = Field(
        default=0, ge=0, description="VLM engines that extract features side by side; 0: one for each GPU"
    )
    runner: Literal["threads", "ray", "dask"] = Field(
        default="threads", description="Prefect task runner of a stage's parts; ray and dask need their extras"
    )
    runner_address: str | None = Field(default=None, description="of a Ray or Dask cluster; none: one of its own")
    split_bytes: int = Field(default=256 << 20, ge=1, description="size of the parts that collections are read in")
    refresh: SkipJsonSchema[tuple[Stage, ...]] = Field(  # in no form and no dump: a parameter of the flows sets it
        default=(), exclude=True, description="stages recomputed even when their record is there"
    )
    gpu_slot: str | None = Field(
        default=None,
        description="global concurrency limit of which a stage takes one while it computes with a GPU; none: that of "
        "the worker's THINKDIFF_GPU_SLOT, if it has one",
    )
    lease: float = Field(default=30.0, gt=0, description="seconds after which an unrenewed lock is free")
    fetching: Fetching = Fetching()
    plan: bool = Field(default=True, description="look first for what is missing, and stop before any work if it is")
    refetch_failed: bool = Field(default=False, description="try the failed pictures of a fetched set again")
    allow_networks: tuple[str, ...] = Field(
        default=(), description="networks (CIDR) that are not public and that pictures may come from all the same"
    )

    @field_validator("allow_networks")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @property
    def data_root(self) -> str:
        """The folder that relative collection URLs start from."""
        return self.data or f"{self.root.rstrip('/')}/data"


class FileEntry(Frozen):
    """One file of an artifact."""

    path: str = Field(description="relative to the artifact's URI")
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    content: bool = Field(default=True, description="false for provenance, which enters no content digest")

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        parts = self.path.split("/")
        if self.path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\\" in self.path:
            raise ValueError("the path must stay inside the artifact")
        return self


class Parent(Frozen):
    """A parent as the child saw it."""

    stage: Stage
    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="content digest that entered the child's fingerprint")
    uri: str


class Provenance(Frozen):
    """Who made an artifact, from what code, when. Enters no digest."""

    created: str = Field(description="UTC, ISO 8601")
    seconds: float = Field(ge=0, description="wall time of the stage, the last run's share only")
    host: str
    git_commit: str | None
    packages: dict[str, str]
    flow_run: str | None = None
    note: str = ""


class Artifact(Frozen):
    """What a stage left behind, as `artifact.json` records it. Subclasses only name their stage."""

    schema_version: Literal[1] = 1
    stage: Stage
    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="sha256 over the files' names, sizes and digests")
    uri: str
    spec: dict[str, Any]
    version: int
    parents: dict[str, Parent]
    files: tuple[FileEntry, ...]
    counts: dict[str, int] = {}
    stats: dict[str, Any] = {}
    provenance: Provenance

    def path(self, name: str) -> str:
        """The full path of a file of this artifact."""
        return f"{self.uri}/{name}"

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        """The relative paths of this artifact's files with that prefix and suffix, sorted."""
        return sorted(f.path for f in self.files if f.path.startswith(prefix) and f.path.endswith(suffix))


def canonical(value: Any) -> Any:
    """`value` as JSON that is the same for the same meaning, whatever the order of its mappings.

    Raises TypeError for what has no such form; nothing falls back to `str`.
    """
    if isinstance(value, BaseModel):
        fields, later = {name: getattr(value, name) for name in type(value).model_fields}, getattr(value, "later", {})
        return canonical({name: told for name, told in fields.items() if name not in later or told != later[name]})
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"fingerprint: found {value!r}, expected a finite number. It has no stable JSON form.")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"fingerprint: found keys {list(value)!r:.80}, expected strings.")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise TypeError(
        f"fingerprint: found a {type(value).__name__}, expected JSON values. It has no deterministic form; "
        "give the spec a string or a number instead."
    )


def sha256_json(value: Any) -> str:
    """sha256 of the canonical compact JSON of `value`, as 64 hex digits."""
    return sha256_compact(canonical(value))


def sha256_compact(value: Any) -> str:
    """sha256 of the compact JSON of `value`, which is canonical already."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(spec: Spec, parents: Mapping[str, Artifact]) -> str:
    """The identity of a result: stage, version of its code, spec and the parents' content digests. 32 hex digits."""
    digests = {role: parent.digest for role, parent in parents.items()}
    return sha256_json([spec.stage, spec.version, spec, digests])[:32]


def content_digest(files: tuple[FileEntry, ...]) -> str:
    """The digest of an artifact's content: names, sizes and sha256 of its files, in the order of their names.

    Files of provenance are left out, so that what was made where changes no child.
    """
    return sha256_compact([[f.path, f.size, f.sha256] for f in sorted(files, key=lambda f: f.path) if f.content])
