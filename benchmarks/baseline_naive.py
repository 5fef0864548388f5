"""The search that a user writes without dogbreed-ml: Optuna, its MLflow callback, a frozen torchvision ResNet50.

A script on its own: it imports nothing of this project, and all settings that it does not need are left at their
defaults. The whole network is run on each image in each epoch of each trial. `python -m benchmarks --only search` runs
it; by hand: python baseline_naive.py --data FOLDER_OF_BREEDS --num-trials 20 --num-epochs 5
"""

import argparse
import json
import time

import mlflow
import optuna
import torch
from optuna_integration.mlflow import MLflowCallback  # type: ignore[import-untyped, unused-ignore]
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, models, transforms

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--weights", default="", help="file of ResNet50 weights; random weights without it")
parser.add_argument("--resnet-version", default="1.5")
parser.add_argument("--num-trials", type=int, default=20)
parser.add_argument("--num-epochs", type=int, default=5)
arguments = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
transform = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
data = datasets.ImageFolder(arguments.data, transform)
train_data, valid_data, test_data = random_split(data, [0.7, 0.15, 0.15], torch.Generator().manual_seed(0))
trial_seconds: list[float] = []
epoch_seconds: list[float] = []
callback = MLflowCallback(metric_name="accuracy")


def build_model() -> models.ResNet:
    model = models.resnet50()
    if arguments.weights:
        model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    if arguments.resnet_version == "1":
        for block in model.modules():
            if isinstance(block, models.resnet.Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = nn.Linear(2048, len(data.classes))
    model.to(device)
    return model


@callback.track_in_mlflow()  # type: ignore[untyped-decorator, unused-ignore]
def objective(trial: optuna.Trial) -> float:
    trial_start = time.perf_counter()
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    batch_size = trial.suggest_categorical("batch_size", [16, 32, 64])
    train_loader = DataLoader(train_data, batch_size=batch_size, shuffle=True, num_workers=2)
    valid_loader = DataLoader(valid_data, batch_size=batch_size, num_workers=2)
    model = build_model()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.fc.parameters(), lr=lr)
    accuracy = 0.0
    for epoch in range(arguments.num_epochs):
        epoch_start = time.perf_counter()
        model.train()
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in valid_loader:
                images, labels = images.to(device), labels.to(device)
                correct += int((model(images).argmax(1) == labels).sum())
        accuracy = correct / len(valid_data)
        mlflow.log_metric("loss", loss.item(), step=epoch)
        mlflow.log_metric("accuracy", accuracy, step=epoch)
        epoch_seconds.append(time.perf_counter() - epoch_start)
    trial_seconds.append(time.perf_counter() - trial_start)
    return accuracy


if __name__ == "__main__":
    study = optuna.create_study(study_name="naive", direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=arguments.num_trials, callbacks=[callback])
    images_per_epoch = len(train_data) + len(valid_data)
    figures = {"trial_s": trial_seconds, "epoch_s": epoch_seconds, "images_per_epoch": images_per_epoch}
    print(json.dumps(figures | {"best": study.best_value}))
