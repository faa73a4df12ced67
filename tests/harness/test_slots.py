"""Accelerators are handed out once at a time, in the order of the requests."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import slots
from harness.slots import Slots, visible
from methods.spec import UserError


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to pass")


def test_the_first_free_devices_are_given() -> None:
    pool = Slots(["0", "1", "2", "3"])
    with pool.take(1) as a, pool.take(2) as b:
        assert (a, b) == (["0"], ["1", "2"])
        with pool.take(0) as none, pool.take(1) as c:
            assert (none, c) == ([], ["3"])
    with pool.take(4) as every:
        assert every == ["0", "1", "2", "3"]


def test_devices_come_back_after_an_error() -> None:
    pool = Slots(["0"])
    with pytest.raises(KeyError), pool.take(1):
        raise KeyError
    with pool.take(1) as ids:
        assert ids == ["0"]


def test_no_device_is_held_twice_and_every_request_is_served() -> None:
    """12 threads with 30 requests each of 1 to 4 of 4 devices."""
    pool, held, lock = Slots("abcd"), set(), threading.Lock()
    served, twice = [], []

    def ask(seed: int) -> None:
        wanted = random.Random(seed)
        for _ in range(30):
            count = wanted.randint(1, 4)
            with pool.take(count) as ids:
                with lock:
                    twice.extend(held.intersection(ids))
                    held.update(ids)
                time.sleep(0)
                with lock:
                    held.difference_update(ids)
                    served.append(len(ids) == len(set(ids)) == count)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not twice
    assert served == [True] * 360


def test_a_wide_request_is_served_before_later_narrow_ones() -> None:
    """One of two devices is held; a request for both waits, then one for the free one comes: it must not overtake."""
    pool, order = Slots(["0", "1"]), []

    def ask(name: str, count: int) -> None:
        with pool.take(count):
            order.append(name)

    threads = [threading.Thread(target=ask, args=request) for request in (("wide", 2), ("narrow", 1))]
    with pool.take(1):
        for waiting, thread in enumerate(threads, 1):
            thread.start()
            _until(lambda waiting=waiting: len(pool._queue) == waiting)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["wide", "narrow"]


def test_an_interrupted_request_lets_the_next_one_through(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Slots(["0"])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool._change, "wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt), pool.take(1):
            pass
    with pool.take(1) as ids:
        assert ids == ["0"]


@pytest.mark.parametrize(
    ("devices", "gpus", "words"),
    [
        ([], 1, "run.gpus=1 is more than the 0 visible here; give run.device=cpu, or set CUDA_VISIBLE_DEVICES"),
        (["0", "2"], 3, "run.gpus=3 is more than the 2 visible here (0, 2); give run.gpus=2 or less, or set CUDA_VISIBLE_DEVICES"),
        (["0"], -1, "run.gpus=-1 is out of range; allowed: a number in [0, inf]"),
    ],
)
def test_more_than_there_are_is_refused(devices: list[str], gpus: int, words: str) -> None:
    with pytest.raises(UserError) as caught, Slots(devices).take(gpus):
        pass
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", ["0"]),
        (" 3, 1 ,1", ["3", "1"]),
        ("2,-1,0", ["2"]),
        ("GPU-8932f937,MIG-5c89", ["GPU-8932f937", "MIG-5c89"]),
    ],
)
def test_the_variable_says_which_devices_are_visible(given: str, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible() == devices


LISTING = "GPU 0: NVIDIA A (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA A (UUID: GPU-3)\n"


@pytest.mark.parametrize(
    ("script", "folders", "devices"),
    [
        (f"printf '{LISTING}'", 0, ["0", "1"]),
        ("echo No devices were found; exit 6", 0, []),
        ("exit 9", 3, ["0", "1", "2"]),
        (None, 1, ["0"]),
        (None, 0, []),
    ],
)
def test_without_the_variable_devices_are_counted(
    script: str | None, folders: int, devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi first, the driver's folders where it is absent or fails."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(slots, "DRIVER", tmp_path / "gpus")
    for index in range(folders):
        (tmp_path / "gpus" / f"0000:0{index}:00.0").mkdir(parents=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    if script is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", os.fspath(tools))
    assert visible() == devices
