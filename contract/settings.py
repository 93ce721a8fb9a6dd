"""Typed settings: environment variables `RIVERLENS_*`, then a TOML file, then the defaults below.

The file is `$RIVERLENS_CONFIG`, or `riverlens.toml` in `RIVERLENS_HOME`. Every field has a
docstring and a row in docs/settings.md; a test fails when either is missing.
"""

from __future__ import annotations

import ipaddress
import os
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from contract.errors import SettingsInvalid


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix="RIVERLENS_", extra="forbid", use_attribute_docstrings=True, frozen=True
    )

    home: Path = Path("~/.local/share/riverlens")
    """Folder of all local state, so that two instances can live side by side."""

    cache: Path = Path("~/.cache/riverlens")
    """Folder of downloaded weights, broker jars and sample data; shared by all instances."""

    log_format: Literal["console", "json"] = "console"
    """How log lines look: for people, or one JSON object a line."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The lowest level that is logged."""

    access_log: Literal["all", "failed", "none"] = "failed"
    """Which requests leave a line in the log of the API: all, those answered with 5xx or cut off, or none."""

    http_host: str = "127.0.0.1"
    """Address the HTTP server listens on."""

    http_port: int = Field(8000, ge=1, le=65535)
    """Port the HTTP server listens on."""

    http_tls_cert: Path | None = None
    """PEM file with the server's certificate and those up to its authority; with `http_tls_key`, HTTP is HTTPS."""

    http_tls_key: Path | None = None
    """PEM file with the private key of `http_tls_cert`."""

    http_tls_ca: Path | None = None
    """PEM file with the authority that the command line trusts; unset: the usual ones."""

    auth: Literal["auto", "on", "off"] = "auto"
    """Whether HTTP asks for API keys; `auto` does unless `http_host` is a loopback address."""

    auth_off_beyond_loopback: bool = False
    """Whether `auth` may be `off` on an address that other machines reach: a proxy in front decides who may."""

    api_key: SecretStr | None = None
    """API key that the command line sends; never logged."""

    rate_limit_per_s: float = Field(0.0, ge=0)
    """Requests a second of one key, or of one address without a key, in one replica of the API; 0 for no limit."""

    rate_limit_burst: int = Field(100, ge=1)
    """Requests that a key or an address may make at once before `rate_limit_per_s` counts."""

    api_replicas: int = Field(1, ge=1)
    """Processes that serve HTTP. Those on one machine share its port; one alone runs on the cluster's head node."""

    api_metrics_port: int = Field(0, ge=0, le=65535)
    """First of the ports at which each replica of the API is reached alone, at the HTTP address; 0 for none."""

    kafka_bootstrap: str | None = None
    """`host:port,…` of a Kafka cluster to use. Unset: a local broker is started."""

    kafka_local: Literal["auto", "kafka", "memory"] = "auto"
    """Which local broker: Apache Kafka, librdkafka's in-memory cluster, or Kafka where it can run."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How both Kafka clients connect."""

    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """SASL mechanism, with a SASL_* protocol."""

    kafka_sasl_username: str | None = None
    """SASL user name."""

    kafka_sasl_password: SecretStr | None = None
    """SASL password; never logged."""

    kafka_ssl_ca_location: Path | None = None
    """PEM file with the certificate authority of the brokers; unset: the system's."""

    kafka_ssl_certificate_location: Path | None = None
    """PEM file with the client certificate, for mutual TLS."""

    kafka_ssl_key_location: Path | None = None
    """PEM file with the client's private key, for mutual TLS."""

    kafka_replication_factor: int = Field(1, ge=1)
    """Replicas of each topic that Riverlens creates; 3 on a production cluster."""

    kafka_retention_ms: int = Field(-1, ge=-1)
    """How long `image-events` and dead letters are kept; -1 keeps them for ever."""

    object_store_url: str | None = None
    """Where picture bytes live: `file:///folder` or `s3://bucket/prefix`. Unset: `objects/` in the home folder."""

    object_store_options: dict[str, str] = {}
    """Options for the object store client, such as `endpoint`, `region`, `access_key_id`."""

    ray_address: str | None = None
    """Address of a Ray cluster to use. Unset: a local one is started."""

    collection: str = "images"
    """Name of the collection that is made at the first start."""

    partitions: int = Field(4, ge=1)
    """Partitions of a new collection; fixed for its life, and the most shards it can ever have."""

    shards: int = Field(4, ge=1)
    """Shards of a new collection."""

    replicas: int = Field(1, ge=1)
    """Replicas of every shard of a new collection."""

    hnsw_m: int = Field(16, ge=2, le=128)
    """HNSW links per point of a new collection; more cost memory and find more."""

    hnsw_ef_construction: int = Field(100, ge=1)
    """HNSW candidates while inserting, of a new collection."""

    hnsw_ef_search: int = Field(64, ge=1)
    """HNSW candidates while searching, of a new collection."""

    quantization: Literal["none", "fp16", "sq8", "pq", "rabitq"] = "sq8"
    """How vectors stand in the memory of a new collection's shards; hits are re-scored from the store."""

    vector_type: Literal["fp32", "fp16"] = "fp16"
    """How the shards of a new collection store vectors; fixed for its life."""

    duplicates: Literal["keep", "alias"] = "keep"
    """How searches of a new collection show images with equal bytes: each as a hit, or all of them as one."""

    model: str = "offline"
    """Encoder of a new collection: `offline`, `offline-conse`, or `openclip:ARCHITECTURE:TAG-OR-FILE`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where encoders run; `auto` takes a GPU when there is one."""

    embedders: int = Field(1, ge=1)
    """Embedder actors that serve the ingest path."""

    query_embedders: int = Field(1, ge=1)
    """Embedder actors that encode queries, apart from ingest so that a query never waits behind a batch."""

    embedder_gpus: float = Field(0.0, ge=0)
    """GPUs each embedder actor claims from Ray; 0 on a machine without."""

    shard_cpus: float = Field(0.5, ge=0)
    """CPUs each shard actor claims from Ray; a share, since a shard waits more than it works."""

    embedder_node_resource: str | None = Field(None, min_length=1)
    """Custom Ray resource of the nodes on which embedders run; unset: any node."""

    shard_node_resource: str | None = Field(None, min_length=1)
    """Custom Ray resource of the nodes on which shards run; unset: any node."""

    embedder_threads: int = Field(1, ge=1)
    """CPU threads an embedder uses inside one encode."""

    embed_batch: int = Field(8, ge=1)
    """Pictures an embedder encodes at a time."""

    ingest_batch: int = Field(16, ge=1)
    """Most events the stream takes at a time."""

    ingest_batch_wait_s: float = Field(0.05, gt=0)
    """Longest wait for a batch to fill, in seconds."""

    ingest_metrics_port: int = Field(0, ge=0, le=65535)
    """Port on which the ingest process shows its own Prometheus metrics, at the HTTP address; 0 for none."""

    ingest_batches_in_flight: int = Field(4, ge=1)
    """Batches that are fetched, decoded and embedded side by side; bounds the worker's memory."""

    decode_processes: int = Field(2, ge=1)
    """Processes that decode pictures, for each stream worker and each replica of the API."""

    decode_timeout_s: float = Field(20.0, gt=0)
    """Longest time one picture may take to decode, in seconds; its process is killed then, and the picture rejected."""

    decode_memory_bytes: int = Field(2 * 1024 * 1024 * 1024, ge=512 * 1024 * 1024)
    """Address space of one decoding process, in bytes; a picture that needs more is rejected."""

    max_image_bytes: int = Field(32 * 1024 * 1024, ge=1)
    """Largest upload in bytes."""

    max_image_pixels: int = Field(64_000_000, ge=1)
    """Largest picture in pixels, checked before the pixels are decoded."""

    min_image_side: int = Field(8, ge=1)
    """Shortest side a picture may have, in pixels."""

    max_image_aspect: float = Field(100.0, ge=1)
    """Most that the longer side of a picture may be of the shorter one."""

    max_image_frames: int = Field(2000, ge=1)
    """Most frames or pages of a file; only the first one is looked at."""

    url_timeout_s: float = Field(15.0, gt=0)
    """Longest time an upload by `url` may take to fetch, redirects and all, in seconds."""

    url_ports: list[int] = [80, 443]
    """Ports from which uploads by `url` may be fetched."""

    url_allow_networks: list[IPv4Network | IPv6Network] = []
    """Networks (`10.1.0.0/16`) from which uploads by `url` may be fetched although they are private."""

    ingest_bytes_in_flight_max: int = Field(128 * 1024 * 1024, ge=1)
    """Bytes of pictures that a stream worker has fetched and not decoded yet; further fetches wait."""

    fetch_attempts: int = Field(5, ge=1)
    """Tries to fetch a picture from a failing object store before it becomes a retryable dead letter."""

    search_deadline_ms: int = Field(200, ge=1)
    """Deadline of the fan-out; a shard that misses it is counted as missing in the answer."""

    search_in_flight_max: int = Field(64, ge=1)
    """Searches under way in one replica of the API at which more are refused with `overloaded` and `Retry-After`."""

    search_batches_in_flight: int = Field(1, ge=1)
    """Batches of searches that an API replica has under way in the shards; more is better where these run elsewhere."""

    search_bytes_in_flight_max: int = Field(128 * 1024 * 1024, ge=1)
    """Bytes of bodies of searches that one replica of the API holds in memory at a time; more are refused with 429."""

    upload_lag_max: int = Field(10_000, ge=0)
    """Events of a collection that may wait to be searchable; past it uploads are refused with 429; 0 for no limit."""

    uploads_in_flight_max: int = Field(64, ge=1)
    """Uploads that one replica of the API holds in memory at a time; more are refused with 429."""

    upload_bytes_in_flight_max: int = Field(256 * 1024 * 1024, ge=1)
    """Bytes of uploads that one replica of the API holds in memory at a time; more are refused with 429."""

    encode_deadline_ms: int = Field(2000, ge=1)
    """Longest wait of a text query for its encoder; then the lexical index answers it by its words."""

    search_limit_max: int = Field(1000, ge=1)
    """Largest `limit` plus `offset` of a search."""

    ef_search_max: int = Field(1000, ge=1)
    """Largest `ef_search` of a search: one query may not cost as much as a scan."""

    search_batch_max: int = Field(64, ge=1)
    """Most searches in one request."""

    list_limit_max: int = Field(1000, ge=1)
    """Largest `limit` of a page when images are listed."""

    text_cache: int = Field(10_000, ge=0)
    """Query vectors kept in memory, keyed by fingerprint and text or picture."""

    wait_searchable_timeout_s: float = Field(60.0, gt=0)
    """Longest wait of an upload with `wait=searchable`, in seconds."""

    min_receipt_timeout_s: float = Field(5.0, gt=0)
    """Longest wait of a search with `min_receipt`, in seconds."""

    confidence_threshold: float = Field(0.3, ge=0, le=1)
    """Lowest probability that the first hit is right at which an answer is not flagged `no_confident_match`."""

    confidence_file: Path | None = None
    """JSON file with confidence calibrations of one's own, as `python -m evaluation.calibrate --out` writes it."""

    blocked_tags: list[str] = []
    """Images whose payload bears one of these at `blocked_tags_field` are never among the hits of a search."""

    blocked_tags_field: str = Field("tags", min_length=1, max_length=256)
    """Payload field that holds what `blocked_tags` names; a dotted key, as in a filter."""

    rerank_candidates: int = Field(100, ge=1)
    """Fewest hits a search with `rerank` re-ranks."""

    rerank_overfetch: int = Field(4, ge=1)
    """Hits a search with `rerank` re-ranks, as a multiple of its `limit` plus `offset`."""

    rerank_candidates_max: int = Field(400, ge=1)
    """Most hits a search with `rerank` re-ranks, and so the largest `limit` plus `offset` it may have."""

    rerank_deadline_ms: int = Field(1000, ge=1)
    """Time re-ranking may wait for vectors and pictures; hits without them are passed over and counted."""

    rerank_threads: int = Field(2, ge=1)
    """Threads that hash and compare pictures for re-ranking."""

    growing_max: int = Field(1024, ge=1)
    """Points the growing segment holds before they are inserted into a copy of the graph."""

    build_threads: int = Field(0, ge=0)
    """Threads that insert into the graph when a shard is thousands of points behind; 0 for all processors."""

    recall_sample_share: float = Field(0.01, ge=0, le=1)
    """Share of searches that a shard repeats exactly in the background to measure its recall."""

    store_cache_bytes: int = Field(32 * 1024 * 1024, ge=1)
    """RocksDB block cache of one shard replica, in bytes."""

    store_write_buffer_bytes: int = Field(16 * 1024 * 1024, ge=1)
    """RocksDB write buffer of one shard replica, in bytes."""

    snapshot_interval_s: float = Field(300.0, ge=0)
    """Seconds between snapshots of a shard that changed; 0 takes none, not even at a clean end."""

    snapshot_keep: int = Field(2, ge=1)
    """Snapshots that are kept per shard; one alone leaves nothing to fall back on when it is damaged."""

    snapshot_remote: bool = True
    """Whether snapshots also go to the object store, where a new replica or machine finds them."""

    restarts_max: int = Field(5, ge=0)
    """Restarts of one process of `riverlens up` within `restarts_window_s` before `up` gives up; 0 for none."""

    restarts_window_s: float = Field(120.0, gt=0)
    """The time over which `restarts_max` counts, in seconds."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Constructor arguments win over the environment, which wins over the file."""
        home = os.environ.get("RIVERLENS_HOME", str(cls.model_fields["home"].default))
        file = Path(os.environ.get("RIVERLENS_CONFIG", f"{home}/riverlens.toml")).expanduser()
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file))

    @property
    def home_path(self) -> Path:
        """`home`, absolute."""
        return self.home.expanduser().absolute()

    @property
    def cache_path(self) -> Path:
        """`cache`, absolute."""
        return self.cache.expanduser().absolute()

    @property
    def objects_url(self) -> str:
        """URL of the object store in force."""
        return self.object_store_url or (self.home_path / "objects").as_uri()

    @property
    def broker_file(self) -> Path:
        """Where a local broker says how it is reached."""
        return self.home_path / "run" / "broker.json"

    @property
    def ray_file(self) -> Path:
        """Where a local Ray cluster says how it is reached."""
        return self.home_path / "run" / "ray.json"

    @property
    def asks_for_keys(self) -> bool:
        """Whether HTTP requests need an API key."""
        return self.auth == "on" or (self.auth == "auto" and not _is_loopback(self.http_host))

    @property
    def base_url(self) -> str:
        """URL of the HTTP API as a client on this machine reaches it."""
        scheme = "http" if self.http_tls_cert is None else "https"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.http_host, self.http_host)  # noqa: S104
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.http_port}"

    @model_validator(mode="after")
    def _is_safe(self) -> Settings:
        if (self.http_tls_cert is None) != (self.http_tls_key is None):
            raise ValueError("http_tls_cert and http_tls_key belong together")
        if self.auth == "off" and not self.auth_off_beyond_loopback and not _is_loopback(self.http_host):
            raise ValueError(
                f"auth is off, and other machines reach {self.http_host}: leave `auth` at `auto` and make a key "
                "(`riverlens keys create`), or set RIVERLENS_AUTH_OFF_BEYOND_LOOPBACK=true if a proxy decides who may"
            )
        return self


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name counts as reachable, but for `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Settings of this process; raises SettingsInvalid naming the faulty field."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsInvalid("; ".join(lines)) from error
