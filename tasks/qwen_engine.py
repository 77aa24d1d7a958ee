"""A Qwen-VL on stock vLLM in a child process: prompts in; generated tokens and their final-norm token features out.

In:  a model (local folder or hub name), how to sample, and batches of `Request`s (text and pictures interleaved).
     Qwen2-VL, Qwen2.5-VL or Qwen3-VL; sizes, template and limits of pictures are those of the model's own files.
Out: one `Generation` per request, in request order. Row i of its `features` is the hidden state after the final norm
     that *predicts* generated token i, i.e. the state at absolute position prompt_length - 1 + i (the paper's token
     features; the state at the last generated token is never computed). See `qwen_chat` for the three classes.

The engine lives in a child (`qwen_child.py`), so that its memory goes back to the machine when the stage ends, vLLM
cannot disturb the threads of this process, and its output can be captured. Only the two processes talk
(`qwen_wire`). The child ends when this process closes its end or dies. Not here: what is asked of the VLM and where
features are stored (extract_features), and how rows are copied out of vLLM (feature_tap).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from thinkdiff.schemas.errors import EngineError, InputError, ModelError
from thinkdiff.schemas.features import TokenKind
from thinkdiff.schemas.scores import Conversation
from thinkdiff.tasks.models import json_object
from thinkdiff.tasks.qwen_chat import Generation, Request, Sampling, check_requests
from thinkdiff.tasks.qwen_wire import Wire

if TYPE_CHECKING:
    import torch

ComputeDtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda", "auto"]
CLOSE_SECONDS = 10.0
LOG_LINES = 30
SMALL_MODEL = 64 * 2**20  # bytes of weights; below, two threads wait for each other longer than they compute


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Everything the child needs to start; see `QwenEngine`."""

    model_path: str
    revision: str | None
    dtype: ComputeDtype
    sampling: Sampling
    add_vision_id: bool
    features: frozenset[TokenKind]
    max_images: int
    device: Device
    max_num_seqs: int
    max_model_len: int
    kv_cache_gib: float | None
    prefix_caching: bool
    two_pass: bool
    conversation: Conversation
    vllm: Mapping[str, Any]


class QwenEngine:
    """vLLM in a child process; use as a context manager. Not yet run on CUDA (`tests/bench/bench_gpu.py` does that).

    model_path: a local folder (then nothing is fetched) or a hub name with its `revision`. max_images: pictures per
    request at most. Execution only: max_num_seqs (requests decoded together), max_model_len (prompt plus generated
    tokens), kv_cache_gib (None: on a CPU what the requests need and at most 1 GiB, on a GPU vLLM's own measure),
    prefix_caching (off when input features are asked for, which a cached prefix would lack), threads (OpenMP
    threads on a CPU; None: one for a model under 64 MiB, else OpenMP's own choice), vllm (further keyword arguments
    for `vllm.LLM`), two_pass (features by a second, embedding engine: `two_pass.py`), gpu (the one that the child sees,
    as CUDA_VISIBLE_DEVICES names it), timeout (seconds that a batch may take; None: any). conversation: how a turn is
    written, by the model's own chat template or as LLaVA v1 was trained. With no `features` at all any VLM that vLLM
    knows will answer, and vLLM is left as it is. log receives each line that the child prints; by default lines become
    warnings of this module's logger.

    Raises ModelError when the folder lacks a file, EngineError when vLLM does not start, is not of a supported
    version, or dies.
    """

    program: ClassVar[tuple[str, ...]] = ("-m", "thinkdiff.tasks.qwen_child")

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        dtype: ComputeDtype,
        sampling: Sampling,
        add_vision_id: bool = False,
        features: frozenset[TokenKind] = frozenset({"generated"}),
        max_images: int = 1,
        device: Device = "auto",
        max_num_seqs: int = 256,
        max_model_len: int = 8192,
        revision: str | None = None,
        kv_cache_gib: float | None = None,
        prefix_caching: bool = False,
        threads: int | None = None,
        two_pass: bool = False,
        gpu: str | None = None,
        conversation: Conversation = "template",
        timeout: float | None = None,
        vllm: Mapping[str, Any] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        check_model(model_path)
        self.options = EngineOptions(
            os.fspath(model_path), revision, dtype, sampling, add_vision_id, features, max_images, device,
            max_num_seqs, max_model_len, kv_cache_gib, prefix_caching and "input" not in features, two_pass,
            conversation, dict(vllm or {}),
        )  # fmt: skip
        self.threads, self.gpu, self.timeout = threads, gpu, timeout
        self._log = log or logging.getLogger(__name__).warning
        self._lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, *self.program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),), env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then closes the socket
            )  # fmt: skip
        self._wire = Wire(ours.detach())
        self._reader = threading.Thread(target=self._read_output, args=(self._child.stdout,), daemon=True)
        self._reader.start()
        try:
            self._about: dict[str, Any] = self._ask(self.options)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child, politely first."""
        child, self._child = self._child, None
        if child is None:
            return
        self._wire.close()  # the child sees the end of the stream and exits
        try:
            child.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._reader.join(CLOSE_SECONDS)

    @property
    def pid(self) -> int | None:
        """Process id of the child, None outside of `with`."""
        return self._child.pid if self._child else None

    @property
    def hidden_size(self) -> int:
        """D, the width of a feature row."""
        return self._about["hidden_size"]

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's end token and those of the model's generation config."""
        return self._about["eos_token_ids"]

    @property
    def versions(self) -> dict[str, str]:
        """What computed the features: vllm, torch and transformers versions, device and vLLM's model runner."""
        return self._about["versions"]

    def generate(self, requests: Sequence[Request], sampling: Sampling | None = None) -> list[Generation]:
        """Answer a batch. It is decoded together; its composition changes results by rounding only, and so an id where
        two tokens are nearly as likely. Measured on a CPU: none in float32; in bfloat16 some, of requests alone or with
        prompts in chunks (tests/bench/RESULTS.md).

        `sampling` is for this batch instead of the engine's own; its max_tokens may not be larger. Raises
        InputError for a request that is refused (the engine stays usable), EngineError when the child died.
        """
        chosen, limit = sampling or self.options.sampling, self.options.sampling.max_tokens
        if chosen.max_tokens > limit:
            raise InputError(f"max_tokens: found {chosen.max_tokens}, expected at most the engine's {limit}.")
        check_requests(requests, self.options.max_images)
        return self._ask((list(requests), chosen)) if requests else []

    def stream(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Generation]]:
        """The answers to batches, in order. vLLM never waits: the next batch is sent before an answer is taken.

        Raises as `generate` does; when it does, or is left before its end, the engine is closed.
        """
        under_way = 0
        try:
            for requests in batches:
                check_requests(requests, self.options.max_images)
                self._send((list(requests), self.options.sampling))
                under_way += 1
                if under_way > 1:
                    answers, under_way = self._receive(), under_way - 1
                    yield answers
            while under_way:
                answers, under_way = self._receive(), under_way - 1
                yield answers
        finally:
            if under_way:
                self.close()

    def statistics(self) -> dict[str, float]:
        """Counters since the start: rows copied and recomputed, preemptions, steps, and seconds.

        tap_seconds and moving_seconds: thread time of our own code in the child; received_seconds: here;
        prefill_seconds and decode_seconds: wall time of steps that read prompts and of the others; vision_seconds:
        what of the former goes to pictures; cpu_seconds: the child's processor time; generate_seconds: wall time of
        `generate`.
        """
        return {**self._ask("statistics"), "received_seconds": self._wire.received_seconds + self._wire.sent_seconds}

    def _ask(self, message: Any) -> Any:
        self._send(message)
        return self._receive()

    def _send(self, message: Any) -> None:
        if self._child is None:
            raise EngineError("Qwen engine: found it closed, expected it open. Use it in `with QwenEngine(...)`.")
        try:
            self._wire.send(message)
        except ConnectionError as broken:
            raise EngineError(self._obituary(self._child)) from broken

    def _receive(self) -> Any:
        if self._child is None:
            raise EngineError("Qwen engine: found it closed, expected an answer. Another thread has closed it.")
        if not self._wire.waits(self.timeout):
            self._child.kill()  # it hears nothing any more
            self.close()
            raise EngineError(
                f"vLLM's process: found no answer within {self.timeout:g} seconds, expected one. It hangs, or the "
                "batch is too large for this machine. Lower max_num_seqs, or allow more time."
            )
        try:
            error, answer = self._wire.receive()
        except (EOFError, ConnectionError) as broken:
            raise EngineError(self._obituary(self._child)) from broken
        if error is not None:
            raise error
        return answer

    def _obituary(self, child: subprocess.Popen[bytes]) -> str:
        code = child.wait()
        self._reader.join(CLOSE_SECONDS)
        end = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        why = " Most often the machine ran out of memory: lower max_num_seqs or kv_cache_gib." if code == -9 else ""
        said = "\n".join(self._lines) or "(nothing)"
        return f"vLLM's process: found it ended by {end}, expected an answer.{why} Its last lines:\n{said}"

    def _read_output(self, stream: Any) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._lines.append(line)
                self._log(line)

    def _environment(self) -> dict[str, str]:
        """The child's environment. What the user has set stays, except for how vLLM starts its processes."""
        found = dict(os.environ)
        defaults = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",  # while it starts; vllm_engine raises it to WARNING for the work
            "PYTHONWARNINGS": "ignore",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning starve each other on a shared machine
        }
        if Path(self.options.model_path).is_dir():
            defaults |= {"HF_HUB_OFFLINE": "1"}
        threads = 1 if self.threads is None and is_small(self.options.model_path) else self.threads
        if threads is not None:
            found["OMP_NUM_THREADS"] = str(threads)
        if self.gpu is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.gpu
        found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        found["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        found["PYTHONUNBUFFERED"] = "1"
        return defaults | found


def check_model(model_path: str | os.PathLike[str]) -> None:
    """Raise ModelError, naming the file, for a local model folder that is not whole. Hub names pass."""
    folder = Path(model_path)
    if not folder.is_dir():
        if folder.is_absolute() or os.fspath(model_path).startswith("."):
            raise ModelError(f"model: found no folder {folder}, expected a Qwen-VL checkpoint. Check the path.")
        return
    wanted = {
        "config.json": ("config.json",),
        "weights (*.safetensors)": ("*.safetensors",),
        "tokenizer_config.json": ("tokenizer_config.json",),
        "tokenizer (tokenizer.json or vocab.json)": ("tokenizer.json", "vocab.json"),
        "image processor (processor_config.json or preprocessor_config.json)": ("*processor_config.json",),
    }
    missing = [name for name, patterns in wanted.items() if not any(next(folder.glob(p), None) for p in patterns)]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weights = json_object(index).get("weight_map")
        named = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else ["weights in its index"]
        missing += [name for name in named if not (folder / name).is_file()]
    for name in missing:
        raise ModelError(
            f"model folder {folder}: found no {name}, expected a whole Qwen-VL checkpoint. A copy or download may "
            "have been cut short. Fetch or build the model again."
        )
    for weights in sorted(folder.glob("*.safetensors")):
        found, expected = weights.stat().st_size, weights_size(weights)
        if found != expected:
            raise ModelError(
                f"model weights {weights}: found {found} bytes, expected {expected or 'a safetensors header'}. A copy "
                "may have been cut short, or be a Git LFS pointer. Fetch or build the model again."
            )


def weights_size(path: Path) -> int | None:
    """The size that a safetensors file should have by its own header; None where there is no header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < path.stat().st_size:
            return None
        try:
            tensors: dict[str, Any] = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None


def is_small(model_path: str) -> bool:
    """Whether a local model is too small to share its work among threads."""
    sizes = [file.stat().st_size for file in Path(model_path).glob("*.safetensors")]
    return 0 < sum(sizes) < SMALL_MODEL


def to_numpy(rows: torch.Tensor) -> np.ndarray:
    """The same bits on the host in numpy, which knows bfloat16 by ml_dtypes only."""
    import torch

    rows = rows.cpu()
    if rows.dtype != torch.bfloat16:
        return rows.numpy()
    import ml_dtypes

    return rows.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def prepare_torchvision() -> None:
    """Let a CUDA build of torchvision be imported beside a CPU build of torch. Call before vllm or transformers.

    PyPI's torchvision is a CUDA build. Without CUDA its extension cannot load, and its import then fails on two
    operators that the extension would have defined. They are declared here (nothing of ours calls them).
    """
    global _torchvision_operators
    import torch

    if torch.version.cuda is not None or _torchvision_operators is not None or "torchvision" in sys.modules:
        return
    import importlib.util

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
            return
        except OSError:
            pass
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_operators = operators  # its declarations last as long as this object


_torchvision_operators: Any = None
