"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: the whole way measured over HTTP, on a running system; beside raw FAISS and other servers.
"""
