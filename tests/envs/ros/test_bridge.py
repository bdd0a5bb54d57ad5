"""The bridge against a server that crashes, hangs, lies and floods (a fake, see `fake`)."""

from __future__ import annotations

import base64
import math
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest

from envs.ros import bridge, statuses
from envs.ros.bridge import Bridge, Publisher
from envs.ros.errors import (
    CallError,
    NonFiniteError,
    NotConnectedError,
    StaleGenerationError,
    StalledError,
)

from .fake import FakeServer, wait_until

STRING, JOINTS = "std_msgs/msg/String", "sensor_msgs/msg/JointState"
COMMANDS = "trajectory_msgs/msg/JointTrajectory"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as found:
        yield found


@pytest.fixture
def client(server: FakeServer) -> Iterator[Bridge]:
    with Bridge(server.url, retry_s=(0.01, 0.05)) as found:
        yield found


def commander(server: FakeServer, client: Bridge) -> Publisher:
    publisher = client.advertise("/commands", STRING)
    wait_until(lambda: server.of("advertise"))
    return publisher


def commands(server: FakeServer) -> list[str]:
    return [m["msg"]["data"] for m in server.of("publish")]


def publish_until_refused(publisher: Publisher, data: str) -> None:
    for _ in range(100):
        publisher.publish({"data": data})


def lose(server: FakeServer, client: Bridge) -> None:
    server.kill()
    wait_until(lambda: not client.connected)


# --- topics --------------------------------------------------------------------------------------


def test_messages_come_with_their_times_and_numbers(server: FakeServer, client: Bridge) -> None:
    slot = client.subscribe("/joint_states", "sensor_msgs/JointState", throttle_s=0.02)
    (asked,) = wait_until(lambda: server.of("subscribe"))
    assert asked["type"] == JOINTS
    assert (asked["throttle_rate"], asked["queue_length"], asked["compression"]) == (20, 1, "none")
    assert slot.read() is None
    before = time.monotonic()
    for number, stamp in ((1, {"sec": 5, "nanosec": 500_000_000}), (2, {"secs": 6, "nsecs": 0})):
        server.publish("/joint_states", {"header": {"stamp": stamp}, "position": [0.5]})
        sample = slot.wait(after=number - 1, timeout=5)
        assert sample.value["position"] == [0.5]
        assert (sample.sequence, sample.stamp) == (number, 5.5 if number == 1 else 6.0)
        assert before <= sample.arrival <= time.monotonic()
        assert sample.generation == client.generation == 1
    with pytest.raises(TimeoutError, match="/joint_states"):
        slot.wait(after=2, timeout=0.02)


def test_cameras_come_as_bytes(server: FakeServer, client: Bridge) -> None:
    slot = client.subscribe("/camera", "sensor_msgs/msg/CompressedImage", cbor=True)
    assert wait_until(lambda: server.of("subscribe"))[0]["compression"] == "cbor"
    data = bytes(range(256)) * 400
    server.send(cbor2.dumps({"op": "publish", "topic": "/camera", "msg": {"data": data}}))
    assert slot.wait(0, 5).value["data"] == data


def test_fragments_are_put_together(server: FakeServer, client: Bridge) -> None:
    slot = client.subscribe("/a", STRING)
    wait_until(lambda: server.of("subscribe"))
    text = '{"op":"publish","topic":"/a","msg":{"data":"whole"}}'
    for i, part in ((1, text[20:]), (0, text[:20])):
        server.send({"op": "fragment", "id": "1", "data": part, "num": i, "total": 2.0})
    assert slot.wait(0, 5).value == {"data": "whole"}


def test_a_publisher_writes_text_at_once(server: FakeServer, client: Bridge) -> None:
    publisher = commander(server, client)
    publisher.publish({"data": np.array([1.0, 2.0])}, generation=1)
    assert wait_until(lambda: server.of("publish"))[0]["msg"] == {"data": [1.0, 2.0]}


def test_one_topic_is_asked_for_in_one_way(server: FakeServer, client: Bridge) -> None:
    assert client.subscribe("/a", STRING) is client.subscribe("/a", "std_msgs/String")
    assert client.advertise("/b", STRING) == client.advertise("/b", STRING)
    with pytest.raises(ValueError, match="subscribed to already"):
        client.subscribe("/a", JOINTS)
    with pytest.raises(ValueError, match="advertised already"):
        client.advertise("/b", JOINTS)
    with pytest.raises(ValueError, match="no type"):
        client.subscribe("/c", "String")


def test_what_is_asked_for_before_the_start_is_asked_for_then(server: FakeServer) -> None:
    client = Bridge(server.url)
    client.subscribe("/a", STRING)
    publisher = client.advertise("/b", STRING)
    with pytest.raises(NotConnectedError):
        publisher.publish({"data": "too early"})
    with client:
        wait_until(lambda: server.of("subscribe") and server.of("advertise"))
    assert not server.of("publish")


def test_ros_1_is_spelt_as_ros_1(server: FakeServer) -> None:
    with Bridge(server.url, ros=1) as client:
        client.subscribe("/a", JOINTS)
        client.advertise("/b", COMMANDS)
        assert wait_until(lambda: server.of("advertise"))[0]["type"] == (
            "trajectory_msgs/JointTrajectory"
        )
        assert server.of("subscribe")[0]["type"] == "sensor_msgs/JointState"


# --- faults --------------------------------------------------------------------------------------


def test_no_stale_command_is_ever_replayed(server: FakeServer, client: Bridge) -> None:
    publisher = commander(server, client)
    armed_on = client.generation
    publisher.publish({"data": "in time"}, armed_on)
    wait_until(lambda: commands(server))
    lose(server, client)
    for i in range(100):
        with pytest.raises(NotConnectedError):
            publisher.publish({"data": f"stale {i}"}, armed_on)
    server.start()
    wait_until(lambda: client.connected)
    assert client.generation == armed_on + 1
    with pytest.raises(StaleGenerationError, match="armed on connection 1"):
        publisher.publish({"data": "not armed again"}, armed_on)
    publisher.publish({"data": "armed again"}, client.generation)
    wait_until(lambda: len(commands(server)) > 1)
    assert commands(server) == ["in time", "armed again"]


def test_ten_reconnects_in_a_row_subscribe_and_advertise_anew(
    server: FakeServer, client: Bridge
) -> None:
    slot = client.subscribe("/a", STRING)
    commander(server, client)
    threads = threading.active_count()
    for number in range(2, 12):
        lose(server, client)
        server.got.clear()
        server.start()
        wait_until(lambda: server.of("subscribe") and server.of("advertise"))
        assert {m["op"] for m in server.got} == {"subscribe", "advertise"}
        assert len(server.got) == 2
        server.publish("/a", {"data": f"{number}"})
        sample = slot.wait(after=number - 2, timeout=5)
        assert sample.value == {"data": f"{number}"}
        assert sample.generation == client.generation == number
    assert threading.active_count() == threads


def test_a_slow_reader_does_not_get_old_frames(server: FakeServer, client: Bridge) -> None:
    slot = client.subscribe("/camera", STRING)
    wait_until(lambda: server.of("subscribe"))
    done = threading.Event()

    def camera() -> None:
        picture = base64.b64encode(bytes(73_000)).decode()
        while not done.wait(1 / 30):
            server.publish("/camera", {"data": picture, "sent": time.monotonic()})

    thread = threading.Thread(target=camera)
    thread.start()
    ages, seen = [], 0
    try:
        for _ in range(10):
            sample = slot.wait(seen, 5)
            ages.append(time.monotonic() - sample.value["sent"])
            missed, seen = sample.sequence - seen - 1, sample.sequence
            time.sleep(0.1)  # a slow callback
    finally:
        done.set()
        thread.join()
    assert missed > 0  # it really was too slow for all of them
    assert max(ages) < 0.3  # one frame, and what the machine takes; 0.7 s if they had piled up


def test_a_server_that_does_not_read_gets_no_pile_of_commands(server: FakeServer) -> None:
    with Bridge(server.url, beat_s=0.02, stall_s=0.1, lost_s=5) as client:
        publisher = commander(server, client)
        server.hear(False)
        start, written, refused = time.monotonic(), [], 0
        while time.monotonic() - start < 0.6:
            try:
                publisher.publish({"data": f"{time.monotonic() - start}"})
                written.append(time.monotonic() - start)
            except StalledError:
                refused += 1
            time.sleep(0.005)
        assert client.connected
        assert refused > 5
        assert max(written) < 0.02 + 0.1 + 0.3  # the last one, with what the machine takes
        assert client.unanswered > 0.3
        server.hear(True)  # what lay on the way arrives, nothing else
        wait_until(lambda: client.unanswered < 0.05)
        publisher.publish({"data": "flows again"})
        # The server counts a command a moment after it has answered the sign of life.
        wait_until(lambda: "flows again" in commands(server))
        assert len(commands(server)) == len(written) + 1
        assert commands(server)[-1] == "flows again"


def test_a_large_message_to_a_server_that_does_not_read_is_the_last(server: FakeServer) -> None:
    """Before the missing sign of life says so, the full buffer does."""
    with Bridge(server.url, stall_s=4, lost_s=5) as client:
        publisher = commander(server, client)
        server.hear(False)
        with pytest.raises(StalledError, match="not taken"):
            publish_until_refused(publisher, "x" * 1_000_000)


def test_a_server_without_a_sign_of_life_is_left(server: FakeServer) -> None:
    with Bridge(server.url, beat_s=0.02, stall_s=0.05, lost_s=0.2, retry_s=(0.01, 0.02)) as client:
        publisher = commander(server, client)
        server.hear(False)
        wait_until(lambda: client.generation == 2)  # new connections are heard
        assert any("no sign of life" in s.text for s in client.statuses)
        publisher.publish({"data": "to the new one"}, generation=2)
        wait_until(lambda: commands(server) == ["to the new one"])


def test_a_zombie_shows_by_the_age_of_what_came(server: FakeServer, client: Bridge) -> None:
    slot = client.subscribe("/joint_states", JOINTS)
    wait_until(lambda: server.of("subscribe"))
    server.publish("/joint_states", {"position": [0.0]})
    slot.wait(0, 5)
    lose(server, client)
    server.start()  # accepts, answers signs of life, and publishes nothing ever after
    wait_until(lambda: client.connected and server.connections)
    time.sleep(0.1)
    sample = slot.read()
    assert sample is not None
    assert client.connected
    assert sample.age > 0.1
    assert sample.generation < client.generation
    with pytest.raises(TimeoutError):
        slot.wait(sample.sequence, 0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_values_are_refused_both_ways(
    server: FakeServer, client: Bridge, value: float
) -> None:
    publisher = commander(server, client)
    with pytest.raises(NonFiniteError, match="positions"):
        publisher.publish({"points": [{"positions": [0.0, value]}]})
    with pytest.raises(NonFiniteError):
        client.call("/s", "std_srvs/srv/SetBool", {"data": value})
    with pytest.raises(NonFiniteError):
        client.send_goal("/a", "pkg/action/Go", {"to": value})
    slot = client.subscribe("/joint_states", JOINTS)
    wait_until(lambda: server.of("subscribe"))
    server.publish("/joint_states", {"position": [1.0]})
    server.publish("/joint_states", {"position": [value]})  # json writes NaN and Infinity
    message = {"op": "publish", "topic": "/joint_states", "msg": {"position": [value]}}
    server.send(cbor2.dumps(message))
    server.publish("/joint_states", {"position": [2.0]})
    sample = wait_until(lambda: (s := slot.wait(0, 5)) and s.value["position"] == [2.0] and s)
    assert sample.sequence == 2
    assert client.error_count == 2
    assert {m["op"] for m in server.got} == {"advertise", "subscribe"}


def test_errors_stay_until_they_are_cleared_and_all_is_bounded(
    server: FakeServer, client: Bridge
) -> None:
    server.send({"op": "status", "level": "error", "msg": "the first", "id": None})
    server.send(*({"op": "status", "level": "warning", "msg": "w" * 9000} for _ in range(300)))
    server.send(*({"op": "status", "level": "error", "msg": f"{i}"} for i in range(300)))
    server.send({"op": "status", "level": "info", "msg": "last"})
    wait_until(lambda: client.statuses and client.statuses[-1].text == "last")
    assert client.errors[0].text == "the first"
    assert client.error_count == 301
    assert len(client.errors) == statuses.KEPT_ERRORS
    assert len(client.statuses) == statuses.KEPT_STATUSES
    lose(server, client)
    server.start()
    wait_until(lambda: client.connected)
    assert client.errors[0].text == "the first"  # a new connection is no excuse
    client.clear_errors()
    assert (client.errors, client.error_count) == ((), 0)


def test_malformed_messages_are_errors_and_the_next_one_is_read(
    server: FakeServer, client: Bridge
) -> None:
    slot = client.subscribe("/a", STRING)
    wait_until(lambda: server.of("subscribe"))
    server.send("", "{", "[" * 100_000, b"\xff", b"", {"op": "boom"}, {"op": "publish", "topic": 1})
    server.publish("/a", {"data": "fine"})
    assert slot.wait(0, 5).value == {"data": "fine"}
    assert client.error_count == 7
    assert client.generation == 1


def test_a_message_that_is_too_large_costs_the_connection_only(server: FakeServer) -> None:
    with Bridge(server.url, max_bytes=10_000, retry_s=(0.01, 0.05)) as client:
        slot = client.subscribe("/a", STRING)
        wait_until(lambda: server.of("subscribe"))
        server.publish("/a", {"data": "x" * 20_000})
        wait_until(lambda: client.generation == 2 and len(server.of("subscribe")) == 2)
        server.publish("/a", {"data": "fine"})
        assert slot.wait(0, 5).value == {"data": "fine"}


def test_an_unwanted_flood_does_not_keep_commands_waiting(
    server: FakeServer, client: Bridge
) -> None:
    publisher = commander(server, client)
    flood = ['{"op":"publish","topic":"/unasked","msg":{"a":[1,2,3]}}'] * 3000
    thread = threading.Thread(target=server.send, args=flood)
    thread.start()
    try:
        publisher.publish({"data": "in between"})
    finally:
        thread.join()
    wait_until(lambda: commands(server) == ["in between"])


# --- services ------------------------------------------------------------------------------------


def answer(values: Any, **more: Any) -> Any:
    def answers(message: dict[str, Any]) -> list[Any]:
        head = {"op": "service_response", "service": message["service"], "id": message["id"]}
        return [head | {"values": values, "result": True} | more]

    return answers


def test_a_service_gives_its_values(server: FakeServer, client: Bridge) -> None:
    server.answers["call_service"] = answer({"success": True})
    assert client.call("/reset", "std_srvs/Trigger") == {"success": True}
    (asked,) = server.of("call_service")
    assert (asked["type"], asked["args"]) == ("std_srvs/srv/Trigger", {})


@pytest.mark.parametrize(
    "answers",
    [
        answer("it broke", result=False),
        answer(["no", "map"]),
        lambda m: [{"op": "status", "level": "error", "msg": "it broke", "id": m["id"]}],
    ],
)
def test_a_service_that_fails_says_so(server: FakeServer, client: Bridge, answers: Any) -> None:
    server.answers["call_service"] = answers
    with pytest.raises(CallError, match="it broke|no"):
        client.call("/reset", "std_srvs/Trigger")


def test_a_service_without_an_answer_times_out_and_is_forgotten(
    server: FakeServer, client: Bridge
) -> None:
    for _ in range(2 * bridge.OPEN_REQUESTS):
        with pytest.raises(TimeoutError):
            client.call("/nobody", "std_srvs/Trigger", timeout=0.001)
    for late in server.of("call_service"):
        server.send({"op": "service_response", "service": "/nobody", "id": late["id"]})
    server.answers["call_service"] = answer({"success": True})
    assert client.call("/reset", "std_srvs/Trigger") == {"success": True}


def test_a_connection_that_is_lost_ends_what_waits(server: FakeServer, client: Bridge) -> None:
    threading.Timer(0.05, server.kill).start()
    start = time.monotonic()
    with pytest.raises(NotConnectedError, match="before the answer"):
        client.call("/nobody", "std_srvs/Trigger", timeout=5)
    assert time.monotonic() - start < 4


# --- life ----------------------------------------------------------------------------------------


def test_closing_leaves_no_thread_and_it_can_be_started_again(server: FakeServer) -> None:
    before = threading.active_count()
    client = Bridge(server.url)
    slot = client.subscribe("/a", STRING)
    publisher = client.advertise("/b", STRING)
    for generation in (1, 2, 3):
        client.start()
        assert (client.connected, client.generation) == (True, generation)
        with pytest.raises(RuntimeError, match="already"):
            client.start()
        client.close()
        client.close()
        assert threading.active_count() == before
        assert not client.connected
        with pytest.raises(NotConnectedError, match="closed"):
            publisher.publish({"data": "after the end"})
    assert slot.read() is None
    assert not server.of("publish")


def test_names_are_resolved_without_leaving_a_thread(server: FakeServer) -> None:
    before = threading.active_count()
    with Bridge(server.url.replace("127.0.0.1", "localhost")):
        pass
    assert threading.active_count() == before


def test_closing_ends_what_waits(server: FakeServer) -> None:
    client = Bridge(server.url)
    client.start()
    threading.Timer(0.05, client.close).start()
    with pytest.raises(NotConnectedError):
        client.call("/nobody", "std_srvs/Trigger", timeout=5)


def test_closing_is_quick_while_disconnected_or_unheard(server: FakeServer) -> None:
    for fault in (lambda: server.kill(), lambda: server.hear(False)):
        client = Bridge(server.url, retry_s=(5, 5))
        client.start()
        fault()
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 2
        server.kill()
        server.start()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_our_own_ends_the_bridge_aloud(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(bridge.protocol, "decode", decode)
    client = Bridge(server.url)
    client.start()
    publisher = commander(server, client)
    threading.Timer(0.02, server.send, ["{}"]).start()
    with pytest.raises(NotConnectedError):
        client.call("/nobody", "std_srvs/Trigger")
    wait_until(lambda: not client.connected)
    with pytest.raises(NotConnectedError, match="a mistake"):
        publisher.publish({"data": "after it"})
    client.close()
    monkeypatch.undo()
    with client:
        assert client.connected


def test_no_server_is_an_error_with_its_reason_and_nothing_stays() -> None:
    server = FakeServer()
    before = threading.active_count()
    with server:
        server.kill()
        client = Bridge(server.url)
        with pytest.raises(
            NotConnectedError, match=f"127.0.0.1:{server.port}.*refused|Connect call"
        ):
            client.start(timeout=0.2)
        assert threading.active_count() == before
        assert (client.generation, client.connected) == (0, False)


@pytest.mark.parametrize(
    "url",
    [
        "ws://10.0.0.5:9090",
        "ws://robot.local:9090",
        "ws://0.0.0.0:9090",
        "ws://[fe80::1]:9090",
        "ws://localhost.example.org",
        "WS://10.0.0.5",
    ],
)
def test_other_machines_are_not_spoken_to_unencrypted(url: str) -> None:
    with pytest.raises(ValueError, match="allow_remote"):
        Bridge(url)
    Bridge(url, allow_remote=True)
    Bridge(url.lower().replace("ws:", "wss:"))


@pytest.mark.parametrize("url", ["ws://127.0.0.1:9090", "ws://localhost", "ws://[::1]:9090"])
def test_this_machine_is_spoken_to(url: str) -> None:
    bridge = Bridge(url)
    assert bridge.url == url
    assert not bridge.connected  # not before it is started


@pytest.mark.parametrize("url", ["", "http://127.0.0.1", "127.0.0.1:9090", "ws://", "ws:/x"])
def test_an_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ws://HOST:PORT"):
        Bridge(url)


@pytest.mark.parametrize(
    "options",
    [
        {"ros": 3},
        {"retry_s": (2, 1)},
        {"stall_s": 3.0},
        {"beat_s": 0},
        {"tls": ssl.create_default_context()},
    ],
)
def test_options_that_fit_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each has words of its own)
        Bridge(**options)


def test_the_tls_context_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    async def connect(url: str, **options: Any) -> None:
        used.append(options["ssl"])
        raise OSError("enough seen")

    monkeypatch.setattr(bridge, "connect", connect)
    context = ssl.create_default_context()
    with pytest.raises(NotConnectedError, match="enough seen"):
        Bridge("wss://127.0.0.1:1", tls=context).start(0.05)
    assert used
    assert all(u is context for u in used)


def test_an_encrypted_server_has_to_be_trusted(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    with FakeServer(tls=serving) as server:
        trusting = ssl.create_default_context(cafile=str(certificate))
        with Bridge(server.url, tls=trusting) as client:
            commander(server, client).publish({"data": "secret"})
            wait_until(lambda: commands(server) == ["secret"])
            lose(server, client)
            server.start()
            wait_until(lambda: client.generation == 2)
        with pytest.raises(NotConnectedError, match="certificate"):
            Bridge(server.url).start(0.3)
