"""The guards of conftest.py fail the tests that they should fail, and no others."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from aioentra_redis._redis_py._capabilities import Capability

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent
CONFTEST = (ROOT / "tests" / "conftest.py").read_text()

QUIET = ("-p", "no:cacheprovider", "-p", "no:aioentra_redis")

CONFIG = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    def run(code: str, *options: str) -> pytest.RunResult:
        pytester.makefile(".ini", pytest=CONFIG)
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(code)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return pytester.runpytest_subprocess(*QUIET, *options)

    return run


def test_pending_task_fails_the_test(run):
    result = run(
        """
        import asyncio

        kept = set()

        async def test_leaks():
            kept.add(asyncio.create_task(asyncio.sleep(60), name="forgotten"))

        async def test_cancels():
            kept.add(task := asyncio.create_task(asyncio.sleep(60)))
            task.cancel()

        async def test_ends_soon():
            kept.add(asyncio.create_task(asyncio.sleep(0.05)))
        """
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*left behind:*", "*forgotten*"])


def test_open_transport_and_server_fail_the_test(run):
    result = run(
        """
        import asyncio
        import socket

        kept = []

        async def test_closes():
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            async with server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()

        async def test_leaks_server():
            kept.append(await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0))

        async def test_leaks_transport():
            ours, theirs = socket.socketpair()
            kept.append(theirs)
            kept.extend(await asyncio.open_connection(sock=ours))
        """
    )
    # The forgotten server is also reported by its socket when it is collected, which is fine.
    outcomes = result.parseoutcomes()
    assert outcomes["errors"] == 2
    result.stdout.fnmatch_lines(["*test_leaks_server*", "*test_leaks_transport*"])
    assert "ERROR at teardown of test_closes" not in result.stdout.str()


def test_blocking_call_of_the_package_fails_the_test(run, tmp_path):
    result = run(
        """
        import time
        import types

        import aioentra_redis
        import pytest

        source = "import time\\ndef nap():\\n    time.sleep(0.001)\\n"
        module = types.ModuleType("nap")
        exec(compile(source, aioentra_redis.__path__[0] + "/nap.py", "exec"), module.__dict__)

        async def test_package_blocks():
            module.nap()

        async def test_test_blocks():
            time.sleep(0.001)

        def test_no_loop():
            module.nap()
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*BlockingError: Blocking call to time.sleep*"])


LOOPS = """
import asyncio
import pytest

async def test_loop():
    loop = asyncio.get_running_loop()
    print("loop is", type(loop).__module__, loop.get_task_factory())

@pytest.mark.looptime
async def test_virtual_time(looptime):
    await asyncio.sleep(3600)
    assert looptime == 3600
"""


def test_default_loop(run):
    result = run(LOOPS, "-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["event loop: asyncio", "*loop is * None*"])


def test_eager_tasks(run):
    result = run(LOOPS, "-s", "--loop=eager")
    if sys.version_info < (3, 12):
        result.stderr.fnmatch_lines(["*needs Python 3.12*"])
        return
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["event loop: eager", "*eager_task_factory*"])


def test_uvloop_runs_real_time_only(run):
    pytest.importorskip("uvloop")
    result = run(LOOPS, "-s", "--loop=uvloop")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["event loop: uvloop", "*loop is uvloop*"])


async def test_unit_tests_run_in_debug_mode():
    assert asyncio.get_running_loop().get_debug()


# ------------------------------------------------------------------------------- capabilities


@pytest.fixture
def the_conftest(request: pytest.FixtureRequest):
    """The module that pytest has made of tests/conftest.py."""
    path = Path(__file__).parents[1] / "conftest.py"
    return request.config.pluginmanager.get_plugin(str(path))


class MarkedItem:
    """A collected test, as far as marks go."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.skips: list[str] = []

    def iter_markers(self, name: str):
        assert name == "capability"
        return [pytest.mark.capability(each).mark for each in self.names]

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.skips.append(marker.kwargs["reason"])


def test_what_the_installed_redis_py_lacks_is_skipped_and_listed(the_conftest, monkeypatch):
    present = Capability(True, "6.4", "pushes")
    absent = Capability(False, "99.1", "a far future")
    monkeypatch.setattr(the_conftest, "CAPABILITIES", {"pushes": present, "future": absent})
    items = [MarkedItem(), MarkedItem("pushes"), MarkedItem("pushes", "future")]
    the_conftest.skip_what_redis_py_lacks(items)
    assert [bool(item.skips) for item in items] == [False, False, True]
    assert "lacks future: it came by 99.1" in items[2].skips[0]
    lines: list[str] = []

    class Reporter:
        section = write_line = staticmethod(lines.append)
        getreports = staticmethod(lambda _outcome: [])

    the_conftest.pytest_terminal_summary(Reporter)
    assert lines[1:] == ["absent capabilities: future (a far future)"]
