"""The latest value: never an old one, never waiting for a reader."""

from __future__ import annotations

import threading
import time

import pytest

from envs.ros.slots import Slot


def test_only_the_newest_is_kept() -> None:
    slot = Slot("/a")
    assert slot.read() is None
    for i in range(5):
        slot.put({"i": i}, arrival=float(i))
    sample = slot.read()
    assert sample is not None
    assert (sample.value, sample.sequence, sample.arrival) == ({"i": 4}, 5, 4.0)
    assert slot.wait(after=4, timeout=0) is sample


def test_waiting_ends_with_what_is_new_or_in_time() -> None:
    slot = Slot("/a")
    with pytest.raises(TimeoutError, match="/a"):
        slot.wait(0, timeout=0.01)
    slot.put({}, 0.0)
    threading.Timer(0.02, slot.put, ({"new": 1}, 1.0)).start()
    assert slot.wait(after=1, timeout=5).value == {"new": 1}
    with pytest.raises(TimeoutError):
        slot.wait(after=2, timeout=-1)


def test_many_readers_and_one_writer_never_see_numbers_go_back() -> None:
    slot = Slot()
    seen: list[list[int]] = [[] for _ in range(3)]

    def read(numbers: list[int]) -> None:
        while not numbers or numbers[-1] < 2000:
            sample = slot.wait(numbers[-1] if numbers else 0, 5)
            assert sample.value["i"] == sample.sequence  # the parts belong together
            numbers.append(sample.sequence)

    threads = [threading.Thread(target=read, args=(numbers,)) for numbers in seen]
    for thread in threads:
        thread.start()
    for i in range(1, 2001):
        slot.put({"i": i}, time.monotonic())
    for thread in threads:
        thread.join()
    assert all(numbers == sorted(set(numbers)) and numbers[-1] == 2000 for numbers in seen)


def test_age_counts_from_the_arrival() -> None:
    slot = Slot()
    slot.put({}, time.monotonic() - 3)
    sample = slot.read()
    assert sample is not None
    assert 3 <= sample.age < 4
