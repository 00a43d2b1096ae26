"""An OpenAI-compatible HTTP gateway to a swarm: ``swarm-node gateway``, extra ``gateway``.

Importing this package costs nothing and needs no extra; ``server`` and ``app`` need Starlette and uvicorn.
"""
