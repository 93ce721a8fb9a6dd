"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: from the fan-out to a shard, on a port of the shard's own, since a call of a Ray actor takes
several threads in both processes. Ray says where the port is, and carries every other call.
"""
