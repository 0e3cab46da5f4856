"""Many small cases: a result that differs is seen, and a shard that is killed loses nothing."""

import json

import pytest

from benchmarks.many import contents, measure


def test_a_changed_file_is_seen_and_a_changed_time_is_not(tmp_path):
    write = lambda name, text: (tmp_path / name).write_text(text)
    write("case0.nii.gz", "mask")
    write("case0.json", json.dumps({"draws": 2, "seconds": 1.0}))
    before = contents(tmp_path)
    write("case0.json", json.dumps({"draws": 2, "seconds": 9.0}))
    write("list.json", "{}")
    assert contents(tmp_path) == before and set(before) == {"case0.nii.gz", "case0.json"}
    write("case0.json", json.dumps({"draws": 3, "seconds": 1.0}))
    assert contents(tmp_path).keys() == before.keys() and contents(tmp_path) != before


@pytest.mark.slow
def test_one_process_one_command_each_and_shards_of_which_one_is_killed_give_the_same(tmp_path):
    found = measure(60, 1, tmp_path)
    assert (found["files"], found["differ"], found["alone_differ"], found["lost"]) == (240, 0, 0, 0)
    assert 5 <= found["had_when_killed"] < 15 and found["ratio"] > 1
