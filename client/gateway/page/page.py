"""The chat page: one file, which may run its own script and ask this gateway, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from ...http.call import HttpCall

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


async def send_page(call: HttpCall) -> None:
    text, policy = _page()
    await call.reply(
        text,
        headers={
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


@cache
def _page() -> tuple[str, str]:
    """The page, and its content security policy, which lets its own script and style run by their digests."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    allowed = {
        kind: " ".join(f"'sha256-{_digest(inner)}'" for tag, inner in _INLINE.findall(text) if tag == kind)
        for kind in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
