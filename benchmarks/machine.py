"""The machine that the figures hold for."""

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "torchvision", "openvino", "mlflow", "optuna")


def describe_machine() -> dict[str, str]:
    """What a reader needs to compare figures: processor, cores, memory, GPU, versions, date, and how busy it was."""
    return {
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(),
        "versions": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": _load(),
    }


def cpu_model() -> str:
    """The processor's name and whether it multiplies bf16 itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = values.get("flags", "").split()
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    return f"{values.get('model name', platform.machine())} ({', '.join(bf16) or 'no bf16 instructions'})"


def _load() -> str:
    """How busy the machine was in the minute before the first measurement."""
    load = os.getloadavg()[0]
    return f"{load:.2f}{' BUSY: others were at work, measure again when they are done' if load > 0.7 else ''}"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1024**3:.1f} GiB"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
