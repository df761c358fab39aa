"""Whatever an operator gets wrong ends in one line and the documented exit code."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from importlib.metadata import version
from pathlib import Path

import pytest

from dispatcher import cli
from dispatcher.errors import ExitCode
from dispatcher.store.connection import Database
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import running

FILES = {
    "notes.txt": "no video",
    "bad.yaml": "frames: {fps: -3}",
    "broken.yaml": "hosts:\n  - [unclosed",
    "nobody.yaml": "hosts: [{name: h}]",
    "one.yaml": "hosts: [{name: h, address: 127.0.0.1, port: 1}]",
    "not.db": "this is no database, and longer than the hundred bytes of the header of one" * 3,
    "file": "",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a database of one running job, dive-a-1, and what can be got wrong."""
    for name in ("COSMA_INVENTORY", "COSMA_QC_DB", "COSMA_QC_WORKERS", "OUTPUT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "GX010001.MP4").write_bytes(b"")

    async def fill() -> None:
        store = await SqliteStore.open(tmp_path / "cosma.db")
        await running(store)
        await store.close()

    asyncio.run(fill())
    database = (tmp_path / "cosma.db").read_bytes()
    (tmp_path / "torn.db").write_bytes(database[:4096] + b"\xff" * 20_000)
    with sqlite3.connect(tmp_path / "newer.db") as writer:
        writer.execute("PRAGMA user_version = 9999")
    return tmp_path


def run(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """As the console script does, in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("sys.argv", ["cosma", *(word.strip("'") for word in command.split())])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    code = ended.value.code
    return code if isinstance(code, int) else 0, said.out, said.err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("jobs --db none.db", 2, "none.db: no database. Run `cosma ingest` first"),
        ("jobs --db not.db", 1, "not.db: the database failed: file is not a database. Name"),
        ("jobs --db torn.db", 1, "torn.db: the database failed: database disk image is malformed"),
        ("jobs --db newer.db", 1, "newer.db: the database has schema 9999"),
        ("jobs --db file/x.db", 2, "file/x.db: no database"),
        ("jobs -a reef", 2, "reef: no such acquisition. Known are: Dive"),
        ("summary reef", 2, "reef: no such acquisition. Known are: Dive"),
        ("stitch ls -a reef", 2, "reef: no such acquisition. Known are: Dive"),
        ("stitch show s", 2, "s: no such stitch. `cosma stitch ls` lists them"),
        ("stitch retry s", 2, "s: no such stitch. `cosma stitch ls` lists them"),
        ("why dive-a", 2, "dive-a: no such job. Did you mean dive-a-1?"),
        ("job show x", 2, "x: no such job. `cosma jobs` lists them"),
        ("job logs dive-a-1 --attempt 9", 2, "dive-a-1: no attempt 9: it has had 1"),
        ("job rerun dive-a-1 --from Painting", 2, "Painting: no such stage. One of Validation"),
        ("job retry dive-a-1", 2, "dive-a-1: retry is refused: it is"),
        ("job retry dive-a-1 --abandon", 2, "abandon is refused: h is not silent"),
        ("ingest nowhere -a reef", 2, "nowhere: no such file or directory"),
        ("ingest empty -a reef", 2, "empty: no .MP4 file found"),
        ("ingest notes.txt -a reef", 2, "notes.txt: no video: its name does not end in .MP4"),
        ("ingest video -a ''", 2, "the survey has no name"),
        ("ingest video -a reef -c no.yaml", 2, "no.yaml: cannot read the configuration: No such"),
        ("ingest video -a reef -c bad.yaml", 2, "bad.yaml: frames.fps: Input should be greater"),
        ("ingest video -a reef -c broken.yaml", 2, "broken.yaml:2: not valid YAML: expected"),
        ("ingest video -a reef --db file/x.db", 1, "file/x.db: the database cannot be made"),
        ("dispatch --once", 10, "inventory.yaml: no inventory: there is no such file. Add a host"),
        ("dispatch --once -i broken.yaml", 10, "broken.yaml:2: not valid YAML"),
        ("dispatch --once -i nobody.yaml", 10, "nobody.yaml:1: hosts[0].address: missing"),
        ("dispatch --once -i empty", 10, "empty: cannot read the inventory: Is a directory"),
        ("dispatch --once -i one.yaml --artifacts file", 2, "results cannot go there: it is no"),
        ("worker ls -i none.yaml", 10, "none.yaml: no inventory: there is no such file"),
        ("worker probe g -i one.yaml", 10, "no host g: the inventory does not name it. Known"),
        ("worker cordon g -i one.yaml", 10, "no host g: the inventory does not name it. Known"),
        ("worker probe h -i one.yaml", 12, "h: host cannot be reached: "),
        ("fsck -i one.yaml", 3, "h did not answer: host cannot be reached"),
        ("fsck", 10, "inventory.yaml: no inventory"),
        ("plan --what-if coffee", 2, "--what-if: 'coffee' is not understood; expected: add host"),
        ("plan --what-if 'priority", 2, "expected: priority JOB N"),
        ("demo --out file", 2, "not a directory. Give --out another path"),
        ("demo --out file/x", 2, "file/x: the directory cannot be made: Not a directory. Give"),
    ],
)  # fmt: skip
def test_one_line_and_the_exit_code(
    here: Path, command: str, code: int, words: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended, _, errors = run(command, monkeypatch, capsys)
    assert words in errors
    assert ended == code and code in set(ExitCode)
    assert "Traceback" not in errors and "internal error" not in errors
    assert sum(line.startswith("cosma: ") for line in errors.splitlines()) <= 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("jobs --state sleeping", "queued"),
        ("job priority dive-a-1 high", "integer"),
        ("job priority dive-a-1 99999999999999999999", "less than or equal to 1000000"),
        ("worker add h", "Missing argument 'address'. Usage: `cosma worker add --help`"),
        ("gc --days -3", "--days"),
        ("dance", "No such command"),
        ("job rerun dive-a-1", "--from"),
    ],
)
def test_what_the_command_line_itself_cannot_mean(
    here: Path, command: str, words: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended, _, errors = run(command, monkeypatch, capsys)
    assert ended == ExitCode.USAGE
    (line,) = errors.splitlines()
    assert line.startswith("cosma: ") and words in line


def test_a_priority_below_zero_is_a_number_and_no_option(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, said, _ = run("job priority dive-a-1 -2", monkeypatch, capsys)
    assert (ended, "priority dive-a-1: noted" in said) == (ExitCode.OK, True)


def test_a_broken_inventory_that_nobody_named_is_not_passed_over(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "inventory.yaml").write_text(FILES["broken.yaml"])
    ended, said, errors = run("plan", monkeypatch, capsys)
    assert (ended, said) == (ExitCode.INVENTORY, "")
    assert "inventory.yaml:2: not valid YAML" in errors


def test_a_variable_that_is_no_number_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COSMA_QC_POLL_S", "often")
    ended, _, errors = run("jobs", monkeypatch, capsys)
    assert ended == ExitCode.USAGE
    assert "cosma: COSMA_QC_POLL_S: poll_s: Input should be a valid number" in errors


def test_a_directory_that_cannot_be_listed_is_not_passed_over(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may list all, so that rights alone make no test."""
    shut = here / "video" / "auv" / "C1" / "seg"
    shut.mkdir(parents=True)
    list_one = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return list_one(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ended, _, errors = run("ingest video -a reef", monkeypatch, capsys)
    assert ended == ExitCode.USAGE
    assert f"{shut}: cannot be read: Permission denied. Allow it" in errors


def test_a_full_disk_is_called_that_and_the_next_change_works(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    connection.execute("CREATE TABLE t (v BLOB)")
    connection.execute("PRAGMA cache_size=1")  # so that it is met before the commit
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages + 4}")
    database = Database(connection)

    def fill(_: Database) -> None:
        for _ in range(50):
            connection.execute("INSERT INTO t VALUES (randomblob(4000))")

    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        database.commit(fill, durable=True)
    assert not connection.in_transaction
    database.commit(lambda _: connection.execute("INSERT INTO t VALUES (1)"), durable=True)
    assert connection.execute("SELECT COUNT(*) FROM t").fetchone() == (1,)
    database.close()


def test_what_cannot_be_ingested_leaves_no_survey(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest notes.txt -a reef", monkeypatch, capsys)
    assert run("summary reef", monkeypatch, capsys)[0] == ExitCode.USAGE


def test_every_command_is_there_and_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in cli.COMMANDS:
        ended, said, _ = run(f"{name} --help", monkeypatch, capsys)
        assert ended == ExitCode.OK and f"{name} [OPTIONS]" in said
    _, said, _ = run("--help", monkeypatch, capsys)
    assert all(f" {name} " in said for name in cli.COMMANDS)
    assert run("--version", monkeypatch, capsys)[:2] == (ExitCode.OK, f"cosma {version('cosma')}\n")
    _, _, errors = run("dispach", monkeypatch, capsys)
    assert "dispatch" in errors
