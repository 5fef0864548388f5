"""An unpacked model archive asked as a SageMaker container asks it: the four functions of code/inference.py, in turn.

`python archive_answers.py MODEL_DIR REQUESTS.json [--only-torch | --toolkit]` prints one JSON object. --only-torch
blocks every package but torch, torchvision, Pillow, numpy and what torch itself imports; --toolkit lets AWS's
sagemaker-inference call the functions. The standard library alone is imported before the archive's code.
"""

import base64
import importlib
import importlib.machinery
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS = ("inference", "dogbreed_ml")
TORCH_AND_ITS_OWN = (
    "torch", "torchvision", "PIL", "numpy", "torchgen", "functorch", "typing_extensions", "filelock", "fsspec",
    "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy", "triton",
)  # fmt: skip


class OnlyTorch(importlib.machinery.PathFinder):
    """Finds what a serving container has for certain, and nothing else."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package = fullname.partition(".")[0]
        is_known = package in (*sys.stdlib_module_names, *OURS, *TORCH_AND_ITS_OWN)
        # sysconfig's own data: a module whose name has the platform's in it.
        if not is_known and not package.startswith("_sysconfigdata"):
            return None
        return super().find_spec(fullname, path, target)


class Context:
    """What AWS's model server hands to its toolkit: one for a worker's whole life, each request put into it."""

    def __init__(self, model_dir: str):
        self.system_properties = {"model_dir": model_dir}
        self.request_processor = [self]

    def start_request(self, headers: dict[str, str]) -> None:
        self.status, self.content_type, self._headers = 200, "", headers

    def get_request_properties(self) -> dict[str, str]:
        return self._headers

    def set_response_status(self, code: int, phrase: str) -> None:
        self.status = code

    def set_response_content_type(self, index: int, content_type: str) -> None:
        self.content_type = content_type


def ask_functions(model_dir: str, requests: list[dict[str, str]]) -> list[dict[str, Any]]:
    inference = importlib.import_module("inference")
    model = inference.model_fn(model_dir)
    told = []
    for request in requests:
        body: bytes | str = base64.b64decode(request["body"])
        if isinstance(body, bytes) and request["content_type"] == "application/json":
            body = body.decode()
        try:
            images = inference.input_fn(body, request["content_type"])
            text, content_type = inference.output_fn(inference.predict_fn(images, model), request["accept"])
            told.append({"status": 200, "body": text, "content_type": content_type})
        except inference.RequestError as error:
            told.append({"status": error.status_code, "body": error.message, "content_type": ""})
    return told


def ask_toolkit(model_dir: str, requests: list[dict[str, str]]) -> list[dict[str, Any]]:
    transformer = importlib.import_module("sagemaker_inference.transformer").Transformer()
    context = Context(model_dir)
    told = []
    for request in requests:
        context.start_request({"Content-Type": request["content_type"], "Accept": request["accept"]})
        (body,) = transformer.transform([{"body": base64.b64decode(request["body"])}], context)
        # A refusal comes as the server's JSON, and nothing after it.
        text = body if context.status == 200 else json.loads(body)["message"]
        told.append({"status": context.status, "body": text, "content_type": context.content_type})
    return told


def main() -> None:
    model_dir, requests_path, *flags = sys.argv[1:]
    # As the container does; the archive's code comes before whatever the interpreter has.
    sys.path.insert(0, str(Path(model_dir, "code")))
    if "--only-torch" in flags:
        sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, OnlyTorch]
    requests = json.loads(Path(requests_path).read_text(encoding="utf-8"))
    answers = (ask_toolkit if "--toolkit" in flags else ask_functions)(model_dir, requests)
    facts = {
        "torch": sys.modules["torch"].__version__,
        "torchvision": sys.modules["torchvision"].__version__,
        "code": sys.modules["dogbreed_ml"].__file__,
        "packages": sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)),
    }
    print(json.dumps({"answers": answers, "facts": facts}))


if __name__ == "__main__":
    main()
