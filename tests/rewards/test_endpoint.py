"""An OpenAI-compatible endpoint that answers, hangs, refuses and breaks: a server of this test."""

import copy
import gc
import json
import logging
import multiprocessing
import pickle
import random
import threading
import time
import traceback
import warnings
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.rewards import EndpointLabeller
from rl_lightning.rewards.labels import http

KEY = "sk-tést".replace("é", "e") + "-0123456789-secret"


class Server:
    """Answers by a script: for each request in turn what to do, then always the last of it."""

    def __init__(self, script):
        self.script, self.requests, self.headers = script, [], []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.release = threading.Event()

    def next(self, body, headers):
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
        if callable(self.script):
            return self.script(body, number)
        return self.script[min(number, len(self.script) - 1)]


def said(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def serving(*script):
    server = Server(script[0] if callable(script[0]) else script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.running += 1
                server.most = max(server.most, server.running)
            what = server.next(body, dict(self.headers))
            if what is not None and what[0] == "slow":
                time.sleep(0.05)
            with server.lock:
                server.running -= 1  # before the answer, after which the next question may come
            self.act(what)

        def act(self, what):
            if isinstance(what, str):
                what = (200, {}, said(what))
            if what is None:  # close the connection
                self.connection.close()
                return
            status, headers, body, *cut = what
            status = 200 if status == "slow" else status
            if status == "hang":
                server.release.wait(5)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: cut[0]] if cut else body)

        def log_message(self, *args):
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.daemon_threads = True
    thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{host.server_port}/v1"
    finally:
        server.release.set()
        host.shutdown()
        host.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


HANG = ("hang", {}, b"")


def make(url, **kwargs):
    """A labeller that waits for nothing, and remembers how long it would have."""
    waits = []
    defaults = {"read_timeout": 0.3, "connect_timeout": 1.0, "concurrency": 1, "template": "{text}"}
    labeller = EndpointLabeller(url, "tiny", **{**defaults, **kwargs})
    labeller.sleep = waits.append
    labeller.waits = waits  # type: ignore[attr-defined]
    return labeller


def error(status, body=b"{}", **headers):
    return (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


# --- what is sent -------------------------------------------------------------------------------


def test_a_request_is_what_the_protocol_says():
    with serving("B") as (server, url):
        labeller = make(
            url + "/",
            template="{a} or {b}?",
            system="Be brief.",
            temperature=0.5,
            max_tokens=3,
            extra={"seed": 7},
        )
        assert labeller([("left", "right")]) == [1.0]
        assert labeller([[{"role": "user", "content": "chat"}]]) == [1.0]
    assert server.requests[0] == {
        "model": "tiny",
        "temperature": 0.5,
        "max_tokens": 3,
        "seed": 7,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "left or right?"},
        ],
    }
    assert server.requests[1]["messages"][1:] == [{"role": "user", "content": "chat"}]
    assert "Authorization" not in server.headers[0]


def test_answers_are_read_as_told():
    with serving("I say: 7.") as (_, url):
        assert make(url, pattern=r"(\d)")(["x"]) == [7.0]
        assert make(url, parse=len)(["x"]) == [9.0]
        assert make(url, pattern=r"say", values={"say": 0.25})(["x"]) == [0.25]
        labeller = make(url)
        assert labeller(["x", "y"]) == [None, None]
        assert labeller.counts["unreadable"] == 2
        assert make(url, on_unreadable=0.5)(["x"]) == [0.5]
        with pytest.raises(RunError, match=r"'I say: 7\.' is no number"):
            make(url, on_unreadable="stop")(["x"])


def test_order_duplicates_and_concurrency():
    def slowly(body, number):
        text = body["messages"][0]["content"]
        time.sleep(random.random() * 0.02)
        return ("slow", {}, said(text))

    with serving(slowly) as (server, url):
        questions = [str(number % 13) for number in range(40)]
        assert make(url, concurrency=4)(questions) == [float(q) for q in questions]
        assert len(server.requests) == 13
        assert 1 < server.most <= 4
        server.most = 0
        make(url, concurrency=1)(["1", "2", "3"])
        assert server.most == 1


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        HANG,
        error(429),
        error(500, b"<html>oh</html>"),
        error(503),
        (200, {}, b"{not json"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
        (200, {}, said("A"), 10),  # half a body
        None,  # the connection is closed
    ],
)
def test_trouble_that_passes_is_waited_for(trouble):
    with serving(trouble, trouble, "A") as (server, url):
        labeller = make(url)
        assert labeller(["x"]) == [0.0]
        assert len(server.requests) == 3
        assert labeller.requests == 3
        first, second = labeller.waits
        assert 0.5 <= first <= 1.0 <= second <= 2.0  # exponential, with a random part


def test_retry_after_is_honoured():
    date = formatdate(time.time() + 20, usegmt=True)
    with serving(error(429, Retry_After="7"), error(503, Retry_After=date), "A") as (_, url):
        labeller = make(url)
        assert labeller(["x"]) == [0.0]
        assert labeller.waits[0] == 7.0
        assert 15 < labeller.waits[1] <= 20
    with serving(error(429, Retry_After="3600")) as (server, url):
        with pytest.raises(RunError, match="asks to wait 3600 s, and longest_wait is 60 s"):
            make(url)(["x"])
        assert len(server.requests) == 1
    assert http.retry_after("soon") is None


def test_backoff_retries_and_longest_wait():
    with serving(error(500)) as (server, url):
        labeller = make(url, retries=3, backoff=8.0, longest_wait=10.0)
        with pytest.raises(RunError, match="status 500"):
            labeller(["x"])
        assert len(server.requests) == 4
        assert [4.0 <= w <= 8.0 for w in labeller.waits[:1]] == [True]
        assert all(5.0 <= w <= 10.0 for w in labeller.waits[1:])


@pytest.mark.parametrize("status", [400, 401, 404, 422, 302])
def test_what_will_not_pass_is_not_repeated(status):
    with serving(error(status, b'{"error": "wrong"}', Location="http://127.0.0.1:1/")) as (s, url):
        with pytest.raises(RunError, match=f'status {status}: {{"error": "wrong"}}'):
            make(url)(["x"])
        assert len(s.requests) == 1


def test_nobody_is_there():
    labeller = make("http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(RunError, match=r"127.0.0.1:9/v1/chat/completions gave no answer"):
        labeller(["x"])


def test_stop_keeps_what_was_paid_for_and_a_second_run_goes_on(tmp_path):
    def script(body, number):
        return error(400) if body["messages"][0]["content"] == "3" and bad else "A"

    cache, bad = str(tmp_path / "a.jsonl"), True
    with serving(script) as (server, url):
        with pytest.raises(RunError, match=r"answers before are kept in .*start again to go on"):
            make(url, cache=cache)([str(n) for n in range(10)])
        assert len(server.requests) == 4
        bad = False
        assert make(url, cache=cache)([str(n) for n in range(10)]) == [0.0] * 10
        assert len(server.requests) == 11
        assert make(url, cache=cache)([str(n) for n in range(10)]) == [0.0] * 10
        assert len(server.requests) == 11  # asks nothing


def _label(url, cache, questions):
    make(url, cache=cache, concurrency=2)(questions)


def test_a_killed_run_keeps_what_was_paid_for(tmp_path):
    def slowly(body, number):
        time.sleep(0.02)
        return "A"

    cache, questions = str(tmp_path / "a.jsonl"), [str(n) for n in range(30)]
    with serving(slowly) as (server, url):
        process = multiprocessing.get_context("fork").Process(
            target=_label, args=(url, cache, questions)
        )
        process.start()
        while len(server.requests) < 10:
            time.sleep(0.005)
        process.kill()
        process.join()
        paid = len(server.requests)
        assert paid < 30
        assert make(url, cache=cache)(questions) == [0.0] * 30
        again = len(server.requests) - paid
    assert 30 - paid <= again <= 30 - paid + 2  # what was under way has to be asked again


def test_answers_under_way_are_kept_when_another_one_fails(tmp_path):
    def script(body, number):
        if body["messages"][0]["content"] == "bad":
            return error(400)
        return ("slow", {}, said("B"))

    cache = str(tmp_path / "a.jsonl")
    with serving(script) as (_, url), pytest.raises(RunError):
        make(url, cache=cache, concurrency=3)(["slow 1", "slow 2", "bad", "later"])
    answers = [json.loads(line)["answer"] for line in (tmp_path / "a.jsonl").open()]
    assert answers == ["B", "B"]


def test_skip_goes_on_without_an_answer():
    def script(body, number):
        return error(400) if body["messages"][0]["content"] == "3" else "A"

    with serving(script) as (_, url):
        labeller = make(url, on_failure="skip")
        with pytest.warns(UserWarning, match="1 of 5 questions have no answer"):
            answers = labeller([str(n) for n in range(5)])
    assert answers == [0.0, 0.0, 0.0, None, 0.0]
    assert labeller.counts["failed"] == 1


def test_skip_gives_up_on_a_dead_or_refusing_server():
    with serving(error(400)) as (server, url), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert make(url, on_failure="skip")([str(n) for n in range(50)]) == [None] * 50
        assert len(server.requests) == 10
    with serving(error(401)) as (server, url), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(url, on_failure="skip")(["a", "b", "c"])
        assert len(server.requests) == 1


def test_a_budget_of_requests():
    with serving("A") as (server, url):
        with pytest.raises(RunError, match="the budget of 2 requests is used up"):
            make(url, budget=2)(["a", "b", "c"])
        assert len(server.requests) == 2
        labeller = make(url, budget=2, on_failure="skip")
        with pytest.warns(UserWarning, match="1 of 3"):
            assert labeller(["a", "b", "c"]) == [0.0, 0.0, None]
        assert labeller.metrics()["labels/requests"] == 2
    with serving(error(500)) as (server, url):  # repetitions count
        with pytest.raises(RunError, match="budget of 3"):
            make(url, budget=3)(["a"])
        assert len(server.requests) == 3


def test_the_whole_request_is_the_key_of_the_cache(tmp_path):
    cache = str(tmp_path / "a.jsonl")
    with serving("A") as (server, url):
        make(url, cache=cache)(["x"])
        for change in (
            {"temperature": 0.1},
            {"system": "s"},
            {"max_tokens": 5},
            {"extra": {"a": 1}},
        ):
            make(url, cache=cache, **change)(["x"])
        assert len(server.requests) == 5
        make(url, cache=cache, concurrency=3, retries=0, pattern="A", read_timeout=9.0)(["x"])
        assert len(server.requests) == 5


def test_time_outs_are_those_that_were_given():
    with serving(HANG) as (_, url):
        began = time.monotonic()
        with pytest.raises(RunError, match=r"no answer within 1 \+ 0.1 s"):
            make(url, read_timeout=0.1, retries=0)(["x"])
        assert time.monotonic() - began < 2


def test_an_answer_that_drips_is_cut_off():
    class Dripping:
        length = None

        def read1(self, size):
            return b" "

    with pytest.raises(http.RequestError, match="not complete in time"):
        http._read(Dripping(), time.monotonic() + 0.05)


# --- the key ------------------------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", KEY)
    return {"api_key_env": "OWN_API_KEY"}


def test_the_key_is_sent_and_never_kept(key, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "a.jsonl"

    def script(body, number):
        return f"your key is {KEY}, A" if number == 0 else error(400, f"bad {KEY}".encode())

    seen = []
    with serving(script) as (server, url):
        labeller = make(url, cache=str(cache), pattern=r", (\w)", **key)
        assert labeller(["x"]) == [0.0]
        with pytest.raises(RunError, match=r"bad \[api key\]") as caught:
            labeller(["y"])
        seen.append("".join(traceback.format_exception(caught.value)))
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in json.dumps(server.requests)
    seen += [
        repr(labeller),
        repr(vars(labeller)),
        str(labeller.identity()),
        str(labeller.metrics()),
    ]
    seen += [cache.read_text(), caplog.text, *capfd.readouterr()]
    blob = pickle.dumps(copy.copy(labeller))
    assert KEY.encode() not in blob
    assert pickle.loads(blob).url == labeller.url
    assert not any(KEY in text for text in seen)
    gc.collect()


def test_a_redirection_does_not_get_the_key(key):
    with serving("A") as (thief, elsewhere):
        there = {"Location": f"{elsewhere}/chat/completions"}
        with serving((307, there, b""), (302, there, b"")) as (_, url):
            for _ in range(2):
                with pytest.raises(RunError, match="status 30"):
                    make(url, **key)(["x"])
        assert not thief.requests


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "OWN_API_KEY is not set"),
        ("  ", "is not set"),
        ("a\nb-hidden", "holds no key|is no key"),
    ],
)
def test_a_missing_or_broken_key_gets_a_sentence(monkeypatch, value, told):
    if value is None:
        monkeypatch.delenv("OWN_API_KEY", raising=False)
    else:
        monkeypatch.setenv("OWN_API_KEY", value)
    with pytest.raises(ConfigurationError, match=told) as caught:
        make("http://127.0.0.1:9/v1", api_key_env="OWN_API_KEY")(["x"])
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"api_key_env": KEY}, "never the key itself"),
        ({"api_key_env": "abc0123"}, "never the key itself"),
        ({"base_url": "localhost:8000"}, "base_url must be an address"),
        ({"base_url": "ftp://host"}, "base_url must be an address"),
        ({"base_url": "https://me:secret0@host/v1"}, "neither a user's name"),
        ({"base_url": "https://host/v1?key=secret0"}, "neither a user's name nor a query"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"retries": -1}, "retries"),
        ({"budget": -1}, "budget"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"read_timeout": 0.0}, "read_timeout"),
        ({"connect_timeout": 0.0}, "connect_timeout"),
        ({"backoff": -1.0}, "backoff"),
        ({"longest_wait": -1.0}, "longest_wait"),
    ],
)
def test_wrong_arguments_get_a_sentence(kwargs, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        EndpointLabeller(**{"base_url": "http://host/v1", "model": "m", **kwargs})
    assert KEY not in str(caught.value)
    assert "secret0" not in str(caught.value)


def test_a_wrong_template_costs_nothing():
    with serving("A") as (server, url):
        with pytest.raises(ConfigurationError, match="template"):
            make(url)(["one", ("a", "b")])
        assert not server.requests
