"""Several processes on one list: every case once, whoever dies, and the whole proven equal to a single run."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from diffuseg.errors import UserError
from diffuseg.inference.claims import Claims, read_share
from diffuseg.inference.folder import Callbacks, predict_folder
from diffuseg.inference.merge import merge
from diffuseg.inference.sampling import SamplingOptions
from diffuseg.inference.shards import Shard, read_shard, shard_of_environment
from tests.inference.oracle import make_model

OPTIONS = SamplingOptions(draws=2)
CASES = 6
ARRAY = {
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "16",
    "SLURM_ARRAY_TASK_STEP": "2",
}


def write_scans(folder: Path, cases: int) -> Path:
    folder.mkdir()
    for number in range(cases):
        data = 10.0 * np.random.default_rng(number).integers(0, 2, (5, 4, 3)).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"case{number:02}_0000.nii.gz")
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans") / "scans", CASES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, scans) -> Path:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    predict(scans, out)
    return out


def predict(scans, out, share=None, **changes):
    return predict_folder(make_model(noise=0.5), [scans], out, OPTIONS, share=share, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """Every visible file of a folder, records without times."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            found[path.name] = path.read_bytes()
            if path.suffix == ".json":
                found[path.name] = json.dumps(json.loads(path.read_text()) | {"seconds": 0}).encode()
    return found


def test_shards_of_any_number_are_the_list_each_item_once():
    for count in (1, 2, 4, 7, 12):
        shares = [Shard(index, count).of(list(range(9))) for index in range(1, count + 1)]
        assert sorted(item for share in shares for item in share) == list(range(9))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "-1/4", "1/0", "1/4/2", "a/b", "", "1.0/4"])
def test_what_is_no_shard_is_refused_in_a_sentence(text):
    with pytest.raises(UserError, match=r"--shard .*(count from 1|expected a shard).*1/N to --shard N/N"):
        read_shard(text)


def test_the_last_shard_is_n_of_n():
    assert (read_shard("4/4"), read_shard("1/4")) == (Shard(4, 4), Shard(1, 4))


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "10"}, "1/4"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "16", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "4/4"),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, "4/4"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, "2/2"),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "3"}, "1/3"),
        ({"RANK": "2", "WORLD_SIZE": "3"}, "3/3"),
    ],
)
def test_the_environment_says_which_shard(environment, name):
    found = shard_of_environment(environment)
    assert found.name == name
    assert any(key in found.announce() for key in environment), "it says what it has read"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "nothing says"),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS is not"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK is 3"),
        ({"RANK": "x", "WORLD_SIZE": "3"}, "no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, "both"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "10", "SLURM_ARRAY_TASK_COUNT": "3"}, "gaps"),
        ({"SLURM_ARRAY_TASK_ID": "10"}, "SLURM_ARRAY_TASK_MIN is not"),
    ],
)
def test_an_environment_that_does_not_say_it_is_refused(environment, says):
    with pytest.raises(UserError, match=says):
        shard_of_environment(environment)


def test_shards_of_one_folder_merge_into_what_one_run_makes(tmp_path, scans, whole):
    results = [predict(scans, tmp_path, Shard(index, 4)) for index in (3, 1, 4, 2)]
    assert sorted(case for result in results for case in result.finished) == [f"case{n:02}" for n in range(CASES)]
    assert merge(tmp_path).finished == [f"case{n:02}" for n in range(CASES)]
    assert contents(tmp_path) == contents(whole)


def test_folders_merge_too_and_again(tmp_path, scans, whole):
    folders = [tmp_path / str(index) for index in (1, 2)]
    for index, folder in enumerate(folders, 1):
        predict(scans, folder, Shard(index, 2))
    for _ in range(2):
        assert not merge(tmp_path / "all", folders).failed
        assert contents(tmp_path / "all") == contents(whole)
    one = tmp_path / "one"
    predict(scans, one, Shard(1, 1))
    merge(one)
    assert (one / "shards/merged.json").read_bytes() == (tmp_path / "all/shards/merged.json").read_bytes()


def test_what_is_not_the_list_is_named(tmp_path, scans):
    predict(scans, tmp_path / "1", Shard(1, 2))
    with pytest.raises(UserError, match=r"3 cases missing: case01 \(shard 2/2\), case03 .*Start the shard again"):
        merge(tmp_path / "1")
    predict(scans, tmp_path / "2", Shard(2, 2))
    both = [tmp_path / "1", tmp_path / "2"]

    shutil.copytree(tmp_path / "1", tmp_path / "3")
    with pytest.raises(UserError, match="3 cases there twice: case00, case02"):
        merge(tmp_path / "all", [*both, tmp_path / "3"])
    record = tmp_path / "2/case01.json"
    kept = record.read_text()
    record.write_text(kept.replace('"seed": 0', '"seed": 7'))
    with pytest.raises(UserError, match=r"not of this run: case01 \(seed 7, not 0\)"):
        merge(tmp_path / "all", both)
    record.write_text(kept.replace('"model": "000000000000"', '"model": "111111111111"'))
    with pytest.raises(UserError, match=r"case01 \(model 111111111111, not 000000000000\)"):
        merge(tmp_path / "all", both)
    record.write_text(kept)
    (tmp_path / "2/other.json").write_text(kept)
    with pytest.raises(UserError, match="1 case not in the list: other"):
        merge(tmp_path / "all", both)
    (tmp_path / "2/other.json").unlink()
    (tmp_path / "2/case03.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case03 \(its mask is gone\)"):
        merge(tmp_path / "all", both)
    assert not (tmp_path / "all").exists(), "nothing is written before all is proven"


def test_processes_that_do_not_share_one_list_are_refused(tmp_path, scans):
    predict(scans, tmp_path / "out", Shard(1, 4))
    with pytest.raises(UserError, match="divided by 4 shards, not 5 shards"):
        predict(scans, tmp_path / "out", Shard(5, 5))
    with pytest.raises(UserError, match="draws 2, not 3"):
        predict_folder(make_model(noise=0.5), [scans], tmp_path / "out", SamplingOptions(draws=3), share=Shard(2, 4))
    with pytest.raises(UserError, match="cases that are not here case01"):
        predict(scans / "case00_0000.nii.gz", tmp_path / "out", Shard(2, 4))
    predict(scans, tmp_path / "5", Shard(1, 5))
    with pytest.raises(UserError, match="5 shards, not 4 shards"):
        merge(tmp_path / "all", [tmp_path / "out", tmp_path / "5"])
    with pytest.raises(UserError, match="made with --shard"):
        merge(scans)


def test_a_case_that_fails_is_part_of_the_whole_with_its_reason(tmp_path):
    scans = write_scans(tmp_path / "scans", 4)
    (scans / "case02_0000.nii.gz").write_bytes(b"no image")
    results = [predict(scans, tmp_path / "out", Shard(index, 2)) for index in (1, 2)]
    merged = merge(tmp_path / "out")
    assert merged.failed == [failed for result in results for failed in result.failed]
    assert [case for case, _ in merged.failed] == ["case02"] and merged.finished == ["case00", "case01", "case03"]
    write_scans(tmp_path / "good", 4)
    shutil.copy(tmp_path / "good/case02_0000.nii.gz", scans)
    predict(scans, tmp_path / "out", Shard(1, 2))  # mended
    assert not merge(tmp_path / "out").failed


def test_claims_of_the_dead_expire_and_those_of_the_living_do_not(tmp_path, scans):
    place = tmp_path / "shards/claims"
    place.mkdir(parents=True)
    for case, age in (("case03", 1e6), ("case05", 0)):
        now = time.time()
        (place / f"{case}.1").touch()
        os.utime(place / f"{case}.1", (now - age, now - age))
    share = Claims(1000.0)
    share.patience = 0.0
    result = predict(scans, tmp_path, share)
    assert result.finished == [f"case{n:02}" for n in range(CASES) if n != 5]
    assert share.left == ["case05"] and "case05" in share.then(tmp_path)
    assert sorted(p.name for p in place.iterdir()) == ["case05.1"]


@pytest.mark.parametrize("text", ["claim:0", "claim:-1", "claim:nan", "claim:x"])
def test_claims_expire_after_seconds(text):
    with pytest.raises(UserError, match="--shard claim:"):
        read_share(text)
    with pytest.raises(UserError, match="--overwrite"):
        read_share("claim", overwrite=True)


def work(scans, out, share, log, stop_at):
    """A process of its own: notes each case that it draws from, and at one of them falls asleep for good."""
    present = []

    def note():
        with open(log, "a") as lines:
            lines.write(f"{present[-1]}\n")

    def start(case, number, total):
        present.append(case)
        if number == stop_at:
            note()
            time.sleep(1e6)

    told = Callbacks(on_case=start, on_draw=lambda done, draws: note() if done == 1 else None)
    predict(scans, out, read_share(share), callbacks=told)


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("shares", [["1/4", "2/4", "3/4", "4/4"], ["claim"] * 4])
def test_a_process_that_is_killed_loses_nothing_and_doubles_nothing(tmp_path, scans, whole, shares):
    fork = multiprocessing.get_context("fork")
    out, logs = tmp_path / "out", [tmp_path / f"{n}.log" for n in range(5)]
    start = lambda n, share, stop=None: fork.Process(target=work, args=(scans, out, share, logs[n], stop))
    victim = start(0, shares[0], 1)
    victim.start()
    while not (logs[0].exists() and len(logs[0].read_text().split()) == 2):
        assert victim.is_alive()
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    for claim in (out / "shards/claims").glob(".*") if shares[0] == "claim" else ():
        os.utime(claim, (0, 0))  # as after a long time
    others = [start(n, shares[n % 4]) for n in (1, 2, 3, 4)]  # the last one is the first one again
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0] * 4
    started = [case for log in logs if log.exists() for case in log.read_text().split()]
    killed = logs[0].read_text().split()[1]
    assert sorted(started) == sorted([*(f"case{n:02}" for n in range(CASES)), killed]), "only that of the dead is begun twice"
    assert not merge(out).failed
    assert contents(out) == contents(whole)
