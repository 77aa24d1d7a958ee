"""A gallery from its folder to its page, on tiny models of the real architectures: drawn, resumed, measured, shown."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import NO_CHROMIUM, Browser, css
from meters import Killed, Meter
from PIL import Image
from report_artifacts import HOSTILE, Parsed
from small_media import png
from store_artifacts import artifact_of
from tiny_decoders import FRAMES, VIDEO_ROWS, make_tiny_cogvideox
from tiny_diffusion import SIDE, WIDTH, make_tiny_flux, make_tiny_t5
from tiny_judges import make_tiny_clip, make_tiny_dino

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution, Model, content_digest
from thinkdiff.schemas.errors import InputError, SpecError
from thinkdiff.schemas.gallery import (
    GalleryInputs,
    GalleryPage,
    GalleryPageSpec,
    GalleryPrompt,
    GalleryScores,
    GallerySpec,
    SimilaritySpec,
)
from thinkdiff.schemas.media import MediaSet, MediaSpec
from thinkdiff.storage.checkpoints import save_aligner
from thinkdiff.storage.gallery_tables import read_list, read_similarities
from thinkdiff.storage.media_files import MediaReader, videos_of
from thinkdiff.storage.root import Folder
from thinkdiff.tasks import draw_gallery, gather_gallery, import_gallery, render_gallery, score_gallery
from thinkdiff.tasks.aligner import Aligner, AlignerConfig
from thinkdiff.tasks.alignment import TrainedAligner
from thinkdiff.tasks.cogvideox import CogVideoXDecoder
from thinkdiff.tasks.diffusion import Settings, noise_seed
from thinkdiff.tasks.flux import FluxDecoder
from thinkdiff.tasks.gallery_files import gallery_source, given_gallery
from thinkdiff.tasks.gallery_numbers import tables
from thinkdiff.tasks.qwen_engine import prepare_torchvision
from thinkdiff.tasks.report_numbers import mean_interval
from thinkdiff.tasks.step import Made, Work
from thinkdiff.tasks.t5_encoder import T5Encoder
from thinkdiff.tasks.vision_tower import VisionTower

TOWER_WIDTH = 24
PROMPTS = [
    {"name": "one", "images": ["a.png"]},
    {"name": "other", "images": ["b.png"]},
    {"name": "said", "images": ["a.png"], "text": "at night"},
    {"name": "hostile", "images": ["b.png"], "text": HOSTILE},
    {"name": "two", "images": ["a.png", "b.png"]},
    {"name": "two-said", "images": ["b.png", "a.png"], "text": "a red star"},
    {"name": "film", "images": ["c.png"], "text": "it is running", "video": True},
]
STILL = MediaSpec(
    decoder=Model(name="flux"), t5=Model(name="t5"), methods=("aligned",), height=SIDE, width=SIDE, steps=2,
    precision="float32",
)  # fmt: skip
FILM = STILL.but(decoder=Model(name="cogvideox"), frames=FRAMES, words="padded")
SPEC = GallerySpec(tower=Model(name="tower"), tower_precision="float32", media=STILL, video=FILM)


class Bench:
    """Runs the stages' own bodies below one folder."""

    def __init__(self, base: Path) -> None:
        self.base, self.models = base, base / "models"
        make_tiny_flux(self.models / "flux", clip=True)
        make_tiny_cogvideox(self.models / "cogvideox")
        make_tiny_t5(self.models / "t5")
        make_tiny_clip(self.models / "clip")
        make_tiny_dino(self.models / "dino")
        small_tower(self.models / "tower")
        self.aligner = trained(base / "aligner")

    def make(
        self,
        step: Any,
        kind: Any,
        name: str,
        *args: Any,
        given: str | None = None,
        die_at: int | None = None,
        **run: Any,
    ):
        """(what the body made, its artifact, the meter) of a stage."""
        meter, folder = Meter(die_at), Folder.at(str(self.base / name))
        execution = Execution(device="cpu", threads=1, model_dirs=(str(self.models),), given=given, **run)
        work = Work(folder, execution, SimpleNamespace(check=bool), logging.getLogger("test"))  # pyright: ignore
        object.__setattr__(work, "progress", lambda total, unit: meter)
        made: Made = step.body(work, *args)
        found = artifact_of(kind, folder, made.files, args[0].stage)
        return made, found.model_copy(update={"counts": made.counts, "stats": made.stats}), meter


def small_tower(folder: Path) -> None:
    """BLIP-2's tower of 16x16 pixels: 1 + 2x2 tokens of a picture."""
    prepare_torchvision()
    from transformers import Blip2VisionConfig, Blip2VisionModel

    torch.manual_seed(0)
    config = Blip2VisionConfig(
        hidden_size=TOWER_WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16,
        patch_size=4, initializer_range=0.3,
    )  # fmt: skip
    Blip2VisionModel(config).save_pretrained(folder)


def trained(folder: Path, out: int = WIDTH) -> AlignerCheckpoint:
    torch.manual_seed(3)
    config = AlignerConfig(TOWER_WIDTH, 16, out, kind="clip")
    state = {name: value.numpy() for name, value in Aligner(config).state_dict().items()}
    stored = Folder.at(str(folder))
    return artifact_of(AlignerCheckpoint, stored, save_aligner(stored, state, config.as_dict()), "train_aligner")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def source(bench: Bench) -> Folder:
    folder = Folder.at(str(bench.base / "source"))
    for name in "abc":
        folder.write(f"{name}.png", png(name))
    folder.write("prompts.jsonl", "\n".join(map(json.dumps, PROMPTS)).encode())
    return folder


@pytest.fixture(scope="module")
def inputs(bench: Bench, source: Folder) -> GalleryInputs:
    spec = gallery_source(source.uri, 64)
    return bench.make(gather_gallery.gather_gallery, GalleryInputs, "inputs", spec, given=source.uri)[1]


@pytest.fixture(scope="module")
def drawn(bench: Bench, inputs: GalleryInputs) -> MediaSet:
    return bench.make(draw_gallery.draw_gallery, MediaSet, "drawn", SPEC, inputs, bench.aligner)[1]


@pytest.fixture(scope="module")
def given(bench: Bench, inputs: GalleryInputs) -> MediaSet:
    """Another system's pictures of all prompts but one."""
    folder = Folder.at(str(bench.base / "beside"))
    for prompt in PROMPTS[1:]:
        folder.write(f"flux-ultra/{prompt['name']}.png", png(f"other {prompt['name']}"))
    spec = given_gallery(folder.uri, "flux-ultra", read(inputs))
    made, found, _ = bench.make(import_gallery.import_gallery, MediaSet, "given", spec, inputs, given=folder.uri)
    assert made.counts == {"prompts": 7, "pictures": 6, "missing": 1}
    return found


@pytest.fixture(scope="module")
def scores(bench: Bench, inputs: GalleryInputs, drawn: MediaSet, given: MediaSet) -> GalleryScores:
    spec = SimilaritySpec(clip=Model(name="clip"), dino=Model(name="dino"))
    systems = {"ours": drawn, "flux-ultra": given}
    return bench.make(score_gallery.score_gallery, GalleryScores, "scores", spec, inputs, systems)[1]


@pytest.fixture(scope="module")
def html(bench: Bench, inputs, drawn, given, scores) -> str:
    spec, systems = GalleryPageSpec(title="A <i>title</i>"), {"ours": drawn, "flux-ultra": given}
    bench.make(render_gallery.render_gallery, GalleryPage, "page", spec, inputs, systems, scores)
    return (bench.base / "page" / "gallery.html").read_text()


def read(inputs: GalleryInputs) -> list[GalleryPrompt]:
    return read_list(inputs)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_every_prompt_is_drawn_from_its_own_rows_and_noise(bench: Bench, inputs: GalleryInputs, drawn: MediaSet):
    tower, aligner = VisionTower(str(bench.models / "tower"), "cpu"), TrainedAligner(bench.aligner, "cpu")
    t5, reader = T5Encoder(str(bench.models / "t5")), MediaReader(drawn)
    flux = FluxDecoder(str(bench.models / "flux"), precision="float32")
    *stills, film = read(inputs)

    def rows(prompt) -> list[np.ndarray]:
        return [aligner(tower([Image.open(io.BytesIO(png(name[0])))])[0]) for name in prompt.images]

    for prompt in stills:
        words = t5.encode([prompt.text], eos=False) if prompt.text else []
        seed = noise_seed(STILL.seed, prompt.name)
        ((_, picture),) = flux.generate(
            [np.concatenate([*rows(prompt), *words])], [seed], t5.empty(), Settings.of(STILL)
        )
        assert np.abs(pixels(reader.read("drawn", prompt.name)) - picture).max() <= 1, prompt.name
    cog = CogVideoXDecoder(str(bench.models / "cogvideox"), precision="float32")
    whole = np.concatenate([*rows(film), *t5.padded([film.text], VIDEO_ROWS - 5, mask=False)])
    assert len(whole) == VIDEO_ROWS
    seed, empty = noise_seed(FILM.seed, "film"), t5.empty(VIDEO_ROWS, mask=False)
    ((_, frames),) = cog.generate([whole], [seed], empty, Settings.of(FILM))
    assert np.abs(pixels(reader.read("filmed", "film")) - frames[FRAMES // 2]).max() <= 1
    assert reader.read(videos_of("filmed"), "film")[4:8] == b"ftyp"
    assert sorted(reader.names("drawn")) == sorted(prompt.name for prompt in stills)


def test_padded_words_are_told_to_the_clip_too(bench: Bench, inputs: GalleryInputs):
    spec = SPEC.but(media=STILL.but(words="padded"))
    _, found, _ = bench.make(draw_gallery.draw_gallery, MediaSet, "padded", spec, inputs, bench.aligner)
    tower, aligner = VisionTower(str(bench.models / "tower"), "cpu"), TrainedAligner(bench.aligner, "cpu")
    t5, flux = T5Encoder(str(bench.models / "t5")), FluxDecoder(str(bench.models / "flux"), precision="float32")
    shown = aligner(tower([Image.open(io.BytesIO(png("a")))])[0])
    whole = np.concatenate([shown, *t5.padded(["at night"], 128, mask=False)])
    told, untold = (
        next(
            iter(flux.generate([whole], [noise_seed(STILL.seed, "said")], t5.empty(), Settings.of(STILL), texts=texts))
        )[1]
        for texts in (["at night"], None)
    )
    drawn = pixels(MediaReader(found).read("drawn", "said"))
    assert np.abs(drawn - told).max() <= 1 < np.abs(drawn - untold.astype(int)).max()


def test_words_alone_are_drawn_without_an_aligner(bench: Bench, inputs: GalleryInputs):
    spec = SPEC.but(reads="text")
    made, found, _ = bench.make(draw_gallery.draw_gallery, MediaSet, "words", spec, inputs, None)
    assert made.counts == {"prompts": 7, "pictures": 4, "missing": 3, "videos": 1}
    t5, flux = T5Encoder(str(bench.models / "t5")), FluxDecoder(str(bench.models / "flux"), precision="float32")
    words, seed = t5.encode(["at night"], eos=False)[0], noise_seed(STILL.seed, "said")
    ((_, picture),) = flux.generate([words], [seed], t5.empty(), Settings.of(STILL))
    assert np.abs(pixels(MediaReader(found).read("drawn", "said")) - picture).max() <= 1


def test_killed_drawing_goes_on_to_the_same_bytes(bench: Bench, inputs, drawn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draw_gallery, "PART", 2)
    calm, _, _ = bench.make(draw_gallery.draw_gallery, MediaSet, "calm", SPEC, inputs, bench.aligner)
    for die_at in (2, 4):
        with pytest.raises(Killed):
            bench.make(draw_gallery.draw_gallery, MediaSet, "rough", SPEC, inputs, bench.aligner, die_at=die_at)
    rough, found, meter = bench.make(draw_gallery.draw_gallery, MediaSet, "rough", SPEC, inputs, bench.aligner)
    assert (meter.resumed, meter.done) == (6, 1)
    assert content_digest(rough.files) == content_digest(calm.files)
    for name in MediaReader(drawn).names("drawn"):  # and in other batches the same pictures
        one, other = (pixels(MediaReader(media).read("drawn", name)) for media in (found, drawn))
        assert np.abs(one - other).max() <= 1


def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(bench: Bench, inputs: GalleryInputs, tmp_path: Path):
    def draw(spec: GallerySpec, aligner: AlignerCheckpoint | None = None) -> None:
        bench.make(draw_gallery.draw_gallery, MediaSet, "refused", spec, inputs, aligner)

    with pytest.raises(InputError, match="found no aligner, expected one"):
        draw(SPEC)
    with pytest.raises(SpecError, match=r"found 1 video prompts \(film and so on\), expected none"):
        draw(SPEC.but(video=None), bench.aligner)
    with pytest.raises(SpecError, match=r"gallery\.draw\.video: found flux, which draws pictures"):
        draw(SPEC.but(video=STILL), bench.aligner)
    with pytest.raises(SpecError, match=r"gallery\.draw\.media: found cogvideox, which draws videos"):
        draw(SPEC.but(media=FILM), bench.aligner)
    with pytest.raises(SpecError, match=f"aligner: found rows of width 40, expected {WIDTH}"):
        draw(SPEC, trained(tmp_path / "wide", 40))
    with pytest.raises(SpecError, match="set methods to aligned alone"):
        SPEC.but(media=STILL.but(methods=("true_caption",)))


def test_similarities_are_the_models_cosines(bench: Bench, inputs, drawn, given, scores):
    prepare_torchvision()
    from transformers import AutoProcessor, AutoTokenizer, CLIPModel, ViTImageProcessor, ViTModel

    clip: Any = CLIPModel.from_pretrained(bench.models / "clip", dtype=torch.float32).eval()
    process: Any = AutoProcessor.from_pretrained(bench.models / "clip")
    words: Any = AutoTokenizer.from_pretrained(bench.models / "clip")
    dino: Any = ViTModel.from_pretrained(bench.models / "dino", add_pooling_layer=False, dtype=torch.float32).eval()
    see: Any = ViTImageProcessor.from_pretrained(bench.models / "dino")

    def image(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    @torch.no_grad()
    def clip_i(one: bytes, other: bytes) -> float:
        both = clip.vision_model(process(images=[image(one), image(other)], return_tensors="pt").pixel_values)
        return float(torch.cosine_similarity(*clip.visual_projection(both.pooler_output), dim=0))

    @torch.no_grad()
    def clip_t(one: bytes, text: str) -> float:
        seen = clip.vision_model(process(images=[image(one)], return_tensors="pt").pixel_values).pooler_output
        said = clip.text_model(**words([text[:74]], return_tensors="pt")).pooler_output  # bytes are tokens
        return float(torch.cosine_similarity(clip.visual_projection(seen)[0], clip.text_projection(said)[0], dim=0))

    @torch.no_grad()
    def dino_i(one: bytes, other: bytes) -> float:
        states = dino(**see(images=[image(one), image(other)], return_tensors="pt")).last_hidden_state
        return float(torch.cosine_similarity(*states[:, 0], dim=0))

    rows = {(row.system, row.prompt, row.measure, row.against): row.value for row in read_similarities(scores)}
    for system, media in (("ours", drawn), ("flux-ultra", given)):
        reader = MediaReader(media)
        for prompt in read(inputs):
            method = "filmed" if prompt.video and system == "ours" else "drawn"
            if prompt.name not in reader.names(method):
                assert not [key for key in rows if key[:2] == (system, prompt.name)]
                continue
            made = reader.read(method, prompt.name)
            for name in prompt.images:
                assert rows[system, prompt.name, "CLIP-I", name] == pytest.approx(clip_i(made, png(name[0])), abs=1e-5)
                assert rows[system, prompt.name, "DINO", name] == pytest.approx(dino_i(made, png(name[0])), abs=1e-5)
            if prompt.name in ("said", "two-said"):
                found = rows[system, prompt.name, "CLIP-T", ""]
                assert found == pytest.approx(clip_t(made, prompt.text), abs=1e-5)
    copies = [value for key, value in rows.items() if key[0] == "the picture itself" and key[1:3] == ("one", "CLIP-I")]
    assert copies == [pytest.approx(1, abs=1e-5)]


def test_means_and_intervals_are_over_prompts(scores: GalleryScores):
    rows, found = read_similarities(scores), json.loads(Path(scores.path("scores.json")).read_text())
    assert found == tables(rows)

    def values(system: str, kinds: set[str], measure: str) -> list[float]:
        names = dict.fromkeys(row.prompt for row in rows if row.system == system and row.kind in kinds)
        each = [[r.value for r in rows if (r.system, r.prompt, r.measure) == (system, n, measure)] for n in names]
        return [float(np.mean(one)) for one in each if one]

    both = mean_interval(values("ours", {"image + text"}, "CLIP-T"))
    cell = found["ours"]["image + text"]["CLIP-T"]
    assert cell["prompts"] == 2
    assert (cell["mean"], cell["low"]) == (pytest.approx(both.mean, abs=1e-6), pytest.approx(both.low, abs=1e-6))
    every = {row.kind for row in rows}
    assert every == {"image", "image + text", "several images", "several images + text", "video"}
    for measure, count in (("CLIP-I", 7), ("DINO", 7), ("CLIP-T", 4)):
        one = found["ours"]["all"][measure]
        assert (one["mean"], one["prompts"]) == (
            pytest.approx(np.mean(values("ours", every, measure)), abs=1e-6), count,
        )  # fmt: skip
    assert found["flux-ultra"]["image"]["CLIP-I"] | {"mean": 0} == {"mean": 0, "low": None, "high": None, "prompts": 1}
    assert "CLIP-T" not in found["ours"]["image"]


def test_page_shows_every_prompt_with_its_pictures_and_a_strangers_text_as_text(html: str, drawn: MediaSet):
    parsed = Parsed(html)
    assert [attrs["data-prompt"] for _, attrs in parsed.tags if "data-prompt" in attrs] == [p["name"] for p in PROMPTS]
    assert HOSTILE in " ".join(parsed.words)
    assert "A <i>title</i>" in parsed.text
    assert "<script" not in html
    targets = [str(attrs[key]) for _, attrs in parsed.tags for key in ("src", "href") if attrs.get(key)]
    assert all(target.startswith(("data:image/", "data:video/mp4;base64,", "#")) for target in targets)
    assert len([attrs for tag, attrs in parsed.tags if tag == "video"]) == 1
    shown = [attrs["data-system"] for _, attrs in parsed.tags if "data-system" in attrs]
    assert (shown.count("ours"), shown.count("flux-ultra")) == (7, 6)
    assert list(parsed.table("System")) == ["ours", "flux-ultra", "the picture itself"]


def test_tables_are_left_as_markdown(bench: Bench, html: str, scores: GalleryScores):
    text = (bench.base / "page" / "gallery.md").read_text()
    cell = scores.stats["scores"]["ours"]["CLIP-I"]
    assert "### image + text" in text
    assert f"| ours | 7 | {cell:.3f} (" in text.split("### all prompts")[1]


@NO_CHROMIUM
def test_page_in_a_browser_loads_nothing_complains_of_nothing_and_filters(bench: Bench, html: str, tmp_path: Path):
    visible = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => c.dataset.prompt)"
    with Browser(tmp_path) as browser:
        browser.open((bench.base / "page" / "gallery.html").as_uri())
        assert browser.value(visible) == [p["name"] for p in PROMPTS]
        for kind, names in {
            "image": ["one", "other"], "image-text": ["said", "hostile"], "several-images": ["two"], "video": ["film"],
            "several-images-text": ["two-said"], "all": [p["name"] for p in PROMPTS],
        }.items():  # fmt: skip
            browser.click(css(f"label:has(#show-{kind})"))
            assert browser.value(visible) == names
        assert browser.value("document.querySelector('video').error") is None
        assert browser.value("document.querySelectorAll('.scatter .dot').length") == 6
        picture = np.asarray(Image.open(browser.screenshot("gallery")).convert("RGB")).astype(int)
        outside = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
        assert (browser.problems, outside) == ([], [])
    assert (np.abs(picture - picture[2, 2]).max(2) > 40).any(1).mean() > 0.3  # rows that hold something
