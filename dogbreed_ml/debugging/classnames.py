"""The names of a data set's classes beside its saved tensors, which know labels by number alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.files import write_whole

CLASSES_FILE: Final = "classes.json"
"""In the folder of the tensors: the names by label, as a list."""


def save_class_names(tensors_dir: Path, names: Sequence[str]) -> None:
    write_whole(tensors_dir / CLASSES_FILE, json.dumps(list(names), ensure_ascii=False))


def load_class_names(tensors_dir: Path) -> tuple[str, ...]:
    """Empty where none were saved, as by another's hook; raises ProfileError for a file that is no list of names."""
    path = tensors_dir / CLASSES_FILE
    if not path.exists():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProfileError(f"{path} must be JSON: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProfileError(f"{path} must be a list of names, got {json.dumps(names)[:80]}.")
    return tuple(names)
