"""Programs in files (templates, tokenizers' expressions, grammars), run where they can be ended.

``process`` is our side of it, ``child`` the other: a bare interpreter that sees one request at a time.
Knows no models and no peers.
"""
