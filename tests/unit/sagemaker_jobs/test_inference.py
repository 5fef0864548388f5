"""The four functions that SageMaker's serving toolkit calls: the same answers as the Predictor's, one sentence else."""

import base64
import csv
import importlib.util
import io
import json
import sys
from http import HTTPStatus
from pathlib import Path
from types import ModuleType

import pytest
from serving import as_row, draw_photograph, is_same_row, save_tiny_checkpoint

from dogbreed_ml.serve import Predictor
from sagemaker_jobs import inference
from sagemaker_jobs.inference import CHECKPOINT_FILE, RequestError, input_fn, model_fn, output_fn, predict_fn

REX, LUNA = draw_photograph(1), draw_photograph(2, "PNG")
JSON = "application/json"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / CHECKPOINT_FILE).parent


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Predictor:
    return model_fn(str(model_dir))


def answered(predictor: Predictor, body: bytes | str, content_type: str, accept: str = JSON) -> str:
    text, given_type = output_fn(predict_fn(input_fn(body, content_type), predictor), accept)
    assert given_type == accept
    return text


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/x-image", "IMAGE/JPEG; q=1"])
def test_raw_image_gets_the_predictors_row(content_type: str, predictor: Predictor) -> None:
    (row,) = json.loads(answered(predictor, REX, content_type))["predictions"]
    assert is_same_row(row, as_row(predictor.predict([REX])[0]))


def test_json_as_text_and_several_images_keep_their_order(predictor: Predictor) -> None:
    images = [base64.b64encode(each).decode() for each in (REX, LUNA)]
    rows = json.loads(answered(predictor, json.dumps({"instances": images}), JSON))["predictions"]
    assert all(is_same_row(row, as_row(each)) for row, each in zip(rows, predictor.predict([REX, LUNA]), strict=True))


def test_multipart_is_answered_as_csv_where_that_is_accepted(predictor: Predictor) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="rex.jpg"\r\n\r\n' + REX + b"\r\n--x--\r\n"
    (row,) = csv.DictReader(io.StringIO(answered(predictor, part, "multipart/form-data; boundary=x", "text/csv")))
    assert row["breed"] == predictor.predict([REX])[0].breed


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "image/jpeg", HTTPStatus.BAD_REQUEST),
        ("{", JSON, HTTPStatus.BAD_REQUEST),
        (REX, "text/plain", HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        (b"no image", "image/jpeg", HTTPStatus.UNPROCESSABLE_ENTITY),
    ],
)
def test_bad_request_has_a_status_and_one_sentence(
    body: bytes | str, content_type: str, status: HTTPStatus, predictor: Predictor
) -> None:
    with pytest.raises(RequestError) as caught:
        answered(predictor, body, content_type)
    assert (caught.value.status_code, caught.value.phrase) == (status, status.phrase)
    assert caught.value.message.endswith(".")


def test_accept_that_allows_nothing_is_refused(predictor: Predictor) -> None:
    with pytest.raises(RequestError, match="Accept must allow"):
        output_fn(predictor.predict([REX]), "image/png")


@pytest.mark.parametrize("absent", ["starlette", "python_multipart"])
def test_multipart_without_its_readers_is_refused_in_one_sentence(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [absent, *(name for name in sys.modules if name.startswith(f"{absent}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError, match="needs starlette and python-multipart, .* several as") as caught:
        input_fn(b"--x--", "multipart/form-data; boundary=x")
    assert caught.value.status_code == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert input_fn(REX, "image/jpeg") == [REX]


class Context:
    """AWS's, as far as a status goes."""

    def __init__(self) -> None:
        self.told: tuple[int, str] | None = None

    def set_response_status(self, code: int, phrase: str) -> None:
        self.told = (code, phrase)


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "code"),
    [
        (b"", "image/jpeg", JSON, HTTPStatus.BAD_REQUEST, "BAD_REQUEST"),
        (b"no image", "image/jpeg", "text/csv", HTTPStatus.UNPROCESSABLE_ENTITY, "UNREADABLE_IMAGE"),
        (REX, "image/jpeg", "image/png", HTTPStatus.NOT_ACCEPTABLE, "NOT_ACCEPTABLE"),
        (b"", "image/jpeg", "image/png", HTTPStatus.NOT_ACCEPTABLE, "NOT_ACCEPTABLE"),
    ],
)
def test_bad_request_in_awss_context_is_answered_as_the_server_answers_it(
    body: bytes, content_type: str, accept: str, status: HTTPStatus, code: str, predictor: Predictor
) -> None:
    context = Context()
    images = input_fn(body, content_type, context)
    text, given_type = output_fn(predict_fn(images, predictor, context), accept, context)
    assert context.told == (status, status.phrase)
    assert given_type == JSON
    assert json.loads(text)["error_code"] == code
    assert json.loads(text)["message"].endswith(".")


def test_bad_request_is_an_error_of_awss_toolkit_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class BaseInferenceToolkitError(Exception):
        """With the signature of sagemaker-inference 1.10."""

        def __init__(self, status_code: int, message: str, phrase: str):
            raise AssertionError("our own attributes are set without it")

    errors = ModuleType("sagemaker_inference.errors")
    monkeypatch.setattr(errors, "BaseInferenceToolkitError", BaseInferenceToolkitError, raising=False)
    monkeypatch.setitem(sys.modules, "sagemaker_inference", ModuleType("sagemaker_inference"))
    monkeypatch.setitem(sys.modules, "sagemaker_inference.errors", errors)
    spec = importlib.util.spec_from_file_location("inference_in_a_container", inference.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for a class's module.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(BaseInferenceToolkitError, match="The body is empty") as caught:
        module.input_fn(b"", "image/jpeg")
    assert vars(caught.value) == {
        "status_code": 400, "message": "The body is empty; send an image.", "phrase": "Bad Request",
    }  # fmt: skip
