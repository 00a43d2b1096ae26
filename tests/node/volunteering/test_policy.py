"""Whether a machine serves or rests."""

from __future__ import annotations

from dataclasses import replace
from datetime import time

from swarm_node.node.volunteering.hours import Hours
from swarm_node.node.volunteering.machine_state import MachineState
from swarm_node.node.volunteering.policy import BUSY_S, COOLER_C, FREE_S, RestPolicy, VolunteerLimits

NOON = MachineState(now=time(12, 0), others_load=0.0, on_mains=True, temperature_c=50.0)


def test_without_limits_nothing_is_a_reason() -> None:
    assert not VolunteerLimits()
    used = replace(NOON, others_load=1.0, input_idle_s=0.0, on_mains=False, temperature_c=200.0)
    policy = RestPolicy(VolunteerLimits())
    assert [policy.why_rest(used, at) for at in (0.0, 1000.0)] == ["", ""]


def test_what_the_system_does_not_tell_is_no_reason() -> None:
    limits = VolunteerLimits(only_idle=True, only_mains=True, max_temperature_c=80.0)
    policy = RestPolicy(limits)
    assert [policy.why_rest(MachineState(now=time(12, 0)), at) for at in (0.0, 1000.0)] == ["", ""]


def test_hours() -> None:
    policy = RestPolicy(VolunteerLimits(hours=(Hours.parse("22-7"), Hours.parse("12:30-13"))))
    assert policy.why_rest(NOON, 0.0) == "it serves at 22:00-07:00, 12:30-13:00, and it is 12:00"
    assert policy.why_rest(replace(NOON, now=time(12, 45)), 1.0) == ""


def test_a_battery() -> None:
    policy = RestPolicy(VolunteerLimits(only_mains=True))
    assert policy.why_rest(replace(NOON, on_mains=False), 0.0) == "the machine runs on its battery"
    assert policy.why_rest(NOON, 1.0) == ""


def test_a_hot_machine_rests_until_it_is_cooler() -> None:
    policy = RestPolicy(VolunteerLimits(max_temperature_c=80.0))
    told = [50.0, 79.9, 80.0, 79.0, 80.0 - COOLER_C, 80.0 - COOLER_C - 0.1, 79.0]
    hot = [bool(policy.why_rest(replace(NOON, temperature_c=each), 0.0)) for each in told]
    assert hot == [False, False, True, True, True, False, False]


def test_other_programs_must_be_busy_for_long_and_then_idle_for_longer() -> None:
    policy = RestPolicy(VolunteerLimits(only_idle=True))

    def rests(load: float, at: float) -> bool:
        return bool(policy.why_rest(replace(NOON, others_load=load), at))

    assert not rests(0.9, 0.0)
    assert not rests(0.1, BUSY_S - 1), "it was a short task"
    assert not rests(0.9, BUSY_S)
    assert not rests(0.9, 2 * BUSY_S - 1)
    assert rests(0.9, 2 * BUSY_S)
    assert rests(0.05, 1000.0)
    assert rests(0.15, 1100.0), "between the borders it is not idle"
    assert rests(0.05, 1200.0)
    assert rests(0.05, 1200.0 + FREE_S - 1)
    assert not rests(0.05, 1200.0 + FREE_S)


def test_who_types_uses_the_machine() -> None:
    policy = RestPolicy(VolunteerLimits(only_idle=True))
    typing = replace(NOON, input_idle_s=3.0)
    assert policy.why_rest(typing, 0.0) == "somebody is using the machine"
    gone = replace(NOON, input_idle_s=100.0)
    assert policy.why_rest(gone, 100.0)
    assert policy.why_rest(typing, 300.0)
    assert policy.why_rest(gone, 301.0)
    assert policy.why_rest(gone, 300.0 + FREE_S)
    assert policy.why_rest(gone, 301.0 + FREE_S) == ""
