"""A training job's script around `dogbreed train`: channels train and weights in, a model archive that serves out.

The arguments are the hyperparameters, by their dotted config names.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dogbreed_ml.pyfunc import fetch_checkpoint

model_dir = Path(os.environ["SM_MODEL_DIR"])
tracking_uri = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
(weights_path,) = Path(os.environ["SM_CHANNEL_WEIGHTS"]).iterdir()
Path("config.json").write_text(
    json.dumps(
        {
            "name": "dogs-search",
            "data": {"source": "folder", "path": os.environ["SM_CHANNEL_TRAIN"], "crop_share": 1.0},
            "model": {"weights": str(weights_path), "resnet_version": "1"},
        }
    )
)
finished = subprocess.run(
    [sys.executable, "-m", "dogbreed_ml", "train", "--config", "config.json", "--json", *sys.argv[1:]],
    env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
)
with tempfile.TemporaryDirectory() as folder:
    model_uri = json.loads(finished.stdout)["model_uri"]
    checkpoint_path = fetch_checkpoint(model_uri, Path(folder), tracking_uri=tracking_uri)
    shutil.copy(checkpoint_path, model_dir / "checkpoint.pt")
(model_dir / "code").mkdir()
shutil.copy("dogs_inference.py", model_dir / "code" / "inference.py")
