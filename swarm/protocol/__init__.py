"""The wire protocol between peers: frames, messages and sessions as bytes. Sans-IO: no sockets, no
asyncio.
"""
