"""The chat templates of a GGUF file."""

from __future__ import annotations

from ..formats.fields import Fields
from ..formats.gguf.header import GGUFHeader
from .template_set import DEFAULT, TemplateSource

_KEY = "tokenizer.chat_template"


def gguf_templates(header: GGUFHeader) -> TemplateSource | None:
    """``tokenizer.chat_template``, and ``tokenizer.chat_template.NAME`` for each other name that
    ``tokenizer.chat_templates`` lists. None if there are none. CheckpointError for a value that is not a
    text."""
    read = Fields(header.metadata, str(header.file.path))
    only = read.optional_text(_KEY)
    names = header.strings("tokenizer.chat_templates")
    named = {name: read.text(f"{_KEY}.{name}") for name in names if read.has(f"{_KEY}.{name}")}
    if only is not None:
        named[DEFAULT] = only
    return only if set(named) <= {DEFAULT} else named
