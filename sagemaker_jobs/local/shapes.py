"""Requests and answers against botocore's model, refused as AWS refuses them: all mistakes in one message."""

from collections.abc import Mapping
from typing import Any

from sagemaker_jobs.local.errors import SerializationException, ValidationException
from sagemaker_jobs.shapes import WrongTypeError, answer_errors, request_errors


def check_request(service: str, operation: str, params: Mapping[str, Any]) -> None:
    """Raises SerializationException for a wrong type and ValidationException for everything else."""
    try:
        errors = request_errors(service, operation, params)
    except WrongTypeError as error:
        raise SerializationException(str(error)) from error
    if errors:
        count = f"{len(errors)} validation error{'s' if len(errors) > 1 else ''} detected"
        raise ValidationException(f"{count}: {'; '.join(errors)}")


def check_answer(service: str, operation: str, answer: Mapping[str, Any]) -> None:
    """For tests: raises where an answer is not what botocore's model promises."""
    try:
        errors = answer_errors(service, operation, answer)
    except WrongTypeError as error:
        raise SerializationException(str(error)) from error
    if errors:
        raise ValidationException(f"The answer of {operation}: {'; '.join(errors)}")
