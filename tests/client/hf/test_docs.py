"""The examples of docs/guides/transformers.md, run one after the other as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests import ROOT

PAGE = ROOT / "docs/guides/transformers.md"


def test_the_examples_run(served: Any, tiny_folder: Path, capsys: Any) -> None:
    served(tiny_folder)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 7
    names: dict[str, Any] = {
        "MODEL": str(tiny_folder),
        "PEERS": ["/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGvzPLEyJZ1rEcBR"],
    }
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "context of 2048" in printed
    assert "fewer new tokens" in printed
