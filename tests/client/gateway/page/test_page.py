"""The chat page: what is sent, and that its policy lets its own script run and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

from tests.client.gateway.gateway_case import Serve


async def test_one_file_with_a_policy_that_fits_it(serve: Serve) -> None:
    served = await serve(keys=["sk-0123456789"])  # the page itself needs none
    response = await served.http.get("/")
    page, policy = response.text, response.headers["content-security-policy"]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    for kind in ("script", "style"):
        (inner,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_nothing_is_fetched_and_no_text_is_read_as_html(serve: Serve) -> None:
    served = await serve()
    page = (await served.http.get("/")).text
    outside = re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", page)
    assert outside == []
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in page
    assert not re.findall(r" (?:on[a-z]+|style)=", page)


async def test_every_control_has_a_label(serve: Serve) -> None:
    served = await serve()
    page = (await served.http.get("/")).text
    controls = re.findall(r'<(?:input|select|textarea) id="([a-z]+)"', page)
    assert {"model", "system", "temperature", "tokens", "key", "message"} == set(controls)
    for control in controls:
        assert f'<label for="{control}">' in page
