"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: who may do what over HTTP: keys, scopes, owners, rates.
"""
