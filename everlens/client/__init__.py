"""
The Python client: what a user's program needs, and no torch.

    from everlens import Client

    with Client("http://127.0.0.1:8000") as client:
        receipt = client.learn("heron.jpg", "heron")
        answer = client.classify("bird.jpg", wait_for=receipt)
        if answer.best.label != "heron":
            client.correct(answer, "heron")

`AsyncClient` is the same with `await`. Every sample is sent under an id, so that sending it again
after a lost answer, a full queue or a restart is harmless: it is accepted once.
"""

from everlens.client.clients import URL, AsyncClient, Client
from everlens.client.pictures import Image, Picture
from everlens.client.refusals import ApiError, FieldError
from everlens.client.results import (
    Answer,
    Backlog,
    Event,
    Exemplar,
    ExpertShares,
    Explanation,
    FolderReport,
    Forgetting,
    Gate,
    KeptPrediction,
    KnownClass,
    LabelledClass,
    Labelling,
    Learning,
    Prediction,
    Receipt,
    RefusedVersion,
    SampleState,
    Skipped,
    Suggestion,
    VersionRecord,
)

__all__ = [
    "URL",
    "Answer",
    "ApiError",
    "AsyncClient",
    "Backlog",
    "Client",
    "Event",
    "Exemplar",
    "ExpertShares",
    "Explanation",
    "FieldError",
    "FolderReport",
    "Forgetting",
    "Gate",
    "Image",
    "KeptPrediction",
    "KnownClass",
    "LabelledClass",
    "Labelling",
    "Learning",
    "Picture",
    "Prediction",
    "Receipt",
    "RefusedVersion",
    "SampleState",
    "Skipped",
    "Suggestion",
    "VersionRecord",
]
