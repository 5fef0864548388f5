"""Features between processes: one computes, the others wait; a killed writer leaves nothing that is taken for whole."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).with_name("feature_process.py")
NUM_IMAGES = 150


@pytest.fixture
def images_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder


def start(images_dir: Path, features_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(images_dir), str(features_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def test_two_processes_ask_and_one_computes(images_dir: Path, tmp_path: Path) -> None:
    processes = [start(images_dir, tmp_path / "features") for _ in range(2)]
    answers = [answer(process) for process in processes]
    assert sorted(each["cached"] for each in answers) == [False, True]
    assert answers[0]["key"] == answers[1]["key"]
    assert answers[0]["sum"] == answers[1]["sum"]


@pytest.mark.slow
def test_kill_in_the_middle_of_a_pass_leaves_nothing_whole(images_dir: Path, tmp_path: Path) -> None:
    """Small sibling: test_killed_writers_leftover_is_removed_and_not_taken_for_whole, in this process."""
    features_dir = tmp_path / "features"
    victim = start(images_dir, features_dir)
    deadline = time.monotonic() + 60
    while not (partial := list(features_dir.glob("*.partial/features.npy"))):
        assert time.monotonic() < deadline, "the pass never began to write"
        assert victim.poll() is None, "the pass ended before it was killed"
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    assert victim.returncode == -9
    assert partial[0].exists()
    assert not list(features_dir.glob("*/table.json"))
    survivor = answer(start(images_dir, features_dir))
    assert not survivor["cached"]
    assert not partial[0].exists()
    assert answer(start(images_dir, features_dir)) == {**survivor, "cached": True}
