import errno
import logging
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from etl.errors import ConfigError
from training.data.spool import Spool

PAGE = os.sysconf("SC_PAGE_SIZE")


def arrays_of(number, size=100):
    return {
        "ids": np.arange(size, dtype=np.int32) + number,
        "none": np.empty(0, np.float32),
        "kinds": np.full(3, number, np.int8),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_was_put_is_got_and_cannot_be_written(tmp_path):
    spool = Spool(str(tmp_path), 1 << 20)
    for number in range(5):
        spool.put(("part", number), arrays_of(number))
    for number in (3, 0, 4, 1, 2):
        found = spool.get(("part", number))
        assert_same(found, arrays_of(number))
        assert not found["ids"].flags.writeable
    assert spool.get(("part", 5)) is None


def test_arrays_that_were_given_out_outlive_the_spool(tmp_path):
    spool = Spool(str(tmp_path), 1 << 20)
    spool.put(0, arrays_of(7))
    found = spool.get(0)
    spool.close()
    assert_same(found, arrays_of(7))


def test_it_keeps_what_fits_and_leaves_out_the_rest(tmp_path):
    spool = Spool(str(tmp_path), 2 * PAGE)
    for number in range(4):
        spool.put(number, arrays_of(number))
    assert [spool.get(number) is None for number in range(4)] == [False, False, True, True]
    assert spool.num_bytes == 2 * PAGE


def test_threads_may_put_and_get_at_once(tmp_path):
    spool = Spool(str(tmp_path), 1 << 24)

    def work(thread):
        for number in range(50):
            spool.put((thread, number), arrays_of(thread * 30 + number % 30, 500))
            assert_same(spool.get((thread, number)), arrays_of(thread * 30 + number % 30, 500))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in range(4):
        for number in range(50):
            assert_same(spool.get((thread, number)), arrays_of(thread * 30 + number % 30, 500))


def test_a_full_disk_stops_it_with_one_warning_and_what_is_there_stays(tmp_path, monkeypatch, caplog):
    spool = Spool(str(tmp_path), 1 << 20)
    spool.put(0, arrays_of(0))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        spool.put(1, arrays_of(1))
        spool.put(2, arrays_of(2))
    assert [record.getMessage().count("No space left on device") for record in caplog.records] == [1]
    assert_same(spool.get(0), arrays_of(0))
    assert spool.get(1) is None


def test_a_write_that_is_cut_short_goes_on(tmp_path, monkeypatch):
    spool = Spool(str(tmp_path), 1 << 20)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:7], at))
    spool.put(0, arrays_of(0))
    assert_same(spool.get(0), arrays_of(0))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"read\.cache_folder: cannot create a file in .*absent"):
        Spool(str(tmp_path / "absent"), 1 << 20)


def test_nothing_is_left_behind_after_a_kill(tmp_path):
    program = (
        "import sys, time, numpy as np; from training.data.spool import Spool;"
        "spool = Spool(sys.argv[1], 1 << 20); spool.put(0, {'a': np.arange(1000)});"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    assert list(tmp_path.iterdir()) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []
