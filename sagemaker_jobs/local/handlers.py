"""The process behind a `pytorch-inference` image: a model archive's code/inference.py, by the rules of AWS's toolkit.

`python -P handlers.py --fd N --model-dir DIR` serves GET /ping and POST /invocations on the listening socket N. Only
the standard library is imported, so that the process runs in whatever environment the model needs; torch is, where
the model leaves a function to the defaults.
"""

import argparse
import csv
import importlib
import inspect
import io
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

DEFAULT_PROGRAM = "inference.py"
JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
_TEXT_TYPES = (JSON, CSV)
"""What input_fn gets as str; everything else is bytes."""
_REQUEST_ID, _ATTRIBUTES = "X-Amzn-SageMaker-Inference-Id", "X-Amzn-SageMaker-Custom-Attributes"

Handler = Callable[..., Any]


class UnsupportedFormat(Exception):
    """A content type that the default functions neither read nor write; the client's mistake."""

    status_code = 400


class Context:
    """What a function with one parameter more than it needs is given: the request, as far as handlers ask for it."""

    def __init__(self, model_dir: str, headers: Mapping[str, str] | None = None):
        self.system_properties = {"model_dir": model_dir, "gpu_id": None, "batch_size": 1}
        self.request_id = (headers or {}).get(_REQUEST_ID)
        self.response_headers: dict[str, str] = {}
        self.content_type: str | None = None
        self.status: tuple[int, str] = (200, "")
        """Code and phrase; an empty phrase is the code's own."""
        self._headers = headers or {}

    def get_request_id(self, index: int = 0) -> str | None:
        return self.request_id

    def get_request_header(self, index: int, name: str) -> str | None:
        return self._headers.get(name)

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return dict(self._headers)

    # Its parameters have TorchServe's names: a handler may give them by name.
    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status = (code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        self.status = (code, phrase)

    def get_response_status(self, index: int) -> tuple[int, str]:
        return self.status

    def set_response_content_type(self, index: int, content_type: str) -> None:
        self.content_type = content_type

    def get_response_content_type(self, index: int) -> str | None:
        return self.content_type

    def get_response_headers(self, index: int) -> dict[str, str]:
        return dict(self.response_headers)

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.response_headers[name] = value


class Handlers:
    """model_fn once, then transform_fn, or input_fn, predict_fn and output_fn, for each request."""

    def __init__(self, model_dir: str, module: ModuleType | None):
        own = {
            name: getattr(module, f"{name}_fn", None) for name in ("model", "transform", "input", "predict", "output")
        }
        if own["transform"] and (own["input"] or own["predict"] or own["output"]):
            raise ValueError(
                "Cannot use transform_fn implementation in conjunction with input_fn, predict_fn, and/or output_fn "
                "implementation"
            )
        self._model_dir = model_dir
        self._transform: Handler | None = own["transform"]
        self._input: Handler = own["input"] or default_input_fn
        self._predict: Handler = own["predict"] or default_predict_fn
        self._output: Handler = own["output"] or default_output_fn
        self._model = _call(own["model"] or default_model_fn, (model_dir,), Context(model_dir))

    def answer(self, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, str, Context]:
        """The response's body, its content type, and the context that the functions may have filled."""
        context = Context(self._model_dir, headers)
        content_type = headers.get("Content-Type") or JSON
        accept = headers.get("Accept") or ""
        if accept in ("", "*/*"):
            accept = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", JSON)
        request: bytes | str = body.decode() if content_type in _TEXT_TYPES else body
        if self._transform is not None:
            result = _call(self._transform, (self._model, request, content_type, accept), context)
        else:
            data = _call(self._input, (request, content_type), context)
            prediction = _call(self._predict, (data, self._model), context)
            result = _call(self._output, (prediction, accept), context)
        response, response_type = result if isinstance(result, tuple) else (result, context.content_type or accept)
        return _to_bytes(response), response_type, context


def _call(function: Handler, arguments: tuple[Any, ...], context: Context) -> Any:
    num_parameters = len(inspect.signature(function).parameters)
    if num_parameters == len(arguments):
        return function(*arguments)
    if num_parameters == len(arguments) + 1:
        return function(*arguments, context)
    raise TypeError(f"{function.__name__} takes {num_parameters} arguments but {len(arguments)} were given.")


def _to_bytes(response: Any) -> bytes:
    if isinstance(response, bytes | bytearray | memoryview):
        return bytes(response)
    return response.encode() if isinstance(response, str) else json.dumps(response).encode()


def default_model_fn(model_dir: str) -> Any:
    """TorchScript in model.pt, or in the only *.pt or *.pth file."""
    import torch

    path = Path(model_dir, "model.pt")
    if not path.exists():
        paths = sorted(each for each in Path(model_dir).iterdir() if each.suffix in (".pt", ".pth"))
        if len(paths) != 1:
            names = [each.name for each in paths]
            raise ValueError(f"Exactly one .pth or .pt file is required for PyTorch models without model_fn: {names}")
        path = paths[0]
    return torch.jit.load(str(path), map_location="cpu").eval()


def default_input_fn(data: bytes | str, content_type: str) -> Any:
    """JSON, CSV or NPY to a tensor."""
    import numpy as np
    import torch

    if content_type == JSON:
        return torch.tensor(json.loads(data), dtype=torch.float32)
    if content_type == CSV:
        text = data if isinstance(data, str) else data.decode()
        return torch.tensor([[float(cell) for cell in row] for row in csv.reader(io.StringIO(text)) if row])
    if content_type == NPY:
        raw = data if isinstance(data, bytes) else data.encode()
        return torch.from_numpy(np.load(io.BytesIO(raw), allow_pickle=False))
    raise UnsupportedFormat(f"Content type {content_type} is not supported by this framework.")


def default_predict_fn(data: Any, model: Any) -> Any:
    """The model on the data, without gradients."""
    import torch

    with torch.inference_mode():
        return model(data)


def default_output_fn(prediction: Any, accept: str) -> tuple[bytes, str]:
    """A tensor or list as the first of the accepted types that is JSON, CSV or NPY."""
    import numpy as np

    values = prediction.numpy(force=True) if hasattr(prediction, "detach") else prediction
    for content_type in (each.partition(";")[0].strip() for each in accept.split(",")):
        if content_type in (JSON, "*/*"):
            return json.dumps(values.tolist() if hasattr(values, "tolist") else values).encode(), JSON
        if content_type == CSV:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(np.atleast_2d(values).tolist())
            return text.getvalue().encode(), CSV
        if content_type == NPY:
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(values), allow_pickle=False)
            return buffer.getvalue(), NPY
    raise UnsupportedFormat(f"Content type {accept} is not supported by this framework.")


def load_handlers(model_dir: Path, program: str | None) -> Handlers:
    """Imports code/`program` of the model, by default inference.py where there is one, and loads the model."""
    code_dir = model_dir / "code"
    name = program or DEFAULT_PROGRAM
    module = None
    if (code_dir / name).is_file():
        sys.path.insert(0, str(code_dir))
        module = importlib.import_module(Path(name).stem)
    elif program is not None:
        raise FileNotFoundError(f"SAGEMAKER_PROGRAM names code/{program}, which the model archive does not have.")
    return Handlers(str(model_dir), module)


class _Server(ThreadingHTTPServer):
    """Answers on a socket that it was handed, so that nobody else can have taken its port."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, handlers: Handlers):
        super().__init__(listening.getsockname()[:2], _Requests, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.handlers = handlers
        # As one worker of AWS's model server: handlers need not be safe to run in two threads.
        self.worker = ThreadPoolExecutor(max_workers=1)


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._send(200 if self.path == "/ping" else 404, b"", "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/invocations":
            self._send(404, b"", "text/plain")
            return
        running = self.server.worker.submit(self.server.handlers.answer, body, dict(self.headers))
        # What a model's own code raises can be anything, and is the client's to see; the server goes on.
        error = running.exception()
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            sys.stderr.write(trace)
            message = f"{getattr(error, 'message', None) or error}\n{trace}"
            self._send(getattr(error, "status_code", 500), message.encode(), "text/plain")
        else:
            response, content_type, context = running.result()
            status, phrase = context.status
            self._send(status, response, content_type, headers=context.response_headers, phrase=phrase)

    def _send(
        self,
        status: int,
        body: bytes,
        content_type: str,
        *,
        headers: Mapping[str, str] | None = None,
        phrase: str = "",
    ) -> None:
        # A line's end in the phrase would begin a header.
        self.send_response_only(status, " ".join(phrase.split()) or None)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        # One write for head and body: two packets would wait for each other.
        self._headers_buffer.append(b"\r\n")  # type: ignore[attr-defined]
        self._headers_buffer.append(body)  # type: ignore[attr-defined]
        self.flush_headers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--program")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    handlers = load_handlers(arguments.model_dir, arguments.program)
    with _Server(socket.socket(fileno=arguments.fd), handlers) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
