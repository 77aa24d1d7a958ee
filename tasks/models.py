"""Where a model is: a name and a revision in, a local folder out. And where it computes.

A model is looked for in the run's model folders, then as a path of its own, then on the hub. A revision
`sha256:<hex>` is the digest of a local folder and is verified, so that other weights under the same name are
an error and not another result. Nothing is loaded here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import ModelError, SpecError, ThinkDiffError
from thinkdiff.storage import disk
from thinkdiff.storage.root import Folder

DIGEST = "sha256:"
# Forms of weights that nobody here reads, and that repositories hold beside safetensors: they are not fetched.
UNREAD = (
    "*.bin",
    "*.ckpt",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.ot",
    "*.pt",
    "*.pth",
    "*.tflite",
)
# For every `from_pretrained` of weights: no pickle is read; code that a folder brings is neither run nor asked about.
SAFE: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}


def model_path(model: Model, run: Execution, patterns: Sequence[str] | None = None) -> str:
    """The local folder of a model.

    `patterns` limits what is fetched when the model comes from the hub. Raises ModelError when the model is
    nowhere, is a folder of another digest than its revision says, or names weights outside of its folder.
    """
    folder = local_folder(model, run)
    if folder is None:
        folder = Path(_from_hub(model, patterns))
        require_own_weights(folder)
    return str(folder)


def local_folder(model: Model, run: Execution) -> Path | None:
    """The folder of a model that is on this machine, None for one that the hub would be asked for.

    Raises ModelError for a folder of another digest than the revision says or that names weights outside of it, or
    when there is none and the revision is a digest.
    """
    folders = run.model_dirs if _is_relative(model.name) else ()
    tried = [Path(folder).expanduser() / model.name for folder in folders]
    for folder in (*tried, Path(model.name).expanduser()):
        if folder.is_dir():
            _check_revision(model, folder)
            require_own_weights(folder)
            return folder
    if model.revision is not None and model.revision.startswith(DIGEST):
        places = ", ".join(str(folder) for folder in tried) or "no model folder"
        raise ModelError(
            f"model {model.name}: found nothing in {places}, expected a folder of digest "
            f"{model.revision[:19]}…. A revision by digest is never fetched; add the folder above it to "
            "model_dirs."
        )
    return None


def folder_revision(path: str | Path) -> str:
    """The digest of a local folder as a revision, `sha256:<hex>`.

    It is the sha256 over one entry for each file, sorted by relative path: path, NUL, the file's own sha256
    in hex, newline. Links to files are files here, as in the hub's cache. A file is read once in a process, unless its
    size or time of change is another.
    """
    folder, digest = Folder.at(str(path)), hashlib.sha256()
    for name in sorted(disk.files(folder.uri)):
        state = os.stat(folder.full(name))
        file_digest = _file_digest(folder.uri, name, state.st_size, state.st_mtime_ns)
        digest.update(f"{name}\0{file_digest}\n".encode())
    return DIGEST + digest.hexdigest()


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object of a model's file. Raises ModelError when it holds none."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"model {file.parent}: found no JSON object in {file.name}, expected one. Fetch it again.")
    return found


def hidden_size(path: str | Path) -> int:
    """The width of a language model's states, from the folder's `config.json`."""
    require_files(path, ["config.json"])
    config = json_object(Path(path) / "config.json")
    text = config.get("text_config")
    width = (text.get("hidden_size") if isinstance(text, dict) else None) or config.get("hidden_size")
    if not isinstance(width, int):
        raise ModelError(
            f"model {path}: found no hidden_size in config.json, expected a language model's configuration."
        )
    return width


def require_files(path: str | Path, patterns: Sequence[str]) -> None:
    """Raises ModelError unless each pattern, relative to the folder, matches a file that is not empty."""
    for pattern in patterns:
        if not any(file.is_file() and file.stat().st_size for file in Path(path).glob(pattern)):
            raise ModelError(
                f"model {path}: found no file {pattern} with content, expected {', '.join(patterns)}. "
                "The model is not whole; copy or fetch it again."
            )


def require_own_weights(folder: Path) -> None:
    """Raises ModelError for an index of weights, also a pipeline part's, that names anything but files beside it.

    The libraries join such names with the folder as they are (CVE-2026-75104, CVE-2026-69112).
    """
    for index in sorted((*folder.glob("*.index*.json"), *folder.glob("*/*.index*.json"))):
        weights = json_object(index).get("weight_map", {})
        for name in weights.values() if isinstance(weights, dict) else (weights,):
            if not isinstance(name, str) or name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
                raise ModelError(
                    f"model {folder}: found the weights {str(name)[:100]!r} in {index.relative_to(folder)}, expected "
                    "the name of a file beside it. An index that points elsewhere can have any file read; take another "
                    "model."
                )


@contextmanager
def loading(path: str | Path, library: Literal["transformers", "diffusers"] = "transformers") -> Iterator[None]:
    """Turns what a library raises over an unreadable model into one ModelError, and keeps its chatter down.

    Import the library inside: torchvision, which it imports in turn, is prepared before.
    """
    from thinkdiff.tasks.qwen_engine import prepare_torchvision

    prepare_torchvision()
    logging = importlib.import_module(f"{library}.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ThinkDiffError:
        raise
    except Exception as error:  # the parsers of strangers' files raise what they happen to, tokenizers a bare Exception
        reason = str(error).strip().split("\n")[0].rstrip(".") or "no reason given"
        raise ModelError(
            f"model {path}: found it not loadable ({type(error).__name__}: {reason:.200}), expected a whole "
            "model of the right kind. Copy or fetch it again, or name another."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def complete(path: str | Path, loaded: Any) -> Any:
    """The model of `from_pretrained(..., output_loading_info=True)`.

    Raises ModelError when the folder lacked some of its weights: the libraries draw those at random instead.
    """
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"model {path}: found no weights for {missing[0]} ({len(missing)} missing in all), expected all "
            f"of a {type(model).__name__}. It is another kind of model, or is not whole; name or fetch the "
            "right one."
        )
    return model


def compute_device(run: Execution) -> str:
    """`cuda` or `cpu`. Raises SpecError when a GPU is asked for and there is none."""
    import torch

    if run.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if run.device.startswith("cuda") and not torch.cuda.is_available():
        raise SpecError(
            f"device: found no GPU that torch {torch.__version__} can use, expected one for {run.device!r}. "
            "Set device to cpu or auto."
        )
    return run.device


@functools.cache
def _file_digest(uri: str, name: str, size: int, mtime_ns: int) -> str:
    return Folder(uri).hash(name).sha256


def _is_relative(name: str) -> bool:
    """Whether a name stays below the folder that it is looked for in."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith(("/", "~")) and ".." not in parts and "\\" not in name


def _check_revision(model: Model, folder: Path) -> None:
    if not any(folder.iterdir()):
        raise ModelError(f"model {model.name}: found {folder} empty, expected a model's files in it. Fetch it again.")
    if model.revision is None or not model.revision.startswith(DIGEST):
        return
    found = folder_revision(folder)
    if found != model.revision:
        raise ModelError(
            f"model {model.name}: found {folder} with digest {found[:19]}…, expected {model.revision[:19]}…. "
            "Files are missing, added or changed; restore the folder, or name the new digest as the "
            "revision."
        )


def _from_hub(model: Model, patterns: Sequence[str] | None) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            model.name, revision=model.revision, allow_patterns=list(patterns) if patterns else None,
            ignore_patterns=list(UNREAD),
        )  # fmt: skip
    except Exception as error:  # every transport has its own errors; each ends as the same sentence
        reason = str(error).strip().split("\n")[0].rstrip(".") or "no reason given"
        at = f" at {model.revision}" if model.revision else ""
        raise ModelError(
            f"model {model.name}{at}: found it in no model folder, and the hub did not give it "
            f"({type(error).__name__}: {reason:.160}), expected one of both. Add its folder to model_dirs, "
            "or go online once."
        ) from error
