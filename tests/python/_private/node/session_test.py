"""Session directories: what is made, and what is not trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ray_mono._private.node import bootstrap, elsewhere, session
from ray_mono._private.node.process_identity import ProcessIdentity
from ray_mono._private.node.session import NodePaths, NodeRecord, SessionError
from ray_mono.common import private_files
from ray_mono.scripts import stop
from tests.other_user import OTHER_UID, give_away, needs_another_user


def make_record(made: session.Session, reaper: ProcessIdentity, port: int = 7000) -> NodeRecord:
    return NodeRecord(
        node_id="ab" * 28,
        is_head=True,
        session_dir=str(made.path),
        node_ip_address="127.0.0.1",
        gcs_address=f"127.0.0.1:{port}",
        raylet_socket="raylet",
        store_socket="store",
        store_file="file",
        reaper_pid=reaper.pid,
        reaper_start_ticks=reaper.start_ticks,
    )


def this_process() -> ProcessIdentity:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return identity


def test_a_session_is_this_users_alone(session_base: Path) -> None:
    made = session.create_session(session_base)
    for path in (made.path, made.logs, made.sockets, made.nodes):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [found.path for found in session.list_sessions(session_base)] == [made.path]


def test_sessions_may_lie_below_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-mine")
    assert session.base_directory("~/rays") == Path("/home-of-mine/rays")
    monkeypatch.setenv("RAY_MONO_TMPDIR", "~")
    assert session.base_directory() == Path("/home-of-mine")
    with pytest.raises(ValueError, match="~nobody-of-that-name/a: no user 'nobody-of-that-name' has a home"):
        session.base_directory("~nobody-of-that-name/a")


def test_a_directory_that_others_may_read_is_no_session(session_base: Path) -> None:
    made = session.create_session(session_base)
    made.path.chmod(0o755)
    assert session.list_sessions(session_base) == []
    assert session.join_session(made.path) is None
    with pytest.raises(SessionError, match="not a session directory.*mode drwxr-xr-x"):
        session.open_session(made.path)


def test_a_base_that_others_can_change_is_refused(session_base: Path) -> None:
    session_base.chmod(0o777)
    with pytest.raises(SessionError, match="RAY_MONO_TMPDIR"):
        session.create_session(session_base)
    session_base.chmod(0o1777)
    session.create_session(session_base)


@needs_another_user
def test_a_base_of_another_user_is_refused_even_where_it_is_sticky(session_base: Path) -> None:
    """He may rename a session away and put one with a prepared database in its place."""
    made = session.create_session(session_base)
    session_base.chmod(0o1777)
    give_away(session_base)
    his = f"{session_base}.* belongs to user id {OTHER_UID}"
    for use in (
        lambda: session.create_session(session_base),
        lambda: session.create_session(session_base / "deeper"),
        lambda: session.join_session(made.path),
        lambda: session.open_session(made.path),
        lambda: session.list_sessions(session_base),
    ):
        with pytest.raises(SessionError, match=his):
            use()
    assert not (session_base / "deeper").exists()
    with pytest.raises(SessionError, match=his):
        bootstrap.local_sessions(str(session_base))
    bootstrap.record_current_cluster(make_record(made, this_process()))
    assert bootstrap.read_current_cluster() is None


@needs_another_user
def test_a_base_of_a_user_without_a_number_here_may_be_anybodys(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a user namespace; on the way to a base such an owner is taken for root."""
    monkeypatch.setattr(private_files, "_is_unmapped", lambda uid: uid == OTHER_UID)
    base = session_base / "base"
    base.mkdir()
    give_away(session_base)
    session.create_session(base)
    give_away(base)
    for use in (session.create_session, session.list_sessions):
        with pytest.raises(SessionError, match=f"belongs to user id {OTHER_UID}, neither"):
            use(base)
    os.chown(session_base, os.getuid(), -1)


@pytest.fixture
def default_base(session_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /tmp/ray_mono; not made yet."""
    monkeypatch.delenv(session.BASE_VARIABLE)
    monkeypatch.setattr(session, "DEFAULT_BASE", str(session_base / "d"))
    session_base.chmod(0o1777)
    return session_base / "d"


def test_the_default_base_is_made_for_all_users_by_root_and_else_for_its_user(default_base: Path) -> None:
    made = session.create_session(session.base_directory())
    assert made.path.parent == default_base
    assert stat.S_IMODE(default_base.stat().st_mode) == (0o1777 if os.getuid() == 0 else 0o700)
    default_base.chmod(0o755)
    session.create_session(session.base_directory())
    assert stat.S_IMODE(default_base.stat().st_mode) == 0o755


@needs_another_user
@pytest.mark.parametrize("kind", ["sticky", "link", "file"])
def test_beside_another_users_default_base_a_base_of_ones_own_serves_and_is_announced_once(
    default_base: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    if kind == "sticky":
        default_base.mkdir()
        default_base.chmod(0o1777)
    elif kind == "link":
        default_base.symlink_to(default_base.parent)
    else:
        default_base.touch()
    give_away(default_base)
    own = Path(f"{default_base}_{os.getuid()}")
    for _ in range(2):
        made = session.create_session(session.base_directory())
        assert made.path.parent == own
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert caplog.text.count("is another user's") == 1 and str(own) in caplog.text
    # What was started there is found again, also once the other's is gone.
    os.chmod(default_base, 0o700, follow_symlinks=True)
    default_base.rmdir() if kind == "sticky" else default_base.unlink()
    assert session.base_directory() == own


@needs_another_user
def test_names_that_another_user_has_taken_are_an_error_that_names_them(default_base: Path) -> None:
    own = Path(f"{default_base}_{os.getuid()}")
    for path in (default_base, own):
        path.mkdir()
        give_away(path)
    with pytest.raises(
        SessionError, match=f"cannot use {own} .*belongs to user id {OTHER_UID}.*RAY_MONO_TMPDIR"
    ):
        session.create_session(session.base_directory())


@needs_another_user
def test_what_another_user_put_where_the_current_cluster_is_recorded_is_not_believed(
    session_base: Path,
) -> None:
    session_base.chmod(0o1777)
    path = bootstrap.current_cluster_path()
    path.write_text("{}")
    give_away(path)
    assert bootstrap.read_current_cluster() is None
    path.unlink()
    # A pipe that nobody writes to: who opened it as a file would wait for ever.
    os.mkfifo(path)
    assert bootstrap.read_current_cluster() is None


@needs_another_user
def test_a_cluster_starts_though_another_user_has_taken_the_name_of_its_record(
    session_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session_base.chmod(0o1777)
    record = make_record(session.create_session(session_base), this_process())
    path = bootstrap.current_cluster_path()
    # A directory is not replaced by a file, not even by root.
    path.mkdir()
    give_away(path)
    bootstrap.record_current_cluster(record)
    (line,) = caplog.messages
    assert f"{path} belongs to user id {OTHER_UID}" in line and record.gcs_address in line
    os.chown(path, os.getuid(), -1)
    with pytest.raises(SessionError, match=f"cannot write {path}"):
        bootstrap.record_current_cluster(record)
    assert [one.name for one in session_base.iterdir() if one.name.startswith(".")] == []


def test_a_second_node_has_files_of_its_own(session_base: Path) -> None:
    made = session.create_session(session_base)
    again = session.join_session(made.path)
    assert again == made
    head, member = NodePaths(made, "ab" * 28, True), NodePaths(made, "cd" * 28, False)
    assert head.socket("raylet") == f"{made.path}/sockets/raylet"
    assert member.socket("raylet") == f"{made.path}/sockets/raylet.cdcdcdcd"
    assert head.store_file != member.store_file
    assert head.log("raylet", "err") != member.log("raylet", "err")


def test_a_path_too_long_for_a_socket_is_refused_with_a_way_out(session_base: Path) -> None:
    made = session.create_session(session_base / ("x" * 60))
    with pytest.raises(SessionError, match="too long for a Unix socket.*--temp-dir"):
        NodePaths(made, "ab" * 28, True).socket("plasma_store")


def test_a_record_says_whether_its_node_runs(session_base: Path) -> None:
    made = session.create_session(session_base)
    record = make_record(made, this_process())
    record.write(made.nodes / "x.json")
    (read,) = session.list_nodes(made)
    assert read == record
    assert read.reaper.is_alive()
    # The same pid, given to another process since.
    assert not ProcessIdentity(os.getpid(), read.reaper_start_ticks - 1).is_alive()


def test_only_our_own_files_are_believed(session_base: Path) -> None:
    path = session_base / "file"
    session.write_private(path, "text")
    assert session.read_private(path) == "text"
    path.chmod(0o666)
    with pytest.raises(SessionError, match="not trusted"):
        session.read_private(path)
    link = session_base / "link"
    link.symlink_to(path)
    with pytest.raises(SessionError, match="cannot read"):
        session.read_private(link)


def test_auto_means_the_cluster_that_runs(session_base: Path) -> None:
    with pytest.raises(ConnectionError, match="ray-mono start --head"):
        bootstrap.find_cluster("auto")
    assert bootstrap.find_cluster(None) is None
    made = session.create_session(session_base)
    bootstrap.record_current_cluster(make_record(made, this_process()))
    expected = bootstrap.ClusterAddress("127.0.0.1:7000", str(made.path))
    assert bootstrap.find_cluster("auto") == bootstrap.find_cluster(None) == expected
    assert bootstrap.find_cluster("local") is None
    gone = ProcessIdentity(os.getpid(), 1)
    bootstrap.record_current_cluster(make_record(made, gone))
    assert bootstrap.find_cluster(None) is None


def test_the_environment_names_a_cluster(session_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bootstrap.ADDRESS_VARIABLE, "127.0.0.1:6380")
    for given, address in (
        (None, "127.0.0.1:6380"),
        ("auto", "127.0.0.1:6380"),
        ("127.0.0.1:1", "127.0.0.1:1"),
    ):
        cluster = bootstrap.find_cluster(given)
        assert cluster is not None and cluster.address == address
    monkeypatch.setenv(bootstrap.ADDRESS_VARIABLE, "local")
    assert bootstrap.find_cluster(None) is None


def test_several_addresses_are_places_of_one_head_and_a_node_here_is_one_of_them(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = "127.0.0.1:1, 10.1.2.3:7000,127.0.0.1:2"
    elsewhere = bootstrap.ClusterAddress("127.0.0.1:1", None, ("10.1.2.3:7000", "127.0.0.1:2"))
    assert bootstrap.find_cluster(addresses) == elsewhere
    monkeypatch.setenv(bootstrap.ADDRESS_VARIABLE, addresses)
    assert bootstrap.find_cluster(None) == bootstrap.find_cluster("auto") == elsewhere
    made = session.create_session(session_base)
    record = make_record(made, this_process())
    NodeRecord(**{**vars(record), "gcs_address": "10.1.2.3:7000"}).write(made.nodes / "x.json")
    here = bootstrap.find_cluster(addresses)
    assert here == bootstrap.ClusterAddress("10.1.2.3:7000", str(made.path), ("127.0.0.1:1", "127.0.0.1:2"))
    assert here is not None and here.raylet_socket == record.raylet_socket
    for wrong in ("127.0.0.1:1,", "127.0.0.1:1,auto", ","):
        with pytest.raises(ValueError, match="several with commas"):
            bootstrap.find_cluster(wrong)


def test_localhost_means_the_head_on_this_machine(session_base: Path) -> None:
    made = session.create_session(session_base)
    record = make_record(made, this_process())
    NodeRecord(**{**vars(record), "gcs_address": "10.1.2.3:7000"}).write(made.nodes / "x.json")
    assert bootstrap.find_cluster("localhost:7000") == bootstrap.ClusterAddress(
        "10.1.2.3:7000", str(made.path)
    )
    assert bootstrap.find_cluster("localhost:7001") == bootstrap.ClusterAddress("127.0.0.1:7001", None)


def test_a_cluster_in_another_base_is_found_by_its_address_whatever_was_started_since(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "DEFAULT_BASE", str(session_base / "usual"))
    monkeypatch.delenv(session.BASE_VARIABLE)
    first, second = (session.create_session(session_base / name) for name in ("first", "second"))
    for made, port, node_id in ((first, 7001, "ab" * 28), (second, 7002, "cd" * 28)):
        record = make_record(made, this_process(), port)
        record = NodeRecord(**{**vars(record), "node_id": node_id})
        elsewhere.write_down(record)
        bootstrap.record_current_cluster(record)
    assert bootstrap.find_cluster("127.0.0.1:7001") == bootstrap.ClusterAddress(
        "127.0.0.1:7001", str(first.path)
    )
    assert bootstrap.find_cluster("auto") == bootstrap.ClusterAddress("127.0.0.1:7002", str(second.path))
    assert [record.session_dir for record in stop._find("localhost:7001", None)] == [str(first.path)]
    # One that has ended is not found, and not looked at again.
    gone = make_record(first, ProcessIdentity(os.getpid(), 1), 7001)
    elsewhere.write_down(gone)
    assert bootstrap.find_cluster("127.0.0.1:7001") == bootstrap.ClusterAddress("127.0.0.1:7001", None)
    entry = elsewhere.entry_of(gone.session_dir, gone.node_id)
    assert entry is not None and not entry.exists()
    in_usual_base = session.create_session(session_base / "usual")
    assert elsewhere.entry_of(in_usual_base.path, "ab" * 28) is None


@pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "host:0", "host:65536", "ray://host:10001"])
def test_what_is_no_address_is_refused_by_name(session_base: Path, address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        bootstrap.find_cluster(address)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    from ray_mono.common.version import VERSION

    ours = platform.python_version_tuple()
    bootstrap.check_versions("it", VERSION, f"{ours[0]}.{ours[1]}.99")
    for version, python_version in ((VERSION, "2.7.18"), ("0.0.1", platform.python_version())):
        with pytest.raises(bootstrap.VersionMismatchError, match=f"it runs ray_mono {version} on Python"):
            bootstrap.check_versions("it", version, python_version)
