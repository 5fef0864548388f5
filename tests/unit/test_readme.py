"""README shows what the commands say, and docs/layout.md names every file."""

import re
from pathlib import Path

import pytest

from dogbreed_ml.arguments import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = re.findall(r"<!-- help: dogbreed(.*?) -->\n```text\n(.*?)\n```", README, re.DOTALL)


@pytest.mark.parametrize(("verb", "excerpt"), HELP, ids=[verb.strip() or "dogbreed" for verb, _ in HELP])
def test_readme_shows_the_help_as_it_is(
    verb: str, excerpt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse([*verb.split(), "--help"])
    assert excerpt in capsys.readouterr().out


def test_readme_shows_both_helps() -> None:
    assert [verb for verb, _ in HELP] == ["", " tune"]


def test_layout_names_every_file_of_the_library() -> None:
    layout = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    packages = ("dogbreed_ml", "sagemaker_jobs")
    files = {path.name for package in packages for path in (ROOT / package).rglob("*.py")}
    files -= {"__init__.py", "__main__.py"}
    assert {name for name in files if f" {name} " not in layout} == set()
    assert {name for name in re.findall(r"^ +(\w+\.py) ", layout, re.MULTILINE) if name not in files} == set()


@pytest.mark.parametrize("path", re.findall(r"experiments/[\w-]+\.yaml", README))
def test_readme_names_experiments_that_exist(path: str) -> None:
    assert (ROOT / path).is_file()
