"""An HTTP gateway to a swarm for clients of OpenAI, Anthropic and Ollama: ``swarm-node gateway``, extra
``gateway``.

Importing this package costs nothing and needs no extra; ``server`` and ``app`` need Starlette and uvicorn.
"""
