"""The service does what its own OpenAPI description states, for requests that schemathesis generates from it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings

from arnn_lightning.serving.http import make_app
from arnn_lightning.serving.predictor import load
from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore
from models import BY_NAME, ModelCase, slow

AUTHORIZED = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def app(checkpoints: Callable[[ModelCase], Path]) -> Any:
    models = ReloadingPredictor(checkpoints(BY_NAME["arnn"]) / "checkpoints" / "best.ckpt", load, 1.0)
    return make_app(Service(models, SessionStore(100, 60)).ask, "secret", max_body_bytes=1_000_000)


def send_generated(operation: Any, mode: Any, n_examples: int, app: Any) -> Counter[int]:
    """Statuses of generated requests, valid ones or not; those of a live session are of one that exists."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    client, statuses = TestClient(app), Counter[int]()

    @settings(
        max_examples=n_examples, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if "key" in case.path_parameters:
            case.path_parameters["key"] = client.post("/v1/sessions", json={}, headers=AUTHORIZED).json()["id"]
        # Ids that leave nothing to recommend are valid by their types, and refused.
        answer = case.call_and_validate(headers=AUTHORIZED, excluded_checks=[positive_data_acceptance])
        statuses[answer.status_code] += 1

    send()
    return statuses


@pytest.mark.parametrize("n_examples", [3, slow(20)])  # of every operation, valid and invalid each
def test_generated_requests_are_answered_as_described(n_examples: int, app: Any) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    modes = schemathesis.GenerationMode
    description = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = {result.ok().label: result.ok() for result in description.get_all_operations()}
    assert len(operations) == 7
    for label, operation in operations.items():
        statuses = send_generated(operation, modes.POSITIVE, n_examples, app)
        assert min(statuses) in (200, 201, 204), label
        if operation.body:
            statuses = send_generated(
                operation, modes.NEGATIVE, n_examples + 5, app
            )  # some are invalid by their headers
            assert 422 in statuses, label


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/sessions", {"profile": {}}),
        ("/v1/recommend", {"session": [5.0, 1e300], "profile": {}, "k": 3.0}),
        ("/v1/recommend/batch", {"sessions": [{"session": [], "profile": {}}]}),
    ],
)
def test_valid_requests_that_were_refused_are_answered(app: Any, path: str, body: Any) -> None:
    assert TestClient(app).post(path, json=body, headers=AUTHORIZED).status_code in (200, 201)
