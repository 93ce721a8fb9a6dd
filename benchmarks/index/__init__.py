"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: the benchmark of one shard's engine, beside raw FAISS and other vector stores.
"""
