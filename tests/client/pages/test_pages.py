"""The door that serves the pages: what is sent, with which policy, and what the files may not do."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from swarm_node.client.pages.pages import POLICY, page_files
from tests import ROOT
from tests.client.gateway.conftest import serve as serve  # each test on a loop of its own
from tests.client.gateway.gateway_case import Serve

OUR_FILES = {
    path: file.text for path, file in page_files().items() if PurePosixPath(path).parts[0] != "vendor"
}


async def test_files_have_their_type_and_a_strict_policy(serve: Serve) -> None:
    served = await serve(keys=["sk-0123456789"])  # pages need no key: they hold nothing of anybody
    for path, kind in (
        ("", "html"),
        ("swarm", "html"),
        ("pages/chat/chat.css", "css"),
        ("pages/chat/chat.js", "javascript"),
    ):
        response = await served.http.get(f"/{path}", headers={"Accept": "text/html"})
        assert response.status_code == 200
        assert response.headers["content-type"] == f"text/{kind}; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["content-security-policy"] == POLICY
    assert "default-src 'none'" in POLICY
    assert "frame-ancestors 'none'" in POLICY
    assert "unsafe" not in POLICY


async def test_a_file_that_is_as_it_was_is_not_sent_again(serve: Serve) -> None:
    served = await serve()
    first = await served.http.get("/pages/shared/theme.css")
    etag = first.headers["etag"]
    again = await served.http.get("/pages/shared/theme.css", headers={"If-None-Match": f"W/{etag}"})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = await served.http.get("/pages/shared/theme.css", headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.text) == (200, first.text)


@pytest.mark.parametrize(
    "path",
    [
        *("pages.py", "../gateway/app.py", "%2e%2e/gateway/app.py", "/etc/passwd", "", "chat", "chat/"),
        *("vendor/README.md", "__init__.py", "chat/index.html%00", "CHAT/INDEX.HTML", "x" * 5000),
    ],
)
async def test_nothing_else_is_sent(serve: Serve, path: str) -> None:
    served = await serve()
    response = await served.http.get(f"/pages/{path}")
    assert response.status_code == 404
    assert "etag" not in response.headers


def test_every_file_of_the_folders_is_sent_and_installed() -> None:
    """What is not matched by the package's data would be missing in a wheel."""
    room = ROOT / "client" / "pages"
    folders = [path for path in room.iterdir() if path.is_dir() and path.name != "__pycache__"]
    there = {
        path.relative_to(room).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert there - {"vendor/README.md"} == set(page_files())
    patterns = re.search(r'"swarm_node.client.pages" = \[(.*)\]', (ROOT / "pyproject.toml").read_text())
    assert patterns
    installed = {
        path.relative_to(room).as_posix()
        for pattern in re.findall(r'"(.*?)"', patterns[1])
        for path in room.glob(pattern)
    }
    assert installed == set(page_files())


@pytest.mark.parametrize("path", sorted(OUR_FILES))
def test_our_files_keep_to_the_policy_and_read_no_text_as_html(path: str) -> None:
    text = OUR_FILES[path]
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert unsafe not in text
    if path.endswith(".html"):
        assert not re.findall(r"<(?:style|script)>", text)
        assert not re.findall(r" (?:on[a-z]+|style)=", text)
        for link in re.findall(r"""(?:src|href)=["'](?!#|data:)([^"']*)""", text):
            assert link.removeprefix("pages/") in page_files() or link in ("./", "swarm")


@pytest.mark.parametrize("path", sorted(path for path in OUR_FILES if path.endswith(".html")))
def test_every_control_has_a_label(path: str) -> None:
    text = OUR_FILES[path]
    for control in re.findall(r"<(?:input|select|textarea) ([^>]*)>", text):
        name = re.search(r'id="([^"]+)"', control)
        assert "aria-label=" in control or (name and f'<label for="{name[1]}"' in text)


def test_each_library_of_others_has_its_licence_and_its_version_named() -> None:
    vendor = ROOT / "client" / "pages" / "vendor"
    for library in (path for path in vendor.iterdir() if path.is_dir()):
        assert (library / "LICENSE").is_file()
        assert re.search(rf"`{library.name}/`: \S+ \d+\.\d+\.\d+ \(", (vendor / "README.md").read_text())
