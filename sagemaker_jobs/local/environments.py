"""Interpreters for jobs: what they install never reaches the interpreter that runs the server.

A job's environment is a virtual environment without packages of its own that sees the runner's; `pip install` in a job
writes there, and goes with the job. A requirements.txt is installed once per content, into a kept environment that the
job's own one sees as well.
"""

import hashlib
import os
import shutil
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.processes import Process, Processes

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_READY = ".ready"
_SCRIPTS = {
    "pip": "from pip._internal.cli.main import main",
    "pip3": "from pip._internal.cli.main import main",
    f"pip{_VERSION.removeprefix('python')}": "from pip._internal.cli.main import main",
    "torchrun": "from torch.distributed.run import main",
}


@dataclass(frozen=True)
class JobEnvironment:
    """Where a job's programs are found."""

    bin_dirs: tuple[Path, ...]

    @property
    def python(self) -> Path:
        return self.bin_dirs[0] / "python"

    def search_path(self, base: str) -> str:
        """PATH: the job's programs, then `base` without the runner's own folder of programs."""
        runner = Path(sys.executable).parent
        others = [part for part in base.split(os.pathsep) if part and Path(part) != runner]
        return os.pathsep.join([*map(str, self.bin_dirs), *others])


class Environments:
    """Makes and keeps them below one folder."""

    def __init__(self, root_dir: Path, processes: Processes) -> None:
        self._root_dir = root_dir
        self._processes = processes
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def build(
        self,
        folder: Path,
        *,
        requirements: Path | None = None,
        environment: Mapping[str, str],
        output: Callable[[bytes], None],
        watch: Callable[[Process], None] | None = None,
    ) -> JobEnvironment:
        """A job's environment in `folder`; pip's output goes to `output`, and `watch` is handed pip's process.

        Raises DataError where the requirements cannot be installed.
        """
        if requirements is None or not requirements.read_text(encoding="utf-8", errors="replace").strip():
            return JobEnvironment((_make(folder, ()),))
        kept = self._root_dir / _digest(requirements)
        with self._lock:
            lock = self._locks.setdefault(kept.name, threading.Lock())
        with lock:
            if not (kept / _READY).exists():
                shutil.rmtree(kept, ignore_errors=True)
                self._install(requirements, kept, environment=environment, output=output, watch=watch)
                (kept / _READY).touch()
        return JobEnvironment((_make(folder, (_site_dir(kept),)), kept / "bin"))

    def _install(
        self, requirements: Path, kept: Path, *, environment: Mapping[str, str], output: Callable[[bytes], None],
        watch: Callable[[Process], None] | None,
    ) -> None:  # fmt: skip
        bin_dir = _make(kept, ())
        command = [str(bin_dir / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        command += ["-r", str(requirements)]
        output(f"{' '.join(command)}\n".encode())
        process = self._processes.start(command, cwd=requirements.parent, environment=environment, output=output)
        if watch:
            watch(process)
        if (code := process.wait()) != 0:
            raise DataError(
                f"{requirements.name} cannot be installed: pip ended with {code}, its output is in the log."
            )


def _digest(requirements: Path) -> str:
    """Of the file; of all that lies beside it too, where it names a path or another file."""
    content = requirements.read_bytes()
    digest = hashlib.sha256(f"{sys.version} {sys.prefix}".encode() + content)
    lines = [line.strip() for line in content.decode("utf-8", errors="replace").splitlines()]
    if any(line.startswith(("-", ".", "/")) or "file:" in line or line.endswith(".whl") for line in lines):
        for path in sorted(requirements.parent.rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(requirements.parent).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _make(folder: Path, site_dirs: Sequence[Path]) -> Path:
    """Writes what `python -m venv` would, in 2 ms and not 50; returns its folder of programs."""
    # Not sys.executable: a virtual environment's links must lead to the interpreter it was made from.
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    bin_dir, site_dir = folder / "bin", _site_dir(folder)
    bin_dir.mkdir(parents=True)
    site_dir.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    for name in ("python", "python3", _VERSION):
        (bin_dir / name).symlink_to(base)
    for name, line in _SCRIPTS.items():
        script = bin_dir / name
        # Through sh: the path of an interpreter may be longer than a #! line can be.
        program = f"import sys; sys.argv[0] = '{name}'; {line}; sys.exit(main())"
        script.write_text(f'#!/bin/sh\nexec "{bin_dir}/python" -c "{program}" "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    seen = dict.fromkeys([*map(str, site_dirs), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    # addsitedir, not the bare paths: what is installed there in editable form lies in .pth files of its own.
    lines = [f"import site; site.addsitedir({each!r})" for each in seen]
    (site_dir / "runner.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return bin_dir


def _site_dir(folder: Path) -> Path:
    return folder / "lib" / _VERSION / "site-packages"
