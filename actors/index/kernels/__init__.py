"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: the inner loops of a shard's searches, compiled.
"""
