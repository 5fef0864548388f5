"""The rules of AWS's toolkit for code/inference.py, without a socket."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sagemaker_jobs.local.handlers import Context, Handlers, UnsupportedFormat, load_handlers

JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's inference.py is imported anew."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "inference", raising=False)


def _load(tmp_path: Path, code: str, *, program: str | None = None) -> Handlers:
    path = tmp_path / "code" / (program or "inference.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    try:
        return load_handlers(tmp_path, program)
    finally:
        sys.modules.pop(path.stem, None)


def test_handlers_run_input_predict_and_output_in_turn(tmp_path: Path) -> None:
    code = """
def model_fn(model_dir): return {"dir": model_dir}
def input_fn(body, content_type): return [type(body).__name__, content_type]
def predict_fn(data, model): return [*data, model["dir"]]
def output_fn(prediction, accept): return "|".join([*prediction, accept])
"""
    handlers = _load(tmp_path, code)
    body, content_type, _ = handlers.answer(b"{}", {"Content-Type": "application/json", "Accept": "text/x"})
    assert body.decode() == f"str|application/json|{tmp_path}|text/x"
    assert content_type == "text/x"
    body, content_type, _ = handlers.answer(b"\xff", {"Content-Type": "image/jpeg"})
    assert body.decode() == f"bytes|image/jpeg|{tmp_path}|application/json"


def test_transform_fn_gets_the_model_and_answers_alone(tmp_path: Path) -> None:
    code = """
def model_fn(model_dir): return 3
def transform_fn(model, body, content_type, accept): return str(model * int(body)), "text/plain"
"""
    assert _load(tmp_path, code).answer(b"2", JSON)[:2] == (b"6", "text/plain")


def test_transform_fn_beside_another_function_is_refused(tmp_path: Path) -> None:
    code = "def transform_fn(*_): ...\ndef input_fn(*_): ..."
    with pytest.raises(ValueError, match="Cannot use transform_fn"):
        _load(tmp_path, code)


def test_context_is_handed_to_functions_that_take_it(tmp_path: Path) -> None:
    code = """
def model_fn(model_dir, context): return context.system_properties["model_dir"]
def input_fn(body, content_type, context): return context.get_request_header(0, "X-Mine")
def predict_fn(data, model): return data
def output_fn(prediction, accept, context):
    context.set_response_content_type(0, "text/mine")
    context.set_response_header(0, "X-Seen", prediction)
    return prediction
"""
    body, content_type, context = _load(tmp_path, code).answer(b"", {"X-Mine": "hello"})
    assert (body, content_type, context.response_headers) == (b"hello", "text/mine", {"X-Seen": "hello"})


def test_function_with_other_parameters_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model_fn takes 3 arguments but 1 were given"):
        _load(tmp_path, "def model_fn(a, b, c): ...")


def test_program_is_the_one_that_the_model_names(tmp_path: Path) -> None:
    code = "def model_fn(model_dir): return 1\ndef transform_fn(model, body, content_type, accept): return b'served'"
    assert _load(tmp_path, code, program="serve_dogs.py").answer(b"", JSON)[0] == b"served"
    with pytest.raises(FileNotFoundError, match="SAGEMAKER_PROGRAM names code/gone.py"):
        load_handlers(tmp_path, "gone.py")


TORCHSCRIPT = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")
"""Models of that kind are what AWS's default model_fn loads."""


class _Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture
def torchscript_dir(tmp_path: Path) -> Path:
    torch.jit.script(_Double()).save(str(tmp_path / "model.pt"))
    return tmp_path


def test_function_may_set_status_headers_and_content_type_as_in_awss_context(tmp_path: Path) -> None:
    code = """
def model_fn(model_dir): return None
def input_fn(body, content_type): return body
def predict_fn(data, model, context=None):
    context.set_response_status(code=422, phrase="Unprocessable Entity", idx=0)
    context.set_response_header(0, "X-Why", context.get_request_header(0, "X-Asked"))
    return data
def output_fn(prediction, accept, context=None):
    context.set_response_content_type(0, "text/plain")
    return "%s %s" % context.get_response_status(0)
"""
    body, content_type, context = _load(tmp_path, code).answer(b"1", JSON | {"X-Asked": "rex"})
    assert (body, content_type) == (b"422 Unprocessable Entity", "text/plain")
    assert (context.status, context.get_response_headers(0)) == ((422, "Unprocessable Entity"), {"X-Why": "rex"})
    assert Context("/model").get_response_status(0) == (200, "")


@TORCHSCRIPT
def test_defaults_serve_torchscript_as_json_csv_and_npy(torchscript_dir: Path) -> None:
    handlers = load_handlers(torchscript_dir, None)
    assert json.loads(handlers.answer(b"[[1, 2.5]]", JSON)[0]) == [[2.0, 5.0]]
    body, content_type, _ = handlers.answer(b"1,2\n3,4\n", {"Content-Type": "text/csv", "Accept": "text/csv"})
    assert (body, content_type) == (b"2.0,4.0\n6.0,8.0\n", "text/csv")
    buffer = io.BytesIO()
    np.save(buffer, np.array([1, 2], dtype=np.float32))
    npy = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    answer, content_type, _ = handlers.answer(buffer.getvalue(), npy)
    assert content_type == "application/x-npy"
    assert np.load(io.BytesIO(answer)).tolist() == [2.0, 4.0]


@TORCHSCRIPT
@pytest.mark.parametrize("headers", [{"Content-Type": "image/png"}, {**JSON, "Accept": "image/png"}])
def test_defaults_refuse_other_types_as_the_clients_mistake(torchscript_dir: Path, headers: dict[str, Any]) -> None:
    handlers = load_handlers(torchscript_dir, None)
    with pytest.raises(UnsupportedFormat, match="image/png is not supported") as refused:
        handlers.answer(b"[1]", headers)
    assert refused.value.status_code == 400


def test_defaults_without_a_model_file_say_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Exactly one \.pth or \.pt file is required"):
        load_handlers(tmp_path, None)


def test_context_without_request_has_no_headers() -> None:
    assert Context("/model").get_all_request_header(0) == {}
