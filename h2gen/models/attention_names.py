"""The names of ``--attention``: diffusers' attention backends, and the package that each needs. Without torch."""

from __future__ import annotations

import importlib.util

from h2gen.errors import DeviceError

DEFAULT = "default"
_KERNELS = ("kernels", "kernels")
_FLASH = ("flash_attn", "flash-attn")
_FLASH_3 = ("flash_attn_interface", "flash-attn-3")
_SAGE = ("sageattention", "sageattention")
PACKAGES = {
    "native": None,
    "_native_math": None,
    "_native_flash": None,
    "_native_efficient": None,
    "_native_cudnn": None,
    "flex": None,
    "flash": _FLASH,
    "flash_varlen": _FLASH,
    "flash_hub": _KERNELS,
    "flash_varlen_hub": _KERNELS,
    "_flash_3": _FLASH_3,
    "_flash_varlen_3": _FLASH_3,
    "_flash_3_hub": _KERNELS,
    "_flash_3_varlen_hub": _KERNELS,
    "flash_4_hub": _KERNELS,
    "aiter_fa2_hub": _KERNELS,
    "sage": _SAGE,
    "sage_varlen": _SAGE,
    "sage_hub": _KERNELS,
    "sage_blackwell_hub": _KERNELS,
    "_sage_qk_int8_pv_fp8_cuda": _SAGE,
    "_sage_qk_int8_pv_fp8_cuda_sm90": _SAGE,
    "_sage_qk_int8_pv_fp16_cuda": _SAGE,
    "_sage_qk_int8_pv_fp16_triton": _SAGE,
    "xformers": ("xformers", "xformers"),
}
"""By diffusers' name: the module that is imported, and the package to install; None if torch has it."""
ATTENTIONS = (DEFAULT, *PACKAGES)
ANYWHERE = ("native", "_native_math", "_native_flash", "flex")
"""Those that also run on a CPU, in any precision."""


def check_package(name: str) -> None:
    """Check that the package of an attention backend is installed; what ``default`` uses always is.

    Raises:
        DeviceError: it is not.
    """
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package[0]) is None:
        raise DeviceError(
            f"--attention {name} needs the package {package[1]}, which is not installed: pip install {package[1]}; or "
            "leave out --attention."
        )
