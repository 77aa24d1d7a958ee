"""Test only: `qwen_child` with what a GPU gets by default, vLLM's model runner V2, on a CPU; `async`: scheduled so.

V2's kernels are Triton's, run here by its interpreter. CUDA, streams and graphs are not exercised.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}

import triton.backends

backend: Any = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
triton.backends.backends["cpu"] = backend

from thinkdiff.tasks import qwen_child  # noqa: E402
from thinkdiff.tasks.qwen_engine import prepare_torchvision  # noqa: E402

if __name__ == "__main__":
    prepare_torchvision()
    from vllm.platforms import cpu

    platform_class: Any = cpu.CpuPlatform
    original = platform_class.check_and_update_config.__func__

    def keep_async_scheduling(platform: Any, config: Any) -> None:
        original(platform, config)
        config.scheduler_config.async_scheduling = sys.argv[1] == "async"

    platform_class.check_and_update_config = classmethod(keep_async_scheduling)
    qwen_child.main()
