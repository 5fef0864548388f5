"""`python -m dogbreed_ml` as its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "mlflow", "optuna", "openvino", "pandas", "matplotlib", "rich", "boto3", "PIL")


def run(*argv: str, cwd: Path, prefix: tuple[str, ...] = ("-m", "dogbreed_ml")) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *prefix, *argv], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["tune", "--help"], ["tune", "--lr", "1"]])
def test_help_and_mistakes_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    """What takes the time of a start are imports, so that the imports are asserted, not the time."""
    program = (
        "import sys\n"
        "from dogbreed_ml.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    shown = run(*argv, cwd=tmp_path, prefix=("-c", program))
    assert shown.stdout.splitlines()[-1] == "LOADED []", shown.stdout + shown.stderr


def test_module_and_script_are_the_same_command(tmp_path: Path) -> None:
    script = subprocess.run(
        [str(Path(sys.executable).with_name("dogbreed")), "--version"], capture_output=True, text=True, check=True
    )
    assert run("--version", cwd=tmp_path).stdout == script.stdout


def test_mistake_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    shown = run("train", "--train.epochs", "3", cwd=tmp_path)
    expected = "error: --train.epochs is not a flag of dogbreed train; did you mean --train.num_epochs?\n"
    assert (shown.returncode, shown.stdout, shown.stderr) == (2, "", expected)


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m dogbreed_ml train --print_config | head -n 1"
    shown = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (shown.stdout, shown.stderr) == ("name: dogbreed\n", "")


def test_data_as_json_is_one_object_on_stdout(tmp_path: Path) -> None:
    small = ["--data.num_breeds", "2", "--data.num_per_breed", "5", "--data.image_size", "32"]
    shown = run("data", "--json", *small, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["num_breeds"] == 2
