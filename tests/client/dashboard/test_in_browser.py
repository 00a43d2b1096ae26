"""The swarm's page in Chromium: what it shows, and that it changes by itself."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from swarm_node.client.dashboard.source import Counters, OwnWork, RunningAnswer, SeenRepair
from swarm_node.swarm.types import NodeState
from tests.client.dashboard.conftest import Show
from tests.client.dashboard.simulated import (
    LLAMA,
    SMOL,
    route_over,
    simulated_swarm,
    three_nodes,
    wanted_by,
)
from tests.client.pages.browser import Browser, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-0123456789"


async def scrolls_sideways(page: Any) -> bool:
    return await page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


async def test_gaps_have_the_command_that_fills_them(show: Show, browser: Browser) -> None:
    shown = await show(three_nodes()[:2])
    page = await browser.open(shown.url)
    gap = page.locator(".gaps .missing")
    await gap.wait_for()
    assert "Nobody serves blocks 20-29." in await gap.inner_text()
    command = f"swarm-node serve --model {SMOL.name} --blocks 20-29 --initial-peers ADDR"
    assert await gap.locator("code").inner_text() == command
    assert await page.locator(".map .none").count() == 1
    assert await page.locator(".bar").count() == 2
    label = await page.locator(".map").get_attribute("aria-label")
    assert label
    assert "Nobody serves blocks 20-29" in label
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await gap.get_by_role("button", name="Copy").click()
    await gap.get_by_role("button", name="Copied").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == command
    assert browser.complaints == []


async def test_it_changes_without_a_reload(show: Show, browser: Browser) -> None:
    nodes = three_nodes()
    shown = await show(nodes[:2])
    page = await browser.open(shown.url)
    await page.locator(".gaps .missing").wait_for()
    await page.evaluate("window.notReloaded = true")
    shown.store.put(nodes[2])
    await page.locator(".gaps .missing").wait_for(state="detached")
    assert await page.locator(".bar").count() == 3
    await page.get_by_text(f"All blocks of {SMOL.name} are served").first.wait_for()
    shown.store.put(replace(nodes[2], state=NodeState.DRAINING))
    await page.get_by_text("no longer serves blocks 20-29").wait_for()
    assert await page.evaluate("window.notReloaded")
    assert browser.complaints == []


async def test_routes_and_repairs_are_shown_as_they_happen(show: Show, browser: Browser) -> None:
    nodes = simulated_swarm(30)
    shown = await show(nodes)
    page = await browser.open(shown.url)
    await page.get_by_text("None at the moment.").wait_for()
    route = route_over(nodes, LLAMA.n_blocks)
    shown.source.running = [RunningAnswer("a", LLAMA.name, route, 3.0, 40, 12.5, "waiting for blocks 0-15")]
    line = page.locator(".answer")
    await line.wait_for()
    assert "40 tokens · 12.5 tokens/s" in await line.inner_text()
    assert "waiting for blocks 0-15" in await line.inner_text()
    assert await line.locator(".hops li").count() == len(route)
    assert await page.locator(".map .route").count() == 1
    lost = route[0].peer_id
    shown.source.seen = [
        SeenRepair("a/1", time.time(), "a", LLAMA.name, "replay", (lost,), f"{lost} is gone", 0.42)
    ]
    shown.source.totals = Counters(repairs=1)
    repaired = page.locator("#feed .repaired")
    await repaired.wait_for()
    said = f"Route repaired: …{lost[-6:]} was replaced in 420 ms (…{lost[-6:]} is gone)"
    assert said in await repaired.inner_text()
    await page.locator("#said", has_text="Route repaired").wait_for(state="attached")  # to screen readers
    shown.source.running = []
    await page.locator(".map .route").wait_for(state="detached")
    await page.locator(f".bar.lost[data-peer='{lost}']").wait_for()  # as long as no route has it again
    assert browser.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_200_nodes_fit_and_are_listed(
    show: Show, browser: Browser, tmp_path: Path, scheme: str
) -> None:
    shown = await show(simulated_swarm(200))
    page = await browser.open(shown.url, color_scheme=scheme)
    await page.locator(".bar").first.wait_for()
    assert await page.locator(".bar").count() == 200
    assert (await page.locator(".map svg").bounding_box())["height"] < 700
    rows = page.locator("#nodes tbody tr")
    assert await rows.count() == 200
    await page.get_by_role("button", name="Tokens/s").click()
    await page.get_by_role("button", name="Tokens/s").click()
    assert await page.locator("th[aria-sort='descending']").inner_text() == "Tokens/s"
    speeds = [
        float(text.replace(",", ""))
        for text in await page.locator("#nodes td:nth-child(5)").all_inner_texts()
        if text != "–"
    ]
    assert speeds == sorted(speeds, reverse=True)
    await page.locator("#filter").fill("bf16")
    assert 0 < await rows.count() < 200
    assert not await scrolls_sideways(page)
    dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(13, 17, 23)") == (scheme == "dark")
    assert browser.complaints == []
    await page.screenshot(path=picture(f"swarm-200-{scheme}.png", tmp_path))


async def test_an_empty_swarm_says_what_to_do(show: Show, browser: Browser) -> None:
    shown = await show()
    shown.store.want(wanted_by("p", "gemma-3-1b"))
    page = await browser.open(shown.url)
    await page.get_by_role("heading", name="Nobody serves a model in this swarm yet").wait_for()
    assert "swarm-node serve --model" in await page.locator("#empty code").first.inner_text()
    await page.get_by_text("1 peer would like to use gemma-3-1b").wait_for()
    shown.store.put(three_nodes()[0])
    await page.locator(".bar").wait_for()
    assert await page.locator("#empty").is_hidden()
    assert browser.complaints == []


async def test_names_of_peers_are_text(show: Show, browser: Browser) -> None:
    evil = "<img src=x onerror=alert(1)>'\"&lt;"
    nodes = [
        replace(
            node,
            model=replace(SMOL, name=evil),
            weights=evil,
            version="\x1b[31m\u202e" + evil,
            device=evil,
            name=evil,
        )
        for node in three_nodes()
    ]
    shown = await show(nodes)
    shown.source.running = [RunningAnswer(evil, evil, route_over(nodes, 30), waiting=evil)]
    shown.source.seen = [SeenRepair(evil, time.time(), evil, evil, evil, (evil,), evil, 1.0)]
    page = await browser.open(shown.url)
    await page.locator(".answer").wait_for()
    assert await page.locator(".model h2").inner_text() == evil
    assert await page.locator("main img, main script").count() == 0
    assert "\x1b" not in await page.locator("#nodes").inner_text()
    assert browser.complaints == []


async def test_the_map_works_by_keyboard(show: Show, browser: Browser) -> None:
    nodes = three_nodes()
    shown = await show(nodes)
    page = await browser.open(shown.url)
    await page.locator(".bar").first.wait_for()
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Go to the map"
    await page.keyboard.press("Enter")
    await page.locator(".map").focus()
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("ArrowRight")
    tip = page.locator(".tip")
    assert f"…{nodes[1].peer_id[-6:]} blocks 10-19" in await tip.inner_text()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == f"node-{nodes[1].peer_id}"
    assert browser.complaints == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 256)])
async def test_a_phone_and_400_percent_need_no_scrolling_sideways(
    show: Show, browser: Browser, tmp_path: Path, width: int, height: int
) -> None:
    shown = await show(simulated_swarm(20))
    shown.source.work = OwnWork("p", 3600.0, 1, 2, 3, 4, 5, 6, 7)
    page = await browser.open(shown.url, width=width, height=height)
    await page.locator(".bar").first.wait_for()
    await page.get_by_text("Tokens computed").wait_for()
    assert not await scrolls_sideways(page)
    await page.locator("#links-part summary").click()
    assert not await scrolls_sideways(page)
    assert browser.complaints == []
    await page.screenshot(path=picture(f"swarm-{width}.png", tmp_path))


async def test_a_key_is_asked_for_and_kept_in_the_tab(show: Show, browser: Browser) -> None:
    shown = await show(three_nodes(), keys=(KEY,))
    page = await browser.open(shown.url)
    await page.get_by_role("heading", name="This server asks for a key").wait_for()
    await expect(page.locator("#key")).to_be_focused()
    await page.keyboard.type("sk-wrong-key-1")
    await page.keyboard.press("Enter")
    await page.get_by_text("That key is not one of this server's.").wait_for()
    await page.locator("#key").fill(KEY)
    await page.keyboard.press("Enter")
    await page.locator(".bar").first.wait_for()
    assert await page.locator("#key-form").is_hidden()
    await page.reload()
    await page.locator(".bar").first.wait_for()
    assert KEY not in page.url
    assert all("401" in complaint for complaint in browser.complaints)


async def test_it_comes_back_when_the_server_does(show: Show, browser: Browser) -> None:
    shown = await show(three_nodes())
    page = await browser.open(shown.url)
    await page.locator("#connection", has_text="Live").wait_for()
    await page.route("**/swarm/events", lambda route: route.abort())
    shown.dashboard.close()
    await page.locator("#connection", has_text="Not connected").wait_for()
    shown.dashboard._closed = False
    await page.unroute("**/swarm/events")
    await page.locator("#connection", has_text="Live").wait_for()
    assert await page.locator(".bar").count() == 3


async def test_without_motion_nothing_moves(show: Show, browser: Browser) -> None:
    nodes = three_nodes()
    shown = await show(nodes)
    shown.source.running = [RunningAnswer("a", SMOL.name, route_over(nodes, 30))]
    page = await browser.open(shown.url, reduced_motion="reduce")
    route = page.locator(".map .route")
    await route.wait_for(state="attached")
    assert await route.evaluate("path => getComputedStyle(path).animationName") == "none"


async def test_a_gateway_has_it_beside_its_chat(serve: Any, browser: Browser) -> None:
    served = await serve()
    page = await browser.open(f"{served.server.url}/swarm")
    await page.locator(".bar").first.wait_for()
    await page.locator("#chat-link").click()
    await page.locator("#message").wait_for()
    assert browser.complaints == []
