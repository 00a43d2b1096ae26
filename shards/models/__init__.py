"""Model families built of layers and kernels: spans for nodes, embedding and head for clients.
Fetches nothing.
"""
