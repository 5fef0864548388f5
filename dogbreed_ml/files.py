"""Text files that are whole or not there: written to a temporary name, then renamed."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str | Iterable[str]) -> Path:
    """Writes UTF-8 text, or its parts one after the other, and returns `path`; makes the folder where there is none.

    The temporary name has the process's id: two processes may write one file at once, and the last one counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
    os.replace(partial, path)
    return path
