"""Every task of the project as a session: ``python3 -m nox -l`` lists them.

Sessions install pinned versions (``tests/constraints.txt``) into an environment of their own, made
by uv where uv is on PATH and by virtualenv where it isn't. What follows ``--`` is passed on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "typing", "tests"]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
NAME = PROJECT["project"]["name"]
CONSTRAINTS = ("-c", "tests/constraints.txt")

PYTHONS = ("3.11", "3.12", "3.13")
LOOPS = ("asyncio", "uvloop", "eager")
REDIS_VERSIONS = ("5.3", "6.4", "7.4", "8.1")

# Most of a test's time is waiting for an emulator's process or for a token's life to pass, so more
# processes than cores: a third of the time on two cores. ``-- -n 0`` runs all in one.
IN_PARALLEL = ("-n", "4")

UNAUDITED = 75
"""What tests/support/audit.py returns where the vulnerability service could not be asked."""

# Eager tasks came with Python 3.12.
MATRIX = [(p, loop) for p in PYTHONS for loop in LOOPS if (p, loop) != ("3.11", "eager")]


def requirements(group: str) -> list[str]:
    """The requirements of a dependency group, with this project standing for itself.

    A group that names the project would send pip to the registry for it; ``.[extra]`` is the
    checkout. Reading the group here also keeps a pip without ``--group`` (before 25.1) usable.
    """
    found: list[str] = []
    for line in nox.project.dependency_groups(PROJECT, group):
        requirement = Requirement(line)
        if requirement.name.replace("_", "-") == NAME:
            found += ["-e", f".[{','.join(sorted(requirement.extras))}]"]
        else:
            found.append(line)
    return found


def lowest() -> list[str]:
    """Pins of our direct dependencies, extras included, at the oldest version we claim."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    pins: list[str] = []
    for line in [
        *PROJECT["project"]["dependencies"],
        *(each for extra in extras for each in extra),
    ]:
        requirement = Requirement(line)
        floors = [s.version for s in requirement.specifier if s.operator == ">="]
        if floors:
            marker = f" ; {requirement.marker}" if requirement.marker else ""
            pins.append(f"{requirement.name}=={floors[0]}{marker}")
    return pins


@nox.session
def demo(session: nox.Session) -> None:
    """Watch tokens rotate under load, on this machine, without Azure."""
    session.install(*CONSTRAINTS, ".[cli]")
    session.run("aioentra-redis", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite on this Python and the default event loop."""
    session.install(*CONSTRAINTS, *requirements("tests"))
    session.run("pytest", *IN_PARALLEL, *session.posargs)


@nox.session
@nox.parametrize("python,loop", MATRIX, ids=[f"{p}-{loop}" for p, loop in MATRIX])
def tests_matrix(session: nox.Session, loop: str) -> None:
    """The test suite on each Python and each event loop."""
    extra = ["uvloop"] if loop == "uvloop" else []
    session.install(*CONSTRAINTS, *requirements("tests"), *extra)
    session.run("pytest", f"--loop={loop}", *IN_PARALLEL, *session.posargs)


@nox.session
@nox.parametrize("version", REDIS_VERSIONS, ids=REDIS_VERSIONS)
def redis_versions(session: nox.Session, version: str) -> None:
    """The test suite on each minor version of redis-py that stands for a supported major."""
    session.install(*CONSTRAINTS, *requirements("tests"))
    session.install(f"redis[hiredis]=={version}.*")
    session.run("pytest", *IN_PARALLEL, *session.posargs)


@nox.session(name="lowest", python="3.11")
def lowest_dependencies(session: nox.Session) -> None:
    """The test suite on the oldest versions of our direct dependencies."""
    # Starlette's test client of that time passes what httpx has dropped in 0.28.
    session.install(*requirements("tests"), *lowest(), "httpx<0.28")
    # Old libraries call what newer ones, which nothing pins here, have deprecated since, and
    # Starlette's test client of that time doesn't close all of its anyio streams.
    old = ("ignore::DeprecationWarning", "ignore:Unclosed <MemoryObject:ResourceWarning")
    session.run("pytest", *(f"-W{each}" for each in old), *IN_PARALLEL, *session.posargs)


@nox.session
def differential(session: nox.Session) -> None:
    """Random programs on redis-py's client and ours; ``-- --commands 500000`` for more of them."""
    session.install(*CONSTRAINTS, *requirements("tests"))
    with session.chdir(ROOT / "tests"):
        session.run("python", "-m", "differential", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """The fault suite, and whatever else takes too long for every run of the test suite."""
    session.install(*CONSTRAINTS, *requirements("tests"))
    # 5: no test was selected, as by a choice of them in what follows ``--``.
    chosen = {"success_codes": [0, 5]} if session.posargs else {}
    session.run("pytest", "-m", "slow and not alone", *IN_PARALLEL, *session.posargs, **chosen)
    session.run("pytest", "-m", "slow and alone", "-n", "0", *session.posargs, **chosen)


@nox.session
def soak(session: nox.Session) -> None:
    """2,000 rotations under load and faults; ``-- --minutes 15 --rotations 2000 --seed 1``."""
    session.install(*CONSTRAINTS, *requirements("tests"))
    with session.chdir(ROOT / "tests"):
        session.run("python", "-m", "soak", *session.posargs)


@nox.session
def conformance(session: nox.Session) -> None:
    """redis-py's own asyncio tests with our client in place of its: ``-- --help`` for choices."""
    session.install(*CONSTRAINTS, *requirements("conformance"))
    work = Path(session.create_tmp()).absolute() / "conformance"
    # As a module of tests/, which the test processes that it starts look for their plugin in too.
    session.env["PYTHONPATH"] = str(ROOT / "tests")
    session.run("python", "-m", "conformance", f"--work={work}", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and format; ``nox -s lint -- --fix`` repairs what it can."""
    session.install(*CONSTRAINTS, *requirements("lint"))
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def typing(session: nox.Session) -> None:
    """mypy strict on the package, mypy and pyright on what a user sees of it."""
    session.install(*CONSTRAINTS, *requirements("typing"))
    # Without this pyright asks its registry whether a newer one is out.
    session.env["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"
    session.run("mypy", *session.posargs)
    session.run("pyright", "tests/typing")
    session.run("pyright", "--verifytypes", "aioentra_redis", "--ignoreexternal")


@nox.session
def audit(session: nox.Session) -> None:
    """Vulnerabilities and licences of what we install; exit status 75 if nobody could be asked."""
    session.install(*CONSTRAINTS, ".[cli,fastapi]", "pip", "pip-audit", "pip-licenses")
    session.run("python", "-m", "pip", "check")
    # What an MIT-licensed package can't be combined with; a choice that includes another is fine.
    session.run("pip-licenses", "--partial-match", "--fail-on=GNU General;GPL;Affero;SSPL;BUSL")
    python = str(Path(session.bin) / "python")
    script = ROOT / "tests" / "support" / "audit.py"
    constraints = ROOT / "tests" / "constraints.txt"
    status = subprocess.run([python, str(script), str(constraints)], check=False).returncode
    if status == UNAUDITED:
        sys.exit(status)  # neither passed nor failed, and nox knows no third
    if status:
        session.error("a release that tests/constraints.txt pins has a known vulnerability")


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks against other clients: ``nox -s bench -- [throughput|rotation|...] [options]``."""
    session.install(*CONSTRAINTS, *requirements("bench"))
    folder = ROOT / "tests" / "benchmarks"
    scripts = sorted(p.stem for p in folder.glob("[a-z]*.py"))
    name, options = "throughput", list(session.posargs)
    if options and not options[0].startswith("-"):
        name = options.pop(0)
    if name not in scripts:
        session.error(f"there is no benchmark {name!r}; there are {', '.join(scripts)}")
    session.run("python", str(folder / f"{name}.py"), *options)


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and from it the wheel, then try the wheel in an empty environment."""
    session.install(*CONSTRAINTS, "build")
    tmp = Path(session.create_tmp()).absolute()
    dist = tmp / "dist"
    for old in dist.glob("*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT))
    (wheel,) = dist.glob("*.whl")
    venv = tmp / "venv"
    session.run("python", "-m", "venv", "--clear", str(venv))
    python = str(venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    constraints = str(ROOT / "tests" / "constraints.txt")
    session.run(*pip, "install", "-c", constraints, str(wheel), external=True)
    session.run(*pip, "check", external=True)
    # The smoke test is a file outside of the package, run from a directory that has no checkout.
    smoke = ROOT / "tests" / "support" / "smoke.py"
    with session.chdir(tmp):
        session.run(python, "-I", str(smoke), external=True)
