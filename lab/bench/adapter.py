"""A GPU without a GPU: Chromium's Vulkan driver, which computes on the processor, for what runs on WebGPU."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CHROMIUM = Path("/usr/lib/chromium")  # Debian's
DRIVER, LOADER = CHROMIUM / "vk_swiftshader_icd.json", CHROMIUM / "libvulkan.so.1"


def software() -> bool:
    """Let processes that begin from now on have the adapter, if it is here; return whether it is."""
    if not (DRIVER.exists() and LOADER.exists()):
        return False
    os.environ |= {"VK_DRIVER_FILES": str(DRIVER), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}
    os.environ["LD_PRELOAD"] = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(LOADER)]))
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # the driver asks for one
    return True
