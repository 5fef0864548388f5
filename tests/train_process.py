"""One `dogbreed train --on sagemaker` in a process of its own; its job runs a small script. Prints how it ended."""

import json
import sys
from pathlib import Path

from local_jobs import write_source

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.errors import CloudError
from sagemaker_jobs.training import jobinputs, training_job


def main(values: str, script: str) -> None:
    def build(config: object, splits: object, target: Path, **_: object) -> Path:
        return write_source(target, script)

    jobinputs.build_source = build  # type: ignore[attr-defined]
    try:
        training_job.train(with_values(ExperimentConfig(), json.loads(values)), context=Context(Path.cwd()))
    except CloudError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
