"""Which of our files a program needs."""

from pathlib import Path

import pytest

from sagemaker_jobs.closure import source_files


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that may not be imported: each of its modules but the roots' fails at once."""
    sources = {
        "__init__.py": "",
        "entry.py": (
            "import json\nfrom typing import TYPE_CHECKING\nimport typing\n"
            "from kennel_closure.dogs import beagle\nfrom kennel_closure.names import NAME\n"
            "if TYPE_CHECKING:\n    import kennel_closure.hints\n"
            "if typing.TYPE_CHECKING:\n    import kennel_closure.hints\nelse:\n    import kennel_closure.otherwise\n"
            "def late():\n    try:\n        import kennel_closure.late\n    except ImportError:\n        pass\n"
        ),
        "names.py": "NAME = 'Rex'\n",
        "late.py": "import kennel_closure.entry\n",
        "otherwise.py": "",
        "hints.py": "",
        "unused.py": "",
        "dogs/__init__.py": "",
        "dogs/beagle.py": "from . import nose\nfrom .. import tail\nfrom ..names import NAME\nfrom .ears import flap\n",
        "dogs/nose.py": "",
        "dogs/ears.py": "",
        "dogs/cat.py": "",
        "tail.py": "",
    }
    for name, source in sources.items():
        path = tmp_path / "kennel_closure" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + ("raise AssertionError('executed')\n" if source else ""))
    monkeypatch.syspath_prepend(tmp_path)
    return "kennel_closure"


def test_source_files_are_what_is_imported_anywhere_but_for_type_checking(package: str, tmp_path: Path) -> None:
    files = source_files([f"{package}.entry"], packages=[package])
    names = [
        "__init__", "dogs/__init__", "dogs/beagle", "dogs/ears", "dogs/nose", "entry", "late", "names", "otherwise",
        "tail",
    ]  # fmt: skip
    assert files == {f"{package}/{name}.py": tmp_path / package / f"{name}.py" for name in names}


def test_source_files_leave_out_what_is_named_and_whatever_only_that_imports(package: str) -> None:
    files = source_files([f"{package}.entry"], packages=[package], without=[f"{package}.dogs"])
    assert [name.partition("/")[2] for name in files] == [
        "__init__.py", "entry.py", "late.py", "names.py", "otherwise.py",
    ]  # fmt: skip


@pytest.mark.parametrize("module", ["json", "kennel_closure.gone", "kennel_closure.names.NAME"])
def test_entry_module_that_is_none_of_ours_is_refused(package: str, module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"must be one of kennel_closure; got '{module}'"):
        source_files([module], packages=[package])


def test_source_files_of_the_serving_code_reach_the_predictor_and_neither_mlflow_nor_the_server() -> None:
    files = source_files(["sagemaker_jobs.inference"])
    assert {"sagemaker_jobs/__init__.py", "dogbreed_ml/__init__.py", "dogbreed_ml/serve.py"} <= set(files)
    assert not {"dogbreed_ml/tracking.py", "dogbreed_ml/server/app.py", "dogbreed_ml/cli.py"} & set(files)
    assert all(path.is_file() for path in files.values())
