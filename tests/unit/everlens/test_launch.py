"""The launcher's parts, each by itself; `tests/system/test_up.py` has the whole."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everlens.child import start_child, stop_child
from everlens.errors import SettingsError
from everlens.launch import program as program_module
from everlens.launch.greeting import (
    base_url,
    bundled_picture,
    curl_line,
    greeting,
    without_password,
)
from everlens.launch.program import GaveUp, Program
from everlens.launch.tenure import check_port, hold_directory


def test_every_installation_has_the_picture() -> None:
    """The photograph of the first curl line lies inside scikit-image's wheel."""
    picture = bundled_picture()

    assert picture is not None
    assert picture.stat().st_size > 100_000


@pytest.mark.parametrize(
    "name", ["plain.png", "with space.png", "quo'te.png", 'dou"ble.png', "a;b,c.png", "$HOME.png"]
)
def test_curl_line_survives_any_path(name: str, tmp_path: Path) -> None:
    """Shell and curl both read the path as it is, whatever characters it has."""
    path = tmp_path / name
    path.write_bytes(b"x")

    words = shlex.split(curl_line("http://h/classify", path, {"labels": ["a cat", "dog"]}))

    field = words[3].removeprefix("image=@")
    if field.startswith('"'):
        field = field[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    assert field == str(path)
    assert words[-5:] == ["-F", "labels=a cat", "-F", "labels=dog", "http://h/classify"]


def test_greeting_asks_teaches_and_asks_again() -> None:
    """Three lines to paste: the last waits for what the second taught."""
    lines = [line for line in greeting("http://h:1") if line.startswith("curl ")]

    assert [line.split()[-1] for line in lines] == [
        "http://h:1/classify",
        "http://h:1/samples",
        "http://h:1/classify",
    ]
    assert "id=chelsea-1" in lines[1]
    assert "wait_for=chelsea-1" in lines[2]


def test_greeting_shows_a_key_where_one_is_needed() -> None:
    """The shell puts the key of the environment into each line; the lines hold none."""
    lines = [line for line in greeting("http://h:1", guarded=True) if line.startswith("curl ")]

    for line in lines:
        said = subprocess.run(
            ["bash", "-c", line.replace("curl ", "printf '%s\\n' ", 1)],
            env={"EVERLENS_API_KEY": "evl_x"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "\n-H\nAuthorization: Bearer evl_x\n" in said
    assert len(lines) == 3
    assert any("everlens keys add" in line for line in greeting("http://h:1", guarded=True))
    assert not any("KEY" in line for line in greeting("http://h:1"))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("box.local", "http://box.local:80"),
    ],
)
def test_base_url_can_be_reached(host: str, url: str) -> None:
    """An address to listen on everywhere is printed as one to call."""
    assert base_url(host, 80) == url


def test_password_is_not_printed() -> None:
    """User and password of an address stay out of what people see."""
    assert without_password("redis://me:secret@host:6379/0") == "redis://host:6379/0"


def test_directory_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that a living process holds is refused at once; freed, it can be held."""
    monkeypatch.setattr("everlens.launch.tenure._ORPHANS_S", 60.0)
    lock = hold_directory(tmp_path / "data")
    began = time.monotonic()

    with pytest.raises(SettingsError, match=f"process {os.getpid()} already uses"):
        hold_directory(tmp_path / "data")

    assert time.monotonic() - began < 20
    os.close(lock)
    os.close(hold_directory(tmp_path / "data"))


def test_directory_of_a_dead_launcher_is_waited_for(tmp_path: Path) -> None:
    """A lock that only an orphan still holds is taken when the orphan has gone."""
    lock = hold_directory(tmp_path)
    orphan = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
    )
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(finished.pid).encode(), 0)
    os.close(lock)
    assert orphan.stdin is not None
    orphan.stdin.close()  # it ends now, some time after the next line began to wait

    os.close(hold_directory(tmp_path))
    orphan.wait()


def test_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A path that is a file is one sentence that names the setting."""
    (tmp_path / "data").write_text("a file")

    with pytest.raises(SettingsError, match="EVERLENS_DATA_DIR"):
        hold_directory(tmp_path / "data")


def test_port_in_use_is_refused() -> None:
    """A port that somebody listens on is refused before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 is in use"):
            check_port("127.0.0.1", port)

    check_port("127.0.0.1", port)


def test_foreign_address_is_refused() -> None:
    """An address that this machine does not have cannot be listened on."""
    with pytest.raises(SettingsError, match="cannot listen"):
        check_port("192.0.2.1", 8000)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory of Python modules that children can be."""
    (tmp_path / "good.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    (tmp_path / "bad.py").write_text("import sys; print('WARNING it broke'); sys.exit(1)")
    (tmp_path / "unset.py").write_text("import sys; print('set FOO'); sys.exit(2)")
    (tmp_path / "torn.py").write_text("import sys; print('state is torn'); sys.exit(3)")
    return tmp_path


def _program(room: Path, name: str) -> Program:
    lock = os.open(room / "LOCK", os.O_RDWR | os.O_CREAT)
    environment = os.environ | {"PYTHONPATH": str(room)}
    return Program(name, environment, room / f"{name}.log", lock=lock)


def _ended(program: Program) -> None:
    assert program.process is not None
    program.process.wait(60)


def test_child_that_leaves_is_started_again_with_back_off(room: Path) -> None:
    """It is started anew after a wait that grows; the third quick end is the last."""
    program = _program(room, "bad")
    now = time.monotonic()
    program.start()
    _ended(program)

    assert "again in 0.5 s" in next(program.tend(now))
    assert list(program.tend(now + 0.4)) == []
    assert not program.running
    assert list(program.tend(now + 0.6)) == []
    _ended(program)
    assert "again in 2 s" in next(program.tend(now + 1))
    list(program.tend(now + 4))
    _ended(program)
    with pytest.raises(GaveUp, match="WARNING it broke") as failure:
        list(program.tend(now + 5))
    assert failure.value.code == 1


def test_child_that_ran_long_has_a_clean_slate(room: Path) -> None:
    """An end after a long run counts as the first."""
    program = _program(room, "bad")
    program.failures = 2
    program.start()
    _ended(program)

    line = next(program.tend(time.monotonic() + program_module.QUICK_S + 1))

    assert "again in 0.5 s" in line
    assert program.failures == 1


def test_wrong_settings_end_everything(room: Path) -> None:
    """Exit code 2 is not tried again; the last line is what people see."""
    program = _program(room, "unset")
    program.start()
    _ended(program)

    with pytest.raises(GaveUp, match=r"^set FOO") as failure:
        list(program.tend(time.monotonic()))

    assert failure.value.code == 2


def test_learner_that_must_not_go_on_is_left_alone(room: Path) -> None:
    """Exit code 3 is said once, and neither tried again nor the end of the others."""
    program = _program(room, "torn")
    program.start()
    _ended(program)

    said = list(program.tend(time.monotonic()))

    assert "state is torn" in said[0]
    assert program.ended
    assert list(program.tend(time.monotonic() + 100)) == []
    assert not program.running


def test_warnings_are_shown_once(room: Path) -> None:
    """Lines with a warning or an error are returned once, whole lines only."""
    program = _program(room, "bad")
    program.start()
    _ended(program)
    with program.log_path.open("a") as log:
        log.write("INFO fine\nERROR half a li")
        log.flush()
        first = program.new_warnings()
        log.write("ne\n")

    assert first == ["WARNING it broke"]
    assert program.new_warnings() == ["ERROR half a line"]
    assert program.new_warnings() == []


def test_long_log_is_set_aside(room: Path) -> None:
    """A log beyond its limit is renamed at the next start."""
    program = _program(room, "bad")
    program.log_path.write_bytes(b"x" * (10 * 2**20 + 1))
    program.start()
    _ended(program)

    assert program.log_path.stat().st_size < 100
    assert program.log_path.with_suffix(".log.1").stat().st_size > 10 * 2**20


def test_child_is_stopped_or_killed(tmp_path: Path) -> None:
    """SIGTERM ends a child that heeds it; one that does not is killed after the time."""
    results = []
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); "
    for prepare, within_s in (("", 60.0), (deaf, 0.5)):
        source = f"import time; {prepare}print('up', flush=True); time.sleep(60)"
        read, write = os.pipe()
        with os.fdopen(write, "wb") as out, os.fdopen(read, "rb") as said:
            child = start_child([sys.executable, "-c", source], log=out)
            assert said.readline() == b"up\n"
            results.append(stop_child(child, within_s))

    assert results == [True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A child gets SIGTERM when its parent is killed, and says so before it ends."""
    child = (
        "import signal, sys, time\n"
        "def end(*_): print('told to end', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys, time\n"
        "from everlens.child import start_child\n"
        f"start_child([sys.executable, '-c', {child!r}], log=sys.stdout.buffer)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        rest = process.stdout.read()  # returns when the child, too, has closed the pipe

    assert rest == b"told to end\n"


def test_a_child_is_of_our_session_in_a_process_group_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C does not reach it, and niceness counts between it and us."""
    source = "import os; print(os.getsid(0), os.getpgrp() == os.getpid(), os.nice(0))"
    log = tmp_path / "said"
    with log.open("wb") as out:
        start_child([sys.executable, "-c", source], log=out).wait(60)
    assert log.read_text().split() == [str(os.getsid(0)), "True", str(os.nice(0))]
