"""The uncached path with real worker processes."""

import gc
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from imagefiles import make_breeds

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data import loaders
from dogbreed_ml.data.loaders import ImageBatches
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Split
from dogbreed_ml.errors import DataError
from dogbreed_ml.transforms import Preprocessing

PREPROCESSING = Preprocessing(image_size=32)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    config = DataConfig(source="folder", path=str(make_breeds(tmp_path / "breeds")))
    return load_splits(config, project_dir=tmp_path).train


def _batches(split: Split, *, num_workers: int) -> ImageBatches:
    return ImageBatches(split, PREPROCESSING, augmentation="flip_crop", num_workers=num_workers, seed=3)


def _images(batches: ImageBatches, *, epoch: int, order: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat([images for images, _ in batches.batches(8, order=order, epoch=epoch)])


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_image_batches_do_not_depend_on_the_number_of_workers(split: Split) -> None:
    order = torch.randperm(len(split))
    expected = [_images(_batches(split, num_workers=0), epoch=epoch, order=order) for epoch in (0, 1)]
    for num_workers in (1, 2):
        batches = _batches(split, num_workers=num_workers)
        for epoch in (0, 1):
            assert torch.equal(_images(batches, epoch=epoch, order=order), expected[epoch])


def test_image_batches_keep_their_workers_over_epochs_and_end_them(split: Split) -> None:
    # What lives as long as this process, multiprocessing's resource tracker say, may be there from other tests.
    others = _children()
    batches = _batches(split, num_workers=2)
    _images(batches, epoch=0)
    workers = _children() - others
    assert len(workers) == 2
    assert set(batches.worker_pids) == workers
    _images(batches, epoch=1)
    assert _children() - others == workers == set(batches.worker_pids)
    del batches
    gc.collect()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_processes_of_a_process_of_multiprocessing_end_with_it(split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    """As in a search whose trials run side by side."""
    process = multiprocessing.get_context("fork").Process(target=_load_and_return, args=(split,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


_kept: list[ImageBatches] = []


def _load_and_return(split: Split) -> None:
    torch.set_num_threads(1)
    # As they are until they have begun.
    loaders._end_quietly = _end_by_sigterm
    _kept.append(_batches(split, num_workers=2))
    _images(_kept[0], epoch=0)
    assert len(_kept[0].worker_pids) == 2


def _end_by_sigterm(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_that_a_signal_of_the_group_ends_raise_nothing_in_their_parent(
    split: Split, number: signal.Signals
) -> None:
    batches = _batches(split, num_workers=2)
    _images(batches, epoch=0)
    workers = [psutil.Process(pid) for pid in batches.worker_pids]
    # Sent by somebody else: torch's workers take a SIGTERM of their parent as told to end.
    subprocess.run(["kill", f"-{number.value}", *map(str, batches.worker_pids)], check=True)
    # torch looks at how they ended as soon as they have, and would raise here.
    deadline = time.monotonic() + 30
    while any(worker.status() != psutil.STATUS_ZOMBIE for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {worker.status() for worker in workers} == {psutil.STATUS_ZOMBIE}
    batches.close()


def test_image_batches_left_early_start_over_with_the_next_epoch(split: Split) -> None:
    batches = _batches(split, num_workers=2)
    for _ in batches.batches(4, order=None, epoch=0):
        break
    assert torch.equal(_images(batches, epoch=1), _images(_batches(split, num_workers=0), epoch=1))


def test_image_batches_say_in_one_line_which_image_vanished(split: Split) -> None:
    split.samples[3].path.unlink()
    batches = _batches(split, num_workers=2)
    with pytest.raises(DataError, match=r"^[^\n]* could be read when it was scanned and cannot now: [^\n]*$"):
        _images(batches, epoch=0)
