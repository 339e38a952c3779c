"""The service: what it answers, refuses, and keeps."""

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient

from arnn_lightning.errors import UserError
from arnn_lightning.serving import live as live_sessions
from arnn_lightning.serving import worker
from arnn_lightning.serving.bodies import BatchRequest, ClickRequest, Prefix, RecommendRequest
from arnn_lightning.serving.http import make_app
from arnn_lightning.serving.messages import Answer, Click, Close, Describe, Message, Recommend
from arnn_lightning.serving.predictor import load
from arnn_lightning.serving.service import ReloadingPredictor, Service, SessionStore
from arnn_lightning.tasks import serve
from arnn_lightning.tasks.serve import check_address, make_service
from commandline import arnn_here
from helpers import compose_config
from models import BY_NAME, MODELS, ModelCase, case_name, slow_but

Checkpoints = Callable[[ModelCase], Path]


@pytest.fixture(scope="module")
def models(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> ReloadingPredictor:
    file = tmp_path_factory.mktemp("served") / "best.ckpt"
    shutil.copyfile(checkpoints(BY_NAME["arnn"]) / "checkpoints" / "best.ckpt", file)
    return ReloadingPredictor(file, load, 0.01)


@pytest.fixture
def client(models: ReloadingPredictor) -> TestClient:
    app = make_app(Service(models, SessionStore(100, 60)).ask, token=None, max_body_bytes=20_000)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def items(models: ReloadingPredictor) -> list[Any]:
    ids: list[Any] = models.current.vocabulary.items["id"].head(5).to_list()
    return ids


@pytest.mark.parametrize(
    "case", slow_but(("pop", "vstan_context", "gru4rec", "pnn", "arnn", "prefix"), MODELS), ids=case_name
)
def test_V18_the_service_lists_what_recommend_lists(
    case: ModelCase, checkpoints: Checkpoints, test_sessions: pl.DataFrame
) -> None:
    models = ReloadingPredictor(checkpoints(case) / "checkpoints" / "best.ckpt", load, 60)
    client = TestClient(make_app(Service(models, SessionStore(100, 60)).ask, token=None, max_body_bytes=20_000))
    predictor = models.current
    numbers = test_sessions["session"].unique(maintain_order=True).head(12)
    events = test_sessions.filter(pl.col("session").is_in(numbers.implode())).rename({"session": "session_id"})
    expected = predictor.recommend(events, k=30).group_by("session_id", maintain_order=True).agg("item_id")
    sessions = events.group_by("session_id", maintain_order=True).agg("item_id", pl.col("user_id").first())
    bodies = [{"session": row["item_id"], "user": row["user_id"]} for row in sessions.iter_rows(named=True)]
    batch = client.post("/v1/recommend/batch", json={"sessions": bodies, "k": 30}).json()["lists"]
    for body, listed, ids in zip(bodies, batch, expected["item_id"].to_list(), strict=True):
        assert [item["id"] for item in listed["items"]] == ids
        alone = client.post("/v1/recommend", json=body | {"k": 30}).json()
        assert [item["id"] for item in alone["items"]] == ids
        opened = client.post("/v1/sessions", json={"user": body["user"]})
        assert opened.status_code == 201
        for item in body["session"]:
            clicked = client.post(f"/v1/sessions/{opened.json()['id']}/clicks", json={"item": item, "k": 30})
        assert [item["id"] for item in clicked.json()["items"]] == ids
        assert clicked.json()["model"] == predictor.model_id


def test_unknown_parts_are_named_in_the_answer(client: TestClient, items: list[Any]) -> None:
    answer = client.post("/v1/recommend", json={"session": items[:1], "user": "mistyped"})
    assert answer.json()["unknown"]["users"] == ["mistyped"]
    body = {"session": [items[0], "strange"], "profile": {"agee": 3}, "k": 2, "exclude_seen": True}
    body |= {"items": [*items, "strange", 10**60]}
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200
    assert answer.json()["unknown"] == {"items": ["strange"], "attributes": ["agee"], "values": [], "users": []}
    assert len(answer.json()["items"]) == 2
    assert items[0] not in [item["id"] for item in answer.json()["items"]]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "session"),
        ({"session": "abc"}, "session"),
        ({"session": [None]}, "session.0"),
        ({"session": [True]}, "session.0"),
        ({"session": [1.5]}, "session.0"),
        ({"session": [1], "k": 0}, "k"),
        ({"session": [1], "k": "20"}, "k"),
        ({"session": [1], "top": 5}, "top"),
        ({"session": [1] * 1_001}, "session"),
        ({"session": [1], "profile": ["de"]}, "profile"),
        ({"session": [1], "profile": {"level": {"a": 1}}}, "profile"),
        ({"session": [1], "items": [2**70]}, "item"),
        ({"session": [1], "items": []}, "items"),
        ({"session": [1], "user": 2**70, "items": ["a", 1.5]}, "items"),
        ({"session": [1], "user": True}, "user: Input should be a valid integer or a valid string"),
        ([], "body"),
        ("text", "body"),
    ],
)
def test_a_wrong_body_is_one_sentence(client: TestClient, body: Any, place: str) -> None:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 422
    assert place in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"session": ["\\ud800"]}', b'{"session": [1e999]}'])
def test_what_is_no_json_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert isinstance(answer.json()["detail"], str)


def test_the_place_of_wrong_json_is_named(client: TestClient) -> None:
    answer = client.post("/v1/recommend", content=b'{"k": 2', headers={"content-type": "application/json"})
    assert answer.json()["detail"] == "body: not JSON at character 8: Expecting ',' delimiter"


def test_large_bodies_are_refused_unread(client: TestClient) -> None:
    def chunks() -> Any:
        for _ in range(1_000):
            yield b" " * 1_000

    for content in (b" " * 20_001, chunks()):
        answer = client.post("/v1/recommend", content=content)
        assert answer.status_code == 413
        assert "at most 20000 bytes" in answer.json()["detail"]
    for content in (b" " * 20_000, (b" " * 10_000 for _ in range(2))):  # not too large
        assert client.post("/v1/recommend", content=content).status_code == 422


def test_a_defect_shows_no_trace(
    client: TestClient, models: ReloadingPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(models.current), "session", lambda *_: 1 / 0)
    answer = client.post("/v1/recommend", json={"session": [1]})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "internal error; see the log of the server"}


def test_a_token_is_required_where_there_is_one(models: ReloadingPredictor) -> None:
    client = TestClient(make_app(Service(models, SessionStore(9, 60)).ask, token="sécret", max_body_bytes=1_000))
    assert client.get("/health").status_code == 200
    for given in (None, "Bearer wrong", "sécret", "Bearer ", "Basic sécret"):
        headers = {} if given is None else {"authorization": given.encode()}
        for path in ("/v1/recommend", "/v1/sessions"):
            refused = client.post(path, json={"session": []}, headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics", headers=headers).status_code == 401
    for scheme in ("Bearer", "bearer"):
        allowed = {"authorization": f"{scheme} sécret".encode()}
        assert client.post("/v1/recommend", json={"session": []}, headers=allowed).status_code == 200


def test_metrics_count_requests_and_sessions(client: TestClient) -> None:
    client.post("/v1/sessions", json={})
    strange = [f"strange {number}" for number in range(150)]
    answer = client.post("/v1/recommend", json={"session": strange})
    assert answer.json()["unknown"]["items"] == strange[-100:]
    client.post("/v1/recommend", json={})
    text = client.get("/metrics").text
    assert 'arnn_requests_total{route="/v1/recommend",status="200"} 1.0' in text
    assert 'arnn_requests_total{route="/v1/recommend",status="422"} 1.0' in text
    assert "arnn_sessions 1.0" in text
    assert "arnn_unknown_items_total 150.0" in text


def test_the_api_is_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {
        "/v1/recommend",
        "/v1/recommend/batch",
        "/v1/sessions",
        "/v1/sessions/{key}/clicks",
        "/health",
    } <= paths.keys()
    assert client.get("/docs").status_code == 200


def test_a_refused_click_does_not_count(models: ReloadingPredictor, items: list[Any]) -> None:
    store = SessionStore(10, 60.0)
    client = TestClient(make_app(Service(models, store).ask, None, 20_000))
    key = client.post("/v1/sessions", json={}).json()["id"]
    for refused in ({"item": items[0], "items": []}, {"item": items[0], "items": ["a", 1.5]}, {"item": 1.5}):
        assert client.post(f"/v1/sessions/{key}/clicks", json=refused).status_code == 422
    held = store.get(key)
    assert held is not None
    assert held[1].clicks == 0


def listed(answer: Answer | Exception) -> list[Any]:
    """The ids of a list."""
    assert isinstance(answer, Answer)
    return [item["id"] for item in json.loads(answer.content or b"")["items"]]


def answers_of(service: Service, *messages: Message) -> list[Any]:
    """The answers in the order of the messages."""
    answered = dict(chain.from_iterable(service.answer(messages)))
    return [answered.pop(place) for place in range(len(messages))]


def test_requests_of_one_session_are_answered_in_turn(models: ReloadingPredictor, items: list[Any]) -> None:
    """Also where they wait together: a batch has each session once."""
    service = Service(models, SessionStore(10, 60))
    first, second = (service.store.add(models.current, models.current.session()) for _ in range(2))
    messages = [Click(key, ClickRequest(item=item)) for item in items[:3] for key in (first, second)]
    *clicked, closed, third, gone = answers_of(service, *messages[:4], Close(second), messages[4], messages[5])
    expected = []
    for n_clicks in (1, 2, 3):
        live = models.current.session()
        for item in items[:n_clicks]:
            live.click(item)
        expected.append([item.item_id for item in live.top()])
    assert list(map(listed, clicked)) == [expected[0], expected[0], expected[1], expected[1]]
    assert (listed(third), closed, gone) == (expected[2], Answer(b""), Answer(None))
    clicks = [Click(first, ClickRequest(item=item)) for item in (items[0], "strange", items[1])]
    assert [answer.unknown_items for answer in answers_of(service, *clicks)] == [0, 1, 0]


@pytest.mark.parametrize("name", ["arnn", "vstan_context", "prefix", "pop"])
def test_sessions_of_any_length_in_one_request_get_their_own_lists(
    name: str, checkpoints: Checkpoints, test_sessions: pl.DataFrame
) -> None:
    """The batch is split once after the last event of each session, not after every event."""
    models = ReloadingPredictor(checkpoints(BY_NAME[name]) / "checkpoints" / "best.ckpt", load, 60)
    predictor, service = models.current, Service(models, SessionStore(10, 60))
    items, users = test_sessions["item_id"].to_list(), test_sessions["user_id"].unique().sort().to_list()
    lengths = [3, 0, 40, 1, 3, 7]
    prefixes = [
        Prefix(session=["strange", *items[length : 2 * length]], user=user)
        for length, user in zip(lengths, users, strict=False)
    ]
    splits: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        usual = live_sessions._rows

        def rows(batch: Any, dim: int, first: int = 0) -> Any:
            splits.append(dim == 0)
            return usual(batch, dim, first)

        patch.setattr(live_sessions, "_rows", rows)
        body = BatchRequest(sessions=prefixes, k=10, exclude_seen=True)
        (answer,) = answers_of(service, Recommend(body.sessions, body, True))
    assert sum(splits) <= len({*lengths})  # one of which is 0, one the first step's terms of users
    for prefix, found in zip(prefixes, json.loads(answer.content)["lists"], strict=True):
        session = predictor.session(user=prefix.user)
        for item in prefix.session:
            session.click(item)
        expected = session.top(10, exclude_seen=True)
        assert [item["id"] for item in found["items"]] == [item.item_id for item in expected]
        assert [item["score"] for item in found["items"]] == pytest.approx([item.score for item in expected], abs=1e-5)
        assert found["unknown"]["items"] == ["strange"]


@pytest.mark.parametrize(("n_items", "places"), [(5, [[2, 3, 0, 1]]), (30, [[2, 3, 0], [1]])])
def test_no_answer_waits_for_a_long_batch(
    n_items: int, places: list[list[int]], models: ReloadingPredictor, items: list[Any]
) -> None:
    service = Service(models, SessionStore(10, 60), size=2)
    short, long = RecommendRequest(session=items[:1]), BatchRequest(sessions=[Prefix(session=items[:1] * n_items)] * 2)
    messages = [Recommend([short], short, False), Recommend(long.sessions, long, True), Describe(), Close("none")]
    parts = service.answer(messages)
    assert [[place for place, _ in part] for part in parts] == places


@pytest.mark.parametrize("size", [1, 3, 100])
def test_messages_are_answered_in_batches_of_any_size(size: int, models: ReloadingPredictor, items: list[Any]) -> None:
    """With other options, and with errors between them."""
    service = Service(models, SessionStore(10, 60), size)
    bodies = [
        RecommendRequest(session=items[:2], k=3),
        RecommendRequest(session=items[:1], k=5, exclude_seen=True),
        RecommendRequest(session=items[:1], items=[]),
        RecommendRequest(session=["strange"], k=3),
        RecommendRequest(session=items[:3], k=3, exclude_items=items[3:]),
        RecommendRequest(session=items[:1], k=3),
        *(RecommendRequest(session=items[:1], k=1_000, exclude_seen=value) for value in (False, True)),  # all items
    ]
    messages = [Recommend([body], body, is_batch=False) for body in bodies]
    answers = answers_of(service, *messages)
    assert isinstance(answers[2], UserError)
    for message, answer in zip(messages, answers, strict=True):
        if answer is not answers[2]:
            (alone,) = answers_of(service, message)
            assert listed(answer) == listed(alone)
            assert answer.unknown_items == (message.sessions[0].session == ["strange"])


def test_sessions_of_two_models_share_no_batch(
    models: ReloadingPredictor, checkpoints: Checkpoints, items: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, body = Service(models, SessionStore(10, 60)), RecommendRequest(session=items[:1])
    earlier, newer = models.current, load(checkpoints(BY_NAME["concat"]))
    key = service.store.add(earlier, earlier.session())
    monkeypatch.setattr(models, "current", newer)
    answers = answers_of(service, Click(key, ClickRequest(item=items[0])), Recommend([body], body, is_batch=False))
    assert [json.loads(answer.content)["model"] for answer in answers] == [earlier.model_id, newer.model_id]


def test_health_is_known_while_the_model_computes_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    is_free = threading.Event()
    is_free.set()

    asked: list[Message] = []

    async def ask(message: Message) -> Answer:
        asked.append(message)
        await asyncio.to_thread(is_free.wait, 10)
        return Answer(b"{}", sessions=3)

    monkeypatch.setattr("arnn_lightning.serving.http.DESCRIBE_SECONDS", 0.01)
    with TestClient(make_app(ask, None, 1_000)) as client:  # one event loop
        is_free.clear()
        started = time.monotonic()
        assert client.get("/health").json() == {}
        assert "arnn_sessions 3.0" in client.get("/metrics").text
        assert time.monotonic() - started < 5
        assert len(asked) == 2  # once when the service started, and once for both
        monkeypatch.setattr("arnn_lightning.serving.http.STUCK_SECONDS", 0)
        stuck = client.get("/health")
        assert (stuck.status_code, stuck.json()) == (503, {"detail": "the model has not answered for 0 s"})
        assert client.get("/metrics").status_code == 200
        is_free.set()
        while client.get("/health").status_code == 503:
            assert time.monotonic() - started < 10
        assert client.get("/health").json() == {}


def test_sessions_expire_and_the_oldest_make_room(models: ReloadingPredictor) -> None:
    now = [0.0]
    store = SessionStore(3, 60, clock=lambda: now[0])
    predictor = models.current
    keys = []
    for number in range(3):
        now[0] = float(number)
        keys.append(store.add(predictor, predictor.session()))
    assert store.get(keys[0]) is not None  # now the latest
    keys.append(store.add(predictor, predictor.session()))
    assert [store.get(key) is not None for key in keys] == [True, False, True, True]
    now[0] = 62.0  # 60 seconds after their last request
    assert len(store) == 3
    now[0] = 62.5
    assert len(store) == 0
    assert store.get(keys[0]) is None


def test_a_closed_or_unknown_session_is_not_found(client: TestClient, items: list[Any]) -> None:
    key = client.post("/v1/sessions").json()["id"]  # without a body
    assert client.delete(f"/v1/sessions/{key}").status_code == 204
    for answer in (
        client.post(f"/v1/sessions/{key}/clicks", json={"item": items[0]}),
        client.delete("/v1/sessions/none"),
    ):
        assert answer.status_code == 404


def test_a_newer_checkpoint_is_served_without_a_lost_request(
    client: TestClient, models: ReloadingPredictor, checkpoints: Checkpoints, items: list[Any]
) -> None:
    before = models.current.model_id
    key = client.post("/v1/sessions", json={}).json()["id"]
    statuses, seen, stop = [], set(), threading.Event()

    def request() -> None:
        while not stop.is_set():
            answer = client.post("/v1/recommend", json={"session": items[:2]})
            statuses.append(answer.status_code)
            seen.add(answer.json()["model"])

    thread = threading.Thread(target=request)
    thread.start()
    while not statuses:
        time.sleep(0.01)
    models.file.with_name("half.ckpt").write_bytes(models.file.read_bytes()[:1_000])
    models.file.with_name("half.ckpt").replace(models.file)
    assert not models.reload_if_changed()  # damaged: the old model stays
    newer = models.file.with_name("new.ckpt")
    shutil.copyfile(checkpoints(BY_NAME["gru4rec"]) / "checkpoints" / "best.ckpt", newer)
    newer.replace(models.file)
    assert models.reload_if_changed()
    n_requests = len(statuses)
    while len(statuses) < n_requests + 3:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert set(statuses) == {200}
    assert seen == {before, models.current.model_id}
    assert client.post(f"/v1/sessions/{key}/clicks", json={"item": items[0]}).json()["model"] == before


# --- task=serve ---


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_other_machines_need_a_token_or_public(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config("task=serve", "checkpoint=none.ckpt", f"host='{host}'")
    with pytest.raises(UserError, match="ARNN_TOKEN, or public=true"):
        serve.run(config)
    monkeypatch.setenv("ARNN_TOKEN", "secret")
    with pytest.raises(UserError, match=r"no checkpoint at none\.ckpt"):
        serve.run(config)


def test_garbage_collections_leave_modules_out(checkpoints: Checkpoints) -> None:
    """Modules are most objects of the process, and a collection of them stops all requests."""
    gc.unfreeze()  # the tests' own, which are frozen again
    try:
        make_service(checkpoints(BY_NAME["pop"]) / "checkpoints" / "best.ckpt", (), 1, 60.0, 10, 60.0)
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.freeze()


def test_an_empty_token_does_not_open_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARNN_TOKEN", "")
    with pytest.raises(UserError, match="ARNN_TOKEN is empty"):
        serve.run(compose_config("task=serve", "checkpoint=none.ckpt"))


def test_a_missing_checkpoint_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert arnn_here(["task=serve", "checkpoint=none.ckpt"], monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at none.ckpt")


def test_an_address_that_cannot_be_served_is_refused_before_loading(
    checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "Worker", pytest.fail)
    arguments = ["task=serve", f"checkpoint={checkpoints(BY_NAME['pop'])}"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert arnn_here([*arguments, f"port={port}"], monkeypatch) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: host=127.0.0.1 port={port}: Address already in use; choose another host or port"
    assert arnn_here([*arguments, "host=no-such-host.invalid", "public=true"], monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: host=no-such-host.invalid port=8000: ")
    for host in ("a..b", "a" * 64 + ".org"):
        with pytest.raises(UserError, match=rf"^host={host} port=1: not a valid host name; choose another host"):
            check_address(host, 1)
    check_address("127.0.0.1", port)  # free again
    check_address("localhost", port)


def post(port: int, path: str, body: Any) -> Any:
    """The content of an answer of a service on this machine."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_serve_answers_and_stops_on_a_signal(checkpoints: Checkpoints, items: list[Any], tmp_path: Path) -> None:
    port = 18_000 + os.getpid() % 2_000
    expected = load(checkpoints(BY_NAME["arnn"])).recommend(items, k=7)["item_id"].to_list()
    shutil.copyfile(checkpoints(BY_NAME["arnn"]) / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt")
    arguments = ["task=serve", "checkpoint=best.ckpt", f"port={port}", "reload_seconds=0.1", "hydra.run.dir=out"]
    command = [sys.executable, "-m", "arnn_lightning", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    assert b'"status":"ok"' in answer.read()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        assert [item["id"] for item in post(port, "recommend", {"session": items, "k": 7})["items"]] == expected
        opened = post(port, "sessions", {})
        for item in items:
            clicked = post(port, f"sessions/{opened['id']}/clicks", {"item": item, "k": 7})
        assert [item["id"] for item in clicked["items"]] == expected
        for path, status in (("sessions/none/clicks", 404), ("recommend", 422)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                post(port, path, {"item": items[0], "items": []} if status == 404 else {"session": [], "items": []})
            assert refused.value.code == status
        shutil.copyfile(checkpoints(BY_NAME["gru4rec"]) / "checkpoints" / "best.ckpt", tmp_path / "new.ckpt")
        (tmp_path / "new.ckpt").replace(tmp_path / "best.ckpt")
        for _ in range(600):
            answer = post(port, "recommend", {"session": items})
            if answer["model"] != opened["model"]:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM  # 143 in a shell
        assert process.stdout is not None
        printed = process.stdout.read()
        assert "Uvicorn running on" in printed
        assert "best.ckpt: loaded model " in printed
        assert "Traceback" not in printed
        assert "/health" not in printed  # /metrics counts requests


def test_a_body_of_another_content_type_is_named(client: TestClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post("/v1/recommend", content=b'{"session": [1]}', headers=form)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "body: the header Content-Type must be application/json",
    )


def test_a_valid_body_gets_the_answer_that_it_gets_by_fastapi(
    client: TestClient, items: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = {"session": items[:2], "profile": {"level": "a"}}
    bodies = {"/v1/recommend": prefix | {"k": 3}, "/v1/recommend/batch": {"sessions": [prefix, prefix], "k": 3.0}}
    answers = []
    for content_type in ("application/json; charset=utf-8", "application/json"):
        headers = {"content-type": content_type}
        of_type = [client.post(path, content=json.dumps(body), headers=headers) for path, body in bodies.items()]
        key = client.post("/v1/sessions", content=b"{}", headers=headers).json()["id"]
        click = json.dumps({"item": items[0], "k": 3})
        of_type.append(client.post(f"/v1/sessions/{key}/clicks", content=click, headers=headers))
        assert {answer.status_code for answer in of_type} == {200}
        answers.append([answer.json() for answer in of_type])
        monkeypatch.delattr("fastapi.routing.solve_dependencies", raising=False)  # the second type does without it
    assert answers[0] == answers[1]
