"""What one server is made from; handed to its process as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dogbreed_ml.policies import DeployConfig

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One model behind one address."""

    checkpoint_path: Path
    """A checkpoint of this project; the INT8 model beside it is used where the back end asks for it."""
    deploy: DeployConfig = field(default_factory=DeployConfig)
    host: str = LOOPBACK
    port: int = 8080
    """0 takes a free one."""
    model_name: str = ""
    """As /ping tells it."""
    model_version: str = ""
    ends_with_stdin: bool = False
    """Whether the server stops when its stdin is closed: what its caller leaves behind when it is killed."""

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"checkpoint_path": str(self.checkpoint_path)})

    @classmethod
    def from_json(cls, text: str) -> "ServerSettings":
        values: dict[str, Any] = json.loads(text)
        deploy = DeployConfig(**values.pop("deploy"))
        return cls(checkpoint_path=Path(values.pop("checkpoint_path")), deploy=deploy, **values)
