"""`dogbreed predict`: files that cannot be read, what is kept of those that can, and where the contact sheet goes."""

import io
import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from serving import as_row, draw_photograph, is_same_row, save_tiny_checkpoint

from dogbreed_ml.context import Context
from dogbreed_ml.errors import ConfigError, ImageError
from dogbreed_ml.options import PredictOptions
from dogbreed_ml.pipeline.predict import predict
from dogbreed_ml.predictions import Predictions
from dogbreed_ml.progress import Advance


class Removing:
    """A stage that takes files away as it begins: they are found, and cannot be read."""

    def __init__(self, *paths: Path):
        self.paths = paths

    def track(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        for path in self.paths:
            path.unlink()
        return nullcontext(lambda num_done: None)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.pt")


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.jpg" for name in ("first", "second")]
    for seed, path in enumerate(paths):
        path.write_bytes(draw_photograph(seed))
    return paths


def _predict(
    checkpoint_path: Path, *images: str | Path, out: Path | None = None, removed: tuple[Path, ...] = ()
) -> Predictions:
    options = PredictOptions(images=tuple(map(str, images)), checkpoint=checkpoint_path, out=out)
    context = Context(project_dir=checkpoint_path.parent, progress=Removing(*removed))
    return predict(options, context=context, stdin=io.BytesIO(draw_photograph(7)))


def test_file_that_cannot_be_read_has_its_reason_beside_the_others(
    checkpoint_path: Path, photographs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = photographs
    with caplog.at_level(logging.WARNING):
        answer = _predict(checkpoint_path, first, second, "-", removed=(first,))
    gone, seen, sent = answer.images
    assert (gone.prediction, gone.error) == (None, "No such file or directory")
    for image, name in ((seen, second), (sent, "-")):
        (alone,) = _predict(checkpoint_path, name).images
        assert image.prediction is not None
        assert alone.prediction is not None
        assert is_same_row(as_row(image.prediction), as_row(alone.prediction))
    assert f"{first} cannot be read: No such file or directory" in caplog.messages


def test_only_file_that_cannot_be_read_is_one_line_with_name_and_reason(
    checkpoint_path: Path, photographs: list[Path]
) -> None:
    first, _ = photographs
    with pytest.raises(ImageError) as refused:
        _predict(checkpoint_path, first, removed=(first,))
    assert str(refused.value) == f"None of the 1 images can be read; {first}: No such file or directory."


def test_images_are_kept_only_for_the_contact_sheet(
    checkpoint_path: Path, photographs: list[Path], tmp_path: Path
) -> None:
    assert [image.data for image in _predict(checkpoint_path, *photographs).images] == [b"", b""]
    sheet_path = tmp_path / "new" / "sheet.html"
    images = _predict(checkpoint_path, *photographs, out=sheet_path).images
    assert [image.data for image in images] == [path.read_bytes() for path in photographs]
    assert sheet_path.read_text(encoding="utf-8").count("<img") == 2


@pytest.mark.parametrize(("name", "reason"), [("folder.png", "Is a directory"), ("file/sheet.png", "")])
def test_contact_sheet_that_cannot_be_written_is_refused_before_anything_is_recognised(
    photographs: list[Path], tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    # There is no such checkpoint: whoever began to recognise would say so.
    with pytest.raises(ConfigError, match=rf"--out must be .*{name} cannot \({reason}.*\); choose"):
        _predict(tmp_path / "gone.pt", *photographs, out=tmp_path / name)


def test_contact_sheet_of_before_stays_where_nothing_was_recognised(
    checkpoint_path: Path, photographs: list[Path], tmp_path: Path
) -> None:
    old_path, new_path = tmp_path / "old.html", tmp_path / "new.html"
    old_path.write_text("of before")
    for path in (old_path, new_path):
        photographs[0].write_bytes(b"")
        with pytest.raises(ImageError):
            _predict(checkpoint_path, photographs[0], out=path)
    assert old_path.read_text() == "of before"
    assert not new_path.exists()
