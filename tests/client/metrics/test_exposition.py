from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from swarm_node.client.metrics.exposition import counter, exposition, gauge, histogram
from swarm_node.swarm.runtime.histogram import Histogram
from swarm_node.swarm.terminal_text import exact

TEXT, OPEN_METRICS = "text/plain", "application/openmetrics-text; version=1.0.0"


def samples(accept: str, *families) -> dict[str, float]:
    """By name and sorted values of labels."""
    text, media_type = exposition(families, accept)
    parse = parse_open_metrics if "openmetrics" in media_type else parse_text
    return {
        " ".join([sample.name, *sorted(sample.labels.values())]): sample.value
        for family in parse(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", [TEXT, OPEN_METRICS, "", "*/*"])
def test_a_scrape_has_every_figure(accept: str) -> None:
    seconds = Histogram((0.5, 1))
    for value in (0.1, 0.2, 0.7, 3):
        seconds.add(value)
    found = samples(
        accept,
        counter("things", "Things.", {("a",): 3, ("b",): 4}, ("kind",)),
        gauge("now", "Now.", 2.5),
        histogram("took_seconds", "Seconds.", {("x",): seconds.totals()}, ("of",)),
    )
    assert found["things_total a"] == 3
    assert found["now"] == 2.5
    assert [found[f"took_seconds_bucket {end} x"] for end in ("0.5", "1.0", "+Inf")] == [2, 3, 4]
    assert (found["took_seconds_count x"], found["took_seconds_sum x"]) == (4, 4.0)


@pytest.mark.parametrize("accept", [f"{TEXT};version=9\r\nx: y", f"{OPEN_METRICS};escaping=\r\nx: y", "\0"])
def test_a_scrape_repeats_nothing_of_what_it_is_asked_with(accept: str) -> None:
    _, media_type = exposition([], accept)
    assert media_type in (
        "text/plain; version=0.0.4; charset=utf-8",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )


def test_a_scrape_tells_of_the_process_too() -> None:
    names = {name.split()[0] for name in samples(TEXT)}
    assert {"swarm_node_build_info", "process_resident_memory_bytes", "process_cpu_seconds_total"} <= names


@given(st.text(st.characters()) | st.sampled_from(['"} 1\nforged_total 9', "a\\", "\\n", "\u2028"]))
def test_no_value_of_a_label_forges_a_figure(value: str) -> None:
    text, _ = exposition([gauge("now", "Now.", {(value,): 1}, ("of",))], TEXT)
    families = {family.name: family for family in parse_text(text)}
    assert "forged" not in families
    (sample,) = families["now"].samples
    assert (sample.labels, sample.value) == ({"of": exact(value)}, 1)
