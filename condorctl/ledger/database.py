"""What holds a ledger: a file of one's own (SQLite), or a server that a group shares (PostgreSQL).

Both promise the same: transactions come one after the other, so what is read in one stays true
until it ends. Two who submit at once get two names.

The layout's version stands in a table of one row, the one that Alembic keeps its revision in. An
older ledger is brought up to date in place, by whoever opens it first (`migrations`); of a file a
copy is kept beside it.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, StatementError

from condorctl import paths
from condorctl.errors import UserError

# Seconds. Waiting for a server's first answer, and for others' transactions.
_CONNECT_S = 10
_BUSY_S = 60
# Whoever stops in the middle of a transaction (Ctrl-Z, a suspended laptop) loses it after that
# long: nobody else gets at the ledger meanwhile.
_ABANDONED_S = 120

# Advisory locks are one name space for all of a database's users; a schema may hold a ledger each.
_LOCK = "pg_advisory_xact_lock(hashtextextended('condorctl ledger ' || current_schema(), 0))"
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_WHERE = "CONDORCTL_DB"
_version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32)))


class Text(sa.TypeDecorator[str]):
    """Text as a job wrote it, but for NUL, which PostgreSQL stores in no text."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if value else value


class Whole(sa.TypeDecorator[int]):
    """A whole number of 64 bits; a larger one, which only a mistake can be, becomes the largest."""

    impl = sa.BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        # SQLite counts up by itself only in a column that is called INTEGER; it holds 64 bits.
        return sa.Integer() if dialect.name == "sqlite" else sa.BigInteger()

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else max(-(1 << 63), min(value, (1 << 63) - 1))


class Inode(sa.TypeDecorator[int]):
    """A number of 64 bits without a sign, as some network file systems number their files."""

    impl = Whole
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return value if value is None or value < 1 << 63 else value - (1 << 64)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return value if value is None or value >= 0 else value + (1 << 64)


class Database:
    """The database at `where`: a file, or a URL as CONDORCTL_DB has it."""

    def __init__(self, where: Path | str) -> None:
        url = (
            _url(where) if isinstance(where, str) else sa.URL.create("sqlite", database=str(where))
        )
        # What is said about the ledger: never a password, nor the options where one may stand.
        self.name = url.database or ""
        self._secrets = [url.password] if url.password else []
        if url.drivername == "sqlite":
            self.engine = _sqlite(url)
        else:
            self._secrets += [str(v) for k, v in url.query.items() if "password" in k]
            user, port = (url.username or ""), f":{url.port}" if url.port else ""
            self.name = f"{user}{user and '@'}{url.host or 'localhost'}{port}/{self.name}"
            self.engine = _postgres(url)

    @contextmanager
    def readable(self) -> Iterator[None]:
        """What goes wrong in the database, as one line."""
        try:
            yield
        except DBAPIError as error:
            words, code = self._explain(error)
            for secret in self._secrets:
                words = words.replace(secret, "***")
            raise UserError(f"ledger {self.name}: {words}", code) from None
        except (StatementError, UnicodeEncodeError) as error:
            # A file name that is not UTF-8, most likely.
            cause = error.orig if isinstance(error, StatementError) else error
            raise UserError(f"ledger {self.name}: cannot keep this: {cause}") from None

    def prepare(self, tables: sa.MetaData, layout: int) -> None:
        """Have the database hold `tables`, whose layout is `layout`: make them, or alter them.

        Raises UserError for tables of a newer layout, of one too old, or of another program.
        """
        with self.readable():
            with self.engine.begin() as connection:
                found = _layout(connection, tables)
                if found is None:
                    tables.create_all(connection)
                    _version.create(connection)
                    connection.execute(_version.insert().values(version_num=str(layout)))
            if found not in (None, str(layout)):
                self._bring_up_to_date(tables, layout)

    def _bring_up_to_date(self, tables: sa.MetaData, layout: int) -> None:
        from condorctl.ledger import migrations

        # SQLite can alter a table only by making another in its place, which must not look to it
        # as if every row that is referred to had gone.
        engine = self.engine if self.shared else _sqlite(self.engine.url, foreign_keys=False)
        with engine.begin() as connection:
            # Somebody else may have done it while this one waited for the lock.
            found = _layout(connection, tables)
            if found == str(layout):
                return
            if found not in migrations.layouts():
                raise UserError(self._refusal(str(found), layout))
            if not self.shared:
                _keep_copy(Path(self.engine.url.database or ""), f"layout-{found}")
            migrations.upgrade(connection)
            if not self.shared and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise UserError(
                    f"ledger {self.name}: rows that others refer to are missing, so it is left as "
                    "it is: `condorctl ledger rebuild` makes a new one from the runs' folders"
                )

    def _refusal(self, found: str, layout: int) -> str:
        mend = f"set {_WHERE}" if self.shared else "set CONDORCTL_LEDGER"
        told = f"ledger {self.name}: its layout is {found}, this condorctl knows {layout}"
        if found.isdigit() and int(found) > layout:
            return f"{told}: a newer condorctl made it: install that one, or {mend}"
        move = "" if self.shared else "move it away, or "
        return f"{told} and none so old: {move}{mend}"

    @property
    def shared(self) -> bool:
        """Whether it is a server's, so that others may write in it and from other machines."""
        return self.engine.dialect.name != "sqlite"

    @property
    def records(self) -> Path:
        """The folder for what is kept of runs that have no folder of their own (`runfile`)."""
        if not self.shared:
            return Path(self.engine.url.database or "").with_suffix(".records")
        # On this machine, and of this user alone: the database is others', too.
        return paths.data() / (re.sub(r"[^A-Za-z0-9.]+", "-", self.name) + ".records")

    def _explain(self, error: DBAPIError) -> tuple[str, int]:
        """What the database said, in one line, and the exit code."""
        words = str(error.orig).strip()
        if not self.shared:
            return words, 2
        state = getattr(error.orig, "sqlstate", None)
        if state == "55P03":
            return f"busy: others have been writing in it for {_BUSY_S} s; try again", 3
        if state is None:  # the server itself said nothing
            return f"its server does not answer: {words.splitlines()[0]}: correct {_WHERE}", 3
        if state == "42501":
            return f"{words.splitlines()[0]}: have its owner grant you the ledger's tables", 2
        return words, 2


def _url(text: str) -> sa.URL:
    """The URL, checked. Nothing of it may be said where a password may have slipped out of place.

    Raises UserError.
    """
    like = "postgresql://user@host:5432/database, or sqlite:///path"
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise UserError(f"{_WHERE} is no URL of a database: write it like {like}") from None
    if url.drivername == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UserError(f"{_WHERE}: sqlite:///path names the ledger's file")
        file = Path(url.database).expanduser().absolute()
        return sa.URL.create("sqlite", database=str(file))
    if url.drivername not in _POSTGRES:
        raise UserError(f"{_WHERE}: a ledger is in PostgreSQL or in SQLite: write it like {like}")
    if "@" in (url.host or "") or set("@:/") & set(url.database or ""):
        raise UserError(f"{_WHERE}: in a password write %40 for @, %3A for :, %2F for /")
    return url.set(drivername="postgresql+psycopg")


def _sqlite(url: sa.URL, foreign_keys: bool = True) -> sa.Engine:
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Parameters and paths are the user's own business on a shared submit machine.
        path.touch(mode=0o600)
    except OSError as error:
        raise UserError(f"ledger {path}: {error.strerror}; set CONDORCTL_LEDGER") from None
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_S}, json_serializer=as_json)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # The driver's own idea of when a transaction starts is too late for `begin`.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _keep_copy(file: Path, suffix: str) -> None:
    """Copy the ledger, as it is in the file and its journal, beside itself."""
    target = file.with_name(f"{file.name}.{suffix}")
    # Only who holds the write lock comes here: what lies there was left by one that was killed.
    draft = file.with_name(f"{file.name}.{suffix}.new")
    try:
        draft.unlink(missing_ok=True)
        draft.with_name(f"{draft.name}-journal").unlink(missing_ok=True)
        draft.touch(mode=0o600)
        # A connection of its own: whoever holds the write lock does not keep it from reading.
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(draft)) as copy:
            source.backup(copy)
        draft.replace(target)
    except (OSError, sqlite3.Error) as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            f"ledger {file}: no copy of it can be kept as {target.name} ({error}), so it is not "
            "brought up to date: make room there, or set CONDORCTL_LEDGER"
        ) from None


def _postgres(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(
            url,
            connect_args={
                "connect_timeout": _CONNECT_S,
                "client_encoding": "utf8",
                "application_name": "condorctl",
                # Behind a connection pooler the next statement may be another server's.
                "prepare_threshold": None,
                # A server that is gone without a word is noticed within half a minute.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 30_000,
                **url.query,
            },
            # A snapshot taken before the lock is had would show what was true before it.
            isolation_level="READ COMMITTED",
            json_serializer=as_json,
            pool_pre_ping=True,  # `follow` outlives a server's restart
        )
    except ModuleNotFoundError:
        raise UserError(
            f"{_WHERE}: PostgreSQL needs psycopg: pip install 'condorctl[postgres]'"
        ) from None

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = '{_BUSY_S}s';"
            f"SET LOCAL idle_in_transaction_session_timeout = '{_ABANDONED_S}s';"
            f"SELECT {_LOCK}"
        )

    return engine


def _layout(connection: sa.Connection, tables: sa.MetaData) -> str | None:
    """The version of the layout in the database; None where there is none yet.

    Raises UserError for a database that holds another program's tables of the same names.
    """
    there = set(sa.inspect(connection).get_table_names())
    if _version.name in there:
        return connection.scalar(sa.select(_version.c.version_num)) or "none"
    if connection.dialect.name == "sqlite":
        # Where those before there was an `alembic_version` kept it.
        number = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if number:
            return f"0.{number}"
    if taken := sorted(there & set(tables.tables)):
        raise UserError(
            f"{_WHERE}: this database has a table {taken[0]!r} of another program: "
            "give the ledger a database of its own"
        )
    return None


def as_json(value: Any) -> str:
    """`value` as JSON that every database takes."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` without the numbers that JSON, and PostgreSQL, does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
