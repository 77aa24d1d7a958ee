"""A MediaSet in the benchmark's own layout of results (`cobsat_layout`), for its scripts and for other people.

In: a MediaSet and whatever scorecards of it are under its root. Out: for every method and prompt a JPEG (quality 95,
colour not subsampled) and a JSON, and a CSV for every scorecard, method, task and number of shots; in a folder or a
bucket. A sample's JSON is written last and names the set, so that a run that was killed goes on where it stood.

The JSON holds `description` (the VLM's answer), `time` (0: seconds of a sample are not recorded), `text_inputs` (for
the prompt type caption the words without the captions), `image_inputs` (relative to the benchmark's root) and
`thinkdiff` (the set and the picture's size). A prompt without a picture has a JSON only, as in the benchmark. A set of
several methods is several models, `<name>-<method>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from thinkdiff.schemas.artifact import Artifact
from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.schemas.errors import InputError, SpecError, StoreError
from thinkdiff.schemas.features import FeatureSet, FeatureSpec
from thinkdiff.schemas.media import GivenMedia, MediaSet
from thinkdiff.schemas.scores import Scorecard
from thinkdiff.tasks.ahead import batched
from thinkdiff.tasks.cobsat import Prompt, image_path, prompts
from thinkdiff.tasks.cobsat_layout import (
    check_layout,
    check_model_name,
    exps_folder,
    sample_paths,
    summary_path,
    task_ids,
)
from thinkdiff.tasks.cobsat_prompts import text_inputs
from thinkdiff.tasks.cobsat_summary import summary
from thinkdiff.tasks.pictures import jpeg_of

if TYPE_CHECKING:
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.storage.root import Folder
    from thinkdiff.tasks.cobsat_summary import Row

QUALITY = 95
AT_ONCE = 64
MARK = "thinkdiff"


@dataclass(frozen=True)
class Exported:
    """How many samples were written, were there already and have no picture, and how many evaluations were written."""

    written: int
    kept: int
    missing: int
    summaries: int


@dataclass(frozen=True)
class Sample:
    """One prompt's files; `png` is None where there is no picture."""

    path: str
    prompt: Prompt
    answer: str
    png: bytes | None


def export_cobsat(root: str, reference: str, target: str, name: str | None = None) -> Exported:
    """Writes the MediaSet whose fingerprint starts with `reference` below `target`.

    Raises SpecError when it is no MediaSet or the name is none, InputError when other results are in the way.
    """
    from thinkdiff.storage.media_files import MediaReader
    from thinkdiff.storage.records import find_artifact
    from thinkdiff.storage.root import Folder
    from thinkdiff.storage.score_tables import read_prompts

    media = media_set(find_artifact(root, reference))
    spec, base = asked_of(root, media), check_model_name(name or default_name(media))
    check_layout(spec)
    folder, asked, reader = Folder.at(target), prompts(spec), MediaReader(media)
    answers = {row.name: row.answer for row in read_prompts(media)}
    if [prompt.name for prompt in asked] != list(answers):
        raise StoreError(f"{media.uri}: found other prompts than its spec's, expected those. The store is foreign.")
    methods = [str(method) for method in media.stats["methods"]]
    written = kept = missing = 0
    for method in methods:
        model = model_name(base, method, media)
        writer = SampleWriter(folder, model, media, method, spec)
        there, paths = set(reader.names(method)), sample_paths(model, spec, asked)
        places = {prompt.name: (path, prompt) for path, prompt in zip(paths, asked, strict=True)}
        samples = (Sample(*places[key], answers[key], png) for key, png in reader.iterate(method))
        lacking = (Sample(*places[key], answers[key], None) for key in places if key not in there)
        for batch in batched(chain(samples, lacking), AT_ONCE):
            new = writer.write(batch)
            written, kept = written + new, kept + len(batch) - new
        missing += len(places) - len(there)
    return Exported(written, kept, missing, export_scores(root, reader, folder, base, spec))


def media_set(artifact: Artifact) -> MediaSet:
    """The artifact as a MediaSet. Raises SpecError when it is another stage's."""
    if artifact.stage != "generate_media":
        raise SpecError(
            f"artifact: found one of {artifact.stage}, expected one of generate_media. `thinkdiff artifacts` lists "
            "them."
        )
    return MediaSet.model_validate(artifact.model_dump())


def asked_of(root: str, media: MediaSet) -> CobsatPrompts:
    """The prompts that a MediaSet answers: its own spec's, or its parent's. Raises StoreError when these are lost."""
    from thinkdiff.storage.records import artifact_folder, read_record, spec_of

    if "queries" not in media.parents:
        return spec_of(media, GivenMedia).prompts
    named = media.parents["queries"]
    found = read_record(artifact_folder(root, named.stage, named.fingerprint), FeatureSet)
    asked = spec_of(found, FeatureSpec).prompts if found else None
    if not isinstance(asked, CobsatPrompts):
        raise StoreError(
            f"{media.uri}: found its prompts {named.stage}/{named.fingerprint} missing from {root}, expected them "
            "there. They say what was asked; run that stage again."
        )
    return asked


def model_name(base: str, method: str, media: MediaSet) -> str:
    """What a method of a set is called as a model."""
    return base if len(media.stats["methods"]) == 1 else f"{base}-{method}"


def default_name(media: MediaSet) -> str:
    """What a set is called when nobody says."""
    return "thinkdiff" if "queries" in media.parents else str(media.stats["methods"][0])


class SampleWriter:
    """Writes the samples of one method below a folder."""

    def __init__(self, folder: Folder, model: str, media: MediaSet, method: str, spec: CobsatPrompts) -> None:
        self.folder, self.spec = folder, spec
        self.mark = {"media": media.digest, "method": method}
        self._sizes = folder.sizes(exps_folder(model))

    def write(self, samples: Sequence[Sample]) -> int:
        """Writes those that are not there yet; returns how many these were. In a bucket several at a time."""
        from thinkdiff.storage.bucket import at_once

        return sum(at_once(self._write, samples))

    def _write(self, sample: Sample) -> bool:
        if self._is_there(sample):
            return False
        jpeg = jpeg_of(sample.png, QUALITY) if sample.png is not None else None
        if jpeg is not None:
            self.folder.write(f"{sample.path}.jpg", jpeg)
        prompt = sample.prompt
        about = {
            "description": sample.answer,
            "time": 0,
            "text_inputs": text_inputs(self.spec, prompt, colon=": "),
            "image_inputs": [f"datasets/{image_path(prompt.family, d.value, d.thing)}" for d in prompt.demos],
            MARK: {**self.mark, "bytes": len(jpeg) if jpeg is not None else None},
        }
        self.folder.write(f"{sample.path}.json", json.dumps(about, indent=4).encode())
        return True

    def _is_there(self, sample: Sample) -> bool:
        """Whether both files are there and whole. Raises InputError when they are another set's."""
        if f"{sample.path}.json" not in self._sizes:
            return False
        try:
            about = json.loads(self.folder.read(f"{sample.path}.json"))
        except (ValueError, RecursionError):
            return False  # half of a file, which some copy left
        mark: Any = about.get(MARK) if isinstance(about, dict) else None
        if not isinstance(mark, dict) or {name: mark.get(name) for name in self.mark} != self.mark:
            raise InputError(
                f"{self.folder.uri}/{sample.path}.json: found the result of other pictures, expected none or this "
                "set's own. Results would be mixed; choose another --name or folder."
            )
        size = self._sizes.get(f"{sample.path}.jpg")
        return (size is None) == (sample.png is None) and size == mark.get("bytes")


def export_scores(root: str, reader: MediaReader, folder: Folder, base: str, spec: CobsatPrompts) -> int:
    """Writes the evaluations of every scorecard of the set that is under the root; returns how many."""
    from thinkdiff.storage.score_tables import read_verdicts

    asked, ids, count = prompts(spec), task_ids(spec), 0
    for judge, card in scorecards(root, reader.artifact).items():
        verdicts = {(v.method, v.name): v for v in read_verdicts(card)}
        for method in map(str, reader.artifact.stats["methods"]):
            model, there = model_name(base, method, reader.artifact), set(reader.names(method))
            cells: dict[tuple[int, str], list[Row]] = {}
            for path, prompt in zip(sample_paths(model, spec, asked), asked, strict=True):
                verdict = verdicts.get((method, prompt.name)) if prompt.name in there else None
                cells.setdefault((prompt.shots, prompt.task), []).append((f"{path}.jpg", prompt, verdict))
            for (shots, task), rows in cells.items():
                folder.write(summary_path(model, judge, spec, shots, ids[task]), summary(spec, rows).encode())
                count += 1
    return count


def scorecards(root: str, media: MediaSet) -> dict[str, Scorecard]:
    """The scorecards of a set's pictures by their judge's name; a second one of a name has its fingerprint in it."""
    from thinkdiff.storage.records import find_artifacts

    found: dict[str, Scorecard] = {}
    for card in find_artifacts(root, ("score_cobsat",)):
        parent, name = card.parents.get("media"), judge_name(card)
        if card.spec.get("mode") == "text":
            continue
        if parent is not None and (parent.fingerprint, parent.digest) == (media.fingerprint, media.digest):
            name = f"{name}-{card.fingerprint[:8]}" if name in found else name
            found[name] = Scorecard.model_validate(card.model_dump())
    return found


def judge_name(card: Artifact) -> str:
    """The judge's name as part of a path: that of its model without the owner."""
    judge = card.spec.get("judge")
    model = judge.get("model", judge) if isinstance(judge, dict) else judge
    name = model.get("name") if isinstance(model, dict) else model
    return re.sub("[^A-Za-z0-9.-]+", "-", str(name).rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "judge"
