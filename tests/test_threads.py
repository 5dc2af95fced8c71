"""Threads: settings, limits of others, fork, concurrent callers, the GIL, Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import fastgrad as fg
from fastgrad import _linear
from fastgrad import _reference as ref
from fastgrad._kernels import rows as _rows
from fastgrad._threads import alone

OPENMP = bool(_rows.build_info()[1])
MANY = 4 if OPENMP else 1  # without OpenMP there is one thread, whatever is asked for


@pytest.fixture(autouse=True)
def _setting():
    before = _rows.get_setting()
    yield
    fg.set_num_threads(before)


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- the setting --------------------------------------------------------------------------------


def test_the_setting_is_what_was_set():
    fg.set_num_threads(1)
    assert fg.get_num_threads() == 1


def test_more_threads_may_be_asked_for():
    with threadpool_limits(MANY, user_api="openmp"):
        fg.set_num_threads(MANY)
        assert fg.get_num_threads() == MANY


def test_a_with_block_sets_and_restores():
    fg.set_num_threads(2)
    before = fg.get_num_threads()
    with fg.num_threads(1):
        assert fg.get_num_threads() == 1
    assert fg.get_num_threads() == before


def test_a_with_block_restores_after_an_error():
    fg.set_num_threads(2)
    with pytest.raises(KeyError), fg.num_threads(1):
        raise KeyError
    assert _rows.get_setting() == 2


def test_with_blocks_nest():
    fg.set_num_threads(3)
    with fg.num_threads(2):
        with fg.num_threads(1):
            assert _rows.get_setting() == 1
        assert _rows.get_setting() == 2
    assert _rows.get_setting() == 3


def test_a_limit_of_the_setting_survives_a_narrow_block():
    """The block restores the setting, not what OpenMP allowed of it."""
    fg.set_num_threads(7)
    with threadpool_limits(1, user_api="openmp"), fg.num_threads(2):
        pass
    assert _rows.get_setting() == 7


def test_limits_of_threadpoolctl_are_heard():
    fg.set_num_threads(8)
    with threadpool_limits(1, user_api="openmp"):
        assert fg.get_num_threads() == 1


def test_threadpoolctl_sees_our_openmp():
    assert any(i["user_api"] == "openmp" for i in threadpool_info()) == OPENMP


def test_one_thread_alone_is_the_calling_thread_only(on_threads):
    with on_threads(2):
        with alone():
            assert fg.get_num_threads() == 1
            with ThreadPoolExecutor(1) as other:
                assert other.submit(fg.get_num_threads).result() == min(
                    2, MANY, os.cpu_count() or 1
                )
        assert fg.get_num_threads() == min(2, MANY)
        with pytest.raises(KeyError), alone():
            raise KeyError
        assert fg.get_num_threads() == min(2, MANY)


@pytest.mark.parametrize("derivative", [None, "grad", "value_and_grad", "hvp", "fisher_diag"])
def test_kernels_between_products_run_alone(monkeypatch, on_threads, rng, derivative):
    """Threads of OpenMP spin after a kernel, and those of BLAS would wait for their cores."""
    seen = []

    class Spy:
        def __call__(self, *args, **options):
            seen.append(fg.get_num_threads())
            return fg.cross_entropy(*args, **options)

        def __getattr__(self, name):
            def call(*args, **options):
                seen.append(fg.get_num_threads())
                return getattr(fg.cross_entropy, name)(*args, **options)

            return call

    monkeypatch.setattr(_linear, "cross_entropy", Spy())
    X, W, y = rng.normal(size=(3000, 4)), rng.normal(size=(50, 4)), rng.integers(0, 50, 3000)
    f = getattr(fg.linear_cross_entropy, derivative) if derivative else fg.linear_cross_entropy
    options = {"v": (W, X), "wrt": ("W", "X")} if derivative == "hvp" else {}
    with on_threads(2):
        f(X, W, y, **options)
        assert seen
        assert set(seen) == {1}
        assert fg.get_num_threads() == min(2, MANY)


def test_numpy_integers_are_taken():
    fg.set_num_threads(np.int64(1))
    assert fg.get_num_threads() == 1


# ---- the environment ----------------------------------------------------------------------------

SHOW = "import fastgrad; from fastgrad._kernels import rows; print(rows.get_setting())"


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("3", 3), (" 2 ", 2)])
def test_the_environment_sets_the_number(text, expected):
    done = python(SHOW, FASTGRAD_NUM_THREADS=text)
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_environment_sets_nothing(text):
    done = python(SHOW, FASTGRAD_NUM_THREADS=text, OMP_NUM_THREADS="3")
    assert done.stdout.strip() == ("3" if OPENMP else "1"), done.stderr


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "99999999999"])
def test_nonsense_in_the_environment_is_an_import_error(text):
    done = python("import fastgrad", FASTGRAD_NUM_THREADS=text)
    message = (
        "FASTGRAD_NUM_THREADS must be a whole number, at least 1 and less than 2**31; "
        f"it is '{text}'."
    )
    assert done.stderr.splitlines()[-1] == f"ImportError: {message}"


def test_limits_of_openmp_are_the_default():
    done = python("import fastgrad; print(fastgrad.get_num_threads())", OMP_NUM_THREADS="1")
    assert done.stdout.strip() == "1", done.stderr


# ---- many callers -------------------------------------------------------------------------------


def test_many_python_threads_at_once(isa, rng):
    """Different data and shapes in every thread: scratch and plans are not shared."""
    cases = []
    for i in range(24):
        x = rng.normal(0, 3, (5 + 997 * (i % 3), 7 + 61 * (i % 5)))
        x = np.asarray(x, [np.float32, np.float64][i % 2], order="CF"[i % 4 > 1])
        y = rng.integers(0, x.shape[1], len(x))
        cases.append((x, y, fg.softmax(x), fg.cross_entropy.value_and_grad(x, y)))

    def work(case):
        x, y, p, (value, grad) = case
        for _ in range(5):
            np.testing.assert_array_equal(fg.softmax(x), p)
            again = fg.cross_entropy.value_and_grad(x, y)
            assert again[0] == value
            np.testing.assert_array_equal(again[1], grad)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, cases))


def test_many_python_threads_at_once_with_options(isa, mass, rng):
    """Factors, masks and lines of masses are scratch of the call too."""
    cases = []
    for i in range(24):
        case = mass.Case(i % 2 == 0, i % 3 == 0, True, 0.1, 0.01, i % 4 > 1)
        shape = (5 + 997 * (i % 3), 7 + 61 * (i % 5))
        z, t, v, kw = case.draw(rng, shape, [np.float32, np.float64][i % 2])
        cases.append((z, t, v, kw, [mass.run(kind, z, t, v, **kw) for kind in mass.kinds]))

    def work(case):
        z, t, v, kw, expected = case
        for _ in range(3):
            for kind, result in zip(mass.kinds, expected, strict=True):
                np.testing.assert_array_equal(mass.run(kind, z, t, v, **kw), result)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, cases))


def test_a_switch_of_the_instruction_set_does_not_tear_a_call(rng):
    """A call takes its table once: every result is that of one instruction set."""
    from fastgrad._kernels import isa

    x = rng.normal(0, 3, (501, 60)).astype(np.float32)
    before, allowed = isa.active_name(), set()
    try:
        for name in isa.available_names():
            isa._use(name)
            allowed.add(fg.softmax(x).tobytes())
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(lambda: fg.softmax(x).tobytes()) for _ in range(200)]
            while not all(c.done() for c in calls):
                for name in isa.available_names():
                    isa._use(name)
        assert {c.result() for c in calls} <= allowed
    finally:
        isa._use(before)


LONG = np.broadcast_to(np.linspace(-3, 3, 1 << 12), (1 << 16, 1 << 12))  # 2^28 elements, 32 kB


def test_the_gil_is_released():
    """While one thread is in a long call, another goes on counting."""
    ticks, stop = [], threading.Event()

    def count():
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    other = threading.Thread(target=count)
    other.start()
    begin = time.perf_counter()
    with fg.num_threads(1):
        fg.logsumexp(LONG)
    end = time.perf_counter()
    stop.set()
    other.join()
    inside = [t for t in ticks if begin < t < end]
    assert end - begin > 0.05, "not a long call"
    assert len(inside) >= 10


# ---- fork ---------------------------------------------------------------------------------------


def in_child(results):
    x = np.ones((1000, 1000))
    fg.softmax(x)
    results.put((fg.get_num_threads(), fg.cross_entropy(x, np.zeros(1000, int))))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", sorted({"fork"} & set(multiprocessing.get_all_start_methods())))
def test_a_forked_child_works_on_one_thread(method):
    context = multiprocessing.get_context(method)
    with threadpool_limits(MANY, user_api="openmp"), fg.num_threads(MANY):
        x = np.ones((1000, 1000))
        fg.softmax(x)  # starts OpenMP's threads, which the child does not have
        results = context.Queue()
        child = context.Process(target=in_child, args=(results,))
        child.start()
        try:
            threads, value = results.get(timeout=30)
        finally:
            child.kill()
            child.join()
        assert threads == 1
        assert value == fg.cross_entropy(x, np.zeros(1000, int))
        assert fg.get_num_threads() == MANY


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_a_thread_sorts():
    """The cached properties of Python 3.11 compute under a lock of their class."""
    inside, leave = threading.Event(), threading.Event()

    class Slow(fg.Segments):
        @property
        def _in_order(self):
            inside.set()
            leave.wait(30)
            return False

    plan = fg.Segments.from_ids(np.array([1, 0, 1]))
    object.__setattr__(plan, "__class__", Slow)
    sorting = threading.Thread(target=lambda: plan.order)
    sorting.start()
    assert inside.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # it has no other way out of a lock
        other = fg.Segments.from_ids(np.array([1, 0, 1]))
        os._exit(0 if other.order.tolist() == [1, 0, 2] else 1)
    _, status = os.waitpid(child, 0)
    leave.set()
    sorting.join()
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", sorted({"fork"} & set(multiprocessing.get_all_start_methods())))
def test_the_parent_goes_on_after_a_fork(method, rng):
    context = multiprocessing.get_context(method)
    x = rng.normal(size=(1000, 1000))
    expected = fg.softmax(x)
    child = context.Process(target=fg.softmax, args=(x,))
    child.start()
    try:
        np.testing.assert_array_equal(fg.softmax(x), expected)
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()  # else the interpreter would wait for it at its end


# ---- Ctrl-C -------------------------------------------------------------------------------------

# Each is one call that takes seconds, over little memory: rows repeat by a stride of 0.
SLOW_CALLS = {
    "logsumexp": "fg.logsumexp(x)",
    "loss": "fg.cross_entropy(x, y)",
    "factors": "fg.logsumexp(x, b=np.broadcast_to(x[:1], x.shape))",
    "strided": "fg.logsumexp(x.transpose(1, 0), 0)",
    "segment sum": "fg.segment_sum(x, y)",
    "segment max": "fg.segment_max(x, y)",
    "segment logsumexp": "fg.segment_logsumexp(x, y)",
    "centroid hinge": "fg.centroid_hinge(x, y)",
    "centroid state": "fg.streaming.CentroidState(2).update(x, y)",
}
PROGRAM = """
import os, signal, threading, time
import numpy as np
import fastgrad as fg
fg.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
x = np.broadcast_to(np.linspace(-3, 3, 1 << 10), (1 << 24, 1 << 10))
y = np.broadcast_to(np.int8(1), (1 << 24,))
sent = []
def interrupt():
    time.sleep(0.5)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    {call}
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
else:
    print("not interrupted")
"""


@pytest.mark.parametrize("isa_name", ["baseline", "best"])
@pytest.mark.parametrize("name", SLOW_CALLS)
def test_ctrl_c_ends_a_long_call(name, isa_name):
    """Within 0.2 s on an idle machine; a second is allowed where others work too."""
    from fastgrad._kernels import isa

    isa_name = isa.available_names()[0 if isa_name == "baseline" else -1]
    done = python(PROGRAM.format(call=SLOW_CALLS[name]), FASTGRAD_ISA=isa_name)
    assert done.returncode == 0, done.stderr
    print(f"{name} on {isa_name}: {done.stdout.strip()} s")
    assert float(done.stdout) < 1


def test_a_long_call_ends_when_nobody_interrupts(assert_ulps):
    """Looking for signals between slabs changes nothing."""
    with fg.num_threads(1):
        log = fg.logsumexp(LONG[: 1 << 12])
    assert_ulps(log, ref.logsumexp(LONG[:1]) + np.zeros(len(log)), 2)


def test_other_signals_are_handled_and_the_call_goes_on():
    """A handler that returns does not end the call."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with fg.num_threads(1):
            log = fg.logsumexp(LONG)
        timer.join()
        assert (log == log[0]).all()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
