"""Experiment tracking around MLflow for people who fine-tune image classifiers."""

__version__ = "0.1.0"
