"""What every test gets: the chosen event loop, no blocking call on it, and nothing left behind."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import redis
from blockbuster import BlockBuster, blockbuster_ctx

from aioentra_redis._redis_py import CAPABILITIES

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

HERE = Path(__file__).parent

# Before anybody imports them: what is asserted there says what it found, as in a test.
pytest.register_assert_rewrite("support")

# Where blocking is allowed although a loop runs in the thread. Each entry says why.
MAY_BLOCK: tuple[tuple[str, str, str], ...] = (
    # Reading a module from disk blocks, and any first import may happen under a test. What the
    # package imports lazily and on purpose off the loop is measured by benchmarks/loop_stall.py.
    ("<frozen importlib._bootstrap>", "_find_and_load", "imports"),
    # redis-py looks its own version up in its metadata for each connection it makes: one stat.
    ("redis/utils.py", "get_lib_version", "redis-py's own version"),
    # aiohttp 3.9, the oldest we claim, looks for a netrc file on the loop at each request of a
    # session that minds the environment's proxies, as azure's do.
    ("aiohttp/helpers.py", "netrc_from_env", "aiohttp's proxy settings"),
    # azure's asynchronous credential looks for az on PATH and starts it on the loop: a stat per
    # directory and a fork, every hour or so. What the tool does then is not waited for there.
    ("aio/_credentials/azure_cli.py", "_run_command", "starting az"),
    # Tracebacks and warnings read source lines; they only appear where something else is wrong.
    ("linecache.py", "updatecache", "showing source lines"),
    # pytest resolves paths and rewrites asserts while the loop of an async fixture runs.
    ("_pytest/assertion/rewrite.py", "exec_module", "pytest's own imports"),
)


# ------------------------------------------------------------------------------- event loops


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop",
        choices=("asyncio", "uvloop", "eager"),
        default="asyncio",
        help="the event loop under the tests; eager is asyncio with the eager task factory",
    )


class LoopSelection:
    """Registered only for a loop other than the default, so that the default stays untouched."""

    def __init__(self, name: str, factory: LoopFactory) -> None:
        self.name = name
        self.factory = factory

    def pytest_asyncio_loop_factories(
        self, config: pytest.Config, item: pytest.Item
    ) -> Mapping[str, LoopFactory]:
        return {self.name: self.factory}


def uvloop_factory() -> LoopFactory:
    try:
        import uvloop
    except ImportError as error:
        raise pytest.UsageError("--loop=uvloop needs uvloop installed") from error
    return uvloop.new_event_loop


def eager_factory() -> LoopFactory:
    if sys.version_info < (3, 12):
        raise pytest.UsageError("--loop=eager needs Python 3.12, where eager tasks came")

    def factory() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    return factory


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("loop")
    if name != "asyncio":
        factory = uvloop_factory() if name == "uvloop" else eager_factory()
        config.pluginmanager.register(LoopSelection(name, factory), "aioentra-loop-selection")


def pytest_sessionstart() -> None:
    # looptime asks for the current loop under synchronous tests too, and up to Python 3.13 asking
    # makes one that nobody closes. Saying once that there is none turns that into an error, which
    # looptime handles.
    asyncio.set_event_loop(None)


def pytest_report_header(config: pytest.Config) -> str:
    return f"event loop: {config.getoption('loop')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_what_redis_py_lacks(items)
    if config.getoption("loop") != "uvloop":
        return
    # looptime turns the clock of asyncio's own loop; uvloop's is in C and out of its reach.
    skip = pytest.mark.skip(reason="virtual time needs asyncio's own event loop")
    for item in items:
        if item.get_closest_marker("looptime"):
            item.add_marker(skip)


# ------------------------------------------------------------------------------- redis-py's version


def skip_what_redis_py_lacks(items: list[pytest.Item]) -> None:
    """Skip tests marked with a capability that the installed redis-py does not have."""
    for item in items:
        for mark in item.iter_markers("capability"):
            (name,) = mark.args
            capability = CAPABILITIES[name]
            if not capability.present:
                reason = f"redis-py {redis.__version__} lacks {name}: it came by {capability.since}"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    show_figures(terminalreporter)
    absent = [f"{name} ({it.what})" for name, it in CAPABILITIES.items() if not it.present]
    terminalreporter.section(f"redis-py {redis.__version__}")
    terminalreporter.write_line(f"absent capabilities: {', '.join(absent) or 'none'}")


# ------------------------------------------------------------------------------- figures


def show_figures(terminal: pytest.TerminalReporter) -> None:
    """Print what tests noted with the fixture ``figure`` of ``faults/conftest.py``, as a table."""
    rows = [("case", "figure", "measured", "target", "test")]
    for outcome in ("passed", "failed", "xfailed", "error"):
        for report in terminal.getreports(outcome):
            for kind, it in getattr(report, "user_properties", ()):
                if kind == "figure" and report.when == "call":
                    case = report.nodeid.rpartition("/")[2].removesuffix(".py")
                    rows.append((case, it["name"], it["value"], it["target"], outcome))
    if len(rows) > 1:
        terminal.section("figures")
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in (rows[0], *sorted(rows[1:])):
            line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
            terminal.write_line(line.rstrip())


# ------------------------------------------------------------------------------- blocking calls


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test in which the package makes a blocking call while the thread's loop runs.

    Only calls with a frame of the package on their stack count: a test may read a file.
    """
    with blockbuster_ctx("aioentra_redis") as guard:
        for function in guard.functions.values():
            for filename, name, _why in MAY_BLOCK:
                function.can_block_in(filename, name)
        yield guard


# ------------------------------------------------------------------------------- leaks

GRACE = 0.25
"""Seconds that cancelled tasks and closed transports get to end after a test."""


def open_transports(loop: asyncio.AbstractEventLoop) -> list[object]:
    """Transports of asyncio's selector loop that nobody has closed; uvloop keeps no such list."""
    transports: Mapping[int, asyncio.BaseTransport] = getattr(loop, "_transports", {})
    return [each for each in list(transports.values()) if not each.is_closing()]


def listening_servers(loop: asyncio.AbstractEventLoop) -> list[object]:
    """Listening sockets of asyncio's selector loop: what is registered but is no transport."""
    selector = getattr(loop, "_selector", None)
    registered = selector.get_map() if selector is not None else None
    if not registered:
        return []
    found: list[object] = []
    for key in list(registered.values()):
        reader, writer = key.data
        for handle in (reader, writer):
            owner = getattr(handle, "_callback", None)
            if getattr(owner, "__name__", "") == "_accept_connection":
                found.append(key.fileobj)
    return found


def leaks(before: frozenset[asyncio.Task[object]]) -> list[object]:
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - before - {asyncio.current_task()}
    return [*tasks, *open_transports(loop), *listening_servers(loop)]


@pytest.fixture
async def leak_check(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail a test that leaves a pending task, an open transport or a listening server behind."""
    loop = asyncio.get_running_loop()
    if request.node.path.is_relative_to(HERE / "unit"):
        # Debug mode names the line that made a leaked task, and catches calls from other threads.
        # Elsewhere its cost would hide what the tests are about: many commands, real time.
        loop.set_debug(True)
    task = asyncio.current_task()
    before = frozenset({task} if task else ())
    yield
    deadline = loop.time() + GRACE
    while (left := leaks(before)) and loop.time() < deadline:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.005)
    if left:
        # They would otherwise fail the next test that happens to collect garbage.
        for each in left:
            if isinstance(each, asyncio.Task):
                each.cancel()
            elif isinstance(each, asyncio.WriteTransport):
                each.abort()
        await asyncio.sleep(0)
        lines = "\n".join(f"  {each!r}" for each in left)
        pytest.fail(f"the test left behind:\n{lines}", pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> None:
    """Put ``leak_check`` under every asynchronous test; a synchronous one needs no loop."""
    function = getattr(request, "function", None)
    if inspect.iscoroutinefunction(inspect.unwrap(function)) if function else False:
        request.getfixturevalue("leak_check")
